"""The forecast: the gain of a composition if the adapters' effects on the next token were added.

Each adapter reads the text alone, at the gate that the composition gives it. Its change of the
base's logits is added to them: z = z_0 + sum_a (z_a - z_0). The next token is the most likely one
under z. The base and the adapters run in different rows of one batch, so no composition is built.
A real composition differs by interference inside the network. The answers are judged and compared
in the same way as those of a real system.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from loraprobe.composition import Composition, Router, RowGates
from loraprobe.evaluation import System, gains
from loraprobe.evaluation.questions import PLAIN_TOKENS, Question, questions
from loraprobe.records import Forecast, Gain, ItemResult, Progress
from loraprobe.scoring import LogitEnsemble, score_together, write_together
from loraprobe.tasks import Task

if TYPE_CHECKING:
    from loraprobe.adapters import Adapter

ITEMS = 60  # of each task; with more, the error of the forecast itself dominates the interval
WORKED_TOKENS = 96  # of a worked answer: fewer than in evaluation, enough for learned steps
FORMS = ("question", "steps")
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
    items: int = ITEMS,
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
    chosen = [_sampled(task, items, seed) for task in tasks]
    asked = [q for q in questions(chosen, metric) if q.part in FORMS]
    answers: list[ItemResult] = []
    parts = list(_passes(adapters, compositions))
    for done, one in enumerate(parts, 1):
        answers += one.answers(scorer, asked, max_new_tokens)
        if progress is not None:
            progress("forecast", done, len(parts))
    return _compared(answers, results, [adapter.name for adapter in adapters], compositions, seed)


@dataclass(frozen=True)
class _Pass:
    """All adapters in rows of one batch, and the ensembles of the compositions to forecast."""

    composition: Composition
    rows: RowGates
    ensembles: Mapping[str, LogitEnsemble]

    def answers(
        self, scorer: Any, asked: Sequence[Question], max_new_tokens: int | None
    ) -> Iterator[ItemResult]:
        """The answer of each composition to each question."""
        ensembles, switch = list(self.ensembles.values()), self.rows.rows.set
        written = [q for q in asked if q.metric == "exact_match"]
        with scorer.with_composition(self.composition):
            for worked, limit in ((False, PLAIN_TOKENS), (True, WORKED_TOKENS)):
                own = [q for q in written if q.worked == worked]
                texts = write_together(
                    scorer,
                    [q.prompt for q in own],
                    ensembles,
                    switch,
                    max_new_tokens=min(limit, max_new_tokens or limit),
                    until_newline=not worked,
                )
                for name, column in zip(self.ensembles, texts, strict=True):
                    yield from (q.judged(name, t) for q, t in zip(own, column, strict=True))
            own = [q for q in asked if q.metric == "choice"]
            pairs = [(q.prompt, choice) for q in own for choice in q.item.choices]
            scores = score_together(scorer, pairs, ensembles, switch)
            for name, logprobs in zip(self.ensembles, scores, strict=True):
                following = iter(logprobs)
                yield from (q.chosen(name, [next(following) for _ in q.item.choices]) for q in own)


def _passes(adapters: Sequence[Adapter], compositions: Mapping[str, Gates]) -> Iterator[_Pass]:
    """One pass for all compositions of constant gates, one for each token router."""
    n, experts = len(adapters), tuple(adapters)
    constant = {
        name: LogitEnsemble.added(gates)
        for name, gates in compositions.items()
        if not isinstance(gates, Router)
    }
    routers = {name: gates for name, gates in compositions.items() if isinstance(gates, Router)}
    if constant:
        rows = RowGates()
        yield _Pass(Composition("side-by-side", experts, rows), rows, constant)
    if any(adapter.whole for adapter in adapters):
        return
    for name, router in routers.items():
        rows = RowGates(inner=router.each_token())
        ensembles = {name: LogitEnsemble.added((1.0,) * n)}
        yield _Pass(Composition("side-by-side", experts, rows), rows, ensembles)


def _sampled(task: Task, items: int, seed: int) -> Task:
    """A task with at most `items` of its items, in their order; the same for both forms."""
    if len(task.items) <= items:
        return task
    rng = random.Random(f"{seed}:{task.name}:forecast")
    chosen = sorted(rng.sample(range(len(task.items)), items))
    return Task(task.name, tuple(task.items[i] for i in chosen))


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
    known = {system.name for system in systems}
    rows = gains([*(row for row in own if row.system in known), *answers], systems, seed=seed)
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
        )
        for row in (best[name] for name in compositions if name in best)
    )
