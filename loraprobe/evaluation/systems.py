"""What is evaluated: a named way of answering, made of compositions on one base."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from loraprobe.records import SystemKind

if TYPE_CHECKING:
    from loraprobe.composition import Composition

BASELINES: tuple[SystemKind, ...] = ("base", "adapter")
COMPOSITIONS: tuple[SystemKind, ...] = ("merge", "router", "chain")


@dataclass(frozen=True)
class System:
    """One row of the evaluation.

    `composition` is what is put into the base; None leaves the base as it is. A system of kind
    "chain" has none: it answers each hop by one of `chain`, the single adapters' compositions,
    named after their adapters. `compression_error` is the relative error that a merge's rank cost.
    """

    name: str
    kind: SystemKind
    composition: Composition | None = None
    chain: tuple[Composition, ...] = ()
    compression_error: float | None = None
