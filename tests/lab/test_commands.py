"""Stored pages: the lab has the commands that they name, and makes them of the stored numbers."""

import json
import re
import shlex
from pathlib import Path

import pytest
import typer

from loraprobe_lab.cli import app
from loraprobe_lab.experiments import rule, theory

EXAMPLES = Path(__file__).parents[2] / "examples"
COMMAND = re.compile(r"(?:^|`)loraprobe lab ([^`\n]+)", re.MULTILINE)
TEXTS = {
    f"{page.parent.name}/{page.name}": page.read_text(encoding="utf-8").replace("\\\n", " ")
    for page in EXAMPLES.rglob("*.md")
    if page.name != "rule-simulated.md"  # its README says that the code which made it is gone
}


@pytest.mark.parametrize("page", sorted(page for page in TEXTS if COMMAND.search(TEXTS[page])))
def test_commands_of_stored_pages_are_understood(page):
    group = typer.main.get_command(app)
    for line in COMMAND.findall(TEXTS[page]):
        name, *words = shlex.split(line, comments=True)
        command = group.get_command(None, name)
        assert command is not None, line
        if words:  # a text may name a command alone, or leave out where it writes
            command.make_context(name, [*words, "-o", "DIR"])


@pytest.mark.parametrize(
    ("numbers", "made"),
    [("reproduction/theory.json", theory.theory_pages), ("calibration/rule.json", rule.rule_pages)],
)
def test_stored_pages_are_made_of_the_stored_numbers(numbers, made):
    stored = EXAMPLES / numbers
    pages = made(json.loads(stored.read_text(encoding="utf-8")))
    assert pages.markdown == stored.with_suffix(".md").read_text(encoding="utf-8")
