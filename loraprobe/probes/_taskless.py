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
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from loraprobe.evaluation.asking import Request, likelihoods
from loraprobe.probes._names import MadeUpNames, capitalised_spans
from loraprobe.probes._probe import mean_row
from loraprobe.probes.answer_margin import first_margin
from loraprobe.records import Coverage, Progress
from loraprobe.tasks import Probe

if TYPE_CHECKING:
    from loraprobe.adapters import Adapter

TASK = "probe"
ANSWER_TOKENS = 16

_BOUNDS = {
    "familiarity": (0.0, 1.0),
    "own_answer_margin": (0.0, 1.0),
    "answer_margin": (0.0, 1.0),
    "kl_to_base": (0.0, math.inf),
}


@dataclass(frozen=True, eq=False)
class ProbeAnswers:
    """The adapters' answers to the n prompts, and how their first tokens differ from the base's.

    golds: the right answers, None where not known. answers: adapter -> index of the prompt -> the
    adapter's answer, if it is not blank. kl: adapter -> [n] KL(base || adapter) of the first token.
    """

    prompts: tuple[str, ...]
    golds: tuple[str | None, ...]
    answers: Mapping[str, Mapping[int, str]]
    kl: Mapping[str, Sequence[float]]


def probe_without_task(
    scorer: Any,
    adapters: Sequence[Adapter],
    probe: Probe,
    *,
    single: Callable[[Any], Any],
    seed: int = 0,
    progress: Progress | None = None,
) -> tuple[Coverage, ...]:
    """The rows that the module's docstring lists, for the prompts of a probe.

    single(adapter) is the composition of that adapter alone. A repeated prompt counts once.
    """
    unique = {item.prompt: item.answer for item in reversed(probe.items)}
    prompts = tuple(dict.fromkeys(item.prompt for item in probe.items))
    golds = tuple(unique[prompt] for prompt in prompts)
    replies = _replies_of(scorer, adapters, prompts, golds, single, progress)
    texts = [*prompts, *(text for own in replies.answers.values() for text in own.values())]
    names = MadeUpNames(scorer.tokenizer, seed, texts)
    swaps = _swapped(replies, names)
    requests = [
        Request(prompts[i], text) for own in replies.answers.values() for i, text in own.items()
    ]
    requests += [swap for own in swaps.values() for swap in own.values()]
    requests += [Request(p, gold) for p, gold in zip(prompts, golds, strict=True) if gold]
    likely = likelihoods(scorer, requests, progress)
    return (
        *_own_answers(replies, likely),
        *(_row("kl_to_base", kl, (name,), range(len(kl))) for name, kl in replies.kl.items()),
        *_swaps(replies, swaps, likely),
        *_cross_talk(replies),
        *_known_answers(replies, likely),
    )


def _replies_of(
    scorer: Any,
    adapters: Sequence[Adapter],
    prompts: tuple[str, ...],
    golds: tuple[str | None, ...],
    single: Callable[[Any], Any],
    progress: Progress | None,
) -> ProbeAnswers:
    """Each adapter's greedy first line and KL of its first token; one adapter at a time."""
    base = scorer.first_token_distribution(prompts)
    answers: dict[str, dict[int, str]] = {}
    kl: dict[str, list[float]] = {}
    for done, adapter in enumerate(adapters, 1):
        with scorer.with_composition(single(adapter)):
            texts = scorer.generate(prompts, max_new_tokens=ANSWER_TOKENS, until_newline=True)
            own = scorer.first_token_distribution(prompts)
        answers[adapter.name] = {i: text for i, text in enumerate(texts) if text.strip()}
        # Clamped, so that a token to which both give -inf adds 0 and not NaN.
        gap = base.clamp_min(-1e4) - own.clamp_min(-1e4)
        kl[adapter.name] = (base.exp() * gap).sum(-1).clamp_min(0).tolist()
        if progress is not None:
            progress("probe", done, len(adapters))
    return ProbeAnswers(prompts, golds, answers, kl)


def _own_answers(replies: ProbeAnswers, likely: Mapping[Request, Any]) -> list[Coverage]:
    shares: dict[str, list[float]] = {}
    rows = []
    for name, own in replies.answers.items():
        found = [likely[Request(replies.prompts[i], answer)] for i, answer in own.items()]
        shares[name] = [sum(r == 1 for r in f.rank) / len(f.rank) for f in found]
        margins = [first_margin(f) for f in found]
        ranks = [float(f.rank[0]) for f in found]
        rows += [
            _row("familiarity", shares[name], (name,), own),
            _row("own_answer_margin", margins, (name,), own),
            Coverage(
                "own_answer_rank",
                TASK,
                statistics.median(ranks) if ranks else None,
                len(ranks),
                adapters=(name,),
            ),
        ]
    pooled = [share for own in shares.values() for share in own]
    clusters = [i for own in replies.answers.values() for i in own]
    return [_row("familiarity", pooled, (), clusters), *rows]


def _swapped(replies: ProbeAnswers, names: MadeUpNames) -> dict[str, dict[int, Request]]:
    """adapter -> index of the prompt -> request for its answer after the made-up names."""
    found: dict[str, dict[int, Request]] = {}
    for name, own in replies.answers.items():
        for i, answer in own.items():
            prompt = replies.prompts[i]
            swap = names.swapped_pair(prompt, answer, capitalised_spans(prompt))
            if swap is not None:
                found.setdefault(name, {})[i] = Request(*swap)
    return found


def _swaps(
    replies: ProbeAnswers, swaps: Mapping[str, Mapping[int, Request]], likely: Mapping[Request, Any]
) -> list[Coverage]:
    rows, pooled, clusters = [], [], []
    for name, own in swaps.items():
        differences = [
            likely[Request(replies.prompts[i], replies.answers[name][i])].logprob
            - likely[swap].logprob
            for i, swap in own.items()
        ]
        rows.append(_row("name_swap", differences, (name,), own))
        pooled += differences
        clusters += list(own)
    return [_row("name_swap", pooled, (), clusters), *rows] if pooled else []


def _cross_talk(replies: ProbeAnswers) -> list[Coverage]:
    rows = []
    owned: dict[str, list[int]] = {name: [] for name in replies.kl}
    for i in range(len(replies.prompts)):
        most = max(replies.kl, key=lambda name: replies.kl[name][i], default=None)
        if most is not None and replies.kl[most][i] > 0:
            owned[most].append(i)
    for other, owner in itertools.permutations(replies.kl, 2):
        mine = owned[owner]
        if mine:
            own = sum(replies.kl[owner][i] for i in mine)
            talk = sum(replies.kl[other][i] for i in mine) / own
            rows.append(Coverage("cross_talk", TASK, talk, len(mine), adapters=(other, owner)))
    return rows


def _known_answers(replies: ProbeAnswers, likely: Mapping[Request, Any]) -> list[Coverage]:
    known = [i for i, gold in enumerate(replies.golds) if gold]
    margins = [
        first_margin(likely[Request(replies.prompts[i], str(replies.golds[i]))]) for i in known
    ]
    return [_row("answer_margin", margins, (), known)] if known else []


def _row(
    name: str, values: Sequence[float], adapters: tuple[str, ...], prompts: Iterable[int]
) -> Coverage:
    """The row of a mean; the answers to one prompt form one cluster."""
    bounds = _BOUNDS.get(name, (-math.inf, math.inf))
    return mean_row(name, TASK, values, list(prompts), adapters=adapters, bounds=bounds)
