"""Which bases are held out: a rule on names, written down before any of them was looked at.

Within each (kind, architecture) the bases are sorted by name and dealt to three folds in turn; the
third fold is held out. So every third base is held out, a group of fewer than three bases has none
held out, and no base stands on two sides. Bases that the lab did not train (kind "natural") are
never trained on: they are a check of transfer.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from loraprobe_lab.calibration.cases import NATURAL, Case

FOLDS = 3
HELD_OUT = FOLDS - 1
RULE = (
    "Within each kind and architecture the bases are sorted by name and dealt to three folds in "
    "turn; every third base is held out."
)


@dataclass(frozen=True)
class Split:
    """Cases to fit on and cases to be measured on; they share no base."""

    name: str
    train: tuple[Case, ...]
    test: tuple[Case, ...]

    def __post_init__(self) -> None:
        shared = {case.base for case in self.train} & {case.base for case in self.test}
        if shared:
            raise ValueError(f"split {self.name}: {', '.join(sorted(shared))} on both sides")


def folds(cases: Iterable[Case]) -> Mapping[str, int]:
    """base -> 0, 1 or 2; natural bases are in none."""
    groups: dict[tuple[str, str], set[str]] = {}
    for case in cases:
        if case.kind != NATURAL:
            groups.setdefault((case.kind, case.architecture), set()).add(case.base)
    return {base: i % FOLDS for group in groups.values() for i, base in enumerate(sorted(group))}


def trained(cases: Iterable[Case]) -> list[Case]:
    """Cases on bases that the lab trained."""
    return [case for case in cases if case.kind != NATURAL]


def held_out_bases(cases: Sequence[Case]) -> Split:
    """The split of the headline."""
    fold = folds(cases)
    return Split(
        "held-out bases",
        tuple(c for c in trained(cases) if fold[c.base] != HELD_OUT),
        tuple(c for c in trained(cases) if fold[c.base] == HELD_OUT),
    )


def every_base_once(cases: Sequence[Case]) -> list[Split]:
    """Three splits in which every fold is held out in turn; the first is the headline's."""
    fold = folds(cases)
    return [
        Split(
            f"bases of fold {k + 1}",
            tuple(c for c in trained(cases) if fold[c.base] != k),
            tuple(c for c in trained(cases) if fold[c.base] == k),
        )
        for k in (HELD_OUT, *range(HELD_OUT))
    ]


def held_out_scenario(cases: Sequence[Case], scenario: str) -> list[Split]:
    """Fitted without a scenario and measured on it, fold by fold, so that no base is on two sides.

    Every case of the scenario is measured once, by a fit on the other folds' bases.
    """
    return [
        Split(
            f"scenario {scenario}, {split.name}",
            tuple(c for c in split.train if c.scenario != scenario),
            tuple(c for c in split.test if c.scenario == scenario),
        )
        for split in every_base_once(cases)
    ]


def held_out_architecture(cases: Sequence[Case], architecture: str) -> Split:
    """Fitted on the other architectures, measured on this one."""
    own = trained(cases)
    return Split(
        f"architecture {architecture}",
        tuple(c for c in own if c.architecture != architecture),
        tuple(c for c in own if c.architecture == architecture),
    )


def natural_transfer(cases: Sequence[Case]) -> Split:
    """Fitted on the headline's training bases, measured on bases that the lab did not train."""
    return Split(
        "natural bases",
        held_out_bases(cases).train,
        tuple(c for c in cases if c.kind == NATURAL),
    )
