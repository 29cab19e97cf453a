"""An interruption costs one batch: exit 130, what was finished is kept, --resume goes on."""

import collections
import functools
import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import making
import pytest
from forks import Fork

from loraprobe.base import open_base
from loraprobe.evaluation import asking

WORDS = ["cat", "dog", "ball", "tree", "bird", "car", "boat", "hat"]


@pytest.fixture
def world(tmp_path, small_base) -> list[str]:
    """A call of merge-and-eval on a small base, with two random adapters and one task."""
    shapes = {p: s for p, s in open_base(small_base).shapes.items() if "self_attn" in p}
    refs = [str(path) for path in making.saved_pair(tmp_path, shapes, scaling=0.01)]
    items = [
        {"id": str(i), "prompt": f"Lily had a {WORDS[i % 8]} and {i} more. She", "answer": "was"}
        for i in range(32)
    ]
    task = tmp_path / "task.jsonl"
    task.write_text("\n".join(map(json.dumps, items)))
    named = "--system uniform --system shrunk --system random-partner"
    options = f"--json --max-new-tokens 2 --threads 1 {named}".split()
    return ["merge-and-eval", *refs, "--task", str(task), "--base", str(small_base), *options]


def response_files(cache: Path) -> list[Path]:
    return list(cache.rglob("results.jsonl"))


def lines(cache: Path) -> int:
    return sum(path.read_bytes().count(b"\n") for path in response_files(cache))


def answers(document: dict) -> dict:
    """A document without what may differ between two runs: timings, arguments, what was kept."""
    document = dict(document)
    document.pop("provenance")
    document["notes"] = [n for n in document["notes"] if "earlier run" not in n]
    return document


def wait_after_fifty(cache: Path) -> None:
    """A run that has kept fifty answers waits for its interruption."""
    ask = asking.ask

    def waiting(*arguments, **options):
        if lines(cache) > 50:
            time.sleep(600)
        return ask(*arguments, **options)

    asking.ask = waiting


def test_interrupt_then_resume_equals_an_uninterrupted_run(world, own_cache, tmp_path):
    wait = functools.partial(wait_after_fifty, own_cache)
    child = Fork.of_command(world, tmp_path / "said", wait)
    while lines(own_cache) <= 50 and child.runs():
        time.sleep(0.01)
    code, out, err = child.stop(signal.SIGINT)
    assert code == 130, err
    assert json.loads(out)["error"]["code"] == "interrupted"
    assert "Traceback" not in err and "--resume" in err
    kept = lines(own_cache) - 1
    assert 32 <= kept < 32 * 6

    (responses,) = response_files(own_cache)
    before = responses.read_text().splitlines()
    resumed = making.call(*world, "--resume")
    after = responses.read_text().splitlines()
    assert after[: len(before)] == before  # nothing that was there was asked again
    assert len(after) == len(set(after))
    fresh = making.call(*world, env={"LORAPROBE_CACHE": str(tmp_path / "another")})
    first, second = json.loads(resumed.stdout), json.loads(fresh.stdout)
    assert any("earlier run" in note for note in first["notes"])
    assert answers(first) == answers(second)
    assert resumed.exit_code == fresh.exit_code


def test_a_run_without_resume_starts_again(world, own_cache):
    few = [*world, "--limit", "8"]
    first = json.loads(making.call(*few).stdout)
    count = lines(own_cache)
    second = json.loads(making.call(*few).stdout)
    assert lines(own_cache) == count
    assert answers(first) == answers(second)
    assert not any("earlier run" in note for note in second["notes"])


SINGLES = {"base", "a", "b"}


def other_task(words: list[str]) -> list[str]:
    """The call on a file that asks four of the questions under other names, and one more."""
    place = Path(words[words.index("--task") + 1])
    rows = [json.loads(line) for line in place.read_text().splitlines()[:4]]
    rows = [{**row, "id": f"x{row['id']}"} for row in rows]
    rows.append({"id": "new", "prompt": "Lily had a tree. She", "answer": "was"})
    other = place.with_name("other.jsonl")
    other.write_text("\n".join(map(json.dumps, rows)))
    return [str(other) if word == str(place) else word for word in words]


# What is called with --resume, by more options or a change of the words, and how many questions
# that asks of which system but controls.
AGAIN = {
    "the same": ([], {}),
    "one more method": (["--method", "sum"], {"sum": 16}),
    "fewer items": (["--limit", "8"], {}),
    "more items": (["--limit", "20"], dict.fromkeys([*SINGLES, "uniform"], 4)),
    "other weights": (["--weights", "1,0.5"], {"task_arithmetic": 16}),
    "another seed": (["--seed", "1"], {"uniform": 16}),
    "another order": (lambda words: [words[0], words[2], words[1], *words[3:]], {"uniform": 16}),
    "another task": (other_task, dict.fromkeys([*SINGLES, "uniform"], 1)),
}


@pytest.mark.parametrize(("change", "asked"), AGAIN.values(), ids=AGAIN)
def test_resume_asks_only_what_was_not_asked(world, own_cache, monkeypatch, change, asked):
    words = [*world[: world.index("--system")], "--limit", "16", "--method", "uniform"]
    words += ["--router", "none", "--exit-zero"]
    making.call(*words)
    counts: collections.Counter[str] = collections.Counter()
    ask = asking.ask

    def counted(scorer, batch, system, *limit):
        counts[system.name] += len(batch)
        return ask(scorer, batch, system, *limit)

    monkeypatch.setattr(asking, "ask", counted)
    changed = change(words) if callable(change) else [*words, *change]
    again = json.loads(making.call(*changed, "--resume").stdout)
    controls = {name for name in counts if name.startswith(("shrunk", "random"))}
    assert {name: number for name, number in counts.items() if name not in controls} == asked
    assert any("earlier run" in note for note in again["notes"])
    fresh = making.call(*changed, env={"LORAPROBE_CACHE": str(own_cache / "another")})
    assert again["evaluation"] == json.loads(fresh.stdout)["evaluation"]


SPOILED = """
import signal, sys, types
from loraprobe import cli

def spoil():
    try:
        signal.raise_signal(signal.SIGINT)
    except KeyboardInterrupt:
        raise RecursionError("half imported") from None

sys.modules["loraprobe.cli.methods"] = types.SimpleNamespace(methods=spoil)
sys.argv = ["loraprobe", "methods"]
cli.main()
"""

EARLY = """
import sys

class Early:
    def find_spec(self, name, *_):
        if name == "loraprobe.cli":
            raise KeyboardInterrupt

sys.meta_path.insert(0, Early())
from loraprobe.__main__ import main
main()
"""


IMPORTING = """
import pathlib, sys, tempfile, types
from loraprobe import cli

place = pathlib.Path(tempfile.mkdtemp())
(place / "slow_module.py").write_text(
    "import signal, sys\\nsignal.raise_signal(signal.SIGINT)\\nsys.stdout.write('whole')"
)
sys.path.insert(0, str(place))

def spoil():
    import slow_module, time
    time.sleep(300)

sys.modules["loraprobe.cli.methods"] = types.SimpleNamespace(methods=spoil)
sys.argv = ["loraprobe", "methods"]
cli.main()
"""


@pytest.mark.parametrize(
    ("code", "exit_code", "printed"),
    [
        (SPOILED, 130, ""),
        (EARLY, 130, ""),
        (SPOILED.replace("SIGINT", "SIGTERM"), 143, ""),
        (IMPORTING, 130, "whole"),
    ],
    ids=["spoiled", "early", "terminated", "after the end of an import"],
)
def test_an_interruption_is_one_line_whatever_it_spoils(code, exit_code, printed):
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100)
    assert (done.returncode, done.stdout) == (exit_code, printed)
    assert re.fullmatch(r"error: Interrupted[.;][^\n]*\n", done.stderr)
