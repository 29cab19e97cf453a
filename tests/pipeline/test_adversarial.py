"""Every case of tests/adversarial ends as docs/adversarial.md requires."""

import pytest
from adversarial import SLOW, load_cases, required

import loraprobe.cli
from loraprobe.errors import as_document

CASES, REQUIRED = load_cases(), required()


def test_the_page_has_a_row_for_every_case():
    assert sorted(CASES) == sorted(REQUIRED)


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow) if n in SLOW else n for n in CASES]
)
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
