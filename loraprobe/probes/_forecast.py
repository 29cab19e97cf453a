"""The forecast: the gain of a composition if the adapters' effects on the next token were added.

Each adapter reads the text alone, at the gate that the composition gives it. Its change of the
base's logits is added to them: z = z_0 + sum_a (z_a - z_0). The next token is the most likely one
under z. The base and the adapters run in different rows of one batch, so no composition is built.
A real composition differs by interference inside the network. The answers are judged and compared
in the same way as those of a real system.

For answers that are judged by likelihood no pass is needed: `forecast_recorded` adds what the base
and each adapter scored when they were asked alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from loraprobe.composition import Composition, Router, RowGates
from loraprobe.defaults import FORECAST_ITEMS, PLAIN_TOKENS
from loraprobe.evaluation import System, gains, retention
from loraprobe.evaluation.asking import ask_together
from loraprobe.evaluation.questions import Question, TokenLimits, questions
from loraprobe.probes._probe import sampled
from loraprobe.records import FORMS, Forecast, Gain, ItemResult, Progress, Retention
from loraprobe.scoring import LogitEnsemble, Recorder
from loraprobe.tasks import Task

if TYPE_CHECKING:
    from loraprobe.adapters import Adapter

FORECAST_TOKENS = 96  # of a worked answer: fewer than in evaluation, enough for learned steps
SCORED = ("choice", "answer_loss")  # metrics that read the likelihood of given texts
Gates = Router | tuple[float, ...]  # a token router, or one constant gate an adapter


def forecast(
    scorer: Any,
    adapters: Sequence[Adapter],
    tasks: Sequence[Task],
    compositions: Mapping[str, Gates],
    *,
    results: Sequence[ItemResult],
    metric: str | None = None,
    max_new_tokens: int | None = None,
    items: int = FORECAST_ITEMS,
    seed: int = 0,
    progress: Progress | None = None,
) -> tuple[Forecast, ...]:
    """One row per composition: its gain over the best of base and single adapters.

    If a question has two forms, the row is that of the form with the larger gain.
    compositions: name -> gates. results: those of the base and the single adapters on the tasks'
    items. At most `items` items of each task are asked, drawn by the seed. Token routers compute
    gates from hidden states of the base. There are no rows for fewer than two adapters, for losses
    and for tasks of lm-evaluation-harness, and no row of a token router if an adapter replaces
    whole parameters, because such gates cannot weigh them.
    """
    if len(adapters) < 2 or metric == "answer_loss" or any(t.of_harness for t in tasks):
        return ()
    chosen = [
        Task(task.name, sampled(task.items, items, f"{seed}:{task.name}:forecast"))
        for task in tasks
    ]
    asked = [q for q in questions(chosen, metric) if q.part in FORMS]
    most = max_new_tokens or FORECAST_TOKENS
    limits = TokenLimits(min(PLAIN_TOKENS, most), min(FORECAST_TOKENS, most))
    answers: list[ItemResult] = []
    passes = list(_passes(adapters, compositions))
    for done, (gates, ensembles) in enumerate(passes, 1):
        with scorer.with_composition(Composition("side-by-side", tuple(adapters), gates)):
            answers += ask_together(scorer, asked, ensembles, gates.rows.set, limits)
        if progress is not None:
            progress("forecast", done, len(passes))
    return _compared(answers, results, [adapter.name for adapter in adapters], compositions, seed)


def forecast_recorded(
    scorer: Any,
    adapters: Sequence[str],
    tasks: Sequence[Task],
    recorder: Recorder,
    *,
    results: Sequence[ItemResult],
    metric: str | None = None,
    seed: int = 0,
) -> tuple[Forecast, ...]:
    """The forecast of questions that are judged by likelihood, without a pass over the model.

    recorder: has taken what the base and each adapter scored on these tasks. results: theirs.
    There is no row if something is missing.
    """
    asked = scored_questions(tasks, metric)
    pairs = [pair for q in asked for pair in _pairs(q)]
    if not pairs:
        return ()
    encoded = dict(zip(pairs, scorer.encoded(pairs), strict=True))
    gold = {pair: ids[start:] for pair, (ids, start) in encoded.items()}
    sums = {pair: recorder.logprobs(pair, ids) for pair, ids in gold.items()}
    if None in sums.values():
        return ()
    answers = [
        q.scored(name, [((sums[pair] or {})[name], len(gold[pair])) for pair in _pairs(q)])
        for name in recorder.weights
        for q in asked
    ]
    compositions = dict.fromkeys(recorder.weights, ())
    return _compared(answers, results, adapters, compositions, seed)


def scored_questions(tasks: Sequence[Task], metric: str | None) -> list[Question]:
    """The composed questions that are judged by the likelihood of given texts.

    None if a task is one of lm-evaluation-harness, which asks by itself.
    """
    asked = [] if any(task.of_harness for task in tasks) else questions(tasks, metric)
    return [q for q in asked if q.part == "question" and q.metric in SCORED]


def _pairs(question: Question) -> list[tuple[str, str]]:
    return [(question.prompt, text) for text in question.continuations]


def _passes(
    adapters: Sequence[Adapter], compositions: Mapping[str, Gates]
) -> Iterator[tuple[RowGates, dict[str, LogitEnsemble]]]:
    """Gates for all adapters in rows of one batch, and the ensembles that are asked with them.

    One pass serves all compositions of constant gates, and each token router has its own.
    """
    routers = {name: gates for name, gates in compositions.items() if isinstance(gates, Router)}
    constant = {
        name: LogitEnsemble.added(gates)
        for name, gates in compositions.items()
        if not isinstance(gates, Router)
    }
    if constant:
        yield RowGates(), constant
    if not any(adapter.whole for adapter in adapters):
        for name, router in routers.items():
            alone = LogitEnsemble.added((1.0,) * len(adapters))
            yield RowGates(inner=router.each_token()), {name: alone}


def _compared(
    answers: Sequence[ItemResult],
    results: Sequence[ItemResult],
    adapters: Sequence[str],
    compositions: Mapping[str, Gates],
    seed: int,
) -> tuple[Forecast, ...]:
    """The gains over base and single adapters on the same items, one row per composition."""
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
    tasks = list(dict.fromkeys(result.task for result in results))
    if len(tasks) < 2:
        return ()
    found = ((t, retention(results, systems, row.system, t, row.part)) for t in tasks)
    return tuple(Retention(task, *kept) for task, kept in found if kept is not None)
