"""Low-rank experts: g * s * (B A x + b), where b is the bias of lora_B, if there is one."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from loraprobe.adapters import Adapter
from loraprobe.lora.lowrank import LowRank


@dataclass(frozen=True, eq=False)
class ExpertTerm:
    """The output of one expert for one module: update(x) + offset + ratio * (W0 x).

    offset: [out] or None; ratio: [out], or None for an expert that leaves W0 as it is.
    """

    update: LowRank
    offset: Tensor | None = None
    ratio: Tensor | None = None

    def weighed(self, gate: float) -> ExpertTerm:
        """The term multiplied by a gate."""
        return ExpertTerm(
            self.update.scaled(gate),
            None if self.offset is None else self.offset * gate,
            None if self.ratio is None else self.ratio * gate,
        )

    def folded(self) -> ExpertTerm:
        """The same term with the scaling of its update multiplied into B."""
        return replace(self, update=self.update.folded())


def low_rank(adapter: Adapter, path: str, dtype: torch.dtype) -> ExpertTerm:
    """The factors of a module, and the bias of lora_B times the scaling."""
    update = adapter.modules[path].to(dtype=dtype)
    offset = None
    if path in adapter.offsets:
        offset = adapter.offsets[path].to(dtype=dtype) * update.scaling
    return ExpertTerm(update, offset)
