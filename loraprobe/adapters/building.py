"""Adapters made in memory: of tensors, or of another adapter with the same function.

Other readers know less than peft, which reads a rank and a scaling for each module by
`rank_pattern` and `alpha_pattern`. vLLM reads only `r` and `lora_alpha`; llama.cpp divides the one
`lora_alpha` by the rank of each tensor. All of them agree where every module has the rank `r` and
the scaling `lora_alpha / r`: `portable` makes an adapter so.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from loraprobe.adapters.reading import PREFIX, keys_of_extras
from loraprobe.adapters.types import (
    Adapter,
    Extra,
    LayerKind,
    ModuleInfo,
    Modules,
    Source,
    Tensors,
    TokenRows,
)
from loraprobe.lora.lowrank import LowRank


def adapter_of(
    name: str,
    modules: Mapping[str, LowRank],
    *,
    kinds: Mapping[str, LayerKind] | None = None,
    base_model: str | None = None,
    config: Mapping[str, Any] | None = None,
    source: Source | None = None,
    kernels: Mapping[str, tuple[int, ...]] | None = None,
    magnitudes: Mapping[str, Tensor] | None = None,
    whole: Mapping[str, Tensor] | None = None,
    offsets: Mapping[str, Tensor] | None = None,
    token_rows: Mapping[str, TokenRows] | None = None,
) -> Adapter:
    """Builds an adapter from tensors in memory: a merge, a random control, a test case.

    modules: path -> LowRank (A: [r, in], B: [out, r]); kinds: path -> kind, linear if absent;
    kernels: path -> kernel of a convolution. magnitudes, whole, offsets, token_rows: as in
    `Adapter`; they are also listed as extras. Raises ValueError for a kernel that does not fit its
    module.
    """
    kinds, kernels = kinds or {}, kernels or {}
    infos = {
        path: _info(path, update, kinds.get(path, "linear"), kernels.get(path, ()))
        for path, update in modules.items()
    }
    adapter = Adapter(
        name=name,
        source=source or Source(reference=name),
        base_model=base_model,
        modules=Modules(infos, dict(modules).__getitem__),
        config=dict(config or {}),
        magnitudes=_held(magnitudes),
        whole=_held(whole),
        offsets=_held(offsets),
        token_rows=dict(token_rows or {}),
    )
    extras = tuple(
        Extra(kind, PREFIX + key, path, tuple(tensor.shape), str(tensor.dtype).partition(".")[2])
        for kind, key, path, tensor in keys_of_extras(adapter)
    )
    return replace(adapter, extras=extras)


def _held(given: Mapping[str, Tensor] | None) -> Tensors:
    tensors = dict(given or {})
    return Tensors(tensors, tensors.__getitem__)


def _info(path: str, update: LowRank, kind: LayerKind, kernel: tuple[int, ...]) -> ModuleInfo:
    if update.in_features % math.prod(kernel):
        raise ValueError(f"kernel {kernel} does not divide the columns of {path}")
    dtype = torch.promote_types(update.A.dtype, update.B.dtype)
    rows, columns, scaling = update.out_features, update.in_features, float(update.scaling)
    return ModuleInfo(path, kind, update.rank, columns, rows, scaling, dtype, kernel)


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

    def folded(B: Tensor, scaling: float) -> Tensor:
        return (B.double() * scaling).to(B.dtype) if fold else B

    def read(path: str) -> LowRank:
        update = adapter.modules[path]
        A, B = update.A, folded(update.B, update.scaling)
        if more := rank - update.rank:  # padding by nothing copies
            A, B = pad(A, (0, 0, 0, more)), pad(B, (0, more))
        return LowRank(A, B, 1.0 if fold else update.scaling)

    filled = {
        path: replace(info, rank=rank, scaling=1.0 if fold else info.scaling)
        for path, info in infos.items()
    }
    offsets = {path: folded(b, infos[path].scaling) for path, b in adapter.offsets.items()}
    return replace(adapter, modules=Modules(filled, read), offsets=offsets, weights_file=None)


def with_paths(adapter: Adapter, path_of: Callable[[str], str]) -> Adapter | None:
    """The adapter with another path for each module; None where two would have the same.

    path_of: a function from the path of a module or the name of its parameter to the new one.
    """
    places = (*adapter.layout, *adapter.whole, *adapter.token_rows)
    names = {path: path_of(path) for path in places}
    paths = {new: old for old, new in names.items()}
    if len(paths) < len(names):
        return None
    infos = {names[path]: replace(i, path=names[path]) for path, i in adapter.layout.items()}

    def renamed(tensors: Mapping[str, Tensor]) -> Tensors:
        return Tensors([names[name] for name in tensors], lambda name: tensors[paths[name]])

    return replace(
        adapter,
        modules=Modules(infos, lambda path: adapter.modules[paths[path]]),
        magnitudes=renamed(adapter.magnitudes),
        whole=renamed(adapter.whole),
        offsets=renamed(adapter.offsets),
        token_rows={names[path]: rows for path, rows in adapter.token_rows.items()},
        extras=tuple(
            replace(extra, module=extra.module and path_of(extra.module))
            for extra in adapter.extras
        ),
    )
