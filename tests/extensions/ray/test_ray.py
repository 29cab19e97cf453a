"""With --executor ray the document is that of a run without it."""

import json
import os
import pickle
import signal
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cloudpickle
import making
import pytest
from planted_library import FIRST, SECOND, write_library
from words import WORDS

import loraprobe
import loraprobe.demo
from loraprobe.base import open_base
from loraprobe.errors import AdapterError, BaseError, UsageError
from loraprobe.extensions.ray import cluster
from loraprobe.options import Options
from loraprobe.pipeline import evaluator

WORLD = Path(loraprobe.demo.__file__).parent / "small-world"
SHORT = ("--threads", "1", "--exit-zero", "--json", "--quiet")
TABLES = {"noise": {"bo": "?"}, "copy": {"bo": "?"}, "firsts": FIRST, "seconds": SECOND}


@pytest.fixture(scope="module")
def planted(tmp_path_factory) -> list[str]:
    """A call of screen on a tiny base."""
    return [*write_library(tmp_path_factory.mktemp("planted"), TABLES), *SHORT]


@pytest.fixture(scope="module")
def guards(tmp_path_factory) -> list[str]:
    """Two guards: questions, which some adapters answer, and a text."""
    place = tmp_path_factory.mktemp("guards")
    rows = [
        {"id": str(k), "prompt": f"{word} who", "answer": "ada lives"}
        for k, word in enumerate(WORDS[:20])
    ]
    (place / "kept.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    # A long word is one token, so that a window fits into the context of the tiny base.
    (place / "text.txt").write_text("who ada lives electroencephalographically\n" * 30)
    return [word for name in ("kept.jsonl", "text.txt") for word in ("--guard", str(place / name))]


@pytest.fixture(scope="module")
def calls(planted, guards) -> dict[str, list[str]]:
    """A call of each command that asks a base."""
    pair, rest = planted[3:5], planted[5:]
    return {
        "screen with guards": [*planted, "--balance", "norm", *guards],
        "inspect": ["inspect", *pair, *rest],
        "merge-and-eval with guards": [
            *("merge-and-eval", *pair, *rest, "--max-new-tokens", "4", "--method", "sum", *guards),
            *("--method", "ties:density=0.5", "--router", "arrow", "--subtract", planted[1]),
        ],
    }


@pytest.fixture
def document():
    """A function that makes a call: its document without clock and words."""

    def call(*words: object) -> Any:
        found = making.document(*words)
        for name in ("seconds", "peak_memory_bytes", "arguments"):
            found["provenance"].pop(name)
        return found

    return call


class Here:
    """A cluster in this process, to which everything goes as bytes.

    asked: what it computed. tasks: whose questions it answered.
    """

    cloudpickle = cloudpickle  # as Ray has it
    exceptions = SimpleNamespace(RayTaskError=(), RayError=())  # a task raises its own error here

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.tasks: set[str] = set()

    def is_initialized(self) -> bool:
        return True

    def put(self, data: bytes) -> bytes:
        assert isinstance(data, bytes)
        return data

    def remote(self, function: Any) -> Any:
        return SimpleNamespace(
            options=lambda **_: SimpleNamespace(remote=lambda *given: partial(function, *given))
        )

    def wait(self, tasks: list[Any]) -> tuple[list[Any], list[Any]]:
        return tasks[-1:], tasks[:-1]  # as if the last one were the fastest

    def get(self, task: Any) -> Any:
        self.asked.append(task.args[0].__name__)
        found = task()
        if self.asked[-1] == "answer_questions":
            self.tasks |= {row.task.rpartition("@")[0] or row.task for row in found}
        return found


@pytest.fixture
def here(monkeypatch) -> Here:
    made = Here()
    monkeypatch.setitem(sys.modules, "ray", made)
    cluster._opened.cache_clear()
    yield made
    cluster._opened.cache_clear()


@pytest.mark.parametrize(
    ("command", "kinds"),
    [
        ("screen with guards", {"ask_alone", "answer_questions"}),
        ("inspect", {"answer_questions"}),
        ("merge-and-eval with guards", {"answer_questions"}),
    ],
)
def test_a_cluster_changes_nothing(document, here, calls, command, kinds):
    making.skip_without(calls[command][0])
    whole = document(*calls[command])
    assert not here.asked
    guarded = {row["task"] for row in whole["guards"]}
    assert guarded == ({"kept", "text"} if "guards" in command else set())
    assert document(*calls[command], "--executor", "ray") == whole
    assert set(here.asked) == kinds
    assert here.tasks >= guarded


def test_other_files_on_a_machine_of_the_cluster_are_refused(tmp_path):
    place = tmp_path / "a"
    making.random_adapter("a").save(place)
    adapter = loraprobe.load(place)
    sent = cloudpickle.dumps(adapter)
    assert pickle.loads(sent).norm() == adapter.norm()
    making.random_adapter("a", seed=5).save(place, overwrite=True)
    with pytest.raises(AdapterError, match="machine of the cluster"):
        pickle.loads(sent)
    (place / "adapter_model.safetensors").unlink()
    with pytest.raises(AdapterError, match="missing there"):
        pickle.loads(sent)
    base = open_base(WORLD / "base")
    setup = cloudpickle.dumps((base, {**base.identity, "config.json": {}}, Options()))
    found = cluster._computed(None, setup, b"")
    assert isinstance(found, BaseError) and "machine of the cluster" in str(found)


def test_no_file_of_options_names_a_cluster(tmp_path):
    (tmp_path / "run.yaml").write_text("executor: ray")
    done = making.call("inspect", "a", "b", "--config", tmp_path / "run.yaml")
    assert done.exit_code == 2 and "--executor" in done.stderr


@pytest.mark.parametrize("text", ["local", "local:2", "slurm", "ray://", "ray:8265"])
def test_an_unknown_executor_is_refused(text):
    with pytest.raises(UsageError, match="--executor"):
        Options.of({"executor": text})


@pytest.mark.parametrize("found", ["nothing", "a directory of this name"])
def test_ray_that_is_not_installed_is_named(monkeypatch, tmp_path, found):
    if found == "nothing":
        monkeypatch.setitem(sys.modules, "ray", None)
    else:
        (tmp_path / "ray").mkdir()
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.delitem(sys.modules, "ray", raising=False)
    with (
        pytest.raises(UsageError, match=r"pip install 'loraprobe\[ray\]'"),
        cluster.open_cluster("ray"),
    ):
        pass


@pytest.mark.slow  # a cluster is started, and each process of it loads a base
def test_a_killed_process_of_a_cluster_changes_nothing(document, monkeypatch, calls, tmp_path):
    ray, mark, answers = pytest.importorskip("ray"), tmp_path / "killed", evaluator.answer_questions

    def deadly(*given: Any) -> Any:
        if not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return answers(*given)

    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    whole = document(*calls["merge-and-eval with guards"])
    monkeypatch.setattr(evaluator, "answer_questions", deadly)
    ray.init(num_cpus=2, log_to_driver=False, logging_level="ERROR", include_dashboard=False)
    try:
        assert document(*calls["merge-and-eval with guards"], "--executor", "ray") == whole
    finally:
        ray.shutdown()
    assert mark.exists()
