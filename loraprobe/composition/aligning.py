"""Adapters brought to the layout of fused projections that a model in memory has."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from loraprobe.adapter import Adapter
from loraprobe.adapter.fused import one_layout


def aligned_to(model: nn.Module, adapters: Sequence[Adapter]) -> list[Adapter]:
    """The adapters with fused layers split or single ones joined where the model has it so.

    Exact, and noted among an adapter's issues; what cannot be translated stays as it is.
    """
    shapes = {
        path: (int(module.out_features), int(module.in_features))
        for path, module in model.named_modules()
        if hasattr(module, "out_features") and hasattr(module, "in_features")
    }
    config = getattr(model, "config", None)
    return one_layout(adapters, shapes, config.to_dict() if config is not None else None)[0]
