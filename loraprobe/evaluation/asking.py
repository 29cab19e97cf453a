"""Queries a model: answers to the questions of tasks, and the base's likelihood of a text."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from loraprobe.evaluation.questions import Question
from loraprobe.records import ItemResult, Progress

if TYPE_CHECKING:
    from loraprobe.scoring import Likelihood, Scorer


@dataclass(frozen=True)
class ScoreRequest:
    """A request for the base model's likelihood of a continuation of a prompt.

    raw: without the chat template, for texts that are not questions.
    """

    prompt: str
    continuation: str
    raw: bool = False


def ask(
    scorer: Scorer, batch: Sequence[Question], system: str, max_new_tokens: int | None = None
) -> list[ItemResult]:
    """The results of a batch, in its order, from a scorer whose model carries the system.

    max_new_tokens: of each reply; None for the number of its question.
    """
    outside = [q for q in batch if q.item.source is not None]
    found = ask_harness(scorer, outside, system) if outside else {}
    groups: dict[tuple[Any, ...], list[Question]] = {}
    for q in batch:
        if q.generated:
            groups.setdefault((q.worked, q.one_line, q.ended), []).append(q)
    for (_, one_line, until), asked in groups.items():
        most = asked[0].most_tokens if max_new_tokens is None else max_new_tokens
        prompts = [q.prompt for q in asked]
        replies = scorer.write_all(
            prompts, max_new_tokens=most, until_newline=one_line, until=until
        )
        for q, reply in zip(asked, replies, strict=True):
            found[q] = q.judged(system, reply.text, reply.cut)
    asked = [q for q in batch if not q.generated and q not in found]
    if asked:
        likely = scorer.loglikelihood([(q.prompt, text) for q in asked for text in q.continuations])
        scores = iter([(one.logprob, one.tokens) for one in likely])
        for q in asked:
            found[q] = q.scored(system, [next(scores) for _ in q.continuations])
    return [found[q] for q in batch]


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


def ask_harness(
    scorer: Scorer, batch: Sequence[Question], system: str
) -> dict[Question, ItemResult]:
    """The results of questions, all of the harness, from a model that carries the system.

    The requests of all tasks go to the model together. Raises TaskError for a task that the harness
    cannot judge.
    """
    from loraprobe.scoring.harness import SystemLM

    lm = SystemLM(scorer)
    by_task: dict[Any, list[Question]] = defaultdict(list)
    for question in batch:
        by_task[question.item.source].append(question)
    asked = {
        task: task.requests([question.item.id for question in own], lm)
        for task, own in by_task.items()
    }
    by_kind: dict[str, list[Any]] = defaultdict(list)
    for request in (one for requests in asked.values() for one in requests):
        by_kind[request.request_type] += [request] * (request.repeats or 1)
    for kind, requests in by_kind.items():
        for request, reply in zip(requests, getattr(lm, kind)(requests), strict=True):
            request.resps.append(reply)
    return {
        question: question.result(system, value, text)
        for task, own in by_task.items()
        for question, (value, text) in zip(own, task.values(asked[task]), strict=True)
    }
