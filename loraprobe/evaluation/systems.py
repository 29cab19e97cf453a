"""The systems of an evaluation: named compositions on one base."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from loraprobe.records import SystemKind

if TYPE_CHECKING:
    from loraprobe.composition import Composition

COMPOSITIONS: tuple[SystemKind, ...] = ("merge", "router", "chain")


@dataclass(frozen=True)
class System:
    """One system of the evaluation.

    composition: it is put into the base; None for the base alone. chain: for kind "chain", the
    compositions of the single adapters, named after them, which answer the hops together with the
    base. compression_error: the relative error of a merge that is due to its rank. merged: the
    `merging.Merged` of a method that needs new weights. stored: the name under which results are
    kept, if it is another one: a control has a fixed name, but depends on the best composition.
    members, spec: of a library, the adapters that it consists of, and what they are composed by.
    """

    name: str
    kind: SystemKind
    composition: Composition | None = None
    chain: tuple[Composition, ...] = ()
    compression_error: float | None = None
    merged: Any = None
    stored: str = ""
    members: tuple[str, ...] = ()
    spec: str = ""

    @property
    def key(self) -> str:
        """The name under which the ledger keeps its results."""
        return self.stored or self.name
