"""The forecast: the gain of a composition if the adapters' effects on the next token were added.

Each adapter reads the text alone. Its change of the base's logits is added to them: z = z_0 + sum_a
(z_a - z_0). A real composition differs by interference inside the network. The answers are judged
and compared in the same way as those of a real system. For answers that are judged by likelihood no
pass is needed: `forecast_recorded` adds what the base and each adapter scored when they were asked
alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from loraprobe.evaluation import System, gains, retention
from loraprobe.evaluation.gains import task_names
from loraprobe.evaluation.plan import Question, questions
from loraprobe.records import Forecast, Gain, ItemResult, Retention
from loraprobe.scoring import Recorder
from loraprobe.tasks import Task

SCORED = ("choice", "answer_loss")  # metrics that read the likelihood of given texts


def forecast_recorded(
    scorer: Any,
    adapters: Sequence[str],
    compositions: Sequence[str],
    tasks: Sequence[Task],
    recorder: Recorder,
    *,
    results: Sequence[ItemResult],
    metric: str | None,
    seed: int,
) -> tuple[Forecast, ...]:
    """The forecast of questions that are judged by likelihood, without a pass over the model.

    compositions: names of those that add all adapters at gates of 1. recorder: has taken what the
    base and each adapter scored on these tasks. results: theirs. There is no row if something is
    missing.
    """
    asked = scored_questions(tasks, metric)
    pairs = [pair for q in asked for pair in _pairs(q)]
    scores = {}
    for pair, (ids, start) in zip(pairs, scorer.encoded(pairs), strict=True):
        gold = ids[start:]
        logprob = recorder.logprob(pair, gold)
        if logprob is None:
            return ()
        scores[pair] = logprob, len(gold)
    answers = [
        q.scored(name, [scores[pair] for pair in _pairs(q)]) for name in compositions for q in asked
    ]
    return forecast_gains(answers, results, adapters, compositions, seed)


def scored_questions(tasks: Sequence[Task], metric: str | None) -> list[Question]:
    """The composed questions that are judged by the likelihood of given texts.

    None if a task is one of lm-evaluation-harness, which asks by itself.
    """
    asked = [] if any(task.of_harness for task in tasks) else questions(tasks, metric)
    return [q for q in asked if q.part == "question" and q.metric in SCORED]


def _pairs(question: Question) -> list[tuple[str, str]]:
    return [(question.prompt, text) for text in question.continuations]


def forecast_gains(
    answers: Sequence[ItemResult],
    results: Sequence[ItemResult],
    adapters: Sequence[str],
    compositions: Iterable[str],
    seed: int,
) -> tuple[Forecast, ...]:
    """The gains over base and single adapters on the same items, one row per composition.

    answers: those of added effects. If a question has two forms, the row is that of the form with
    the larger gain.
    """
    items = {(row.task, row.part, row.item) for row in answers}
    own = [row for row in results if (row.task, row.part, row.item) in items]
    systems = [System("base", "base"), *(System(name, "adapter") for name in adapters)]
    systems += [System(name, "merge") for name in compositions]
    every = [*own, *answers]
    rows = gains(every, systems, seed=seed)
    best: dict[str, Gain] = {}
    for row in rows:
        if row.system not in best or row.difference > best[row.system].difference:
            best[row.system] = row
    return tuple(
        Forecast(
            system=row.system,
            gain=row.difference,
            ci95=row.ci95,
            n=row.n,
            part=row.part,
            against=row.against,
            against_part=row.against_part,
            retentions=_retentions(every, systems, row),
        )
        for row in (best[name] for name in compositions if name in best)
    )


def _retentions(
    results: Sequence[ItemResult], systems: Sequence[System], row: Gain
) -> tuple[Retention, ...]:
    """What a composition would keep of each task's specialist, where there are several tasks."""
    tasks = task_names(results)
    if len(tasks) < 2:
        return ()
    found = ((t, retention(results, systems, row.system, t, row.part)) for t in tasks)
    return tuple(Retention(task, *kept) for task, kept in found if kept is not None)
