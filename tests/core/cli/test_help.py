"""The help of every command: examples that parse, panels, nothing cut at 60 columns."""

import re
import shlex
import subprocess
import sys

import making
import pytest
from typer.main import get_command

from loraprobe import cli as commands
from loraprobe.cli import NAMES

EXAMPLES = {name: one.examples for name, one in commands.COMMANDS.items()}


@pytest.mark.parametrize("columns", [60, 80, 160])
@pytest.mark.parametrize("command", ["", *sorted(set(EXAMPLES) - {"lab"})])
def test_help_is_whole_has_examples_and_shows_no_type_of_python(command, columns):
    shown = making.call(*command.split(), "--help", env={"COLUMNS": str(columns)})
    assert shown.exit_code == 0
    lines = shown.stdout.splitlines()
    assert max(map(len, lines)) <= columns
    assert "…" not in shown.stdout or not command
    flowing = " ".join(shown.stdout.split())
    assert "Examples:" in flowing or not command
    for call in EXAMPLES.get(command, ()):
        assert call in flowing
    options = shown.stdout.partition("─ Options ─")[2].splitlines()
    named = [line for line in options if "--" in line]
    arguments = shown.stdout.partition("─ Arguments ─")[2].partition("╰")[0]
    assert not re.search("<[a-z]", arguments)
    assert named and not [line for line in named if "<" in line and "x<=" not in line]
    assert "...}" not in flowing and "...]..." not in flowing  # the usage repeats an argument once


def test_help_of_the_lab_shows_no_type_of_python_beside_flags():
    from loraprobe_lab.cli import app

    for name in ["", *get_command(app).commands]:
        shown = making.call("lab", *name.split(), "--help", env={"COLUMNS": "100"}).stdout
        assert "--help" in shown and "<bool>" not in shown
    build = making.call("lab", "build", "--help", env={"COLUMNS": "100"}).stdout
    assert "two-hop" in build.partition("─ Arguments ─")[2]


@pytest.mark.parametrize("command", sorted(EXAMPLES))
def test_examples_parse(command):
    assert 1 <= len(EXAMPLES[command]) <= 2
    for call in EXAMPLES[command]:
        words, start = shlex.split(call), ["loraprobe", *command.split()]
        assert words[: len(start)] == start
        if command != "lab":
            making.command(command).make_context(command, words[len(start) :])


def test_commands_stand_in_groups_in_which_a_newcomer_starts():
    shown = making.call("--help", env={"COLUMNS": "80"}).stdout
    places = [shown.index(f"─ {title} ─") for title in ("Start", "Make", "Library", "Other")]
    assert places == sorted(places)
    start = shown[places[0] : places[1]]
    listed = re.findall(r"^│ ([a-z-]+) ", start, re.M)
    assert listed == ["demo", "task", "inspect", "merge-and-eval"]
    assert set(NAMES) == {name.partition(" ")[0] for name in commands.COMMANDS}


def test_options_stand_in_panels():
    shown = making.call("merge-and-eval", "--help", env={"COLUMNS": "80"}).stdout
    panels = "Most used", "Adapters", "Composition", "Evaluation", "Machine", "Output"
    places = [shown.index(f"─ {panel} ─") for panel in panels]
    assert places == sorted(places)
    most_used = re.findall(r"--[a-z-]+ ", shown[places[0] : places[1]])
    assert most_used == ["--base ", "--task ", "--method ", "--router ", "--output "]
    rest = shown.partition("─ Options ─")[2].partition("╰")[0]
    assert rest.count("--") == 1  # --help


def test_the_list_of_commands_needs_no_heavy_package():
    """Whatever a command imports at its top, such as pydantic, delays `loraprobe --help`."""
    program = "import sys; from loraprobe.__main__ import main; sys.argv[1:] = ['--help']\n"
    program += "try: main()\nexcept SystemExit: print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    loaded = set(done.stdout.splitlines()[-1].split())
    assert "loraprobe.cli" in loaded and not loaded & {"torch", "numpy", "pydantic", "httpx"}
