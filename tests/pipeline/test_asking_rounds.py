"""The rounds of an evaluation on planted answers: when it stops, and who is asked how much."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from loraprobe.defaults import ROUNDS_FROM
from loraprobe.evaluation import Ledger, System, rounds
from loraprobe.options import Options
from loraprobe.pipeline.evaluate import evaluate
from loraprobe.pipeline.evaluator import Evaluator
from loraprobe.pipeline.session import Session
from loraprobe.records import ItemResult
from loraprobe.tasks import Item, Task, with_metric
from loraprobe.verdict import Evidence, decide_compositions

N = 240
ALONE = [System("base", "base"), System("a", "adapter"), System("b", "adapter")]
COMPOSED = [System("uniform", "merge"), System("sum", "merge"), System("arrow", "router")]
CONTROLS = [System("shrunk:a", "control"), System("random-partner", "control")]
FAIR = {"base": 0.05, "a": 0.2, "b": 0.1, "shrunk:a": 0.15, "random-partner": 0.1, "chain": 0.5}


@dataclass(frozen=True)
class Planted(Evaluator):
    """Answers from shares of right ones; `asked` counts the items of each system."""

    answers: dict[tuple[str, str], np.ndarray] = field(default_factory=dict)
    asked: dict[str, set[tuple[str, str]]] = field(default_factory=dict)

    def run(self, systems: Any, *_: Any, **__: Any) -> list[ItemResult]:
        rows = []
        for system in systems:
            for task in self.tasks:
                for item in task.items:
                    value = self.answers[system.name, task.name][int(item.id)]
                    self.asked.setdefault(system.name, set()).add((task.name, item.id))
                    rows.append(
                        ItemResult(
                            system.name,
                            task.name,
                            "question",
                            item.id,
                            "exact_match",
                            float(value),
                            "",
                            item.cluster,
                        )
                    )
        return rows


def planted(
    shares: dict[str, float] | list[dict[str, float]], n: int = N, **options: Any
) -> Planted:
    tasks, answers = [], {}
    rng = np.random.default_rng(5)
    for t, of in enumerate(shares if isinstance(shares, list) else [shares]):
        tasks.append(Task(f"t{t}", tuple(Item(str(k), f"p{k}", ("x",)) for k in range(n))))
        for name, share in {**FAIR, **of}.items():
            answers[name, f"t{t}"] = rng.random(n) < share
    session = Session("merge-and-eval", Options(**options))
    inputs, scorer = SimpleNamespace(), SimpleNamespace(chat_template=False)
    return Planted(inputs, session, scorer, Ledger(), tasks, answers=answers)  # type: ignore[arg-type]


def asked(evaluator: Planted, systems: list[System] | None = None) -> Any:
    options = evaluator.session.options
    schedule = rounds(evaluator.tasks, options.seed, all_items=options.all_items)
    found = evaluate(evaluator, systems or [*ALONE, *COMPOSED], schedule, lambda *_: CONTROLS)
    made = found.records()
    verdict = decide_compositions(
        Evidence(tasks=len(evaluator.tasks), level="evaluation", **vars(made))
    )
    return found, made, verdict


def items(evaluator: Planted, name: str) -> int:
    return len(evaluator.asked.get(name, ()))


def test_a_large_gain_stops_after_the_first_round_with_its_controls():
    evaluator = planted({"uniform": 0.9, "sum": 0.3, "arrow": 0.3})
    _, made, verdict = asked(evaluator)
    assert (verdict.decision, verdict.system) == ("likely", "uniform")
    assert made.rounds.used == 1 < made.rounds.planned
    assert made.rounds.items == 30 and made.rounds.total == N
    assert {items(evaluator, s.name) for s in [*ALONE, *COMPOSED, *CONTROLS]} == {30}
    assert {row.n for row in made.evaluation} == {30}
    assert made.rounds.level > 0.99
    assert "controls-beaten" in {reason.code for reason in verdict.reasons}


def test_all_items_and_few_items_are_one_round():
    for evaluator in (
        planted({"uniform": 0.9, "sum": 0.3, "arrow": 0.3}, all_items=True),
        planted({"uniform": 0.9, "sum": 0.3, "arrow": 0.3}, n=ROUNDS_FROM - 1),
    ):
        _, made, verdict = asked(evaluator)
        assert verdict.decision == "likely"
        assert made.rounds.used == made.rounds.planned == 1
        assert {row.n for row in made.evaluation} == {len(evaluator.tasks[0].items)}


def test_what_cannot_win_is_dropped_and_the_baselines_never_are():
    evaluator = planted({"a": 0.5, "uniform": 0.62, "sum": 0.0, "arrow": 0.6})
    found, made, _ = asked(evaluator)
    assert made.rounds.used > 1
    assert items(evaluator, "sum") < items(evaluator, "uniform") == made.rounds.items
    assert made.rounds.dropped == {"sum": 1}
    assert {items(evaluator, s.name) for s in ALONE} == {made.rounds.items}
    assert "sum" not in {gain.system for gain in made.gains}, "it is no candidate"
    counts = {row.system: row.n for row in made.evaluation}
    assert counts["sum"] == items(evaluator, "sum") and counts["base"] == made.rounds.items
    assert [system.name for system in found.systems][3:6] == ["uniform", "sum", "arrow"]
    assert found.notes() and "sum" in found.notes()[0]


def test_a_clear_failure_stops_early_with_a_first_round_of_controls():
    evaluator = planted({"a": 0.95, "uniform": 0.3, "sum": 0.2, "arrow": 0.2})
    _, made, verdict = asked(evaluator)
    assert verdict.decision == "unlikely"
    assert made.rounds.used < made.rounds.planned
    assert {items(evaluator, s.name) for s in CONTROLS} == {30}


def test_a_gain_that_a_control_has_too_is_no_success_and_goes_on():
    evaluator = planted({"uniform": 0.9, "sum": 0.3, "arrow": 0.3, "random-partner": 0.89})
    _, made, verdict = asked(evaluator)
    assert verdict.decision != "likely"
    assert made.rounds.used == made.rounds.planned or verdict.decision == "unlikely"
    assert items(evaluator, "random-partner") == made.rounds.items


def test_retentions_are_decided_too():
    """The mean gains at once, while it stays open for long whether b's skill is kept."""
    first = {"a": 0.9, "b": 0.05, "uniform": 0.9, "sum": 0.1, "arrow": 0.1}
    second = {"a": 0.05, "b": 0.9, "uniform": 0.75, "sum": 0.1, "arrow": 0.1}
    evaluator = planted([first, second])
    _, made, verdict = asked(evaluator)
    assert made.rounds.used > 1
    kept = next(r for r in made.evaluation if (r.system, r.task) == ("uniform", "t1"))
    gain = next(row for row in made.gains if row.system == "uniform")
    assert gain.adjusted_ci95[0] > 0.05, "the gain alone would have stopped it"
    assert kept.n == items(evaluator, "uniform") // 2
    assert verdict.decision in ("likely", "inconclusive", "unlikely")
    easy = planted([first, {**second, "uniform": 0.9}])
    assert asked(easy)[1].rounds.used <= made.rounds.used


def test_the_chain_is_asked_once_on_what_the_others_were_asked():
    evaluator = planted({"uniform": 0.9, "sum": 0.3, "arrow": 0.3})
    _, made, _ = asked(evaluator, [*ALONE, *COMPOSED, System("chain", "chain")])
    assert items(evaluator, "chain") == made.rounds.items
    assert "chain" in {gain.system for gain in made.gains}


def test_an_early_run_and_one_of_all_items_share_their_results():
    assert Options(all_items=True).fingerprint() == Options().fingerprint()


def test_a_gain_that_the_needed_metric_does_not_show_is_not_likely():
    """Of 50 JSON answers exact match calls 38 right of which 6 are JSON, as its kept texts show."""
    items = [Item(str(k), f"p{k}", (f'{{"city": "C{k}"}}',)) for k in range(50)]
    right = {"base": (1, 1), "a": (4, 4), "uniform": (38, 6), "shrunk:a": (2, 2), "sum": (38, 30)}

    @dataclass(frozen=True)
    class Texts(Planted):
        def run(self, systems: Any, *_: Any, **__: Any) -> list[ItemResult]:
            found = []
            for name in (system.name for system in systems if system.name in right):
                for k, item in enumerate(items):
                    texts = item.answers[0], f"{{city: C{k}}}", "dunno"
                    text = texts[(k >= right[name][1]) + (k >= right[name][0])]
                    of = (name, "t", "question", item.id, "exact_match")
                    found.append(ItemResult(*of, float(text != "dunno"), text, item.cluster))
            return found

    def judged(merge: str, metric: str) -> Any:
        task = with_metric(Task("t", tuple(items)), metric)
        session, scorer = Session("merge-and-eval", Options()), SimpleNamespace(chat_template=False)
        evaluator = Texts(SimpleNamespace(), session, scorer, Ledger(), [task])  # type: ignore[arg-type]
        systems = [*ALONE[:2], System(merge, "merge")]
        found = evaluate(evaluator, systems, rounds([task], 0), lambda *_: CONTROLS[:1])
        made = found.records()
        evidence = Evidence(tasks=1, level="evaluation", **vars(made))
        return made, decide_compositions(evidence)

    made, verdict = judged("uniform", "exact_match")
    gain = made.gains[0]
    assert (gain.difference, gain.checked) == pytest.approx((0.68, 0.04))
    assert gain.adjusted_ci95[0] > 0.05 > gain.checked_ci95[0]
    assert verdict.decision == "inconclusive"
    assert made.rounds.used == made.rounds.planned, "it goes on where exact match would stop"
    told = {reason.code: reason for reason in verdict.reasons}
    assert told["answers-normalised"].severity == "decisive"
    assert told["answers-normalised"].value == gain.checked_ci95[0]
    assert judged("sum", "exact_match")[1].decision == "likely", "JSON shows a gain too"
