"""One line of progress, and the estimate before the first pass."""

import io
import json
import sys
import time
from types import SimpleNamespace

import making
import pytest

from loraprobe.cli import running as module
from loraprobe.cli.running import Output, ProgressLine, spoken
from loraprobe.options import Options
from loraprobe.pipeline.estimate import cost_of
from loraprobe.session import Session


class Clock:
    """A clock that a test moves."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_line_says_what_is_done_how_far_and_the_time_left():
    clock = Clock()
    line = ProgressLine(clock=clock)
    assert line.text()  # at once, before anything is reported
    line("load", 0, 0)
    assert line.text() == "load the base"
    for stage in ("evaluate base, system 1 of 2", "evaluate sum, system 2 of 2"):
        line(stage, 0, 20)
        assert line.text() == f"{stage}, 0 of 20"  # nothing was measured yet
        clock.now += 5.0
        line(stage, 10, 20)
        assert line.text() == f"{stage}, 10 of 20, about 5 s left"
    line("evaluate more, system 2 of 2", 15, 20)  # measured over all systems
    assert line.text() == "evaluate more, system 2 of 2, 15 of 20, about 2 s left"
    line("merge", 0, 4)
    assert line.text() == "merge, 0 of 4"


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0.2, "1 s"), (89, "89 s"), (90, "2 min"), (5340, "89 min"), (9e3, "2.5 h")],
)
def test_durations_have_the_unit_that_suits_them(seconds, said):
    assert spoken(seconds) == said


def test_a_terminal_shows_names_as_they_stand_and_one_line(monkeypatch):
    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "60")
    with Output().progress() as progress:
        progress("evaluate [/x]\x1b]0;title\x07", 1, 2)
    assert "evaluate [/x]" in terminal.getvalue() and "\x1b]0;" not in terminal.getvalue()


def test_without_a_terminal_a_plain_line_comes_now_and_then(monkeypatch, capsys):
    monkeypatch.setattr(module, "INTERVAL", 0.05)
    said, end = "", time.monotonic() + 60
    with Output().progress() as line:
        for _ in range(1000):
            line("load", 0, 0)
        while not said and time.monotonic() < end:  # a busy machine prints late
            time.sleep(0.01)
            said = capsys.readouterr().err
    lines = (said + capsys.readouterr().err).splitlines()
    assert 1 <= len(lines) < 1000 and set(lines) == {"load the base"}
    time.sleep(0.1)
    assert capsys.readouterr().err == ""  # nothing after the end
    with Output(quiet=True).progress() as progress:
        assert progress is None


FEW = [*making.shipped("skill-and-facts"), "--limit", "12"]


def test_a_dry_run_tells_the_systems_that_the_run_then_asks(tmp_path, own_cache):
    target = tmp_path / "out"
    call = ["merge-and-eval", *FEW, "-o", target]
    dry = making.call(*call, "--dry-run", "--json")
    assert dry.exit_code == 0, dry.output
    estimate = json.loads(dry.stdout)["estimate"]
    assert (estimate["items"], estimate["questions"]) == (12, 48)
    assert estimate["memory_bytes"] > 1e8
    assert estimate["seconds"] > 0
    assert not target.exists() and not list(own_cache.glob("runs/*/*.jsonl"))
    run = json.loads(making.call(*call, "--json", "--exit-zero").stdout)
    asked = [row["system"] for row in run["evaluation"]]
    assert set(estimate["systems"]) == {name.partition(":")[0] for name in asked}
    shown = making.call(*call, "--dry-run", "--overwrite", env={"COLUMNS": "60"})
    assert shown.exit_code == 0 and max(map(len, shown.stdout.splitlines())) <= 60
    assert "9 systems x 12 items" in shown.stdout


def test_a_dry_run_refuses_what_the_run_refuses(tmp_path):
    making.random_adapter("tiny", seed=3).save(tmp_path / "tiny")
    result = making.call("merge-and-eval", tmp_path / "tiny", *FEW, "--dry-run")
    assert result.exit_code == 2 and result.stdout == "" and "tiny" in result.stderr


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
    session = Session(Options(engine=engine), device=device)
    cost = cost_of(SimpleNamespace(tasks=[], session=session), [], seconds)
    assert cost.vllm == told
