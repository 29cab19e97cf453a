"""The sample that `inspect` asks: whole clusters, nested, and by how much it is smaller."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest

from loraprobe import defaults
from loraprobe.evaluation.ledger import NAME
from loraprobe.evaluation.rounds import first_clusters, rounds
from loraprobe.options import Options
from loraprobe.pipeline.commands import inspect, merge_and_eval
from loraprobe.pipeline.evaluator import open_evaluator
from loraprobe.pipeline.inputs import open_inputs
from loraprobe.pipeline.session import Session
from loraprobe.pipeline.systems import baseline_systems
from loraprobe.tasks import Item, Task, load_task
from loraprobe_lab import shipped_world


def task(sizes):
    """Clusters of these sizes, whose items alternate in the file."""
    rows = [(k, c) for k in range(max(sizes)) for c, size in enumerate(sizes) if k < size]
    return Task("t", tuple(Item(f"{c}-{k}", "?", ("!",), group=str(c)) for k, c in rows))


@pytest.mark.parametrize("most", [5, 7, 20, 40])
def test_whole_clusters_are_drawn_until_there_are_enough(most):
    whole = task([3, 1, 4, 2, 5] * 4)
    found = first_clusters(whole, most, 0)
    sizes = Counter(item.group for item in whole.items)
    assert Counter(item.group for item in found.items) == {
        group: sizes[group] for group in {item.group for item in found.items}
    }
    assert most <= len(found.items) < most + 5
    assert [i for i in whole.items if i in found.items] == list(found.items)  # the file's order


def test_a_smaller_sample_is_part_of_a_larger_one_and_the_seed_draws():
    whole = task([1] * 100)
    few, more, other = (first_clusters(whole, n, seed) for n, seed in ((20, 0), (40, 0), (20, 1)))
    assert set(few.items) < set(more.items) and set(few.items) != set(other.items)
    assert set(few.items) != set(whole.items[:20])
    assert first_clusters(whole, 100, 0).items == whole.items


def test_a_sample_is_asked_in_the_first_rounds_of_an_evaluation():
    whole = task([1] * 100)
    first, *_ = rounds([whole], 0)
    assert set(first.tasks[0].items) == set(first_clusters(whole, first.items, 0).items)


def test_of_one_large_cluster_no_more_than_the_sample_is_asked():
    assert len(first_clusters(task([500]), 40, 0).items) == 40


@pytest.fixture(scope="module")
def inspected(tmp_path_factory):
    """The audit of two one-hop adapters, and how many answers it took."""
    chosen = shipped_world().scenario("disjoint")
    state = tmp_path_factory.mktemp("state")
    audit = inspect(
        list(chosen.adapters.values()),
        base=str(shipped_world().path / "base"),
        tasks=list(chosen.tasks),
        options=Options(state=state, threads=1),
    )
    return audit, (state / NAME).read_text().count("\n") - 1


def test_a_sample_is_asked_and_the_compositions_a_first_round(inspected):
    audit, answers = inspected
    alone = {s.n for s in audit.evaluation if s.kind in ("base", "adapter")}
    composed = {(s.n, s.part) for s in audit.evaluation if s.kind in ("merge", "router")}
    assert alone == {defaults.SAMPLED_ITEMS}
    assert composed == {(defaults.PILOT_ITEMS, "question"), (defaults.PILOT_ITEMS, "steps")}
    assert answers == 3 * 4 * defaults.SAMPLED_ITEMS + 3 * 2 * defaults.PILOT_ITEMS
    # merge-and-eval asks base, two adapters, three compositions and two controls all four parts
    # of all 200 items.
    assert answers < 8 * 4 * 200 / 3
    assert audit.verdict.decision == "unlikely" and not audit.forecasts
    free = ("hop_accuracy", "guessing")  # read from the answers
    probed = {row.n for row in audit.coverage if row.name not in free}
    assert max(probed) == defaults.PROBED_ITEMS
    assert audit.verdict.next.endswith("--system chain")


def test_choices_are_forecast_from_the_passes_of_the_single_adapters(tmp_path, monkeypatch):
    """No logits of several systems are computed together, and the forecast is that of the sum."""
    chosen = shipped_world().scenario("keep-both")
    whole = load_task(chosen.tasks[0], 24)
    pool = sorted({item.answers[0] for item in whole.items})
    items = [
        replace(item, choices=(item.answers[0], next(p for p in pool if p != item.answers[0])))
        for item in whole.items
    ]
    task = Task("choices", tuple(items))
    call = {"base": str(shipped_world().path / "base"), "tasks": [task]}
    adapters = list(chosen.adapters.values())
    for name in ("score_together", "write_together"):
        monkeypatch.setattr(f"loraprobe.scoring.{name}", None)
    audit = inspect(adapters, **call, options=Options(state=tmp_path / "a", threads=1))
    (told,) = audit.forecasts
    assert (told.system, told.n, told.part) == ("sum", 24, "question")
    assert audit.verdict.forecast.system == "sum" and audit.verdict.probability is None
    monkeypatch.undo()
    options = Options(state=tmp_path / "b", threads=1, methods=("sum",), routers=())
    opened = open_inputs(adapters, call["base"], [task], options)
    with open_evaluator(opened, (), Session("inspect", options)) as evaluator:
        results = evaluator.run(baseline_systems(opened.adapters))
        (computed,) = evaluator.forecast(results)
    # Rounding moves a choice only between two that are nearly equally likely.
    assert told.gain == pytest.approx(computed.gain, abs=1.5 / 24)


def test_a_first_round_asks_the_router_that_an_evaluation_of_several_tasks_asks(tmp_path):
    """It learns from the items that `merge-and-eval` sets apart, and answers the same questions."""
    chosen = shipped_world().scenario("keep-both")
    refs = [f"{name}={path}" for name, path in chosen.adapters.items()]
    base = str(shipped_world().path / "base")
    options = Options(limit=60, state=tmp_path)
    audit = inspect(refs, base=base, tasks=chosen.tasks, options=options)
    whole = merge_and_eval(
        refs, base=base, tasks=chosen.tasks, options=replace(options, resume=True)
    ).audit
    routers = [{s.system for s in a.evaluation if s.kind == "router"} for a in (audit, whole)]
    assert routers[0] == routers[1] > {"arrow"}
    assert audit.verdict.decision == whole.verdict.decision == "likely"
    assert audit.verdict.system == whole.verdict.system
    asked = sum(score.n for score in audit.evaluation)
    assert any(note.startswith(f"{asked} results of an earlier run") for note in whole.notes)
