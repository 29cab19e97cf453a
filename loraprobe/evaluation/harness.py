"""Asks a model the items of lm-evaluation-harness's tasks."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from loraprobe.evaluation.questions import Question
from loraprobe.records import ItemResult

if TYPE_CHECKING:
    from loraprobe.scoring import Scorer


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
