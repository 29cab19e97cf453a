"""From worlds to cases: observation files and measured gains."""

from __future__ import annotations

import dataclasses
import gzip
import json
import os
import random

import numpy as np
import pytest
from tiny_worlds import tiny_world

from loraprobe.defaults import MARGIN
from loraprobe.errors import LoraprobeError, UsageError
from loraprobe.evaluation import System, gains
from loraprobe.records import (
    Audit,
    Compatibility,
    Coverage,
    Forecast,
    Issue,
    ItemResult,
    Measurement,
    Provenance,
    Score,
)
from loraprobe.tasks import load_task
from loraprobe.verdict import Evidence
from loraprobe_lab.calibration import collect as collecting
from loraprobe_lab.calibration.append import append
from loraprobe_lab.calibration.cases import CaseError, read_cases, write_cases
from loraprobe_lab.calibration.collect import collect, fingerprint, kept_cases
from loraprobe_lab.calibration.observations import (
    evidence_of,
    measured_gain,
    packed,
    read_observation,
    unpacked,
)
from loraprobe_lab.calibration.observe import BaselineResults, Observation, SampleSizes
from loraprobe_lab.world import World, in_processes, shipped_world, write_text
from loraprobe_lab.worlds.spec import build_world

KINDS = {"base": "base", "a": "adapter", "b": "adapter", "uniform": "merge", "sum": "merge",
         "arrow": "router"}  # fmt: skip


def answers(rates, n, seed=0, task="t", part="question"):
    """Results of systems that are right with given rates, independently."""
    rng = random.Random(seed)
    return [
        ItemResult(s, task, part, str(i), "exact_match", float(rng.random() < p), "", f"item:{i}")
        for s, p in rates.items()
        for i in range(n)
    ]


# what is kept


def test_results_survive_packing(tmp_path):
    rows = answers(dict.fromkeys(KINDS, 0.4), 21) + answers({"base": 0.5}, 7, 1, part="steps")
    rows = [dataclasses.replace(r, group=f"group:{int(r.item) // 2}") for r in rows]
    write_text(tmp_path / "x" / "set.json.gz", json.dumps({"results": packed(rows)}))
    kept = unpacked(read_observation(tmp_path / "x" / "set.json.gz")["results"])
    assert sorted(kept, key=str) == sorted(rows, key=str) and len(kept) == len(rows)
    assert [p.name for p in (tmp_path / "x").iterdir()] == ["set.json.gz"]


def test_a_damaged_observation_is_named(tmp_path):
    for content in (b"PK nothing", gzip.compress(b"{"), gzip.compress(b"{}" * 99)[:-9]):
        (tmp_path / "x.json.gz").write_bytes(content)
        with pytest.raises(CaseError, match=r"x\.json\.gz holds no observation"):
            read_observation(tmp_path / "x.json.gz")


def test_losses_are_not_packed_as_right_or_wrong():
    row = ItemResult("base", "t", "question", "0", "answer_loss", 2.3, "", "g")
    with pytest.raises(ValueError, match="losses"):
        packed([row])


def an_audit():
    score = Score("a", "adapter", "t", "question", "exact_match", 0.4, (0.3, 0.5), 100)
    return Audit(
        "inspect",
        Provenance("0", None, ()),
        compatibility=Compatibility((Issue("note", "x", ("a",), "text"),)),
        diagnostics=(Measurement("norm_ratio", ("a", "b"), 2.0),),
        coverage=(Coverage("hop_accuracy", "t", 0.5, 10, 1, ("a",), (0.2, 0.8), 0.1),),
        forecasts=tuple(
            Forecast(name, gain, (gain - 0.1, gain + 0.1), 60, "steps", "a")
            for name, gain in (("uniform", 0.3), ("sum", 0.1), ("arrow", 0.2))
        ),
        evaluation=(
            dataclasses.replace(score, system="base", kind="base", value=0.1),
            score,
            dataclasses.replace(score, system="b", value=0.2),
        ),
    )


def test_evidence_is_the_same_from_an_audit_and_from_its_document():
    audit = an_audit()
    names = ("compatibility", "diagnostics", "coverage", "forecasts", "evaluation")
    direct = Evidence(**{name: getattr(audit, name) for name in names}, tasks=1, level="base")
    assert evidence_of(json.loads(audit.to_json())) == direct


def test_fields_that_records_no_longer_have_do_not_stop_reading():
    document = an_audit().to_dict()
    document["coverage"][0]["colour"] = "red"
    assert evidence_of(document) == evidence_of(an_audit().to_dict())


# truth


def test_truth_is_the_gain_over_the_best_of_base_and_singles():
    rows = answers({"base": 0.1, "a": 0.4, "b": 0.2, "uniform": 0.8, "sum": 0.99}, 300)
    found = measured_gain(rows, KINDS, "uniform")
    row = next(g for g in gains([r for r in rows if r.system != "sum"],
                                [System(n, k) for n, k in KINDS.items() if n != "sum"])
               if g.system == "uniform")  # fmt: skip
    assert (found.gain, found.ci95, found.n) == (row.difference, row.ci95, 300)
    share = {s: np.mean([r.value for r in rows if r.system == s]) for s in ("a", "uniform")}
    assert found.gain == pytest.approx(share["uniform"] - share["a"])


def test_the_better_form_counts_and_undecided_forms_leave_it_open():
    plain = answers({"base": 0.0, "a": 0.0, "b": 0.0, "uniform": 0.0}, 40)
    steps = answers({"base": 0.0, "a": 0.0, "b": 0.0, "uniform": 0.9}, 40, part="steps")
    found = measured_gain(plain + steps, KINDS, "uniform")
    assert found.gain == pytest.approx(0.9, abs=0.15) and found.ci95[0] > MARGIN
    few = answers({"base": 0.0, "a": 0.0, "b": 0.0, "uniform": 0.0}, 8, part="steps")
    low = measured_gain(
        answers({"base": 0.9, "a": 0.9, "b": 0.9, "uniform": 0.1}, 300), KINDS, "uniform"
    )
    assert low.ci95[1] < MARGIN
    open_ = measured_gain(plain + few, KINDS, "uniform").ci95
    assert open_[0] < MARGIN < open_[1]


def test_of_several_tasks_the_macro_mean_counts():
    first = answers({"base": 0, "a": 1, "b": 0, "uniform": 1}, 50, task="one")
    second = answers({"base": 0, "a": 0, "b": 1, "uniform": 1}, 80, task="two")
    found = measured_gain(first + second, KINDS, "uniform")
    assert found.gain == pytest.approx(0.5) and found.n == 130


def test_a_composition_without_common_items_has_no_truth():
    with pytest.raises(CaseError, match="arrow"):
        measured_gain(answers({"base": 0.1, "a": 0.2}, 20), KINDS, "arrow")


# collecting


@pytest.fixture
def seen(monkeypatch):
    """Trials are observed without a model; the names of those that were."""
    names = []

    def observe(scenario, base, state, sizes, known, batch_size):
        names.append(scenario.name)
        if scenario.name == "disjoint":
            raise LoraprobeError("The adapters do not fit.")
        rows = answers({"base": 0.1, "a": 0.2, "uniform": 0.9, "sum": 0.1, "arrow": 0.9}, 100)
        return Observation(an_audit(), tuple(rows), KINDS)

    monkeypatch.setattr(collecting, "observe", observe)
    return names


def test_sets_become_cases_and_are_evaluated_once(tmp_path, seen):
    path, told = shipped_world().path, []
    collect([path], tmp_path, progress=lambda *row: told.append(row))
    assert sorted(seen) == sorted(World.load(path).scenarios)
    assert told[-1] == (("adapter sets", 4, 4))
    cases, skipped = kept_cases(tmp_path)
    assert len(cases) == 9 and len(skipped) == 1
    assert skipped[0].startswith("small-world/disjoint: The adapters do not fit")
    first = cases[0]
    assert (first.base, first.architecture, first.world) == ("small-world", "llama", "small-world")
    assert {c.label(MARGIN) for c in cases if c.method == "sum"} == {0}
    assert {c.label(MARGIN) for c in cases if c.method != "sum"} == {1}
    assert {(c.method, c.forecast) for c in cases} == {
        ("uniform", 0.3),
        ("sum", 0.1),
        ("arrow", 0.2),
    }
    assert {(c.adapters, c.tasks, c.hops, c.metric, c.part) for c in cases} == {
        (2, 1, 2 * (c.adapter_set != "keep-both"), "exact_match", "steps") for c in cases
    }
    assert {c.baseline for c in cases} == {0.4}
    assert first.error == pytest.approx(0.1 / 1.96, rel=1e-3)
    seen.clear()
    collect([path], tmp_path)
    assert seen == ["disjoint"]  # what was skipped is tried again
    seen.clear()
    collect([path], tmp_path, SampleSizes(limit=7))
    assert len(seen) == 4
    assert not list((tmp_path / ".running").rglob("*.jsonl"))


def test_a_fingerprint_changes_with_what_results_depend_on(tmp_path, seen):
    world = shipped_world()
    scenario = world.scenarios["keep-both"]
    mark = fingerprint(world, scenario, SampleSizes())
    assert mark == fingerprint(World.load(world.path), scenario, SampleSizes())
    assert mark != fingerprint(world, scenario, SampleSizes(seed=1))
    assert mark != fingerprint(world, scenario, SampleSizes(dtype="bfloat16"))
    assert mark != fingerprint(world, world.scenarios["disjoint"], SampleSizes())
    files = {**world.manifest["files"]}
    name = next(n for n in files if n.startswith("adapters/count/"))
    other = dataclasses.replace(
        world, manifest={**world.manifest, "files": {**files, name: "0" * 64}}
    )
    assert mark != fingerprint(other, scenario, SampleSizes())


def test_worlds_of_one_base_count_as_one_base(tmp_path, seen):
    collect([shipped_world().path], tmp_path)
    for path in (tmp_path / "observations" / "small-world").iterdir():
        twin = {**read_observation(path), "world": "twin", "base": "twin"}
        write_text(tmp_path / "observations" / "twin" / path.name, json.dumps(twin))
    cases, _ = kept_cases(tmp_path)
    assert {c.world for c in cases} == {"twin", "small-world"}
    assert {c.base for c in cases} == {"small-world"}


def test_two_worlds_of_one_name_are_refused(tmp_path):
    with pytest.raises(UsageError, match="Two worlds are called small-world"):
        collect([shipped_world().path] * 2, tmp_path)


def test_without_worlds_the_atlas_is_built_once(tmp_path, seen, monkeypatch):
    from loraprobe_lab.calibration import run

    asked = []

    def build(output, processes, progress):
        asked.append((output, processes))
        return [shipped_world().path]

    monkeypatch.setattr(run, "build_atlas", build)
    for _ in range(2):
        run.calibrate([], tmp_path, processes=3, collect_only=True)
    assert asked == [(tmp_path / "worlds", 3)]
    assert len(seen) == 4, "the second call computes cases from what is kept"


def test_known_results_are_those_of_the_asked_items_alone():
    known = BaselineResults()
    task = load_task(shipped_world().path / "tasks" / "count.jsonl", 3)
    rows = [
        ItemResult("a", "count", "question", item.id, "exact_match", 1.0, "", "g")
        for item in load_task(shipped_world().path / "tasks" / "count.jsonl").items
    ]
    known.keep(rows, ["a"])
    assert len(known.of(["a"], [task])) == 3
    assert known.of(["b"], [task]) == []


def test_a_tiny_world_is_observed_for_real(tmp_path):
    """Forecasts rest on the first items alone, truths on all."""
    build_world(tiny_world(only=["skill-and-facts"]), tmp_path / "tiny")
    sizes = SampleSizes(limit=2, most_items=4, max_new_tokens=3)
    collect([tmp_path / "tiny"], tmp_path / "out", sizes)
    cases, skipped = kept_cases(tmp_path / "out")
    assert skipped == [] and len(cases) == 3
    row = read_observation(tmp_path / "out" / "observations" / "tiny" / "skill-and-facts.json.gz")
    assert {score["n"] for score in row["audit"]["evaluation"]} == {2}
    assert {score["kind"] for score in row["audit"]["evaluation"]} == {"base", "adapter"}
    assert {c.n for c in cases} == {4}
    assert {forecast["n"] for forecast in row["audit"]["forecasts"]} == {2}
    assert {(c.adapters, c.tasks, c.hops, c.metric) for c in cases} == {(2, 1, 2, "exact_match")}
    assert {result.part for result in unpacked(row["results"])} == {"question", "steps"}
    systems = {"base", "newcomers", "steps", "uniform", "sum", "arrow"}
    assert set(row["kinds"]) == systems == set(row["results"]["right"])


def test_a_process_does_the_work_and_hands_over_an_error(tmp_path):
    ticks = []
    calls = [(str(tmp_path / name),) for name in ("one", "two", "one")]
    with pytest.raises(FileExistsError):
        in_processes(os.mkdir, calls, 1, lambda: ticks.append(1))
    assert (tmp_path / "one").is_dir()


def test_cases_of_a_given_base_are_appended_and_replaced(tmp_path, seen):
    collect([shipped_world().path], tmp_path)
    path, stored = tmp_path / "cases.jsonl.gz", kept_cases(tmp_path)[0]
    with pytest.raises(CaseError, match="small-world has a base of its own"):
        append(tmp_path, path, "real")
    assert append(tmp_path, path)[0] == 9 and read_cases(path) == stored
    for place in (tmp_path / "observations" / "small-world").iterdir():
        given = {**read_observation(place), "architecture": "natural", "base_digest": None}
        write_text(place, json.dumps(given))
    with pytest.raises(CaseError, match="small-world needs a name"):
        append(tmp_path, path)
    elsewhere = [dataclasses.replace(case, world="elsewhere") for case in stored]
    write_cases(path, elsewhere)
    for _ in range(2):
        count, skipped = append(tmp_path, path, "real")
        assert count == 9 and [line.split(":")[0] for line in skipped] == ["small-world/disjoint"]
        cases = read_cases(path)
        assert cases[:9] == elsewhere and len(cases) == 18
        assert {(c.base, c.world) for c in cases[9:]} == {("real", "real-small-world")}


def test_nothing_collected_is_nothing_appended(tmp_path):
    with pytest.raises(CaseError, match="collect observations first"):
        append(tmp_path, tmp_path / "cases.jsonl", "real")
    assert not (tmp_path / "cases.jsonl").exists()
