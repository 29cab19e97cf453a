"""Systems of a kind of its own that an extension adds to an evaluation."""

from dataclasses import replace

import evidences
import making
import pytest
from audits import rendered

import loraprobe
from loraprobe import options, records, wiring
from loraprobe.errors import TaskError, UsageError
from loraprobe.evaluation import System
from loraprobe.extension import AddedSystems, Extension, SystemSource
from loraprobe.records import QUESTION, STEPS, Kind, Score
from loraprobe.tasks import Item, Task
from loraprobe.tasks.splits import TaskSplit, drawn, left_by
from loraprobe.verdict import Request, decide, next_command

APART = 20


class Outside(SystemSource):
    """The sum under another name, and the base under a third one."""

    flag = "--outside"

    def set_apart(self, tasks, options):
        return drawn(tasks, [APART] * len(tasks), options.seed)

    def expected(self, parts):
        return {"outside": 100, "outside:none": 0}

    def make(self, given):
        assert [len(task.items) for task in given.parts.apart] == [APART]
        one = next(system for system in given.composed if system.name == "sum")
        whole = System("outside", "outside", one.composition, content=one.content)
        return AddedSystems([whole, System("outside:none", "outside")], ["It was made outside."])


class Added(Extension):
    def system_sources(self, options):
        return [Outside()]

    def kinds(self):
        return {
            "outside": Kind(
                "reference", "train-target-adapter", "outside", "what comes from outside"
            )
        }


def install(monkeypatch, *added):
    every = (*wiring.extensions(), *added)
    for module in (wiring, options, records, records.measurements):
        monkeypatch.setattr(module, "extensions", lambda: every)


@pytest.fixture
def added(monkeypatch):
    install(monkeypatch, Added())


def run(*names, limit=60, **more):
    one, other, _, task, _, base, *_ = making.shipped("skill-and-facts")
    given = {"methods": "sum", "routers": (), "limit": limit, "tasks": task, "threads": 1}
    names = names or ("newcomers", "steps")
    places = (ref.partition("=")[2] for ref in (one, other))
    adapters = [f"{name}={place}" for name, place in zip(names, places, strict=True)]
    return loraprobe.merge_and_eval(adapters, base=base, **given, **more)


def test_they_are_asked_compared_and_told_beside_all_others(added, tmp_path):
    guard = tmp_path / "kept.jsonl"
    rows = [f'{{"prompt": "Say {k}.", "answer": "no"}}' for k in range(8)]
    guard.write_text("\n".join(rows))
    found = run(guards=str(guard), all_items=True)
    scores = {(row.system, row.part): row for row in found.evaluation.scores}
    for form in (QUESTION, STEPS):
        own, same = scores["outside", form], scores["sum", form]
        assert (own.kind, own.value, own.n) == ("outside", same.value, 60 - APART)
        assert scores["outside:none", form].value == scores["base", form].value
    compared = {row.against for row in found.evaluation.comparisons if row.system == "outside"}
    assert {"base", "newcomers", "steps", "sum"} <= compared
    assert not any(row.system == "outside" for row in found.evaluation.gains)
    assert {"outside", "outside:none"} <= {row.system for row in found.evaluation.guards}
    assert found.verdict.system == "sum" and "It was made outside." in found.notes
    assert "outside" in rendered(found)


def test_an_adapter_of_their_name_is_refused(added):
    with pytest.raises(UsageError, match="outside"):
        run("outside", "steps")


def with_outside(value, **composed):
    """Evidence in which the system from outside scores so much."""
    given = evidences.known(evidences.evidence({"base": 0.1, "a": 0.3, "b": 0.2, **composed}))
    row = evidences.score("base", value)
    rows = [replace(row, system="outside", kind="outside"), row]
    return evidences.replaced(given, scores=(*given.measured.scores, rows[0]))


def test_one_is_advised_where_nothing_gains_and_it_is_the_best(added):
    verdict = decide(with_outside(0.8, sum=0.3))
    assert (verdict.decision, str(verdict.action)) == ("unlikely", "train-target-adapter")
    assert verdict.used == "outside" and not verdict.composes
    step = next_command(verdict, Request(("a", "b")), with_outside(0.8, sum=0.3).measured)
    assert step.verb == "merge-and-eval" and ("-o", "DIR") in step.options
    assert str(decide(with_outside(0.25, sum=0.3)).action) == "use-single:a"


def test_one_changes_no_decision(added):
    controls = {"shrunk:a": 0.2, "random-partner": 0.1}
    without = decide(evidences.known(evidences.evidence(
        {"base": 0.1, "a": 0.3, "b": 0.2, "sum": 0.6, **controls}
    )))  # fmt: skip
    verdict = decide(with_outside(0.9, sum=0.6, **controls))
    assert without.decision == "likely"
    assert (verdict.decision, verdict.system) == (without.decision, without.system)
    assert str(verdict.action) == "merge"


def test_only_the_system_with_the_name_of_its_kind_is_advised(added):
    given = with_outside(0.8, sum=0.3)
    rows = [
        replace(row, system="outside:none") if row.kind == "outside" else row
        for row in given.measured.scores
    ]
    assert str(decide(evidences.replaced(given, scores=tuple(rows))).action) == "use-single:a"


def test_two_extensions_with_one_kind(monkeypatch):
    install(monkeypatch, Added(), Added())
    with pytest.raises(UsageError, match="the kind of systems outside"):
        records.kinds()


def test_a_kind_that_no_extension_has_is_no_score():
    from pydantic import TypeAdapter, ValidationError

    row = evidences.score("base", 0.5)
    assert TypeAdapter(Score).validate_python(vars(row)).kind == "base"
    for unknown in ("nothing", "switch"):
        with pytest.raises(ValidationError, match="kind"):
            TypeAdapter(Score).validate_python({**vars(row), "kind": unknown})


def test_what_several_set_apart_is_scored_by_nobody():
    task = Task("t", tuple(Item(str(k), f"p{k}", ("a",), group=str(k // 2)) for k in range(40)))
    few, more = (drawn([task], [n], 3) for n in (8, 16))
    ids = [{item.id for item in parts.apart[0].items} for parts in (few, more)]
    assert ids[0] < ids[1]  # by one seed the smaller is part of the larger
    left = left_by([task], [few, more])[0].items
    assert {item.id for item in left} == {item.id for item in task.items} - ids[1]
    assert left_by([task], []) == (task,)
    with pytest.raises(TaskError, match="t are set apart"):
        left_by([task], [TaskSplit((task,), (replace(task, items=()),))])
