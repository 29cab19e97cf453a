"""One line of progress, and the estimate before the first pass."""

import io
import json
import sys
import time

import making
import pytest

from loraprobe.cli import progress as module
from loraprobe.cli.output import Output
from loraprobe.cli.progress import ProgressLine, shown, spoken


class Clock:
    """A clock that a test moves."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def planned() -> tuple[ProgressLine, Clock]:
    clock = Clock()
    line = ProgressLine(clock=clock)
    line.expect({"evaluate base": 10.0, "cover": 10.0, "evaluate sum": 20.0})
    return line, clock


def test_a_line_says_which_system_the_share_and_the_time_left():
    line, clock = planned()
    line("evaluate base", 0, 10)
    assert line.text() == "evaluate base, system 1 of 2, 0% done"  # nothing was measured yet
    clock.now = 5.0
    line("evaluate base", 5, 10)
    assert line.text() == "evaluate base, system 1 of 2, 12% done, about 35 s left"
    clock.now = 15.0
    line("cover", 0, 0)
    clock.now = 30.0  # 20 units took 30 seconds
    line("evaluate sum", 0, 10)
    assert line.text() == "evaluate sum, system 2 of 2, 50% done, about 30 s left"


def test_a_long_silent_step_goes_on_as_time_goes_by():
    line, clock = planned()
    line("evaluate base", 0, 10)
    clock.now = 10.0
    line("cover", 0, 0)
    shares = []
    for clock.now in (10.0, 14.0, 410.0):
        line("read prompts", 3, 4)  # a part of the step
        assert "cover" not in line.text()  # in words
        shares.append(int(line.text().partition("% done")[0].rpartition(" ")[2]))
    assert shares[0] == 25 < shares[1] < shares[2] == 48  # never said to be over before it is


def test_the_share_never_goes_back():
    line, clock = planned()
    line("evaluate base", 0, 10)
    clock.now = 10.0
    line("cover", 0, 0)
    clock.now = 15.0
    told = line.text()
    line("cover", 1, 10)  # less was done than time went by
    share = next(text for text in told.split(", ") if "done" in text)
    assert share in line.text()
    line("statistics", 0, 0)  # no step of the plan
    assert share in line.text()
    line.expect({"evaluate arrow": 20.0})  # what has begun stays
    assert set(line.plan) == {"evaluate base", "cover", "evaluate arrow"}


def test_a_step_that_is_named_in_full_later_is_found():
    line, _ = planned()
    line.expect({"evaluate shrunk": 1.0, "evaluate ties:density=0.3": 1.0})
    line("evaluate shrunk:a", 1, 2)
    assert "system 1 of 2" in line.text()
    line("evaluate ties:density=0.3", 1, 2)
    assert "system 2 of 2" in line.text()


def test_stages_outside_a_plan_have_their_own_time():
    clock = Clock()
    line = ProgressLine(clock=clock)
    assert line.text()  # at once, before anything is reported
    line("load", 0, 0)
    assert line.text() == "load the base"
    line("merge", 0, 12)
    clock.now = 6.0
    line("merge", 3, 12)
    assert line.text() == "merge, 3 of 12, about 18 s left"
    line("merge", 0, 4)  # another merge
    assert line.text() == "merge, 0 of 4"
    line.expect({"evaluate base": 1.0})
    line("load", 0, 0)
    assert line.text() == "load the base"


def test_a_long_choice_of_the_template_says_how_to_leave_it_out():
    line, clock = planned()
    line("template", 1, 10)
    clock.now = 4.0
    assert line.text() == "ask with and without the chat template, 1 of 10, about 36 s left"
    clock.now = 40.0
    assert line.text().endswith(", --chat-template off skips it")


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
    with shown() as line:
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
    assert estimate["seconds"] == pytest.approx(sum(estimate["steps"].values()), abs=0.1)
    assert {"load", "diagnose"} <= set(estimate["measured"]) <= set(estimate["steps"])
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
