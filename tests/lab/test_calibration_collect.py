"""From worlds to cases: what sets answered, measured gains, and what the command makes of them."""

import dataclasses
import random
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from tiny_worlds import tiny_world

from loraprobe.base import load_base
from loraprobe.defaults import MARGIN
from loraprobe.errors import LoraprobeError, UsageError
from loraprobe.evaluation import System, measure_gains
from loraprobe.records import ItemPart, ItemResult
from loraprobe_lab.calibration import collect as collecting
from loraprobe_lab.calibration.cases import (
    CaseError,
    measured_gain,
    read_cases,
    read_sets,
    write_cases,
    write_sets,
)
from loraprobe_lab.calibration.collect import (
    SampleSizes,
    collect,
    fingerprint,
    joined,
    kept_sets,
    sets_in,
)
from loraprobe_lab.world import World, shipped_world
from loraprobe_lab.worlds.spec import build_world


def kinds_of(*adapters):
    """System -> kind, of a base, these adapters and three compositions of them."""
    composed = {"uniform": "merge", "sum": "merge", "arrow": "router"}
    return {"base": "base", **dict.fromkeys(adapters, "adapter"), **composed}


KINDS = kinds_of("a", "b")


def answers(rates, n, seed=0, task="t", part="question"):
    """Results of systems that are right with given rates, independently."""
    rng = random.Random(seed)
    return [
        ItemResult(
            s, task, ItemPart(part), str(i), "exact_match", float(rng.random() < p), "", f"item:{i}"
        )
        for s, p in rates.items()
        for i in range(n)
    ]


# truth


def test_truth_is_the_gain_over_the_best_of_base_and_singles():
    rows = answers({"base": 0.1, "a": 0.4, "b": 0.2, "uniform": 0.8, "sum": 0.99}, 300)
    found = measured_gain(rows, KINDS, "uniform")
    systems = [System(n, k) for n, k in KINDS.items() if n != "sum"]
    others = measure_gains([r for r in rows if r.system != "sum"], systems)
    row = next(g for g in others if g.system == "uniform")
    assert (found["gain"], found["ci95"], found["n"]) == (row.difference, row.ci95, 300)
    share = {s: np.mean([r.value for r in rows if r.system == s]) for s in ("a", "uniform")}
    assert found["gain"] == pytest.approx(share["uniform"] - share["a"])


def test_the_better_form_counts_and_undecided_forms_leave_it_open():
    plain = answers({"base": 0.0, "a": 0.0, "b": 0.0, "uniform": 0.0}, 40)
    steps = answers({"base": 0.0, "a": 0.0, "b": 0.0, "uniform": 0.9}, 40, part="steps")
    found = measured_gain(plain + steps, KINDS, "uniform")
    assert found["gain"] == pytest.approx(0.9, abs=0.15) and found["ci95"][0] > MARGIN
    few = answers({"base": 0.0, "a": 0.0, "b": 0.0, "uniform": 0.0}, 8, part="steps")
    low = measured_gain(
        answers({"base": 0.9, "a": 0.9, "b": 0.9, "uniform": 0.1}, 300), KINDS, "uniform"
    )
    assert low["ci95"][1] < MARGIN
    open_ = measured_gain(plain + few, KINDS, "uniform")["ci95"]
    assert open_[0] < MARGIN < open_[1]


# collecting


@pytest.fixture
def seen(monkeypatch):
    """Sets answer without a model; the names of those that were asked."""
    names = []

    def made(self, scenario, limit):
        names.append(scenario.name)
        rates = {"base": 0.1, "a": 0.2, "b": 0.2, "uniform": 0.9, "sum": 0.1, "arrow": 0.9}
        tasks = [path.stem for path in scenario.tasks]
        return KINDS, [row for task in tasks for row in answers(rates, 100, task=task)]

    monkeypatch.setattr(collecting.WorldAnswers, "of", made)
    return names


def cases_in(output):
    return [case for one in kept_sets(output) for case in one.cases()]


def test_sets_become_cases_and_are_asked_once(tmp_path, seen):
    path, told = shipped_world().path, []
    collect([path], tmp_path, progress=lambda *row: told.append(row))
    assert sorted(seen) == sorted(World.load(path).scenarios)
    assert told[-1] == (("adapter sets", 4, 4))
    cases = cases_in(tmp_path)
    assert len(cases) == 12
    first = cases[0]
    assert (first.base, first.architecture, first.world) == ("small-world", "llama", "small-world")
    assert first.model_type == "llama"
    assert {c.label(MARGIN) for c in cases if c.method == "sum"} == {0}
    assert {c.label(MARGIN) for c in cases if c.method != "sum"} == {1}
    assert {(c.adapters, c.metric, c.part) for c in cases} == {(2, "exact_match", "question")}
    assert {(c.adapter_set, c.tasks, c.hops, c.n) for c in cases} == {
        ("disjoint", 1, 2, 100),
        ("keep-both", 2, 0, 200),
        ("skill-and-facts", 1, 2, 100),
        ("target-adapter", 1, 2, 100),
    }
    assert all(0.1 < c.baseline < 0.35 and c.gain > 0.5 for c in cases if c.method != "sum")
    seen.clear()
    collect([path], tmp_path)
    assert seen == []
    seen.clear()
    collect([path], tmp_path, SampleSizes(limit=7))
    assert len(seen) == 4


def test_a_fingerprint_changes_with_what_results_depend_on(tmp_path):
    tiny = tiny_world(("two-hop", "keep-both"), only=["keep-both", "disjoint"])
    world = build_world(tiny, tmp_path / "w")
    scenario, sizes = world.scenarios["keep-both"], SampleSizes()
    mark = fingerprint(world, scenario, sizes)
    assert mark == fingerprint(World.load(world.path), scenario, SampleSizes())
    assert mark != fingerprint(world, scenario, SampleSizes(dtype="bfloat16"))
    assert mark != fingerprint(world, world.scenarios["disjoint"], sizes)
    for name in ("adapters/count/adapter_config.json", "tasks/last.jsonl", "base/config.json"):
        kept = (world.path / name).read_bytes()
        (world.path / name).write_bytes(kept + b" ")
        assert mark != fingerprint(world, scenario, sizes)
        (world.path / name).write_bytes(kept)
    assert mark == fingerprint(world, scenario, sizes)


def test_worlds_of_one_base_count_as_one_base(tmp_path, seen):
    collect([shipped_world().path], tmp_path)
    for path in (tmp_path / "answers" / "small-world").glob("*.gz"):
        (one,) = read_sets(path)
        twin = dataclasses.replace(one, world="twin", base="twin")
        write_sets(tmp_path / "answers" / "twin" / path.name, [twin])
    cases = cases_in(tmp_path)
    assert {c.world for c in cases} == {"twin", "small-world"}
    assert {c.base for c in cases} == {"small-world"}


def test_two_worlds_of_one_name_are_refused(tmp_path):
    with pytest.raises(UsageError, match="Two worlds are called small-world"):
        collect([shipped_world().path] * 2, tmp_path)


def test_worlds_are_added_to_stored_cases_in_place_of_older_ones(tmp_path, seen):
    collect([shipped_world().path], tmp_path)
    cases, (both,) = cases_in(tmp_path), [s for s in kept_sets(tmp_path) if s.tasks > 1]
    elsewhere = [dataclasses.replace(case, world="elsewhere", n=7) for case in cases]
    old = [*elsewhere, *(dataclasses.replace(case, n=7) for case in cases)]
    stored = tmp_path / "stored" / "cases.jsonl.gz"
    write_cases(stored, old)
    write_sets(stored.with_name("several.jsonl.gz"), [dataclasses.replace(both, world="elsewhere")])
    for name in ("one", "two"):
        out = tmp_path / name
        found, _ = collecting.gather([shipped_world().path], out, stored=stored)
        assert found == read_cases(out / "cases.jsonl.gz") == elsewhere + cases
        sets = read_sets(out / "several.jsonl.gz")
        assert [one.world for one in sets] == ["elsewhere", "small-world"]
        stored = out / "cases.jsonl.gz"


def test_a_set_that_cannot_be_asked_ends_the_run_and_what_was_asked_is_kept(
    tmp_path, seen, monkeypatch
):
    answered = collecting.WorldAnswers.of

    def unfit(self, scenario, limit):
        if scenario.name == "keep-both":
            raise LoraprobeError("The adapters do not fit.")
        return answered(self, scenario, limit)

    monkeypatch.setattr(collecting.WorldAnswers, "of", unfit)
    with pytest.raises(LoraprobeError, match="do not fit"):
        collecting.calibrate([shipped_world().path], tmp_path)
    assert {one.adapter_set for one in kept_sets(tmp_path)} == set(seen) != set()


def test_an_empty_file_holds_no_case(tmp_path):
    write_cases(tmp_path / "cases.jsonl.gz", [])
    with pytest.raises(CaseError, match="holds no case"):
        collecting.gather([], tmp_path / "out", stored=tmp_path / "cases.jsonl.gz")


def test_tiny_worlds_are_asked_for_real(tmp_path, monkeypatch):
    """Both forms, without hops and without the items that routers learn from; on one base."""
    names = ("skill-and-facts", "keep-both")
    tiny = tiny_world(names, only=names)
    build_world(tiny, tmp_path / "tiny")
    sizes = SampleSizes(limit=44, max_new_tokens=3)
    loaded, where = [], "loraprobe.pipeline.evaluator.load_base"
    monkeypatch.setattr(where, lambda base, **rest: loaded.append(1) or load_base(base, **rest))
    collect([tmp_path / "tiny"], tmp_path / "out", sizes)
    assert loaded == [1]
    both, one = kept_sets(tmp_path / "out")
    assert (both.tasks, one.tasks) == (2, 1)
    assert {row.part for row in one.results} == {"question", "steps"}
    assert set(one.kinds) == {"base", "newcomers", "steps", "uniform", "sum", "arrow"}
    assert {c.n for c in one.cases()} == {min(44, len(tiny.tasks["newcomers"]))}
    assert any(name.startswith("hard:by=centroid") for name in both.kinds)
    assert set(both.kinds.values()) == {"base", "adapter", "merge", "router"}
    asked = {(row.task, row.item) for row in both.results}
    wanted = {"tiny.last": 33, "tiny.count": 33}
    assert {t: sum(task == t for task, _ in asked) for t in wanted} == wanted


def given(name, base="a/base"):
    """The shipped world's set with two tasks, as a world on a base elsewhere."""
    own = shipped_world()
    chosen = dataclasses.replace(own.scenarios["keep-both"], name=name)
    told = {"base": None, "base_name": base, "scenarios": {name: chosen}}
    manifest = {**own.manifest, "base": {"path": None, "name": base}}
    return dataclasses.replace(own, **told, manifest=manifest)


def test_worlds_on_one_given_base_are_one_world():
    own = shipped_world()
    first, whole = joined([given("x"), given("y"), own])
    assert first is own and whole.path == Path("a/base")
    assert [one.name for one in sets_in(whole)] == ["x", "y"]
    found = sets_in(whole, across=True)
    assert [one.name for one in found][:2] == ["x", "y"]
    assert {one.name for one in found[2:]} == {"x.last+y.count", "x.count+y.last"}
    assert list(found[0].adapters) == ["x.last", "x.count"]
    assert all(len(one.adapters) == len(one.tasks) == 2 for one in found)


def test_sets_across_a_given_base_are_no_cases_of_their_own(tmp_path, monkeypatch):
    kinds = kinds_of("x", "y")
    rows = [row for task in "tu" for row in answers(dict.fromkeys(kinds, 0.5), 40, task=task)]
    monkeypatch.setattr(collecting.WorldAnswers, "of", lambda *_: (kinds, rows))
    base, worlds = SimpleNamespace(model_type="llama"), {name: given(name) for name in "xy"}
    monkeypatch.setattr("loraprobe.pipeline.inputs.base_of", lambda *_: base)
    monkeypatch.setattr(World, "load", lambda path: worlds[Path(path).name])
    collecting.gather([Path("x"), Path("y")], tmp_path, across=True)
    cases = read_cases(tmp_path / "cases.jsonl.gz")
    assert {(c.base, c.architecture, c.model_type) for c in cases} == {("base", "natural", "llama")}
    assert [(c.world, c.adapter_set) for c in cases[::3]] == [("base-x", "x"), ("base-y", "y")]
    assert len(read_sets(tmp_path / "several.jsonl.gz")) == 4
