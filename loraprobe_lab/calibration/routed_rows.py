"""Gates of a token router for several systems in the rows of one batch, times constant gates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from loraprobe.composition import Router, RowGates, Rows, TokenGates
from loraprobe.lora.lowrank import LowRank


@dataclass
class LedRows(Rows):
    """Rows whose token router reads the input of another one.

    lead [rows]: the row of the base with the same text, so that gates depend on hidden states of
    the unmodified base; None for each row's own.
    """

    lead: Tensor | None = None

    def set(self, gates: Tensor, lead: Tensor | None = None) -> None:
        self.gates, self.lead = gates, lead


@dataclass(frozen=True, eq=False)
class RoutedRows(RowGates):
    """Constant gates per row, times the gates of `inner` where there is one.

    An inner router decides for every token, not for whole prompts.
    """

    rows: LedRows = field(default_factory=LedRows)
    inner: Router | None = None

    @property
    def weighs_whole(self) -> bool:
        return self.inner is None

    def gates(
        self, module: str, experts: Sequence[LowRank], present: Sequence[int], n: int
    ) -> TokenGates:
        own = super().gates(module, experts, present, n)
        if self.inner is None:
            return own
        return _Product(self.rows, own, self.inner.gates(module, experts, present, n))

    def embedding_gates(self, present: Sequence[int]) -> TokenGates:
        own = super().embedding_gates(present)
        if self.inner is None:
            return own
        return _Product(self.rows, own, self.inner.embedding_gates(present))


@dataclass(frozen=True, eq=False)
class _Product:
    rows: LedRows
    own: TokenGates
    inner: Tensor | TokenGates

    def __call__(self, x: Tensor) -> Tensor:
        own = self.own(x)
        if isinstance(self.inner, Tensor):
            return own * self.inner.to(device=x.device, dtype=x.dtype)
        if self.rows.lead is None:
            return own * self.inner(x).reshape(own.shape)
        leaders, place = torch.unique(self.rows.lead.to(x.device), return_inverse=True)
        read = x.reshape(len(place), -1, x.shape[-1])[leaders]
        return own * self.inner(read)[place].reshape(own.shape)
