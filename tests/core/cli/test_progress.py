"""One line of progress."""

import io
import re
import sys
import time

import pytest

from loraprobe.cli import running as module
from loraprobe.cli.running import Output, ProgressLine, spoken


class Clock:
    """A clock that a test moves."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize("on_terminal", [True, False])
def test_a_remark_breaks_between_words_on_a_terminal_alone(monkeypatch, on_terminal):
    stream = io.StringIO()
    stream.isatty = lambda: on_terminal
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setenv("TERM", "xterm")
    place = "/a-long-name" * 5
    message = f"Wrote what this command was asked for, a merge of two adapters, to {place}."
    Output().say(message)
    lines = re.sub(r"\x1b\[[0-9;]*m", "", stream.getvalue()).splitlines()
    assert " ".join(line.strip() for line in lines) == message and (len(lines) > 1) == on_terminal


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
