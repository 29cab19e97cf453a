"""A first round of a composition on few items against its forecast, on measured cases.

The round is drawn: its gain is the measured gain with a normal error, whose size follows from the
measured gain's own interval and number of items, rounded to whole items.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from loraprobe.defaults import MARGIN
from loraprobe.sample_size import Z95
from loraprobe_lab.calibration.cases import Case
from loraprobe_lab.calibration.fit import Array
from loraprobe_lab.calibration.validation import figures_of

ROUNDS = (10, 20, 30, 60)
DRAWS = 200


@dataclass(frozen=True)
class Foresight:
    """How well gains that are known early tell the measured ones, on decided cases.

    auroc: within a scenario. right: the share on the measured gain's side of the margin. error: the
    mean distance to the measured gain.
    """

    what: str
    auroc: float
    right: float
    error: float


def foresight(cases: Sequence[Case], seed: int = 0) -> list[Foresight]:
    """The forecast, then rounds of ROUNDS items: means over DRAWS draws."""
    decided = [case for case in cases if case.label(MARGIN) is not None]
    gain = np.array([case.gain for case in decided])
    width = np.array([case.ci95[1] - case.ci95[0] for case in decided])
    spread = width / 2 / Z95 * np.sqrt([case.n for case in decided])  # of one item
    rng = np.random.default_rng(seed)
    forecast = np.array([case.forecast for case in decided])
    found = [_mean("forecast", decided, [forecast])]
    for n in ROUNDS:
        draws = gain + rng.standard_normal((DRAWS, len(gain))) * spread / np.sqrt(n)
        found.append(_mean(f"round of {n} items", decided, list(np.round(draws * n) / n)))
    return found


def _mean(what: str, cases: Sequence[Case], early: Sequence[Array]) -> Foresight:
    gained = np.array([case.label(MARGIN) == 1 for case in cases])
    gain = np.array([case.gain for case in cases])
    auroc = np.mean([figures_of(cases, own).auroc for own in early])
    right = np.mean([((own > MARGIN) == gained).mean() for own in early])
    error = np.mean([np.abs(own - gain).mean() for own in early])
    return Foresight(what, float(auroc), float(right), float(error))
