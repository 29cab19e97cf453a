"""What a composition truly gained, from results on all items of a trial."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from loraprobe.evaluation import System, gains
from loraprobe.records import Gain, ItemResult
from loraprobe_lab.calibration.cases import CaseError, Truth

FORMS = ("target", "cot")
BASELINES = ("base", "adapter")


def truth_of(results: Sequence[ItemResult], kinds: Mapping[str, str], composition: str) -> Truth:
    """The gain of one composition over the best of base and singles, as evaluation computes it.

    kinds: system -> kind. It is asked in both forms and the better one counts, so the interval
    reaches from the larger lower end to the larger upper end of the two forms' intervals. Of
    several tasks the macro mean counts. Raises CaseError where there is nothing to compare with.
    """
    names = {name for name, kind in kinds.items() if kind in BASELINES} | {composition}
    own = [row for row in results if row.system in names]
    rows = [g for g in gains(own, _systems(kinds, names)) if g.system == composition]
    if not rows:
        raise CaseError(f"{composition} shares no items with base and single adapters.")
    best = max(rows, key=lambda gain: gain.difference)
    return Truth(
        gain=best.difference,
        ci95=(max(g.ci95[0] for g in rows), max(g.ci95[1] for g in rows)),
        n=_items(best, own),
        part=best.part,
        score=_macro(own, composition, best.part),
        best_single=_best(own, (n for n in names if kinds[n] == "adapter")),
        base=_best(own, (n for n in names if kinds[n] == "base")),
    )


def _systems(kinds: Mapping[str, str], names: Iterable[str]) -> list[System]:
    return [System(name, kinds[name]) for name in sorted(names)]  # type: ignore[arg-type]


def _items(gain: Gain, results: Sequence[ItemResult]) -> int:
    """How many items, over all tasks, the gain rests on."""
    return len(
        {(r.task, r.item) for r in results if (r.system, r.part) == (gain.system, gain.part)}
    )


def _best(results: Sequence[ItemResult], names: Iterable[str]) -> float:
    present = {(r.system, r.part) for r in results}
    wanted = [(name, part) for name in sorted(names) for part in FORMS]
    return max((_macro(results, *key) for key in wanted if key in present), default=0.0)


def _macro(results: Sequence[ItemResult], system: str, part: str) -> float:
    """The mean over tasks of a system's score on one form."""
    by_task: dict[str, list[float]] = {}
    for row in results:
        if (row.system, row.part) == (system, part):
            by_task.setdefault(row.task, []).append(row.value)
    return sum(sum(v) / len(v) for v in by_task.values()) / len(by_task)
