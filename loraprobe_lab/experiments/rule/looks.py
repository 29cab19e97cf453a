"""One look or two on few items: wrong and right decisions of one comparison, exactly.

The outcomes of a first look that decide nothing are carried on: the distribution of (gained, lost)
after it is convolved with that of the items that follow. No simulation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import special, stats
from scipy.signal import convolve2d

from loraprobe.defaults import FIRST_ROUND
from loraprobe.evaluation.rounds import look_alphas
from loraprobe.evaluation.statistics import likelihood_interval
from loraprobe_lab.experiments.rule.decisions import MARGIN, Array, discordances

WRONG_AT = (-0.1, 0.0, 0.02, 0.03, 0.04, 0.06, 0.07, 0.08, 0.1, 0.15)
DECIDED_AT = (-0.3, -0.1, 0.0, 0.15, 0.3, 0.6)
STEPS = 11  # discordances of a gain


@dataclass(frozen=True)
class Looks:
    """The rule with looks after so many items, the last with all.

    alphas: of each look. likely, unlikely: of each look, its decision on each (gained, lost).
    """

    sizes: tuple[int, ...]
    alphas: tuple[float, ...]
    likely: tuple[Any, ...]
    unlikely: tuple[Any, ...]

    @classmethod
    def of(cls, sizes: tuple[int, ...]) -> Looks:
        """The looks of evaluation by rounds."""
        alphas = look_alphas(tuple(size / sizes[-1] for size in sizes))
        found = [_decided(size, alpha) for size, alpha in zip(sizes, alphas, strict=True)]
        return cls(sizes, alphas, *zip(*found, strict=True))

    def decide(self, gain: float, discordance: float) -> tuple[float, float, float]:
        """Probabilities of `likely` and `unlikely`, and the mean share of the items asked."""
        shares = (discordance + gain) / 2, (discordance - gain) / 2
        open_, before, totals = np.ones((1, 1)), 0, np.zeros(3)
        for size, yes, no in zip(self.sizes, self.likely, self.unlikely, strict=True):
            totals[2] += open_.sum() * (size - before) / self.sizes[-1]
            open_ = convolve2d(open_, _chances(size - before, *shares))
            totals[:2] += open_[yes].sum(), open_[no].sum()
            open_, before = np.where(yes | no, 0.0, open_), size
        return float(totals[0]), float(totals[1]), float(totals[2])


def _counts(n: int) -> tuple[Array, Array, Any]:
    gained, lost = np.meshgrid(np.arange(n + 1.0), np.arange(n + 1.0), indexing="ij")
    return gained, lost, gained + lost <= n


def _decided(n: int, alpha: float) -> tuple[Any, Any]:
    gained, lost, possible = _counts(n)
    items = np.full(int(possible.sum()), float(n))
    critical = -float(special.ndtri(alpha / 2))
    ends = likelihood_interval(gained[possible], lost[possible], items, critical)
    yes, no = np.zeros_like(possible), np.zeros_like(possible)
    yes[possible], no[possible] = ends[0] > MARGIN, ends[1] < MARGIN
    return yes, no


def _chances(n: int, up: float, down: float) -> Array:
    gained, lost, possible = _counts(n)
    counts = np.stack([gained, lost, n - gained - lost], axis=-1)[possible]
    shares = np.clip([up, down, 1 - up - down], 0, None)
    found = np.zeros(possible.shape)
    found[possible] = stats.multinomial.pmf(counts, n, shares / shares.sum())
    return found


def compare_looks(clusters: Sequence[int]) -> list[dict[str, Any]]:
    """For each number of items, one look and two: the most wrong decisions of any gain 0.01 or more
    from the margin, and (gain, right decisions, share of items asked), means over discordances."""
    rows = []
    for n in clusters:
        for sizes in ((n,), (FIRST_ROUND, n)):
            looks = Looks.of(sizes)
            decided = [(gain, *_means(looks, gain)) for gain in DECIDED_AT]
            wrong = max(
                looks.decide(gain, float(level))[0 if gain < MARGIN else 1]
                for gain in WRONG_AT
                for level in discordances(gain, STEPS)
            )
            rows.append({"n": n, "looks": len(sizes), "wrong": wrong, "decided": decided})
    return rows


def _means(looks: Looks, gain: float) -> tuple[float, float]:
    found = [looks.decide(gain, float(level)) for level in discordances(gain, STEPS)]
    right = np.mean([row[1 if gain < MARGIN else 0] for row in found])
    return float(right), float(np.mean([row[2] for row in found]))
