"""Stored pages: the lab has the commands that they name, and makes them of the stored numbers."""

import json
import re
import shlex
from pathlib import Path

import pytest
import typer

from loraprobe.pipeline.plan import PER_PROMPT, WHY_PER_PROMPT
from loraprobe_lab.cli import app
from loraprobe_lab.experiments import methods, rule, theory

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
    [
        ("calibration/rule.json", rule.rule_pages),
        ("reproduction/theory.json", theory.theory_pages),
    ],
)
def test_stored_pages_are_made_of_the_stored_numbers(numbers, made):
    stored = EXAMPLES / numbers
    document = json.loads(stored.read_text(encoding="utf-8"))
    assert made(document).markdown == stored.with_suffix(".md").read_text(encoding="utf-8")


def test_what_joins_the_default_systems_is_what_the_table_of_methods_gives():
    reproduction = EXAMPLES / "reproduction"
    found = methods.choices(json.loads((reproduction / "methods.json").read_text("utf-8")))
    page = (reproduction / "portfolio.md").read_text(encoding="utf-8")
    assert page == methods.portfolio_page(found)
    (joins,) = (one for one in found if one["joins"])
    assert (joins["kind"], joins["spec"]) == ("several tasks", PER_PROMPT)
    told = re.search(r"skill ([\d.]+), against ([\d.]+) .* on (\d+) small worlds", WHY_PER_PROMPT)
    figures = (f"{joins['figure']:.2f}", f"{joins['beside']:.2f}", str(joins["worlds"]))
    assert told is not None and told.groups() == figures
