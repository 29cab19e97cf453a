"""The forecast: what compositions would gain if the adapters' effects on the next token simply
added.

Each adapter alone reads the text so far, at the gate that the composition gives it, and what it
changes in the base's logits is added to them: z = z_0 + sum_a (z_a - z_0). The next token is the
most likely one under z. The base and the adapters run in rows of one batch, never two adapters in
one row, so no composition is built. What a composition does differently is interference inside the
network. The answers are judged and compared as evaluation judges and compares those of a system.
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
from loraprobe.tasks import Task, answered, read_answer

if TYPE_CHECKING:
    from loraprobe.adapters import Adapter

ITEMS = 60  # of each task; more would narrow the interval less than the model's own error is wide
WORKED_TOKENS = 96  # of a worked answer: fewer than evaluation allows, enough for taught steps
FORMS = ("target", "cot")
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
    """One row a composition: its gain over the best of base and singles, on the form that gains
    more.

    compositions: name -> its gates. results: those of the base and the single adapters, on the
    tasks' items. At most `items` items of each task are asked, drawn by the seed. A token router's
    gates are those on hidden states of the base. Nothing for fewer than two adapters, for losses,
    and for token routers where an adapter replaces parameters whole, which gates cannot weigh.
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
    """Adapters side by side in the base, and the compositions whose added effects they give."""

    composition: Composition
    rows: RowGates
    voices: Mapping[str, LogitEnsemble]

    def answers(
        self, scorer: Any, asked: Sequence[Question], max_new_tokens: int | None
    ) -> Iterator[ItemResult]:
        """The answer of each composition to each question."""
        written = [q for q in asked if q.metric == "exact_match"]
        chosen = [q for q in asked if q.metric == "choice"]
        with scorer.with_composition(self.composition):
            for form in FORMS:
                yield from self._written(
                    scorer, [q for q in written if q.part == form], form == "cot", max_new_tokens
                )
            yield from self._chosen(scorer, chosen)

    def _written(
        self, scorer: Any, asked: Sequence[Question], worked: bool, max_new_tokens: int | None
    ) -> Iterator[ItemResult]:
        if not asked:
            return
        limit = WORKED_TOKENS if worked else PLAIN_TOKENS
        found = write_together(
            scorer,
            [q.prompt for q in asked],
            list(self.voices.values()),
            self.rows.rows.set,
            max_new_tokens=min(limit, max_new_tokens or limit),
            until_newline=not worked,
        )
        for name, texts in zip(self.voices, found, strict=True):
            for q, text in zip(asked, texts, strict=True):
                pattern = q.item.answer_pattern if worked else None
                right = answered(text, q.answers, cot=worked, pattern=pattern)
                yield q.result(name, float(right), read_answer(text, cot=worked, pattern=pattern))

    def _chosen(self, scorer: Any, asked: Sequence[Question]) -> Iterator[ItemResult]:
        """The choice with the highest log-probability a character, the first of equals."""
        pairs = [(q.prompt, choice) for q in asked for choice in q.item.choices]
        if not pairs:
            return
        found = score_together(scorer, pairs, list(self.voices.values()), self.rows.rows.set)
        for name, logprobs in zip(self.voices, found, strict=True):
            likely = iter(logprobs)
            for q in asked:
                scores = [next(likely) / len(choice) for choice in q.item.choices]
                taken = q.item.choices[scores.index(max(scores))]
                yield q.result(name, float(taken in q.answers), taken)


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
        voices = {name: LogitEnsemble.added((1.0,) * n)}
        yield _Pass(Composition("side-by-side", experts, rows), rows, voices)


def _sampled(task: Task, items: int, seed: int) -> Task:
    """A task with at most `items` of its items, in their order; both forms ask the same ones."""
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
    """The gains of the answers over base and singles on the same items, one row a composition."""
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
    return tuple(_record(best[name]) for name in compositions if name in best)


def _record(row: Gain) -> Forecast:
    return Forecast(
        system=row.system,
        gain=row.difference,
        ci95=row.ci95,
        n=row.n,
        part=row.part,
        against=row.against,
        against_part=row.against_part,
    )
