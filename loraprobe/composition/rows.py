"""Gates that depend on the row of a batch: the base and each adapter share one forward pass.

Several systems over the same experts run in different rows of one batch, so compositions need not
be exchanged for every token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from loraprobe.composition.router import Router, TokenGates
from loraprobe.errors import UsageError
from loraprobe.lora.lowrank import LowRank


@dataclass
class Rows:
    """The rows of the current batch. gates: [rows, n]; lead: [rows] indices, or None.

    lead: the row whose input an inner token router uses for each row. This is the row of the base
    with the same text, so that gates depend on hidden states of the unmodified base.
    """

    gates: Tensor | None = None
    lead: Tensor | None = None

    def set(self, gates: Tensor, lead: Tensor | None = None) -> None:
        """Sets gates and lead of the next forward passes."""
        self.gates, self.lead = gates, lead


@dataclass(frozen=True, eq=False)
class RowGates(Router):
    """Constant gates per row, times the gates of `inner` if there is one."""

    rows: Rows = field(default_factory=Rows)
    inner: Router | None = None

    constant: ClassVar[bool] = False

    @property
    def weighs_whole(self) -> bool:
        """Constant gates can weigh whole parameters; an inner router cannot."""
        return self.inner is None

    # Compared by identity: each has its own rows, and prepared layers are cached per router.
    __eq__ = object.__eq__
    __hash__ = object.__hash__

    def gates(
        self, module: str, experts: Sequence[LowRank], present: Sequence[int], n: int
    ) -> TokenGates:
        """A function x [rows, ..., in] -> [rows, ..., k]; rows may be flattened with the tokens."""
        inner = None
        if self.inner is not None:
            if getattr(self.inner, "per", "token") == "sequence":
                raise UsageError(
                    f"Router {self.inner.name} decides for whole prompts (per=sequence), which is "
                    "not possible with several systems in one batch; use per=token here."
                )
            inner = self.inner.gates(module, experts, present, n)
        return _GatesOfRow(self.rows, tuple(present), inner)

    def embedding_gates(self, present: Sequence[int]) -> TokenGates:
        inner = None if self.inner is None else self.inner.embedding_gates(present)
        return _GatesOfRow(self.rows, tuple(present), inner)


@dataclass(frozen=True, eq=False)
class _GatesOfRow:
    rows: Rows
    present: tuple[int, ...]
    inner: Tensor | TokenGates | None

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
        if self.inner is not None:
            gates = gates * self._inner(x, self.inner, count, k)
        return gates.reshape(*leading, k)

    def _inner(self, x: Tensor, inner: Tensor | TokenGates, count: int, k: int) -> Tensor:
        """The token router's gates [rows, tokens, k], from the input of each row's lead."""
        if isinstance(inner, Tensor):
            return inner.to(device=x.device, dtype=x.dtype).expand(count, 1, k)
        if self.rows.lead is None:
            return inner(x).reshape(count, -1, k)
        lead = self.rows.lead.to(x.device)
        leaders, place = torch.unique(lead, return_inverse=True)
        read = x.reshape(count, -1, x.shape[-1])[leaders]
        return inner(read)[place]
