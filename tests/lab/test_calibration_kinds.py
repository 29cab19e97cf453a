"""The table of kinds: figures of planted cases whose values are known."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from loraprobe.defaults import MARGIN
from loraprobe.verdict.calibration import shipped
from loraprobe_lab.calibration.cases import METHODS, Case, read_cases
from loraprobe_lab.calibration.kinds import (
    figures_of_kind,
    page,
    table,
    table_of_sets,
    within_kinds,
)

EXAMPLES = Path(__file__).parents[2] / "examples" / "calibration"


def a_case(number: int, kind: str, method: str, forecast: float, gain: float) -> Case:
    return Case(
        base="b", architecture="natural", scenario=kind, world=f"{kind}-{number}",
        adapter_set=f"{kind}-{number}", method=method, adapters=2, tasks=1, hops=0,
        metric="exact_match", forecast=forecast, error=0.02, part="question", baseline=0.1,
        gain=gain, ci95=(gain - 0.04, gain + 0.04), n=72,
    )  # fmt: skip


def planted(kind: str, count: int, sign: int) -> list[Case]:
    """Half of the sets gain 0.3; the forecast says so (sign 1) or the opposite (-1)."""
    return [
        a_case(i, kind, method, 0.2 * sign * (1 if i % 2 else -1), 0.3 if i % 2 else 0.0)
        for i in range(count)
        for method in METHODS
    ]


def test_a_right_forecast_ranks_and_agrees():
    found = figures_of_kind(planted("halves", 10, 1), shipped())
    assert (found.sets, found.cases, found.gained) == (10, 30, 15)
    assert found.agree == found.auroc == 1.0 and 0.5 < found.null < 1.0
    assert (found.decided, found.decided_gained, found.covered) == (30, 15, 30)
    assert found.brier < found.reference == pytest.approx(0.25) and found.wrong == 0


def test_a_wrong_forecast_is_worse_than_the_share():
    found = figures_of_kind(planted("halves", 10, -1), shipped())
    assert found.agree == found.auroc == 0.0
    assert found.brier > found.reference


@pytest.mark.parametrize(("forecast", "agree"), [(0.0, 1.0), (0.06, 0.0)])
def test_signs_agree_on_one_side_of_the_margin(forecast, agree):
    assert figures_of_kind([a_case(1, "k", "sum", forecast, 0.0)], shipped()).agree == agree


def test_the_null_exchanges_whole_sets():
    """The three compositions of a set move together, so ten sets are ten observations."""
    cases = planted("halves", 4, 1)
    assert figures_of_kind(cases, shipped()).null == 1.0  # 1 of 6 draws of 2 sets of 4 is perfect


def test_kinds_are_compared_with_themselves_only():
    cases = planted("halves", 4, 1) + [a_case(9, "twins", m, 0.7, 0.0) for m in METHODS]
    scores = np.array([case.forecast for case in cases])
    gained = np.array([case.gain > MARGIN for case in cases])
    assert within_kinds(cases, scores, gained) == 1.0
    assert np.isnan(within_kinds(cases[-3:], scores[-3:], gained[-3:]))


def test_undecided_and_uncovered_cases_have_no_brier_score():
    wide = [dataclasses.replace(c, ci95=(-0.5, 0.5)) for c in planted("halves", 2, 1)]
    assert figures_of_kind(wide, shipped()).decided == 0
    many = [dataclasses.replace(c, adapters=9) for c in planted("halves", 2, 1)]
    found = figures_of_kind(many, shipped())
    assert found.decided == 6 and found.covered == 0 and np.isnan(found.brier)


def test_the_table_has_a_row_a_kind_and_one_for_all():
    lines = table(planted("halves", 4, 1) + planted("twins", 4, -1), shipped()).splitlines()
    assert [line.split(" | ")[0] for line in lines[2:]] == ["| halves", "| twins", "| **all**"]
    assert {line.count("|") for line in lines} == {lines[0].count("|")}


def test_the_auroc_is_that_of_scikit_learn():
    rng = np.random.default_rng(0)
    cases = [a_case(i, "k", m, 0.0, 0.0) for i in range(20) for m in METHODS]
    scores, gained = rng.integers(0, 6, 60) / 10, rng.random(60) < 0.4
    assert within_kinds(cases, scores, gained) == pytest.approx(roc_auc_score(gained, scores))


def test_every_set_is_listed_once_with_its_three_compositions():
    lines = table_of_sets(planted("halves", 4, 1)).splitlines()
    assert [line.split(" | ")[0] for line in lines[2:]] == [f"| halves-{i}" for i in range(4)]
    assert lines[2].count("-0.20 → +0.00") == lines[3].count("+0.20 → +0.30") == 3


def test_the_stored_page_lists_the_stored_cases():
    """The rest of the page depends on the map that was shipped when it was written."""
    cases = read_cases(EXAMPLES / "smollm2.jsonl.gz")
    told = (EXAMPLES / "smollm2.md").read_text(encoding="utf-8")
    now = page(cases, "smollm2")
    assert told.partition("## The sets")[2] == now.partition("## The sets")[2]
    assert told.splitlines()[:3] == now.splitlines()[:3]
    assert {case.base for case in cases} == {"smollm2"}
