"""--engine: the questions of an evaluation are answered by a server, here transformers and peft
behind vLLM's interface. docs/serving.md has the same with a real vLLM."""

import contextlib
import functools
import itertools
import json
import os
import signal
import tempfile
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import making
import pytest
from forks import Fork
from loopback import ModelServer, server, write_vllm
from making import peft_adapter, random_adapter, skip_without, tiny_llama
from words import word_tokenizer

import loraprobe
from loraprobe.demo import shipped_world
from loraprobe.errors import UsageError
from loraprobe.extension import Workload
from loraprobe.extensions.serve import client
from loraprobe.extensions.serve import scorer as by_server
from loraprobe.extensions.serve.engine import open_served
from loraprobe.extensions.serve.scorer import ServedScorer
from loraprobe.options import Options
from loraprobe.pipeline.estimate import cost_of
from loraprobe.routing.constant import single
from loraprobe.session import Session

KEPT: dict[str, dict[str, Any]] = {}


WORLD = shipped_world()


def served_base(**settings: Any) -> ModelServer:
    """A server of the shipped base, which computes no answer that another one has computed."""
    return ModelServer(WORLD.base, kept=KEPT, **settings)


@pytest.fixture(autouse=True)
def no_waiting_for_vllm(monkeypatch):
    """vLLM takes a minute to start, the program of the tests no second."""
    clock = SimpleNamespace(sleep=lambda _: time.sleep(0.05), monotonic=time.monotonic)
    monkeypatch.setattr("loraprobe.extensions.serve.engine.time", clock)


def call(engine: str | None, *more: str) -> list[str]:
    """merge-and-eval on a few questions of a scenario of the shipped world."""
    few = ["--limit", "2", "--max-new-tokens", "8", "--json", "--chat-template", "off"]
    where = [] if engine is None else ["--engine", engine]
    return ["merge-and-eval", *making.shipped("skill-and-facts"), *few, *where, *more]


def run(engine: str | None, *more: str, **env: str) -> Any:
    """What `call` prints in an environment."""
    return making.call(*call(engine, *more), env={"NO_COLOR": "1", **env})


def error_of(ended: Any, code: str = "server") -> str:
    """What a run says that ended in an error of this code."""
    error = json.loads(ended.stdout)["error"]
    assert (ended.exit_code, error["code"]) == (2, code) and error["cure"], ended.stdout
    return error["message"]


@functools.cache
def answered_here(*more: str) -> dict[str, Any]:
    """The document of `call` by transformers."""
    return json.loads(run(None, *more).stdout)


def scores(document: dict[str, Any]) -> dict[tuple[str, str], float]:
    """(system, part) -> score."""
    return {(row["system"], row["part"]): row["value"] for row in document["evaluation"]}


# Servers, what asks them, and what a note tells of: systems that transformers answer, and why.
SERVERS: dict[str, tuple[dict[str, Any], str, list[str], set[str]]] = {
    "vllm": ({}, "vllm 0.test", ["--method", "ties", "--router", "arrow"], {"arrow"}),
    "sglang": ({"sglang": True}, "sglang 0.test", ["--method", "sum"], set()),
    "names": (
        {"named": True, "loads": False},
        "vllm 0.test",
        ["--method", "sum"],
        {"sum", "random-partner", "while it runs"},
    ),
    "names, rank": (
        {"named": True, "most": 16},
        "vllm 0.test",
        ["--method", "sum"],
        {"sum", "--max-lora-rank 32"},
    ),
    "sglang, names": (
        {"named": True, "loads": False, "sglang": True},
        "sglang 0.test",
        ["--method", "sum"],
        {"sum", "while it runs"},
    ),
    "llama.cpp": ({"weighs": True}, "llama.cpp b1-test", ["--method", "sum"], {"random-partner"}),
    "balanced": ({"weighs": True}, "llama.cpp b1-test", ["--balance", "norm"], {"sum", "uniform"}),
}


@pytest.mark.parametrize("kind", SERVERS)
def test_a_server_answers_as_transformers_do(kind):
    """Base, singles, merges by gates and by new weights, routers, chain, controls; hops and worked
    steps. What a server cannot run is asked by transformers and named."""
    options, version, more, told_of = SERVERS[kind]
    adapters = WORLD.scenario("skill-and-facts").adapters
    held = {key: adapters if key in ("named", "weighs") else options[key] for key in options}
    made = served_base(**held)
    with server(made) as (url, _):
        ended = run(url, *more)
    assert ended.exit_code in (0, 1, 3), ended.stderr
    served, here = json.loads(ended.stdout), answered_here(*more)
    assert scores(served) == scores(here)
    assert {"chain", "random-partner"} <= {system for system, _ in scores(served)}
    assert served["verdict"]["decision"] == here["verdict"]["decision"]
    assert served["coverage"] == here["coverage"]
    assert served["provenance"]["engine"] == f"{version}, model base"
    assert here["provenance"]["engine"] == "transformers"
    (told,) = [note for note in served["notes"] if "asked by transformers here: " in note] or [""]
    assert told_of == {part for part in told_of if part in told}
    assert bool(told) is bool(told_of)
    assert set(made.loaded) == (set(adapters) if held.keys() & {"weighs", "named"} else set())


def test_guards_are_asked_of_a_server(tmp_path, monkeypatch):
    """A task that is answered, and a text whose losses a server gives."""
    monkeypatch.setattr("loraprobe.tasks.reading.WINDOW", 100)  # the context holds 64 tokens
    text = tmp_path / "prose.txt"
    text.write_text("who lives in the city that ada knows . " * 20, encoding="utf-8")
    guards = ["--guard", str(WORLD.path / "tasks/familiar.jsonl"), "--guard", str(text)]
    more = [*SUM, *guards]
    with server(served_base()) as (url, _):
        served = json.loads(run(url, *more).stdout)
    here = json.loads(run(None, *more).stdout)
    found = [
        {(row["task"], row["system"]): row["difference"] for row in document["guards"]}
        for document in (served, here)
    ]
    assert found[0] == pytest.approx(found[1], rel=1e-3)  # a merge is rounded in its file
    assert {task for task, _ in found[0]} == {"familiar", "prose"}
    assert served["verdict"]["decision"] == here["verdict"]["decision"]


SUM = ("--method", "sum", "--router", "none")


class Counting:
    """Gives every composition a name of its own."""

    base, note = {"model": "base"}, ""

    def __init__(self) -> None:
        self.names = itertools.count()

    def __call__(self, composition: Any) -> dict[str, int]:
        return {"model": next(self.names)}


def test_a_composition_is_not_taken_for_one_that_is_gone():
    """A new adapter may lie where one lay in memory that nobody needs any more."""
    asked = set()
    local = SimpleNamespace(encoder=None, decode=None, stops=[], vocab_size=9)
    scorer = ServedScorer(None, Counting(), local, accept=lambda *_: None)
    for seed in range(20):
        with scorer.with_composition(single(random_adapter("a", rank=2, seed=seed))):
            asked.add(scorer.model["model"])
    assert len(asked) == 20


@pytest.fixture(scope="module")
def choices(tmp_path_factory) -> list[str]:
    """merge-and-eval on three questions with choices."""
    place = tmp_path_factory.mktemp("choices")
    task = WORLD.scenario("disjoint").tasks[0]
    lines = [json.loads(line) for line in task.read_text().splitlines()[:3]]
    answers = [line["answer"] for line in lines]
    rows = [
        {"prompt": line["prompt"], "answer": line["answer"], "choices": answers} for line in lines
    ]
    (place / "choices.jsonl").write_text("\n".join(map(json.dumps, rows)))
    adapters = [str(path) for path in WORLD.scenario("disjoint").adapters.values()]
    words = ["merge-and-eval", *adapters, "--base", str(WORLD.base), "--json"]
    words += ["--task", str(place / "choices.jsonl"), "--method", "sum", "--router", "none"]
    return [*words, "--chat-template", "off"]


@pytest.fixture(scope="module")
def chosen_here(choices):
    return scores(json.loads(making.call(*choices).stdout))


def test_choices_are_scored_by_prompts(choices, chosen_here):
    """The log-probabilities of a server are those of transformers."""
    with server(served_base()) as (url, _):
        served = making.call(*choices, "--engine", url)
    assert scores(json.loads(served.stdout)) == chosen_here


def asked_alike(command: str, *more: str) -> list[Any]:
    """The documents of a command on adapters of the world, by transformers and by a server."""
    skip_without(command)
    names = ("newcomers", "steps", "spouse", "city")[: 4 if command == "screen" else 2]
    adapters = [str(WORLD.path / "adapters" / name) for name in names]
    words = [command, *adapters, "--base", str(WORLD.base), "--json", "--exit-zero"]
    words += ["--task", str(WORLD.path / "tasks" / "newcomers.jsonl"), "--chat-template", "off"]
    words += ["--max-new-tokens", "16", *more]
    made, documents = served_base(), []
    with server(made) as (url, _):
        for where in ([], ["--engine", url]):
            ended = making.call(*words, *where)
            assert ended.exit_code == 0, ended.output
            documents.append(json.loads(ended.stdout))
    assert not made.loaded
    assert documents[1]["provenance"]["engine"] == "vllm 0.test, model base"
    return documents


@pytest.mark.slow
def test_a_screen_by_a_server_is_that_by_transformers(monkeypatch):
    """A library of more adapters than a server holds at once."""
    monkeypatch.setattr(by_server, "HELD", 3)
    few = ("--items", "20", "--limit", "50", "--keep", "1", "--method", "sum", "--router", "none")
    here, served = asked_alike("screen", *few)
    assert scores(served) == scores(here)
    assert served["library"] == here["library"]
    places = [[row["adapters"], row["place"]] for row in here["shortlist"]]
    assert [[row["adapters"], row["place"]] for row in served["shortlist"]] == places
    for one, other in zip(served["shortlist"], here["shortlist"], strict=True):
        assert (one["forecast"] or {}).get("gain") == (other["forecast"] or {}).get("gain")
    assert served["verdict"]["decision"] == here["verdict"]["decision"]


@pytest.mark.slow
def test_a_first_look_by_a_server_is_that_by_transformers():
    here, served = asked_alike("inspect", "--limit", "40")
    mine, theirs = scores(here), scores(served)
    for form in ("question", "steps"):  # a file is rounded to 16 bits, which noise may show
        assert abs(mine.pop(("random-partner", form)) - theirs.pop(("random-partner", form))) < 0.1
    assert mine == theirs
    assert served["coverage"] == here["coverage"]


@pytest.mark.parametrize("command", ["inspect", "screen"])
def test_a_server_without_questions_is_a_wrong_usage(command):
    skip_without(command)
    adapters = [str(path) for path in WORLD.scenario("disjoint").adapters.values()]
    words = [command, *adapters, "--base", str(WORLD.base), "--engine", "http://127.0.0.1:9"]
    ended = making.call(*words)
    assert ended.exit_code == 2 and "--task" in ended.stderr


def test_a_library_that_no_server_loads_is_a_wrong_usage(tmp_path):
    skip_without("screen")
    peft_adapter(tmp_path / "one", tiny_llama(), use_dora=True)
    peft_adapter(tmp_path / "two", tiny_llama(), seed=1, use_dora=True)
    words = ["screen", *(str(tmp_path / name) for name in ("one", "two")), "--json"]
    words += ["--base", str(other_base(tmp_path / "base")), "--engine", "http://127.0.0.1:9"]
    words += ["--task", str(WORLD.path / "tasks" / "newcomers.jsonl"), "--chat-template", "off"]
    ended = making.call(*words)
    told = error_of(ended, "usage")
    assert "Adapter one" in told and "--engine transformers" in told


def other_base(place: Path) -> Path:
    """A base of the same shape as the shipped one would need training: its random twin."""
    tiny_llama().save_pretrained(place)
    word_tokenizer().save_pretrained(place)
    return place


def test_a_server_with_another_base_is_refused():
    import torch

    made = ModelServer(WORLD.base)
    with torch.no_grad():
        made.model.get_input_embeddings().weight *= 0.2
    with server(made) as (url, _):
        ended = run(url)
    assert "another base" in error_of(ended)


def test_a_busy_server_is_asked_again():
    made, busy = served_base(), iter([429, 503])

    def reply(path: str, body: dict) -> tuple[int, Any]:
        status = next(busy, 200) if path == "/v1/completions" else 200
        return made(path, body) if status == 200 else (status, b"later")

    with server(reply) as (url, _):
        ended = run(url, "--method", "sum")
    assert ended.exit_code in (0, 1, 3), ended.stderr


def test_a_lost_server_ends_the_run_and_resume_goes_on():
    made = served_base()

    def dying(path: str, body: dict) -> tuple[int, Any]:
        return made(path, body) if made.asked < 25 else (500, b"lost")

    with server(dying) as (url, _):
        assert run(url, "--method", "sum").exit_code == 2
    made.asked = 0
    with server(made) as (url, _):
        ended = run(url, "--method", "sum", "--resume")
    assert ended.exit_code in (0, 1, 3), ended.stderr
    kept = made.asked
    made.asked = 0
    with server(made) as (url, _):
        again = run(url, "--method", "sum")
    assert scores(json.loads(again.stdout)) == scores(json.loads(ended.stdout))
    assert kept < made.asked


@pytest.mark.parametrize("engine", [["llama"], ["ftp://host"], ["vllm:1"]])
def test_a_bad_engine_is_a_wrong_usage(engine):
    ended = run(*engine)
    assert error_of(ended, "usage")


def test_an_adapter_with_more_than_factors_is_refused(tmp_path):
    adapter = peft_adapter(
        tmp_path / "dora", tiny_llama(), use_dora=True, target_modules=["q_proj"]
    )
    other = peft_adapter(tmp_path / "lora", tiny_llama(), seed=1, target_modules=["q_proj"])
    other_base(tmp_path / "base")
    (tmp_path / "task.jsonl").write_text('{"prompt": "ada lives in", "answer": "ulm"}\n')
    call = ["merge-and-eval", str(adapter), str(other), "--base", str(tmp_path / "base"), "--json"]
    call += ["--task", str(tmp_path / "task.jsonl"), "--engine", "http://127.0.0.1:9"]
    ended = making.call(*call)
    assert ended.exit_code == 2 and json.loads(ended.stdout)["error"]["cure"]


def test_patience_has_an_end(monkeypatch):
    monkeypatch.setattr(client, "PATIENCE", 0.3)
    with server(lambda path, body: (503, b"never")) as (url, _):
        ended = run(url)
    assert error_of(ended)


@pytest.fixture
def vllm(tmp_path, monkeypatch) -> dict[str, str]:
    """The environment of a run that finds a program `vllm`; temporary files lie in TMPDIR."""
    path = f"{write_vllm(tmp_path / 'bin')}{os.pathsep}{os.environ['PATH']}"
    (tmp_path / "files").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "files"))
    return {"PATH": path, "PIDS": str(tmp_path / "pids"), "TMPDIR": str(tmp_path / "files")}


def runs(pid: str) -> bool:
    """Whether a process is there and no zombie, which its parent has yet to ask for."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def has_ended(environment: dict[str, str]) -> bool:
    """Whether the server, what it started and its files go, soon unless the machine is busy."""
    deadline = time.monotonic() + 60
    pids = Path(environment["PIDS"]).read_text().split()[:2]
    while any(map(runs, pids)) or list(Path(environment["TMPDIR"]).glob("loraprobe-*")):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


@pytest.mark.parametrize("scale", [1.0, 3.0], ids=["the end", "an error"])
def test_vllm_is_started_and_stopped(vllm, scale):
    with server(served_base(scale=scale)) as (url, _):
        ended = run("vllm", "--method", "sum", **vllm, BEHIND=url)
    assert ended.exit_code in ((0, 1, 3) if scale == 1.0 else (2,)), ended.stderr
    started = Path(vllm["PIDS"]).read_text().split()
    adapters = WORLD.scenario("skill-and-facts").adapters.values()
    ranks = [loraprobe.load(path).rank_range[1] for path in adapters]
    assert int(started[started.index("--max-lora-rank") + 1]) >= sum(ranks)
    assert started[started.index("--dtype") + 1] == "float32"
    assert "lm_head" not in started[started.index("--lora-target-modules") :]
    assert has_ended(vllm)


@pytest.mark.parametrize("name", ["SIGTERM", "SIGKILL"])
def test_vllm_ends_with_a_run_that_is_stopped(tmp_path, vllm, name):
    made, asked, over = served_base(), [], threading.Event()

    def until_it_is_stopped(path: str, body: dict) -> tuple[int, Any]:
        if path == "/v1/completions":
            asked.append(path)
            if len(asked) > 20:
                over.wait(600)
        return made(path, body)

    with server(until_it_is_stopped) as (url, _):
        child = Fork.of_command(call("vllm"), tmp_path / "said", **vllm, BEHIND=url)
        try:
            while len(asked) <= 20 and child.runs():
                time.sleep(0.02)
            code, out, err = child.stop(getattr(signal, name))
            assert has_ended(vllm), (out, err)
        finally:
            over.set()
    assert code == (143 if name == "SIGTERM" else -signal.SIGKILL)


def test_a_vllm_that_does_not_start_says_why(vllm):
    assert "no such base" in error_of(run("vllm", **vllm)) and has_ended(vllm)


def test_a_vllm_that_ends_without_a_word(vllm, tmp_path):
    program = tmp_path / "bin/vllm"
    program.write_text("#!/bin/sh\nexit 7\n", encoding="utf-8")
    assert "within" not in error_of(run("vllm", **vllm))


def test_vllm_has_to_be_installed(tmp_path):
    assert error_of(run("vllm", PATH=str(tmp_path)), "usage")


@pytest.mark.parametrize(
    ("device", "engine", "seconds", "installed", "told"),
    [
        ("cuda:0", "transformers", 601, True, True),
        ("cuda:0", "transformers", 599, True, False),
        ("cuda:0", "transformers", 601, False, False),
        ("cuda:0", "vllm", 601, True, False),
        ("cpu", "transformers", 601, True, False),
    ],
)
def test_a_long_dry_run_on_a_gpu_names_vllm(
    monkeypatch, tmp_path, device, engine, seconds, installed, told
):
    if installed:
        tmp_path.joinpath("vllm").touch(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    session = Session(Options.of({"engine": engine}), device=device)
    plan = SimpleNamespace(sources=())
    cost = cost_of(SimpleNamespace(tasks=[], session=session, plan=plan), [], seconds)
    assert [hint.partition(" ")[0] for hint in cost.hints] == ["vLLM"] * told


def test_an_engine_that_is_none_and_one_that_is_asked_nothing_are_refused(tmp_path):
    (tmp_path / "run.yaml").write_text("engine: vllm")
    calls = {
        "transformers, vllm or a URL": ["--engine", "ollama"],
        "--engine answers the questions": ["--engine", "vllm"],
        "give --engine there": ["--config", tmp_path / "run.yaml"],
    }
    for told, words in calls.items():
        done = making.call("inspect", "a", "b", *words)
        assert done.exit_code == 2 and told in done.stderr


def test_no_server_is_asked_what_has_an_examiner(tmp_path):
    task = SimpleNamespace(name="both", examiner=SimpleNamespace(name="another program"))
    work = Workload(None, [random_adapter("tiny")], [task])
    with pytest.raises(UsageError, match="both is one of"):
        open_served("http://127.0.0.1:9", work, Session(), None)
