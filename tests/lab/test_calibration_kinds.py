"""The page of kinds: its rows and its list of sets, on planted cases and as stored."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from calibrating import case

from loraprobe_lab.calibration.cases import METHODS, read_cases
from loraprobe_lab.calibration.kinds import page

EXAMPLES = Path(__file__).parents[2] / "examples" / "calibration"


def planted(kind, count, sign, base="b"):
    """Half of the sets gain 0.3; the forecast says so (sign 1) or the opposite (-1)."""
    cases = []
    for i in range(count):
        where = {"base": base, "scenario": kind, "world": f"{base}-{kind}-{i}"}
        gain = 0.3 if i % 2 else 0.0
        figures = {"gain": gain, "ci95": (gain - 0.04, gain + 0.04), "n": 72}
        figures["forecast"] = 0.2 * sign * (1 if i % 2 else -1)
        cases += [case(**where, **figures, adapter_set=f"{kind}-{i}", method=m) for m in METHODS]
    return cases


def cells(line):
    return [cell.strip() for cell in line.strip("|").split("|")]


def tables(text):
    """The cells of the table of kinds, and of that of sets."""
    return [
        [cells(line) for line in part.splitlines() if line.startswith("|")]
        for part in text.split("## The sets")
    ]


def test_the_table_has_a_row_a_kind_and_one_for_all():
    cases = planted("halves", 4, 1) + planted("twins", 4, -1) + planted("other", 8, 1, base="o")
    (head, _, *rows), _ = tables(page(cases, "b"))
    assert [row[0] for row in rows] == ["halves", "twins", "**all**"]
    assert {len(row) for row in rows} == {len(head)}
    right, wrong = rows[:2]
    assert [head[3], right[3], wrong[3]] == ["signs agree", "1.00", "0.00"]
    assert right[1:3] + right[4:6] == ["4", "2", "4", "2"]
    assert right[7].endswith(" (0.25)") and rows[2][4:6] == ["8", "4"]


def test_every_set_is_listed_once_with_its_three_compositions():
    cases = planted("halves", 8, 1) + planted("twins", 8, 1, base="other")
    _, (_, _, *rows) = tables(page(cases, "b"))
    assert [row[0] for row in rows] == [f"halves-{i}" for i in range(8)]
    assert rows[0][3:] == ["-0.20 → +0.00"] * 3 and rows[1][3:] == ["+0.20 → +0.30"] * 3


def test_a_set_without_forecasts_has_gains_alone():
    bare = [replace(one, forecast=None, error=None) for one in planted("halves", 8, 1)]
    text = page(bare + planted("twins", 8, 1, base="other"), "b")
    _, (_, _, *rows) = tables(text)
    assert rows[1][3:] == ["+0.30"] * 3 and "and the forecast" not in text


def test_the_stored_page_is_that_of_the_stored_cases():
    cases = read_cases(EXAMPLES / "cases.jsonl.gz")
    told = (EXAMPLES / "smollm2.md").read_text(encoding="utf-8")
    now = page(cases, "smollm2")
    assert told.partition("## The sets")[2] == now.partition("## The sets")[2]
    assert told.splitlines()[:9] == now.splitlines()[:9]
