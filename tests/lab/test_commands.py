"""Every command of the lab that a stored page names is one that the lab has."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import typer

from loraprobe_lab.cli import app

COMMAND = re.compile(r"(?:^|`)loraprobe lab ([^`\n]+)", re.MULTILINE)
TEXTS = {
    f"{page.parent.name}/{page.name}": page.read_text(encoding="utf-8").replace("\\\n", " ")
    for page in (Path(__file__).parents[2] / "examples").rglob("*.md")
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
