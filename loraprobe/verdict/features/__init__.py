"""What can be known of a case before any composition is run, as named numbers.

One file a kind of evidence; a feature is one function of a `View`, which shows the base and the
single adapters and never a composition. The same code serves users and the lab.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from loraprobe.verdict.evidence import Evidence
from loraprobe.verdict.features import added, alone, coverage, singles, task, weights
from loraprobe.verdict.features._shelf import Feature
from loraprobe.verdict.features._view import FAMILIES, View

__all__ = ["FAMILIES", "FEATURES", "Feature", "features"]

_SHELVES = (
    ("coverage", coverage.SHELF),
    ("singles", singles.SHELF),
    ("weights", weights.SHELF),
    ("probe", added.SHELF),
    ("probe", alone.SHELF),
    ("task", task.SHELF),
)
FEATURES: Mapping[str, Feature] = {
    name: Feature(description, group)
    for group, shelf in _SHELVES
    for name, (description, _) in shelf.items()
}


def features(evidence: Evidence, family: str) -> dict[str, float | None]:
    """Every feature of one case for one family of compositions; None where nothing tells it.

    family: "average" (gates below 1 that sum to about 1), "sum" (gates 1) or "router". Scores of
    compositions and controls are not looked at. Raises ValueError for another family.
    """
    view = View.of(evidence, family)
    found: dict[str, float | None] = {}
    for _, shelf in _SHELVES:
        for name, (_, function) in shelf.items():
            value = function(view)
            known = value is not None and math.isfinite(value)
            found[name] = float(value) if known and value is not None else None
    return found
