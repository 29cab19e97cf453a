"""The page of kinds: its rows and its list of sets, on planted cases and as stored."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from calibrating import case

from loraprobe_lab.calibration.cases import METHODS, read_cases
from loraprobe_lab.calibration.kinds import page, table, table_of_sets
from loraprobe_lab.calibration.sets import sets_of

EXAMPLES = Path(__file__).parents[2] / "examples" / "calibration"


def planted(kind, count, sign, base="b"):
    """Half of the sets gain 0.3; the forecast says so (sign 1) or the opposite (-1)."""
    return [
        case(
            base=base, scenario=kind, world=f"{base}-{kind}-{i}", adapter_set=f"{kind}-{i}",
            method=method, forecast=0.2 * sign * (1 if i % 2 else -1),
            gain=0.3 if i % 2 else 0.0, ci95=(0.26, 0.34) if i % 2 else (-0.04, 0.04), n=72,
        )
        for i in range(count)
        for method in METHODS
    ]  # fmt: skip


def cells(line):
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_the_table_has_a_row_a_kind_and_one_for_all():
    sets = sets_of(planted("halves", 4, 1) + planted("twins", 4, -1))
    gained = np.array([[one.outcome.gain > 0.05 for one in sets]], dtype=float)
    lines = table(sets, gained).splitlines()
    assert [cells(line)[0] for line in lines[2:]] == ["halves", "twins", "**all**"]
    assert {line.count("|") for line in lines} == {lines[0].count("|")}
    head, right, wrong = (cells(line) for line in (lines[0], *lines[2:4]))
    assert [head[3], right[3], wrong[3]] == ["signs agree", "1.00", "0.00"]
    assert right[1:3] + right[4:6] == ["4", "2", "4", "2"]
    assert right[7] == "0.00 (0.25)" and right[8:] == ["2.0", "0 %", "100 %"]


def test_every_set_is_listed_once_with_its_three_compositions():
    lines = table_of_sets(sets_of(planted("halves", 4, 1))).splitlines()
    assert [cells(line)[0] for line in lines[2:]] == [f"halves-{i}" for i in range(4)]
    assert lines[2].count("-0.20 → +0.00") == lines[3].count("+0.20 → +0.30") == 3


def test_a_page_lists_the_sets_of_its_base_alone():
    text = page(planted("halves", 8, 1) + planted("twins", 8, 1, base="other"), "b")
    assert "halves-3" in text and "twins" not in text


def test_the_stored_page_is_that_of_the_stored_cases():
    cases = read_cases(EXAMPLES / "cases.jsonl.gz")
    told = (EXAMPLES / "smollm2.md").read_text(encoding="utf-8")
    now = page(cases, "smollm2") + "\n"
    assert told.partition("## The sets")[2] == now.partition("## The sets")[2]
    assert told.splitlines()[:9] == now.splitlines()[:9]
