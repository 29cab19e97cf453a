"""Generated pages and transcripts are those of the code, and every link of the documentation leads
somewhere."""

import re
from pathlib import Path

import pages
import pytest
import transcripts

from loraprobe.report.answer import BY_EFFECT, FILL_IN, OF_EXTENSIONS

ROOT = Path(__file__).parents[3]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")]
TEXTS = transcripts.texts()


@pytest.mark.parametrize("path", pages.PAGES, ids=lambda path: path.name)
def test_generated_pages_are_those_of_the_code(path):
    assert path.read_text(encoding="utf-8") == pages.PAGES[path](), "run python tests/pages.py"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    text = page.read_text(encoding="utf-8")
    targets = re.findall(r"\]\(([^)#\s]+)\)", re.sub(r"`[^`]*`", "", text))
    lost = [t for t in targets if "://" not in t and not (page.parent / t).exists()]
    assert not lost


def test_every_label_of_an_answer_is_explained():
    text = (ROOT / "docs" / "reading.md").read_text(encoding="utf-8")
    table = "".join(re.findall(r"\| label \|.*?\n\n", text, re.DOTALL))
    rows = [line.split("|")[1] for line in table.splitlines()[2:] if line]
    told = {label.strip() for row in rows for label in row.split(",")}
    labels = {*BY_EFFECT} - {OF_EXTENSIONS}
    assert told >= {*labels, FILL_IN, "next", "questions", "in Python", "serve"}


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: path.name)
def test_a_report_is_that_of_its_transcript(path):
    told = path.read_text(encoding="utf-8")
    assert TEXTS[path]() == told, "run python tests/transcripts.py and read the change"
