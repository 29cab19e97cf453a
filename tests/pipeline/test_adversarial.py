"""Every case of tests/adversarial ends as it is said to, and docs/adversarial.md says the same."""

from __future__ import annotations

import pytest
from adversarial.table import PAGE, load_cases, page

from loraprobe.cli import failures
from loraprobe.errors import as_document

CASES = load_cases()


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=pytest.mark.slow) if c.slow else n for n, c in CASES.items()],
)
def test_every_case_gives_the_expected_outcome(tmp_path, name, monkeypatch):
    errors = []
    told = failures.reported
    monkeypatch.setattr(failures, "reported", lambda one: errors.append(told(one)) or errors[-1])
    assert CASES[name].act(tmp_path) == CASES[name].now
    assert all(as_document(error)["error"]["cure"] for error in errors)  # what --json prints


def test_the_page_is_that_of_the_cases():
    expected = page({name: case.now for name, case in CASES.items()})
    assert PAGE.read_text(encoding="utf-8") == expected, "run python tests/adversarial/table.py"
