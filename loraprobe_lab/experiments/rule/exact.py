"""The decision on one composition and one baseline, over every outcome that n items can have.

An item is gained (right with the composition only), lost (right with the baseline only) or the
same for both. The counts follow the trinomial of the two shares, and a decision depends on the
counts alone, so its probability is a finite sum: no simulation. The interval is the one that
evaluation uses, called and not copied.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from loraprobe.evaluation import statistics

Array = NDArray[np.float64]
MARGIN, LEVEL = 0.05, 0.95
COLUMNS = 2000  # outcomes whose intervals are computed at once
NEAR = (0.0, 0.005, 0.01, 0.02, 0.03, 0.05)  # discordance beyond |gain|, looked at closely
GAINS = tuple(
    float(gain)
    for gain in (
        "-1 -.5 -.3 -.2 -.15 -.1 -.05 0 .01 .02 .03 .04 .05 .06 .07 .08 .09 .1 .12 .15 .2 .25 "
        ".3 .4 .5 1"
    ).split()
)


@dataclass(frozen=True)
class Outcomes:
    """Every pair (gained, lost) of n items, and the rule's decision. All [outcomes]."""

    n: int
    gained: NDArray[np.int64]
    lost: NDArray[np.int64]
    likely: NDArray[np.bool_]
    unlikely: NDArray[np.bool_]


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


def outcomes(n: int) -> Outcomes:
    """The rule's decision on each of the (n + 1)(n + 2) / 2 outcomes of n items."""
    gained, lost = np.meshgrid(np.arange(n + 1), np.arange(n + 1), indexing="ij")
    possible = gained + lost <= n
    gained, lost = gained[possible], lost[possible]
    likely, unlikely = np.zeros(len(gained), dtype=bool), np.zeros(len(gained), dtype=bool)
    place, alone = np.arange(n)[:, None], np.arange(n)
    for start in range(0, len(gained), COLUMNS):
        some = slice(start, start + COLUMNS)
        up, down = gained[some], lost[some]
        x = (place < up).astype(float) - ((place >= up) & (place < up + down))
        found = statistics.estimate(x, alone)
        low, high = found.interval(found.critical(LEVEL))
        likely[some], unlikely[some] = low > MARGIN, high < MARGIN
    return Outcomes(n, gained, lost, likely, unlikely)


def probabilities(found: Outcomes, gained: Array, lost: Array) -> Array:
    """Probability of each outcome [outcomes, G] under each pair of true shares [G], [G]."""
    counts = np.stack([found.gained, found.lost, found.n - found.gained - found.lost], axis=1)
    shares = np.stack([gained, lost, (1 - gained - lost).clip(0)], axis=1)
    shares = shares / shares.sum(1, keepdims=True)
    return np.stack([stats.multinomial.pmf(counts, found.n, row) for row in shares], axis=1)


def discordances(gain: float, steps: int = 21) -> Array:
    """Discordances that a gain allows, from the least |gain| to 1, closer together at the least."""
    least = abs(gain)
    every = np.concatenate([np.linspace(least, 1, steps), least + np.array(NEAR)])
    return np.unique(every[every <= 1].round(12))


def rates(n: int, gains: Sequence[float] = GAINS, steps: int = 21) -> list[Rate]:
    """The rule on n items for each true gain and each discordance that the gain allows."""
    found = outcomes(n)
    decided = np.stack([found.likely, found.unlikely]).astype(float)
    rows: list[Rate] = []
    for gain in gains:
        levels = discordances(gain, steps)
        weights = probabilities(found, (levels + gain) / 2, (levels - gain) / 2)
        for level, (yes, no) in zip(levels, (decided @ weights).T, strict=True):
            open_ = max(0.0, 1 - yes - no)
            rows.append(Rate(n, gain, float(level), float(yes), float(no), float(open_)))
    return rows


def worst(rows: Sequence[Rate], away: float = 0.01) -> Rate:
    """The row with the most wrong decisions among gains at least `away` from the margin."""
    far = [row for row in rows if abs(row.gain - MARGIN) > away - 1e-9]
    return max(far, key=lambda row: row.wrong())
