"""What a composition truly gained, from results on all items of a trial."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from loraprobe.evaluation import System, gains
from loraprobe.records import Interval, ItemResult
from loraprobe_lab.calibration.cases import CaseError

BASELINES = ("base", "adapter")


@dataclass(frozen=True)
class Truth:
    """The smallest difference to base and singles, its pointwise interval, and its items."""

    gain: float
    ci95: Interval
    n: int


def truth_of(results: Sequence[ItemResult], kinds: Mapping[str, str], composition: str) -> Truth:
    """The gain of one composition over the best of base and singles, as evaluation computes it.

    kinds: system -> kind. The question is asked in both forms and the better one counts, so the
    interval reaches from the larger lower end to the larger upper end of the two forms' intervals.
    Of several tasks the macro mean counts. Raises CaseError where there is nothing to compare with.
    """
    names = {name for name, kind in kinds.items() if kind in BASELINES} | {composition}
    own = [row for row in results if row.system in names]
    systems = [System(name, kinds[name]) for name in sorted(names)]  # type: ignore[arg-type]
    rows = [gain for gain in gains(own, systems) if gain.system == composition]
    if not rows:
        raise CaseError(f"{composition} shares no items with base and single adapters.")
    best = max(rows, key=lambda gain: gain.difference)
    items = {(r.task, r.item) for r in own if (r.system, r.part) == (composition, best.part)}
    ends = (max(gain.ci95[0] for gain in rows), max(gain.ci95[1] for gain in rows))
    return Truth(best.difference, ends, len(items))
