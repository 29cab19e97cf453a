"""Runs in shards and on several processes give the document of the undivided run, byte for byte."""

from __future__ import annotations

import json
import os
import pickle
import re
import shlex
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import making
import pytest
import torch
from planted_library import FIRST, SECOND, write_library

import loraprobe.demo
import loraprobe.errors
import loraprobe.probes
from loraprobe.diagnostics import plan
from loraprobe.execution import Pool
from loraprobe.execution.pool import LocalWorker
from loraprobe.library import reading
from loraprobe.lora import gram_batches
from loraprobe.pipeline.screening import command as screening
from loraprobe.pipeline.screening.choosing import Choosing
from loraprobe.pipeline.units import AskedAlone, KeptStatistics, Questions
from loraprobe.probes import ScreenedTexts

WORLD = Path(loraprobe.demo.__file__).parent / "small-world"


def named(*names: str) -> list[str]:
    return [f"{name}={WORLD / 'adapters' / name}" for name in names]


ASKED = (Questions, AskedAlone)  # parts that a model answers
SHORT = ("--threads", "1", "--exit-zero", "--json", "--quiet")
# Two rounds, of which the first decides.
EVALUATE = [
    *("merge-and-eval", *named("newcomers", "steps"), "--base", str(WORLD / "base")),
    *("--task", str(WORLD / "tasks" / "newcomers.jsonl"), "--limit", "60", "--method", "sum"),
    *("--max-new-tokens", "12", *SHORT),
]
TABLES = {"noise": {"bo": "?"}, "copy": {"bo": "?"}, "firsts": FIRST, "seconds": SECOND}


@pytest.fixture(scope="module")
def planted(tmp_path_factory) -> list[str]:
    """A call of screen on a tiny base."""
    return [*write_library(tmp_path_factory.mktemp("planted"), TABLES), *SHORT]


@pytest.fixture(scope="module")
def inspecting(tmp_path_factory) -> list[str]:
    """A call of inspect of three adapters."""
    place = tmp_path_factory.mktemp("three")
    for seed, name in enumerate("abc"):
        making.random_adapter(name, seed=seed).save(place / name)
    return ["inspect", *(str(place / name) for name in "abc"), "--per-module", "--json", "--quiet"]


@pytest.fixture(scope="module")
def composing(planted) -> list[str]:
    """A call of merge-and-eval of two adapters that compose; an early round decides."""
    return ["merge-and-eval", *planted[3:5], *planted[5:], "--max-new-tokens", "4"]


class Calls:
    """Calls of the command line, each with a cache of its own unless it is told otherwise."""

    def __init__(self, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.place, self.monkeypatch, self.made = place, monkeypatch, 0

    def __call__(self, *words: object, code: int = 0) -> Any:
        self.made += 1
        self.monkeypatch.setenv("LORAPROBE_CACHE", str(self.place / f"cache-{self.made}"))
        done = making.call(*words)
        assert done.exit_code == code, done.output
        return done

    def shards(self, run: list[str], of: int, only: int | None = None) -> list[Path]:
        places = [self.place / f"shard-{number}-of-{of}" for number in range(1, of + 1)]
        for number, place in enumerate(places, 1):
            if only in (None, number):
                self(*run, "--shard", f"{number}/{of}", "--output", place)
        return places


@pytest.fixture
def call(tmp_path, monkeypatch) -> Calls:
    return Calls(tmp_path, monkeypatch)


def document(done: Any) -> str:
    """The document without what a clock and the system say."""
    found = json.loads(done.stdout)
    for name in ("seconds", "peak_memory_bytes"):
        found["provenance"].pop(name)
    return json.dumps(found)


@pytest.fixture
def small_batches(monkeypatch):
    monkeypatch.setattr(gram_batches, "BATCH_BYTES", 1 << 12)


def test_inspect_in_three_shards(call, small_batches, inspecting):
    places = call.shards(inspecting, 3)
    assert all(any(place.glob("modules-*.pt")) for place in places)
    assert document(call("combine", *places)) == document(call(*inspecting))


def keys(place: Path) -> set[tuple[str, ...]]:
    """System, task, part and item of the answers of a shard."""
    rows = map(json.loads, (place / "results.jsonl").read_text().splitlines()[1:])
    return {tuple(row[key] for key in ("system", "task", "part", "item")) for row in rows}


def in_shards(call: Calls, run: list[str], of: int = 2) -> Any:
    """The document of the undivided run, which that of its shards equals."""
    places = call.shards(run, of)
    rows = [(place / "results.jsonl").read_bytes() for place in places]
    assert len(set(rows)) == of and min(map(len, rows)) > 1000
    asked = [keys(place) for place in places]
    assert len(set.union(*asked)) == sum(map(len, asked))  # no question is asked twice
    call.shards(run, of)
    assert [(place / "results.jsonl").read_bytes() for place in places] == rows
    whole = document(call(*run))
    assert document(call("combine", *reversed(places))) == whole
    return json.loads(whole)


def test_merge_and_eval_in_two_shards_that_run_twice(call, composing):
    rounds = in_shards(call, composing)["rounds"]
    assert rounds["used"] < rounds["planned"]  # the shards asked more than was needed


@pytest.mark.slow  # a model that generates
def test_the_smallest_scenario_of_the_demo_in_shards(call):
    assert in_shards(call, EVALUATE)["rounds"]["used"] == 1


def test_losses_are_equal_to_the_last_bit(call, composing):
    in_shards(
        call, [*composing, "--method", "sum", "--metric", "answer_loss", "--margin", "0.1"], 3
    )


def test_screen_in_three_shards(call, planted, monkeypatch):
    places = call.shards(planted, 3)
    assert [len(list((place / "library").glob("*.json"))) for place in places] == [1, 2, 1]
    whole = call(*planted)
    assert json.loads(whole.stdout)["shortlist"][0]["adapters"] == ["firsts", "seconds"]
    original, asked = Choosing.ask, list[int]()

    def counted(self: Choosing, *given: Any) -> Any:
        before = len(self.evaluator.ledger)
        found = original(self, *given)
        asked.append(len(self.evaluator.ledger) - before)
        return found

    monkeypatch.setattr(Choosing, "ask", counted)
    monkeypatch.setattr(reading.Reading, "of", None)  # no adapter is read again
    monkeypatch.setattr(ScreenedTexts, "read", None)  # nor its hidden states
    assert document(call("combine", *places)) == document(whole)
    assert asked == [0] * 4  # two looks, the base first


def test_an_interrupted_shard_goes_on(call, monkeypatch, small_batches, inspecting):
    original, place = KeptStatistics.write, call.place / "shard-1-of-1"

    def interrupted(self: KeptStatistics, batch: Any) -> None:
        if any(place.glob("*.pt")):
            raise KeyboardInterrupt
        original(self, batch)

    with monkeypatch.context() as patch:
        patch.setattr(KeptStatistics, "write", interrupted)
        call(*inspecting, "--shard", "1/1", "-o", place, code=130)
    (first,) = place.glob("*.pt")
    told, written = call("combine", place, code=2).stderr, first.stat().st_mtime_ns
    assert "not complete" in told and str(place) in told
    call(*inspecting, "--shard", "1/1", "-o", place)
    assert first.stat().st_mtime_ns == written and len(list(place.glob("*.pt"))) > 1
    assert document(call("combine", place)) == document(call(*inspecting))


def test_a_missing_shard_is_named_with_its_call(call, inspecting):
    places = call.shards(inspecting, 2, only=1)
    told = call("combine", places[0], code=2).stderr
    assert "Shard 2 of 2 is missing" in told
    words = shlex.split(re.search(r"loraprobe (inspect .*)", told)[1])
    assert words[-2:] == ["--output", str(places[1])]
    call(*words)
    call("combine", *places)


@pytest.mark.parametrize("other", [["--exact"], ["--seed", "1"]])
def test_shards_of_different_options_are_refused(call, other, inspecting):
    first = call.shards(inspecting, 2, only=1)[0]
    second = call.shards([*inspecting, *other], 2, only=2)[1]
    assert other[0] in call("combine", first, second, code=2).stderr
    assert "different runs" in call(*inspecting, "--shard", "2/2", "-o", second, code=2).stderr


def test_shards_of_inputs_that_changed_are_refused(call, tmp_path):
    pair = making.saved_pair(tmp_path / "pair")
    run = ["inspect", *map(str, pair), "--json", "--quiet"]
    first = call.shards(run, 2, only=1)[0]
    making.random_adapter("b", seed=7).save(pair[1], overwrite=True)
    second = call.shards(run, 2, only=2)[1]
    assert "weights changed" in call("combine", first, second, code=2).stderr
    alone = call.shards(run, 1)
    making.random_adapter("b", seed=8).save(pair[1], overwrite=True)
    assert "weights" in call("combine", *alone, code=2).stderr


def test_a_shard_needs_a_directory(call, tmp_path, inspecting):
    assert "--output" in call(*inspecting, "--shard", "1/2", code=2).stderr
    assert "--shard" in call(*inspecting, "-o", tmp_path / "x", code=2).stderr
    assert "no directory of a shard" in call("combine", tmp_path, code=2).stderr
    (tmp_path / "file").touch()
    for place in (tmp_path / "file", tmp_path / "file" / "below"):
        told = call(*inspecting, "--shard", "1/2", "-o", place, code=2).stderr
        assert "cannot be written" in told and "Traceback" not in told
    for text in ("0/2", "3/2", "2", "a/b"):
        assert "--shard" in call(*inspecting, "--shard", text, "-o", tmp_path / "x", code=2).stderr


def test_kept_statistics_are_read_as_written(tmp_path):
    adapters = [making.random_adapter("a"), making.random_adapter("b", seed=1, rank=2)]
    made = plan(adapters, per_module=True)
    (batch,) = made.observe(made.batches)
    kept = KeptStatistics([tmp_path], {"a": 1})
    kept.write(batch)
    found = kept.read(batch.paths)
    assert found is not None and made.measurements([found]) == made.measurements([batch])
    assert torch.equal(found.inner, batch.inner) and found.paths == batch.paths
    assert KeptStatistics([tmp_path], {"a": 2}).read(batch.paths) is None
    (file,) = tmp_path.glob("*.pt")
    file.write_bytes(file.read_bytes()[:-100])
    assert kept.read(batch.paths) is None
    for other in ({"paths": batch.paths}, replace(batch, paths=("another",))):
        torch.save(other, file)
        assert kept.read(batch.paths) is None


def test_statistics_that_run_code_are_not_read(tmp_path):
    """A file of statistics is a pickle, and may come from another machine."""
    kept, touched = KeptStatistics([tmp_path], {}), tmp_path / "touched"

    class Hostile:
        def __reduce__(self) -> Any:
            return touched.touch, ()

    torch.save(Hostile(), tmp_path / kept._name(["m"]))
    assert kept.read(["m"]) is None and not touched.exists()


@pytest.fixture
def sent(monkeypatch) -> list[type]:
    """The kinds of parts that one worker computes, opened in this process."""
    kinds: list[type] = []

    def elsewhere(self: Pool, parts: Any, here: Any) -> Any:
        work = self.workers[0].job.open()
        for index, part in enumerate(pickle.loads(pickle.dumps(list(parts)))):
            kinds.append(type(part))
            yield index, work(part)

    monkeypatch.setattr(Pool, "map", elsewhere)
    return kinds


def test_a_worker_asks_a_library_alone_and_composed(call, planted, sent):
    run = [*planted, "--balance", "norm"]  # which is of several adapters
    whole = without_arguments(call(*run))
    assert without_arguments(call(*run, "--executor", "local:2")) == whole
    assert set(sent) == set(ASKED)


def test_a_worker_asks_the_one_adapter_that_leaves_no_room(call, tmp_path, sent):
    every = {**FIRST, **SECOND, "of": "bo", "bo": "is"}
    run = write_library(tmp_path, {"noise": {".": "?"}, "expert": every}, items=140)
    found = json.loads(call(*run, *SHORT, "--executor", "local:2").stdout)
    assert found["verdict"]["action"] == "use-single:expert"
    assert found["verdict"]["evidence"] == "base" and set(sent) == set(ASKED)


def test_a_worker_reads_the_prompts_that_this_process_reads(call, planted, sent, monkeypatch):
    """Also in the chat template, where the run and not an option chose it."""
    base = Path(planted[planted.index("--base") + 1])
    config = base / "tokenizer_config.json"
    read, read_rows = set[str](), ScreenedTexts.read_rows

    def noted(self: ScreenedTexts, scorer: Any) -> Any:
        read.add(self.mark)
        return read_rows(self, scorer)

    def in_chat(scorer: Any, *_: Any) -> Any:
        return scorer.with_template(True), [], ()

    plain = config.read_text()
    template = "{% for m in messages %}{{ m.content }} bo{% endfor %}"
    try:
        config.write_text(json.dumps({**json.loads(plain), "chat_template": template}))
        monkeypatch.setattr(ScreenedTexts, "read_rows", noted)
        monkeypatch.setattr(screening, "with_better_template", in_chat)
        call(*planted, "--executor", "local:2")
    finally:
        config.write_text(plain)
    assert AskedAlone in sent and len(read) == 2  # one for each look


def test_open_objects_are_refused_by_workers():
    adapter = making.random_adapter()
    with pytest.raises(loraprobe.errors.UsageError, match="references"):
        loraprobe.inspect([adapter, adapter], executor="local:2")


@pytest.fixture
def patient(monkeypatch) -> list[int]:
    """This process answers no question before a worker was killed; the numbers of killed ones."""
    original, killed = Pool.map, list[int]()

    def mapped(self: Pool, parts: Any, here: Any) -> Any:
        def waiting(index: int) -> Any:
            end = time.monotonic() + 120
            asked = isinstance(parts[index], ASKED) and len(parts) > 1  # a worker asks one too
            while not killed and asked and time.monotonic() < end:
                time.sleep(0.02)
            return here(index)

        return original(self, parts, waiting)

    monkeypatch.setattr(Pool, "map", mapped)
    return killed


@pytest.mark.slow  # a worker imports torch and loads a base
@pytest.mark.parametrize("command", ["merge-and-eval", "screen"])
def test_a_killed_worker_changes_nothing(call, monkeypatch, patient, planted, command):
    run = planted if command == "screen" else [*EVALUATE, "--all-items"]
    original = LocalWorker.do

    def deadly(self: LocalWorker, part: Any) -> Any:
        if isinstance(part, ASKED) and not patient:
            os.kill(self.process.pid, signal.SIGKILL)
            patient.append(self.process.pid)
        return original(self, part)

    monkeypatch.setattr(LocalWorker, "do", deadly)
    spread = call(*run, "--executor", "local:2")
    assert patient
    assert without_arguments(spread) == without_arguments(call(*run))


@pytest.mark.slow  # a cluster is started, and each actor loads a base
def test_a_killed_actor_of_a_ray_cluster_changes_nothing(call, monkeypatch, patient):
    ray = pytest.importorskip("ray")
    from loraprobe.execution.on_ray import RayWorker

    original, asked = RayWorker.do, list[Any]()

    def deadly(self: RayWorker, part: Any) -> Any:
        if isinstance(part, ASKED) and not patient:
            threading.Timer(0.1, os.kill, (self.pid, signal.SIGKILL)).start()
            patient.append(self.pid)
        asked.append(part)
        return original(self, part)

    monkeypatch.setattr(RayWorker, "do", deadly)
    ray.init(num_cpus=2, log_to_driver=False, logging_level="ERROR", include_dashboard=False)
    try:
        spread = call(*EVALUATE, "--all-items", "--executor", "ray")
    finally:
        ray.shutdown()
    assert patient and not Path(f"/proc/{patient[0]}").exists()
    assert sum(isinstance(part, ASKED) for part in asked) > 1
    assert without_arguments(spread) == without_arguments(call(*EVALUATE, "--all-items"))


def without_arguments(done: Any) -> dict[str, Any]:
    found = json.loads(document(done))
    found["provenance"].pop("arguments")
    return found
