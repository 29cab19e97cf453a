"""The rule after evaluation: enumeration against simulation and hand, and how often it is wrong."""

import json

import numpy as np
import pytest
from scipy import special

from loraprobe.defaults import ALPHA
from loraprobe.evaluation import statistics
from loraprobe_lab.experiments import rule
from loraprobe_lab.experiments.rule import decide, decided, rates_of, worst

COARSE = (-0.3, 0.0, 0.02, 0.04, 0.05, 0.06, 0.08, 0.3)


def test_the_rule_is_that_of_the_likelihood_ratio():
    likely, unlikely = decided(60, ALPHA)
    gained, lost = (x[..., None] for x in np.meshgrid(*[np.arange(61.0)] * 2, indexing="ij"))
    possible = (gained + lost <= 60)[..., 0]
    gained, lost, likely, unlikely = (x[possible] for x in (gained, lost, likely, unlikely))
    counts = np.stack([gained + 0.5, lost + 0.5, 60.0 - gained - lost])[..., 0]
    best = special.xlogy(counts, counts / 61).sum(0)
    grid = np.linspace(1e-6, 0.475 - 1e-6, 4001)[:, None]  # shares of lost items, at gain 0.05
    there = special.xlogy(counts[0], grid + 0.05) + special.xlogy(counts[1], grid)
    there += special.xlogy(counts[2], 1 - 2 * grid - 0.05)
    ratio = 2 * (best - there.max(0))
    clear = np.abs(ratio - 1.959963984540054**2) > 1e-2  # of the grid
    beyond, above = ratio > 1.959963984540054**2, (gained - lost)[:, 0] > 0.05 * 61
    assert (likely == (beyond & above))[clear].all()
    assert (unlikely == (beyond & ~above))[clear].all()
    assert not (likely & unlikely).any()
    assert likely.any() and unlikely.any()


def test_enumeration_agrees_with_drawing_items():
    rng = np.random.default_rng(0)
    n, gained, lost, runs = 80, 0.15, 0.05, 4000
    draws = rng.choice([1.0, -1.0, 0.0], (n, runs), p=[gained, lost, 1 - gained - lost])
    estimates = statistics.estimate(draws, np.arange(n))
    low, high = estimates.interval(estimates.critical(1 - ALPHA))
    error = 4 * (0.25 / runs) ** 0.5
    for threshold in (0.05, 0.025):
        likely, unlikely = decide(n, gained - lost, gained + lost, threshold=threshold)
        assert likely == pytest.approx((low > threshold).mean(), abs=error)
        assert unlikely == pytest.approx((high < threshold).mean(), abs=error)
    for row in rates_of(n, (gained - lost,), steps=3):
        assert row.likely + row.unlikely + row.abstains == pytest.approx(1)


def test_a_hundred_items_are_seldom_wrong():
    rows = rates_of(100, COARSE, steps=11)
    assert 0.01 < worst(rows).wrong() <= 0.03
    large = [row for row in rows if row.gain == 0.3]
    assert min(row.likely for row in large) > 0.7, "a large gain is found"
    none = [row for row in rows if row.gain == 0.0 and row.discordance == 0.0]
    assert none[0].unlikely == 1, "and no gain at all is called so"


@pytest.mark.slow
@pytest.mark.parametrize("n", [60, 100, 200, 500])
def test_no_number_of_items_is_wrong_more_often_than_three_in_a_hundred(n):
    gains = np.unique(np.r_[np.linspace(-1, 1, 41), np.linspace(-0.05, 0.15, 41)].round(6))
    assert worst(rates_of(n, tuple(gains), steps=41)).wrong() <= 0.03


# The page


def test_page_and_figure_tell_what_the_document_holds(tmp_path):
    pages = rule.examine((20,), 3)
    page, numbers, figure = pages.write(tmp_path).files(tmp_path)
    assert (page.name, numbers.name, figure.name) == ("rule.md", "rule.json", "rule.svg")
    text, document = page.read_text(), json.loads(numbers.read_text())
    assert document == json.loads(json.dumps(pages.document))
    assert rule.rule_pages(document).markdown == text, "the page can be made from its numbers"
    top = worst([rule.Rate(**row) for row in document["exact"]])
    assert f"{top.wrong():.4f} at gain {top.gain:.2f}" in text
    assert text.count("| 20 |") == 1
    assert figure.read_text().startswith("<?xml")


def test_the_likelihood_ratio_keeps_its_level_at_the_alpha_of_an_early_look():
    """Enumerated in full for 30 items: no more than three times the nominal 0.00023."""
    alpha = 2 * float(special.ndtr(-3.5))
    found = [decide(30, 0.05, float(level), alpha) for level in rule.discordances(0.05, steps=9)]
    assert max(map(max, found)) <= 7e-4
