"""Probes without a task: compares the adapters' answers to prompts with those of the base.

The prompts of `--probe auto` are those of the adapters' model cards, then what adapters write.

The base scores the adapters' own answers. These need not be true, so no row here shows that a
composition will work.

The task of all rows is "probe". A row names the adapter that it describes, or none if it describes
all adapters together:

familiarity        share of the tokens of adapters' own answers that are the base's first choice
own_answer_margin  p(top) - p(own) under the base, at the first token of the adapter's own answer
own_answer_rank    median rank of that token under the base; 1 is the base's first choice
kl_to_base         KL(base || adapter) of the first token after each prompt, in nats
name_swap          how much likelier the base finds the answer after the prompt's real names than
                   after made-up names, in nats (capitalised spans serve as names)
cross_talk         (a, b): mean KL(base || a) / mean KL(base || b) on the prompts for which b has
                   the largest KL; 0 means no effect of a, 1 an effect as large as b's
answer_margin      as the probe of that name, if the probe file gives answers
"""

from __future__ import annotations

import itertools
import math
import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from loraprobe.errors import TaskError
from loraprobe.front_matter import front_and_body, read_front_matter
from loraprobe.probes._names import MadeUpNames, capitalised_spans
from loraprobe.probes._probe import ScoreRequest, likelihoods, mean_row
from loraprobe.probes.coverage import first_margin
from loraprobe.records import Coverage
from loraprobe.routing.constant import single
from loraprobe.tasks import ProbePrompts

if TYPE_CHECKING:
    from loraprobe.adapters import Adapter
    from loraprobe.scoring import Likelihood, ModelScorer

TASK = "probe"
ANSWER_TOKENS = 16
_BOUNDS = {
    "familiarity": (0.0, 1.0),
    "own_answer_margin": (0.0, 1.0),
    "answer_margin": (0.0, 1.0),
    "kl_to_base": (0.0, math.inf),
}
WANTED = 64
SAMPLED_TOKENS = 24
ROUNDS = 6  # of sampling at most
LONGEST, SHORTEST = 600, 3  # characters of a prompt
MOST_CARD = 200_000  # characters of a card that are read

_FENCE = re.compile(r"^(`{3,}|~{3,})[ \t]*([^\n`]*)\n(.*?)^\1[ \t]*$", re.DOTALL | re.MULTILINE)
_ASSIGNED = re.compile(
    r"\b(?:prompt|text|question|query|instruction|input_text|inputs?)[ \t]*=[ \t]*"
    r'(?:"""(.+?)"""|\'\'\'(.+?)\'\'\'|"([^"\n]+)"|\'([^\'\n]+)\')',
    re.DOTALL,
)
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")

Likely = Mapping[ScoreRequest, "Likelihood"]
OwnAnswer = tuple[int, ScoreRequest]  # the index of a prompt, and the prompt with an answer


def generated_prompts(
    scorer: ModelScorer,
    adapters: Sequence[Adapter],
    cards: Mapping[str, str | None],
    *,
    seed: int = 0,
    wanted: int = WANTED,
) -> ProbePrompts:
    """At most `wanted` distinct prompts, from model cards first and then from sampling.

    cards: adapter's name -> README text; their widget examples and prompts are taken in turn. If
    there are too few, each adapter samples texts in place of a user's turn, with the seed. Raises
    TaskError if there is no prompt at all.
    """
    prompts = _distinct(_in_turn([card_prompts(cards.get(a.name) or "") for a in adapters]))
    for attempt in range(ROUNDS):
        missing = wanted - len(prompts)
        if missing <= 0 or not adapters:
            break
        share = -(-missing // len(adapters))
        written = []
        for number, adapter in enumerate(adapters):
            with scorer.with_composition(single(adapter)):
                texts = scorer.sample(
                    share, seed=seed + 1000 * attempt + number, max_new_tokens=SAMPLED_TOKENS
                )
            written.append([_whole(text) for text in texts])
        prompts = _distinct([*prompts, *_in_turn(written)])
    if not prompts:
        raise TaskError(
            "The model cards hold no prompt and the adapters write none:",
            "give --probe=FILE with a question a line.",
        )
    return ProbePrompts(dict.fromkeys(prompts[:wanted]))


def card_prompts(card: str) -> list[str]:
    """Prompts in a model card: widget examples, and prompts in its code.

    The front matter is read with limits; if it is not valid YAML, there are no widget examples.
    """
    card = card[:MOST_CARD].replace("\r\n", "\n")
    prompts = _widgets(read_front_matter(card))
    for match in _FENCE.finditer(front_and_body(card)[1]):
        prompts += [next(filter(None, m.groups())) for m in _ASSIGNED.finditer(match.group(3))]
    return _distinct(prompts)


def _widgets(matter: Mapping[Any, Any]) -> list[str]:
    widgets = matter.get("widget")
    texts: list[str] = []
    for widget in widgets if isinstance(widgets, list) else []:
        if isinstance(widget, str):
            texts.append(widget)
        elif isinstance(widget, dict):
            if isinstance(widget.get("text"), str):
                texts.append(widget["text"])
            turns = widget.get("messages")
            for turn in turns if isinstance(turns, list) else []:
                is_user = isinstance(turn, dict) and turn.get("role") == "user"
                if is_user and isinstance(turn.get("content"), str):
                    texts.append(turn["content"])
    return texts


def _in_turn(lists: Iterable[Sequence[str]]) -> list[str]:
    return [text for row in itertools.zip_longest(*lists) for text in row if text is not None]


def _whole(text: str) -> str:
    """The first line without its last word, which may be cut off, unless it ends a sentence."""
    line = next((line for line in text.splitlines() if line.strip()), "")
    words = line.split()
    if len(words) < 3 or line.rstrip()[-1] in ".?!:\"'”’)…。？！":
        return line
    return line.rstrip()[: -len(words[-1])].rstrip()


def _distinct(texts: Iterable[str]) -> list[str]:
    """Clean prompts without repetitions; case and spaces are ignored in the comparison."""
    distinct: dict[str, str] = {}
    for text in texts:
        clean = _CONTROL.sub("", text).strip()
        key = " ".join(clean.casefold().split())
        if SHORTEST <= len(clean) <= LONGEST and any(ch.isalpha() for ch in clean):
            distinct.setdefault(key, clean)
    return list(distinct.values())


def probe_without_task(
    scorer: ModelScorer,
    adapters: Sequence[Adapter],
    probe: ProbePrompts,
    *,
    seed: int = 0,
) -> tuple[Coverage, ...]:
    """The rows that the module's docstring lists, for the prompts of a probe."""
    answers, kl = _answers(scorer, adapters, list(probe.answers))
    written = [request.continuation for pairs in answers.values() for _, request in pairs]
    names = MadeUpNames(scorer.tokenizer, seed, [*probe.answers, *written])
    swap_of = {r: _swapped(r, names) for pairs in answers.values() for _, r in pairs}
    golds = enumerate(probe.answers.items())
    known = [(i, ScoreRequest(prompt, gold)) for i, (prompt, gold) in golds if gold]
    requests = [*swap_of, *filter(None, swap_of.values()), *(request for _, request in known)]
    likely = likelihoods(scorer, requests)
    everybody = [asked for pairs in answers.values() for asked in pairs]
    return (
        _familiarity(everybody, (), likely),
        *(row for name, pairs in answers.items() for row in _of_adapter(pairs, name, likely)),
        *(_row("kl_to_base", each, (name,), range(len(each))) for name, each in kl.items()),
        *_name_swap(everybody, (), swap_of, likely),
        *(row for n, pairs in answers.items() for row in _name_swap(pairs, (n,), swap_of, likely)),
        *_cross_talk(kl),
        *([_margins("answer_margin", known, (), likely)] if known else []),
    )


def _answers(
    scorer: ModelScorer, adapters: Sequence[Adapter], prompts: Sequence[str]
) -> tuple[dict[str, list[OwnAnswer]], dict[str, list[float]]]:
    """Each adapter's greedy first lines that are not blank, and the KL(base || adapter) of the
    first token after each prompt."""
    base = scorer.first_token_distribution(prompts)
    answers: dict[str, list[OwnAnswer]] = {}
    kl: dict[str, list[float]] = {}
    for adapter in adapters:
        with scorer.with_composition(single(adapter)):
            texts = scorer.generate(prompts, max_new_tokens=ANSWER_TOKENS, until_newline=True)
            adapted = scorer.first_token_distribution(prompts)
        answers[adapter.name] = [
            (i, ScoreRequest(prompt, text))
            for i, (prompt, text) in enumerate(zip(prompts, texts, strict=True))
            if text.strip()
        ]
        # Clamped, so that a token to which both give -inf adds 0 and not NaN.
        gap = base.clamp_min(-1e4) - adapted.clamp_min(-1e4)
        kl[adapter.name] = (base.exp() * gap).sum(-1).clamp_min(0).tolist()
    return answers, kl


def _swapped(request: ScoreRequest, names: MadeUpNames) -> ScoreRequest | None:
    """The same answer after made-up names; None if the prompt holds no name."""
    prompt = request.prompt
    swap = names.swapped_pair(prompt, request.continuation, capitalised_spans(prompt))
    return None if swap is None else ScoreRequest(*swap)


def _familiarity(asked: Sequence[OwnAnswer], adapters: tuple[str, ...], likely: Likely) -> Coverage:
    """How many tokens of answers are the base's first choice."""
    ranks = [likely[request].rank for _, request in asked]
    shares = [sum(rank == 1 for rank in of) / len(of) for of in ranks]
    return _row("familiarity", shares, adapters, [i for i, _ in asked])


def _of_adapter(asked: Sequence[OwnAnswer], name: str, likely: Likely) -> Iterable[Coverage]:
    """How familiar the base is with the answers of one adapter."""
    ranks = [float(likely[request].rank[0]) for _, request in asked]
    median = statistics.median(ranks) if ranks else None
    yield _familiarity(asked, (name,), likely)
    yield _margins("own_answer_margin", asked, (name,), likely)
    yield Coverage("own_answer_rank", TASK, median, len(ranks), adapters=(name,))


def _margins(
    figure: str, asked: Sequence[OwnAnswer], adapters: tuple[str, ...], likely: Likely
) -> Coverage:
    margins = [first_margin(likely[request]) for _, request in asked]
    return _row(figure, margins, adapters, [i for i, _ in asked])


def _name_swap(
    asked: Sequence[OwnAnswer],
    adapters: tuple[str, ...],
    swap_of: Mapping[ScoreRequest, ScoreRequest | None],
    likely: Likely,
) -> Iterable[Coverage]:
    """How much likelier answers are after the real names; no row without names."""
    pairs = [(i, request, swap) for i, request in asked if (swap := swap_of[request]) is not None]
    if pairs:
        gains = [likely[real].logprob - likely[swap].logprob for _, real, swap in pairs]
        yield _row("name_swap", gains, adapters, [i for i, _, _ in pairs])


def _cross_talk(kl: Mapping[str, Sequence[float]]) -> Iterable[Coverage]:
    """The effect of each adapter on the prompts on which another has the largest effect."""
    largest: dict[str, list[int]] = {name: [] for name in kl}
    for i, effects in enumerate(zip(*kl.values(), strict=True)):
        if max(effects) > 0:
            largest[list(kl)[effects.index(max(effects))]].append(i)
    for other, owner in itertools.permutations(kl, 2):
        prompts = largest[owner]
        if prompts:
            effect = sum(kl[owner][i] for i in prompts)
            talk = sum(kl[other][i] for i in prompts) / effect
            yield Coverage("cross_talk", TASK, talk, len(prompts), adapters=(other, owner))


def _row(
    name: str, values: Sequence[float], adapters: tuple[str, ...], prompts: Iterable[int]
) -> Coverage:
    """The row of a mean; the answers to one prompt form one cluster."""
    bounds = _BOUNDS.get(name, (-math.inf, math.inf))
    return mean_row(name, TASK, values, list(prompts), adapters=adapters, bounds=bounds)
