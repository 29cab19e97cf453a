"""The forecast of generated answers: the adapters' effects on the next token added, word by word.

The next token is the most likely one under z_0 + sum_a (z_a - z_0), where each adapter reads the
text alone, at the gate that the composition gives it. The base and the adapters run in different
rows of one batch, so no composition is built. Cases of the calibration record this forecast; the
package asks a first round of the compositions instead, which costs less and says more.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from loraprobe.adapters import Adapter
from loraprobe.composition import Composition, Router
from loraprobe.defaults import PLAIN_TOKENS
from loraprobe.evaluation.asking import ask
from loraprobe.evaluation.questions import Question, TokenLimits, questions
from loraprobe.merging import METHODS
from loraprobe.options import Options
from loraprobe.pipeline.portfolio import Selection
from loraprobe.pipeline.systems import constant_gates
from loraprobe.probes import forecast_gains
from loraprobe.probes._probe import sampled
from loraprobe.records import FORMS, Forecast, ItemResult, Progress
from loraprobe.routing import ROUTERS
from loraprobe.scoring.generation import Written
from loraprobe.tasks import Task
from loraprobe_lab.calibration.ensembles import (
    LogitEnsemble,
    SetRows,
    score_together,
    write_together,
)
from loraprobe_lab.calibration.routed_rows import RoutedRows

FORECAST_ITEMS = 60  # of each task; with more, the error of the forecast itself dominates
FORECAST_TOKENS = 96  # of a worked answer: fewer than in evaluation, enough for learned steps
Gates = Router | tuple[float, ...]  # a token router, or one constant gate an adapter


def forecastable(options: Options, adapters: Sequence[Adapter]) -> dict[str, Gates]:
    """The compositions whose gain can be forecast: name -> constant gates or router.

    These are linear merges with gates in (0, 1] and Arrow with its default options, over adapters
    as they were trained. The error of forecasts was measured on such compositions.
    """
    if options.balance != "none" or options.subtract:
        return {}
    found: dict[str, Gates] = {}
    for spec in Selection(options, adapters).specs:
        if spec in ROUTERS and ROUTERS.make(spec) == ROUTERS.make("arrow"):
            found[spec] = ROUTERS.make(spec)
        elif spec in METHODS and not (
            options.weights == "search" and METHODS.make(spec).takes_weights
        ):
            gates = constant_gates(spec, options, options.given_weights, len(adapters))
            if gates is not None and all(0 < gate <= 1 for gate in gates):
                found[spec] = gates
    return found


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
    gates from hidden states of the base. There are no rows for fewer than two adapters and for
    losses, and no row of a token router if an adapter replaces whole parameters, because such gates
    cannot weigh them.
    """
    if len(adapters) < 2 or metric == "answer_loss":
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
    names = [adapter.name for adapter in adapters]
    return forecast_gains(answers, results, names, compositions, seed)


def _passes(
    adapters: Sequence[Adapter], compositions: Mapping[str, Gates]
) -> Iterator[tuple[RoutedRows, dict[str, LogitEnsemble]]]:
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
        yield RoutedRows(), constant
    if not any(adapter.whole for adapter in adapters):
        for name, router in routers.items():
            alone = LogitEnsemble.added((1.0,) * len(adapters))
            yield RoutedRows(inner=router), {name: alone}


class _Scored(NamedTuple):
    """The log-probability of a continuation of so many tokens."""

    logprob: float
    tokens: int


class _Member:
    """A scorer of one ensemble, which takes its part of passes that compute all of them."""

    def __init__(self, place: int, write: Any, score: Any, tokens: Any) -> None:
        self.place, self.write, self.score, self.tokens = place, write, score, tokens

    def write_all(self, prompts: Sequence[str], **options: Any) -> list[Written]:
        found: list[Written] = self.write(tuple(prompts), **options)[self.place]
        return found

    def loglikelihood(self, pairs: Sequence[tuple[str, str]]) -> list[_Scored]:
        own, tokens = self.score(tuple(pairs))[self.place], self.tokens(tuple(pairs))
        return [_Scored(*one) for one in zip(own, tokens, strict=True)]


def ask_together(
    scorer: Any,
    batch: Sequence[Question],
    ensembles: Mapping[str, LogitEnsemble],
    set_rows: SetRows,
    limits: TokenLimits,
) -> list[ItemResult]:
    """The results of a batch for each ensemble, which are systems in rows of one batch.

    The scorer's model must carry a composition whose gates `set_rows` sets.
    """
    members = list(ensembles.values())

    @functools.cache
    def write(prompts: tuple[str, ...], **options: Any) -> list[list[Written]]:
        return write_together(scorer, prompts, members, set_rows, **options)

    @functools.cache
    def score(pairs: tuple[tuple[str, str], ...]) -> list[list[float]]:
        return score_together(scorer, pairs, members, set_rows)

    @functools.cache
    def tokens(pairs: tuple[tuple[str, str], ...]) -> list[int]:
        return [len(ids) - start for ids, start in scorer.encoded(pairs)]

    results: list[ItemResult] = []
    for place, name in enumerate(ensembles):
        own: Any = _Member(place, write, score, tokens)
        results += ask(own, batch, name, limits)
    return results
