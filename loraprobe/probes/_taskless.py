"""Probes without a task: compares the adapters' answers to prompts with those of the base.

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
from dataclasses import dataclass
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

from loraprobe.errors import TaskError
from loraprobe.evaluation.asking import ScoreRequest, likelihoods
from loraprobe.front_matter import front_and_body, read_front_matter
from loraprobe.probes._names import MadeUpNames, capitalised_spans
from loraprobe.probes._probe import mean_row
from loraprobe.probes.answers import first_margin
from loraprobe.records import Coverage
from loraprobe.routing.constant import single
from loraprobe.tasks import ProbePrompts

if TYPE_CHECKING:
    from loraprobe.adapters import Adapter
    from loraprobe.scoring import Likelihood

TASK = "probe"
ANSWER_TOKENS = 16

_BOUNDS = {
    "familiarity": (0.0, 1.0),
    "own_answer_margin": (0.0, 1.0),
    "answer_margin": (0.0, 1.0),
    "kl_to_base": (0.0, math.inf),
}
Likely = Mapping[ScoreRequest, "Likelihood"]

# Prompts of `--probe auto`.
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
_PLAIN = frozenset(("", "text", "txt", "prompt", "plaintext", "plain", "example", "input"))
_CODE = re.compile(
    r"^\s*(?:import |from \S+ import|def |class |pip |python |git |\$ |>>>|@|\{|\[|<\w|#!)"
    r"|[=;]\s*$|\w\(.*\)\s*$|^\s*[\w.]+\s*[:=]\s*\S+\s*$",
    re.MULTILINE,
)
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")


@dataclass(frozen=True)
class AdapterAnswer:
    """An adapter's answer to the prompt of this index; it is not blank."""

    adapter: str
    prompt: int
    request: ScoreRequest

    def swapped(self, names: MadeUpNames) -> ScoreRequest | None:
        """The same answer after made-up names; None if the prompt holds no name."""
        prompt = self.request.prompt
        swap = names.swapped_pair(prompt, self.request.continuation, capitalised_spans(prompt))
        return None if swap is None else ScoreRequest(*swap)


def probe_without_task(
    scorer: Any,
    adapters: Sequence[Adapter],
    probe: ProbePrompts,
    *,
    seed: int = 0,
) -> tuple[Coverage, ...]:
    """The rows that the module's docstring lists, for the prompts of a probe."""
    prompts, adapter_names = list(probe.answers), [adapter.name for adapter in adapters]
    replies, kl = _replies(scorer, adapters, prompts)
    texts = [*prompts, *(reply.request.continuation for reply in replies)]
    names = MadeUpNames(scorer.tokenizer, seed, texts)
    swaps = [(reply, swap) for reply in replies if (swap := reply.swapped(names)) is not None]
    known = [
        (i, ScoreRequest(p, gold)) for i, (p, gold) in enumerate(probe.answers.items()) if gold
    ]
    requests = [reply.request for reply in replies]
    requests += [request for _, request in (*swaps, *known)]
    likely = likelihoods(scorer, requests)
    margins = [first_margin(likely[request]) for _, request in known]
    return (
        *_own_answers(replies, adapter_names, likely),
        *(_row("kl_to_base", own, (name,), range(len(own))) for name, own in kl.items()),
        *_name_swaps(swaps, adapter_names, likely),
        *_cross_talk(kl),
        *([_row("answer_margin", margins, (), [i for i, _ in known])] if known else []),
    )


def _replies(
    scorer: Any,
    adapters: Sequence[Adapter],
    prompts: Sequence[str],
) -> tuple[list[AdapterAnswer], dict[str, list[float]]]:
    """Each adapter's greedy first lines, and adapter -> KL(base || adapter) of the first tokens."""
    base = scorer.first_token_distribution(prompts)
    replies: list[AdapterAnswer] = []
    kl: dict[str, list[float]] = {}
    for adapter in adapters:
        with scorer.with_composition(single(adapter)):
            texts = scorer.generate(prompts, max_new_tokens=ANSWER_TOKENS, until_newline=True)
            own = scorer.first_token_distribution(prompts)
        replies += [
            AdapterAnswer(adapter.name, i, ScoreRequest(prompts[i], text))
            for i, text in enumerate(texts)
            if text.strip()
        ]
        # Clamped, so that a token to which both give -inf adds 0 and not NaN.
        gap = base.clamp_min(-1e4) - own.clamp_min(-1e4)
        kl[adapter.name] = (base.exp() * gap).sum(-1).clamp_min(0).tolist()
    return replies, kl


def _own_answers(
    replies: Sequence[AdapterAnswer], adapters: Sequence[str], likely: Likely
) -> Iterable[Coverage]:
    """How familiar the base is with the adapters' answers: together, then by adapter."""

    def familiarity(chosen: Sequence[AdapterAnswer], adapters: tuple[str, ...]) -> Coverage:
        ranks = [likely[reply.request].rank for reply in chosen]
        shares = [sum(rank == 1 for rank in own) / len(own) for own in ranks]
        return _row("familiarity", shares, adapters, [reply.prompt for reply in chosen])

    yield familiarity(replies, ())
    for name in adapters:
        chosen = [reply for reply in replies if reply.adapter == name]
        yield familiarity(chosen, (name,))
        found = [likely[reply.request] for reply in chosen]
        margins, ranks = [first_margin(one) for one in found], [float(one.rank[0]) for one in found]
        yield _row("own_answer_margin", margins, (name,), [reply.prompt for reply in chosen])
        median = statistics.median(ranks) if ranks else None
        yield Coverage("own_answer_rank", TASK, median, len(ranks), adapters=(name,))


def _name_swaps(
    swaps: Sequence[tuple[AdapterAnswer, ScoreRequest]], adapters: Sequence[str], likely: Likely
) -> Iterable[Coverage]:
    """How much likelier the answers are after the real names: together, then by adapter."""
    for names in ((), *((name,) for name in adapters)):
        chosen = [(reply, swap) for reply, swap in swaps if not names or reply.adapter in names]
        if chosen:
            differences = [likely[r.request].logprob - likely[swap].logprob for r, swap in chosen]
            yield _row("name_swap", differences, names, [reply.prompt for reply, _ in chosen])


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


def generated_prompts(
    scorer: Any,
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
            "The model cards hold no prompt and the adapters write none: give "
            "--probe=FILE with a question a line."
        )
    return ProbePrompts(dict.fromkeys(prompts[:wanted]))


def card_prompts(card: str) -> list[str]:
    """Prompts in a model card: widget examples, prompts in its code, plain fenced examples.

    The front matter is read with limits; if it is not valid YAML, there are no widget examples.
    """
    card = card[:MOST_CARD].replace("\r\n", "\n")
    found = _widgets(read_front_matter(card))
    for match in _FENCE.finditer(front_and_body(card)[1]):
        kind, text = match.group(2).strip().lower(), match.group(3)
        if kind in _PLAIN and not _CODE.search(text):
            found.append(text)
        else:
            found += [next(filter(None, m.groups())) for m in _ASSIGNED.finditer(text)]
    return _distinct(found)


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
    return [text for row in zip_longest(*lists) for text in row if text is not None]


def _whole(text: str) -> str:
    """The first line without its last word, which may be cut off, unless it ends a sentence."""
    line = next((line for line in text.splitlines() if line.strip()), "")
    words = line.split()
    if len(words) < 3 or line.rstrip()[-1] in ".?!:\"'”’)…。？！":
        return line
    return line.rstrip()[: -len(words[-1])].rstrip()


def _distinct(texts: Iterable[str]) -> list[str]:
    """Clean prompts without repetitions; case and spaces are ignored in the comparison."""
    found: dict[str, str] = {}
    for text in texts:
        clean = _CONTROL.sub("", text).strip()
        key = " ".join(clean.casefold().split())
        if SHORTEST <= len(clean) <= LONGEST and any(ch.isalpha() for ch in clean):
            found.setdefault(key, clean)
    return list(found.values())
