"""Makes an adapter portable: one rank and one scaling, which every server reads in the same way.

peft reads a rank and a scaling for each module (`rank_pattern`, `alpha_pattern`). vLLM reads only
`r` and `lora_alpha`; llama.cpp divides the one `lora_alpha` by the rank of each tensor. All of them
agree where every module has the rank `r` and the scaling `lora_alpha / r`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from loraprobe.adapters.targeting import untargeted
from loraprobe.adapters.types import Adapter, ModuleInfo, Modules
from loraprobe.lora.lowrank import LowRank

# The keys of a config, besides target_modules, by which peft selects modules.
SELECTORS = ("layers_to_transform", "layers_pattern", "exclude_modules")


def portable(adapter: Adapter) -> Adapter:
    """The same deltas with one rank and one scaling in all modules.

    Smaller ranks are filled up with zeros, which changes no bit of a delta. The scaling is
    multiplied into B where modules differ in it, or where lora_alpha would not be a whole number;
    B is then rounded to its dtype.
    """
    infos = adapter.layout
    if not infos:
        return adapter
    rank = max(info.rank for info in infos.values())
    scalings = {info.scaling for info in infos.values()}
    fold = len(scalings) > 1 or not float(max(scalings) * rank).is_integer()

    def read(path: str) -> LowRank:
        update = adapter.modules[path]
        if fold:
            B = (update.B.double() * update.scaling).to(update.B.dtype)
            update = LowRank(update.A, B)
        return _filled(update, rank)

    made = {path: _info(info, rank, fold) for path, info in infos.items()}
    offsets = adapter.offsets
    if fold:  # the bias of B is scaled as B is
        offsets = {p: (b.double() * infos[p].scaling).to(b.dtype) for p, b in offsets.items()}
    return replace(adapter, modules=Modules(made, read), offsets=offsets, weights_file=None)


def _info(info: ModuleInfo, rank: int, fold: bool) -> ModuleInfo:
    return replace(info, rank=rank, scaling=1.0 if fold else info.scaling)


def _filled(update: LowRank, rank: int) -> LowRank:
    """The same delta at a rank that is not smaller."""
    more = rank - update.rank
    if not more:
        return update
    A = torch.nn.functional.pad(update.A, (0, 0, 0, more))
    B = torch.nn.functional.pad(update.B, (0, more))
    return LowRank(A, B, update.scaling)


def common_targets(adapters: Sequence[Adapter], paths: Sequence[str]) -> tuple[str, ...] | None:
    """The shortest `target_modules` that selects what the adapters' own configs select together.

    None unless every config has a list of names and no other selector, and the names select all
    of `paths` by peft's rules. peft then adapts the modules that it adapts for the sources; one
    without weights in the file stays as it is.
    """
    names: set[str] = set()
    for adapter in adapters:
        own = adapter.config.get("target_modules")
        if not isinstance(own, (list, tuple)) or _selects_otherwise(adapter.config):
            return None
        names |= set(map(str, own))
    found = tuple(sorted(names))
    if not found or untargeted(paths, {"target_modules": found}):
        return None
    return found


def _selects_otherwise(config: Mapping[str, Any]) -> bool:
    return any(config.get(key) for key in SELECTORS)
