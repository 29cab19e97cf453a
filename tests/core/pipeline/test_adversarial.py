"""Every case of hostile input ends as its page requires, and what is promised has its tests."""

import fnmatch
import functools
import itertools
import re

import pytest
from adversarial import DOCS, MARKS, PAGES, hostile_part, load_cases, required
from pathologies.specimens import SPECIMENS

import loraprobe.cli
from loraprobe.errors import as_document

CASES, REQUIRED = load_cases(), required()


def test_the_pages_have_a_row_for_every_case():
    assert sorted(CASES) == sorted(REQUIRED)


def claims() -> dict[str, list[str]]:
    """What docs/safety.md and the pages of extensions promise -> what tests it: the names behind
    each line."""
    text = "\n".join(map(hostile_part, (DOCS / "safety.md", *PAGES[1:])))
    items = [" ".join(item.split()) for item in re.findall(r"(?ms)^- (.+?)(?=\n- |\n\n)", text)]
    found = [re.fullmatch(r"(.+) \(((?:`[\w*-]+`(?:, )?)+)\)", item) for item in items]
    assert all(found), [item for item, one in zip(items, found, strict=True) if not one]
    return {one[1]: re.findall("`([^`]+)`", one[2]) for one in found if one}


CLAIMS = claims()


@functools.cache
def known_tests() -> list[str]:
    """Cases, specimens of adapters, and functions that pytest collects."""
    files = (DOCS.parent / "tests").rglob("test_*.py")
    functions = (re.findall(r"def (test_\w+)", file.read_text("utf-8")) for file in files)
    return [*CASES, *SPECIMENS, *itertools.chain(*functions)]


@pytest.mark.parametrize("claim", CLAIMS)
def test_every_promise_has_its_tests(claim):
    assert all(fnmatch.filter(known_tests(), name) for name in CLAIMS[claim]), CLAIMS[claim]


@pytest.mark.parametrize("name", [pytest.param(name, marks=MARKS[name]) for name in CASES])
def test_every_case_gives_the_required_outcome(tmp_path, name, monkeypatch):
    for limit in ("patterns.SECONDS", "tasks.metrics.PATTERN_SECONDS"):
        monkeypatch.setattr(f"loraprobe.{limit}", 0.2)
    errors = []
    told = loraprobe.cli.reported
    monkeypatch.setattr(
        loraprobe.cli, "reported", lambda one: errors.append(told(one)) or errors[-1]
    )
    assert CASES[name](tmp_path) == REQUIRED[name]
    assert all(as_document(error)["error"]["cure"] for error in errors)  # what --json prints
