"""Reports of a library: sizes, the map with its table, words for strangers' names."""

from __future__ import annotations

import dataclasses

import pytest
from test_page import parsed, table
from test_report import HOSTILE, a_library, an_audit, rendered

from loraprobe.report.answer import answer
from loraprobe.report.html import LARGEST, page
from loraprobe.report.markdown import markdown
from loraprobe.verdict.next_command import TASK


def described(name: str = "a", copies: int = 1):
    """The audit of a library without a task."""
    library = a_library(name)
    rows = [
        dataclasses.replace(row, name=f"{row.name}-{i}", family=row.family and i % 90 + 1)
        for i in range(copies)
        for row in library.adapters
    ]
    given = "adapters evaluation gains comparisons attribution samples gates coverage shortlist"
    nothing = dict.fromkeys([*given.split(), "diagnostics", "layers"], ())
    library = dataclasses.replace(library, adapters=tuple(rows))
    return dataclasses.replace(
        an_audit(), **nothing, command="screen", library=library, verdict=None
    )


@pytest.mark.parametrize("width", [40, 60, 80])
@pytest.mark.parametrize("name", ["a", HOSTILE, "a-long-name-of-an-adapter" * 4])
def test_the_answer_of_any_library_fits(width, name):
    audit = described(name, 20)
    lines = answer(audit).laid_out(width)
    assert len(lines) <= 12 and lines[0].startswith("LIBRARY")
    for explain in (False, True):
        words = map(len, (*lines, *answer(audit).in_full(width)))  # of commands, which are not cut
        assert max(map(len, rendered(audit, width, explain).splitlines())) <= max(width, *words)


def test_a_command_longer_than_the_answer_is_not_printed():
    audit = dataclasses.replace(described("owner/an-adapter-with-a-long-name", 200), library=None)
    names = " ".join(f"owner/an-adapter-with-a-long-name-{at}" for at in range(200))
    verdict = dataclasses.replace(an_audit().verdict, next=f"loraprobe screen {names}")
    lines = rendered(dataclasses.replace(audit, verdict=verdict), 80).splitlines()
    assert len(lines) < 45 and "verdict.next" in " ".join(lines)
    name = "an-organisation/an-adapter-with-a-name-that-fills-most-of-a-line-of-a-terminal"
    lines = rendered(described(name, 200), 80).splitlines()
    assert "verdict.next" not in " ".join(lines) and "@FILE" in " ".join(lines)


def test_the_answer_says_that_the_questions_are_the_users_own():
    said = [text for label, text in answer(described()).lines if label == "fill in"]
    assert len(said) == 1 and said[0].startswith(TASK)


def test_a_page_of_a_thousand_stays_small():
    text = page(described("an-adapter-of-somebody/with-a-name", 150))
    assert len(text.encode()) < LARGEST
    root = parsed(text)
    assert table(root, "The map of the library")[0] == ["adapter", "family", "across", "up"]


def test_the_map_has_a_dot_for_each_adapter_and_says_what_it_shows():
    (figure,) = parsed(page(described())).all("figure")
    (drawn,) = figure.all("svg")
    assert drawn.all("title") and drawn.all("desc")
    assert "50%" in figure.all("desc")[0].text and "4 adapters" in figure.all("desc")[0].text
    rows = table(figure, "The map of the library")
    assert len(rows) == 5 and rows[1][2:] == ["-1.00", "0.25"]


def test_two_adapters_have_no_map():
    audit = described()
    library = dataclasses.replace(audit.library, adapters=audit.library.adapters[:2])
    root = parsed(page(dataclasses.replace(audit, library=library)))
    assert not root.all("figure")


def test_markdown_names_what_cannot_be_used_and_families():
    text = markdown(described())
    assert "Cannot be used" in text and "Families" in text
    assert len(text.splitlines()) <= 60
