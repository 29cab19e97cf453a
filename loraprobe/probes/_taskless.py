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
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from loraprobe.probes._names import MadeUpNames, capitalised_spans
from loraprobe.probes._probe import ScoreRequest, likelihoods, mean_row
from loraprobe.probes.answers import first_margin
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
Likely = Mapping[ScoreRequest, "Likelihood"]


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
    scorer: ModelScorer,
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
        *(
            _row("kl_to_base", divergences, (name,), range(len(divergences)))
            for name, divergences in kl.items()
        ),
        *_name_swaps(swaps, adapter_names, likely),
        *_cross_talk(kl),
        *([_row("answer_margin", margins, (), [i for i, _ in known])] if known else []),
    )


def _replies(
    scorer: ModelScorer,
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
            adapted = scorer.first_token_distribution(prompts)
        replies += [
            AdapterAnswer(adapter.name, i, ScoreRequest(prompts[i], text))
            for i, text in enumerate(texts)
            if text.strip()
        ]
        # Clamped, so that a token to which both give -inf adds 0 and not NaN.
        gap = base.clamp_min(-1e4) - adapted.clamp_min(-1e4)
        kl[adapter.name] = (base.exp() * gap).sum(-1).clamp_min(0).tolist()
    return replies, kl


def _own_answers(
    replies: Sequence[AdapterAnswer], adapters: Sequence[str], likely: Likely
) -> Iterable[Coverage]:
    """How familiar the base is with the adapters' answers: together, then by adapter."""

    def familiarity(chosen: Sequence[AdapterAnswer], adapters: tuple[str, ...]) -> Coverage:
        ranks = [likely[reply.request].rank for reply in chosen]
        shares = [sum(rank == 1 for rank in ranks_of) / len(ranks_of) for ranks_of in ranks]
        return _row("familiarity", shares, adapters, [reply.prompt for reply in chosen])

    yield familiarity(replies, ())
    for name in adapters:
        chosen = [reply for reply in replies if reply.adapter == name]
        yield familiarity(chosen, (name,))
        scored = [likely[reply.request] for reply in chosen]
        margins = [first_margin(likelihood) for likelihood in scored]
        ranks = [float(likelihood.rank[0]) for likelihood in scored]
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
