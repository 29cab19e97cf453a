"""How many items a decision needs, from the interval that some items gave."""

from __future__ import annotations

import math
from statistics import NormalDist

from loraprobe.defaults import MOST_ITEMS

POWER = 0.8
Z95 = NormalDist().inv_cdf(0.975)  # critical value of a 95 % interval


def items_needed(n: int, distance: float, se: float, critical: float = Z95) -> int | None:
    """The number of items with which an undecided interval excludes a threshold.

    n: the items so far. distance: the estimate less the threshold. se: its standard error, which is
    proportional to 1 / sqrt(items). critical: standard errors from the estimate to the end of the
    interval. If the true value is the estimate, new items of that number decide with probability
    POWER: n ((critical + z_POWER) se / distance)^2. None if MOST_ITEMS are not enough, or if the
    interval is unbounded.
    """
    reach = (critical + NormalDist().inv_cdf(POWER)) * se
    if n <= 0 or distance == 0 or not 0 < reach < math.inf:
        return None
    ratio = reach / distance
    needed = n * ratio * ratio  # infinite, unlike ** 2, where it is beyond the largest float
    return max(n + 1, math.ceil(needed)) if needed <= MOST_ITEMS else None
