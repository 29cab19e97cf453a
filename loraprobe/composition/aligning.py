"""Converts adapters to the layout of fused projections that a model in memory has."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import replace

from torch import nn

from loraprobe.adapters import Adapter
from loraprobe.adapters.fused import may_be_fused, one_layout
from loraprobe.composition.router import Composition

_Known = weakref.WeakKeyDictionary[Composition, Composition]
_ALIGNED: weakref.WeakKeyDictionary[nn.Module, _Known] = weakref.WeakKeyDictionary()


def aligned_to(model: nn.Module, adapters: Sequence[Adapter]) -> list[Adapter]:
    """The adapters with layers split or joined as they are in the model.

    The conversion is exact and is noted among an adapter's issues. Layers that cannot be converted
    stay as they are.
    """
    shapes = {
        path: (int(module.out_features), int(module.in_features))
        for path, module in model.named_modules()
        if hasattr(module, "out_features") and hasattr(module, "in_features")
    }
    config = getattr(model, "config", None)
    return one_layout(adapters, shapes, config.to_dict() if config is not None else None)[0]


def on_layout_of(model: nn.Module, composition: Composition) -> Composition:
    """The composition; its experts are converted if the model lacks some of their layers."""
    if all(_exists(model, path) for path in composition.paths if may_be_fused(path)):
        return composition
    known = _ALIGNED.setdefault(model, weakref.WeakKeyDictionary())
    if composition not in known:  # kept, so that its layers are prepared only once
        experts = tuple(aligned_to(model, composition.experts))
        known[composition] = replace(composition, experts=experts)
    return known[composition]


def _exists(model: nn.Module, path: str) -> bool:
    try:
        model.get_submodule(path)
    except AttributeError:
        return False
    return True
