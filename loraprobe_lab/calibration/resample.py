"""Whether the decision after evaluation holds: from 100 items, against the truth on all.

Of a trial with many items, some are drawn without replacement, again and again; the rule of
`evaluation.gains` decides on them (`likely` where the lower end of a composition's adjusted
interval lies above the margin, `unlikely` where the upper end lies below it), and the decision is
compared with what all items say.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from loraprobe.evaluation import System, gains
from loraprobe_lab.calibration.stored import Items
from loraprobe_lab.calibration.truth import FORMS, truth_of

FEWEST_ITEMS = 1000


@dataclass(frozen=True)
class Agreement:
    """Decisions from few items against the truth on all: counts over all draws."""

    trials: int = 0
    compositions: int = 0
    right: int = 0
    wrong: int = 0
    undecided: int = 0
    unknown: int = 0  # compositions whose truth holds the margin, on all items

    def __add__(self, other: Agreement) -> Agreement:
        return Agreement(
            self.trials + other.trials,
            self.compositions + other.compositions,
            self.right + other.right,
            self.wrong + other.wrong,
            self.undecided + other.undecided,
            self.unknown + other.unknown,
        )

    @property
    def agreement(self) -> float | None:
        """Share of the decided draws that are right; None where none is decided."""
        decided = self.right + self.wrong
        return self.right / decided if decided else None

    @property
    def open(self) -> float | None:
        """Share of the draws that decide nothing."""
        draws = self.right + self.wrong + self.undecided
        return self.undecided / draws if draws else None


def resample(
    paths: Sequence[Path], *, items: int = 100, draws: int = 20, margin: float = 0.05, seed: int = 0
) -> Agreement:  # fmt: skip
    """Over all kept trials of which every task has at least 1,000 items."""
    total = Agreement()
    for path in paths:
        kept = Items.load(path)
        if min(_sizes(kept).values(), default=0) >= FEWEST_ITEMS:
            total += resample_trial(kept, items, draws, margin, f"{seed}:{path.stem}")
    return total


def resample_trial(kept: Items, items: int, draws: int, margin: float, seed: str) -> Agreement:
    """One trial; so many items are drawn of every task."""
    results = kept.results()
    compositions = [name for name, kind in kept.kinds.items() if kind in ("merge", "router")]
    truths = {
        name: truth_of(results, kept.kinds, name).label(margin) for name in sorted(compositions)
    }
    by_task: dict[str, list[str]] = {}
    for row in results:
        by_task.setdefault(row.task, []).append(row.item)
    pools = {task: sorted(set(ids)) for task, ids in by_task.items()}
    rng = random.Random(seed)
    right = wrong = undecided = 0
    for _ in range(draws):
        chosen = {(t, i) for t, ids in pools.items() for i in rng.sample(ids, items)}
        said = decide(kept, chosen, margin)
        for name, truth in truths.items():
            if truth is None:
                continue
            right += said[name] == truth
            undecided += said[name] is None
            wrong += said[name] is not None and said[name] != truth
    unknown = sum(truth is None for truth in truths.values())
    return Agreement(1, len(truths), right, wrong, undecided, unknown)


def decide(kept: Items, chosen: set[tuple[str, str]], margin: float) -> dict[str, int | None]:
    """composition -> 1 (some form is likely to gain), 0 (no form does), None, from some items."""
    systems = [System(name, kind) for name, kind in kept.kinds.items()]  # type: ignore[arg-type]
    rows = gains(kept.results(chosen), systems, margin=margin)
    said: dict[str, int | None] = {}
    for name in {row.system for row in rows}:
        own = [row.adjusted_ci95 for row in rows if row.system == name and row.part in FORMS]
        likely = any(low > margin for low, _ in own)
        said[name] = 1 if likely else 0 if all(high < margin for _, high in own) else None
    return said


def _sizes(kept: Items) -> dict[str, int]:
    return {
        task: len(ids)
        for (_, task, _), ids in zip(kept.columns, kept.items, strict=True)
    }  # fmt: skip
