"""Queries a model: answers to the questions of tasks, and the base's likelihood of a text."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from loraprobe.evaluation.harness import ask_harness
from loraprobe.evaluation.questions import Question, Scored, TokenLimits
from loraprobe.records import ItemResult, Progress

if TYPE_CHECKING:
    from loraprobe.scoring import Likelihood, LogitEnsemble, Scorer
    from loraprobe.scoring.ensembles import SetRows
    from loraprobe.scoring.generation import Written


@dataclass(frozen=True)
class ScoreRequest:
    """A request for the base model's likelihood of a continuation of a prompt.

    raw: without the chat template, for texts that are not questions.
    """

    prompt: str
    continuation: str
    raw: bool = False


def ask(
    scorer: Scorer, batch: Sequence[Question], system: str, limits: TokenLimits
) -> list[ItemResult]:
    """The results of a batch, in its order, from a scorer whose model carries the system."""

    def write(prompts: Sequence[str], **options: Any) -> list[list[Written]]:
        return [scorer.write_all(prompts, **options)]

    def score(pairs: Sequence[tuple[str, str]]) -> list[list[Scored]]:
        return [[(found.logprob, found.tokens) for found in scorer.loglikelihood(pairs)]]

    outside = [q for q in batch if q.item.source is not None]
    own = [q for q in batch if q.item.source is None]
    found = dict(zip(own, _results(own, [system], limits, write, score), strict=True))
    found |= ask_harness(scorer, outside, system) if outside else {}
    return [found[q] for q in batch]


def ask_together(
    scorer: Scorer,
    batch: Sequence[Question],
    ensembles: Mapping[str, LogitEnsemble],
    set_rows: SetRows,
    limits: TokenLimits,
) -> list[ItemResult]:
    """The results of a batch for each ensemble, which are systems in rows of one batch.

    The scorer's model must carry a composition whose gates `set_rows` sets.
    """
    from loraprobe.scoring import score_together, write_together

    members = list(ensembles.values())

    def write(prompts: Sequence[str], **options: Any) -> list[list[Written]]:
        return write_together(scorer, prompts, members, set_rows, **options)

    def score(pairs: Sequence[tuple[str, str]]) -> list[list[Scored]]:
        tokens = [len(ids) - start for ids, start in scorer.encoded(pairs)]
        columns = score_together(scorer, pairs, members, set_rows)
        return [list(zip(column, tokens, strict=True)) for column in columns]

    return _results(batch, list(ensembles), limits, write, score)


def _results(
    batch: Sequence[Question],
    systems: Sequence[str],
    limits: TokenLimits,
    write: Callable[..., list[list[Written]]],
    score: Callable[[Sequence[tuple[str, str]]], list[list[Scored]]],
) -> list[ItemResult]:
    """The results of each system, from functions that return one list for each system.

    write(prompts, max_new_tokens, until_newline, until) gives texts; score(pairs) gives the
    log-probability and the number of tokens of each continuation.
    """
    found: dict[tuple[str, Question], ItemResult] = {}
    groups: dict[tuple[Any, ...], list[Question]] = {}
    for q in batch:
        if q.generated:
            groups.setdefault((q.worked, q.one_line, q.ended), []).append(q)
    for (worked, one_line, until), asked in groups.items():
        most = limits.worked if worked else limits.plain
        prompts = [q.prompt for q in asked]
        columns = write(prompts, max_new_tokens=most, until_newline=one_line, until=until)
        for system, replies in zip(systems, columns, strict=True):
            for q, reply in zip(asked, replies, strict=True):
                found[system, q] = q.judged(system, reply.text, reply.cut)
    asked = [q for q in batch if not q.generated]
    if asked:
        pairs = [(q.prompt, text) for q in asked for text in q.continuations]
        for system, scores in zip(systems, score(pairs), strict=True):
            following = iter(scores)
            for q in asked:
                found[system, q] = q.scored(system, [next(following) for _ in q.continuations])
    return [found[system, q] for system in systems for q in batch]


def likelihoods(
    scorer: Scorer, requests: Sequence[ScoreRequest], progress: Progress | None = None
) -> dict[ScoreRequest, Likelihood]:
    """A Likelihood of the base for each distinct request: one call of the scorer for each form."""
    likely: dict[ScoreRequest, Likelihood] = {}
    distinct = list(dict.fromkeys(requests))
    for raw in (False, True):
        asked = [r for r in distinct if (r.raw and bool(scorer.chat_template)) == raw]
        if not asked:
            continue
        plain = scorer.with_template(False) if raw else scorer
        with plain.with_composition(None):
            found = plain.loglikelihood([(r.prompt, r.continuation) for r in asked])
        likely.update(zip(asked, found, strict=True))
        if progress is not None:
            progress("cover", len(likely), len(distinct))
    return likely
