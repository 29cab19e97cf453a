"""Gates that depend on the row of a batch: several systems share one forward pass.

They run over the same experts in different rows, so compositions need not be exchanged.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor

from loraprobe.composition.router import Router, TokenGates
from loraprobe.errors import UsageError
from loraprobe.lora.lowrank import LowRank


@dataclass
class Rows:
    """The rows of the current batch. gates: [rows, n]."""

    gates: Tensor | None = None

    def set(self, gates: Tensor) -> None:
        """Sets the gates of the next forward passes."""
        self.gates = gates


@dataclass(frozen=True, eq=False)
class RowGates(Router):
    """Constant gates per row."""

    rows: Rows = field(default_factory=Rows)

    constant: ClassVar[bool] = False

    @property
    def weighs_whole(self) -> bool:
        """Constant gates can weigh whole parameters."""
        return True

    # Compared by identity: each has its own rows, and prepared layers are cached per router.
    __eq__ = object.__eq__
    __hash__ = object.__hash__

    def gates(
        self, module: str, experts: Sequence[LowRank], present: Sequence[int], n: int
    ) -> TokenGates:
        """A function x [rows, ..., in] -> [rows, ..., k]; rows may be flattened with the tokens."""
        return _GatesOfRow(self.rows, tuple(present))

    def embedding_gates(self, present: Sequence[int]) -> TokenGates:
        return _GatesOfRow(self.rows, tuple(present))


@dataclass(frozen=True, eq=False)
class _GatesOfRow:
    rows: Rows
    present: tuple[int, ...]

    def __call__(self, x: Tensor) -> Tensor:
        if self.rows.gates is None:
            raise UsageError("The rows have no gates; call Rows.set before the forward pass.")
        own = self.rows.gates[:, list(self.present)].to(device=x.device, dtype=x.dtype)
        count, k = own.shape
        leading = x.shape[:-1]
        if leading.numel() % count or leading[0] % count:
            raise UsageError(
                f"A layer's input of shape {tuple(x.shape)} does not consist of {count} rows, so "
                "this model cannot run several systems in one batch."
            )
        gates = own[:, None, :].expand(count, leading.numel() // count, k)
        return gates.reshape(*leading, k)
