"""How often the decision between one composition and one baseline is wrong: exactly.

An item is gained (right with the composition only), lost (right with the baseline only) or the same
for both. The counts follow the trinomial of the two shares, and a decision depends on the counts
alone, so its probability is a finite sum: no simulation. Outcomes of an early look that decide
nothing are carried on: the distribution of (gained, lost) after it is convolved with that of the
items that follow. The interval is the one that evaluation uses, called and not copied.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import special, stats
from scipy.signal import convolve2d

from loraprobe.defaults import FIRST_ROUND
from loraprobe.evaluation.rounds import look_alphas
from loraprobe.evaluation.statistics import likelihood_interval

Array = NDArray[np.float64]
MARGIN = 0.05
NEAR = (0.0, 0.005, 0.01, 0.02, 0.03, 0.05)  # discordance beyond |gain|, looked at closely
GAINS = tuple(
    float(gain)
    for gain in (
        "-1 -.5 -.3 -.2 -.15 -.1 -.05 0 .01 .02 .03 .04 .05 .06 .07 .08 .09 .1 .12 .15 .2 .25 "
        ".3 .4 .5 1"
    ).split()
)
WRONG_AT = (-0.1, 0.0, 0.02, 0.03, 0.04, 0.06, 0.07, 0.08, 0.1, 0.15)
DECIDED_AT = (-0.3, -0.1, 0.0, 0.15, 0.3, 0.6)
STEPS = 11  # discordances of a gain where looks are compared


@dataclass(frozen=True)
class Looks:
    """The rule with looks after so many items, the last with all.

    likely, unlikely: of each look, its decision on each (gained, lost).
    """

    sizes: tuple[int, ...]
    likely: tuple[Any, ...]
    unlikely: tuple[Any, ...]

    @classmethod
    def of(cls, *sizes: int) -> Looks:
        """The looks of evaluation by rounds."""
        alphas = look_alphas(tuple(size / sizes[-1] for size in sizes))
        found = [_decided(size, alpha) for size, alpha in zip(sizes, alphas, strict=True)]
        return cls(sizes, *zip(*found, strict=True))

    def decide(self, gain: float, discordance: float) -> tuple[float, float, float]:
        """Probabilities of `likely` and `unlikely`, and the mean share of the items asked."""
        shares = (discordance + gain) / 2, (discordance - gain) / 2
        open_, before, totals = np.ones((1, 1)), 0, np.zeros(3)
        for size, yes, no in zip(self.sizes, self.likely, self.unlikely, strict=True):
            totals[2] += open_.sum() * (size - before) / self.sizes[-1]
            open_ = convolve2d(_chances(size - before, *shares), open_)
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


@dataclass(frozen=True)
class Rate:
    """The rule's decisions at a true `gain` = gained - lost, `discordance` = gained + lost.

    `likely`, `unlikely`, `abstains` are exact probabilities that sum to 1.
    """

    n: int
    gain: float
    discordance: float
    likely: float
    unlikely: float
    abstains: float

    def wrong(self) -> float:
        """The probability of a wrong decision; 0 at the margin itself, where none is wrong."""
        if abs(self.gain - MARGIN) < 1e-9:
            return 0.0
        return self.likely if self.gain < MARGIN else self.unlikely


def discordances(gain: float, steps: int = 21) -> Array:
    """Discordances that a gain allows, from the least |gain| to 1, closer together at the least."""
    least = abs(gain)
    every = np.concatenate([np.linspace(least, 1, steps), least + np.array(NEAR)])
    return np.unique(every[every <= 1].round(12))


def rates(n: int, gains: Sequence[float] = GAINS, steps: int = 21) -> list[Rate]:
    """One look at n items, for each true gain and each discordance that the gain allows."""
    looks, rows = Looks.of(n), []
    for gain in gains:
        for level in map(float, discordances(gain, steps)):
            yes, no, _ = looks.decide(gain, level)
            rows.append(Rate(n, gain, level, yes, no, max(0.0, 1 - yes - no)))
    return rows


def worst(rows: Sequence[Rate]) -> Rate:
    """The row with the most wrong decisions among gains at least 0.01 from the margin."""
    far = [row for row in rows if abs(row.gain - MARGIN) > 0.01 - 1e-9]
    return max(far, key=lambda row: row.wrong())


def compare_looks(clusters: Sequence[int]) -> list[dict[str, Any]]:
    """For each number of items, one look and two: the most wrong decisions of any gain 0.01 or more
    from the margin, and (gain, right decisions, share of items asked), means over discordances."""
    rows = []
    for n in clusters:
        for sizes in ((n,), (FIRST_ROUND, n)):
            looks = Looks.of(*sizes)
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
