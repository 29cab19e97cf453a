"""Builds adapters from tensors in memory: merges, controls, test cases."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor

from loraprobe.adapters.keys import PREFIX
from loraprobe.adapters.types import Adapter, Extra, LayerKind, ModuleInfo, Modules, Source, Tensors
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
) -> Adapter:
    """Builds an adapter from tensors in memory: a merge, a random control, a test case.

    modules: path -> LowRank (A: [r, in], B: [out, r]); kinds: path -> kind, linear if absent;
    kernels: path -> kernel of a convolution. magnitudes, whole, offsets: as in `Adapter`; they are
    also listed as extras. Raises ValueError for a kernel that does not fit its module.
    """
    kinds, kernels = kinds or {}, kernels or {}
    infos = {
        path: ModuleInfo(
            path,
            kinds.get(path, "linear"),
            update.rank,
            update.in_features,
            update.out_features,
            float(update.scaling),
            torch.promote_types(update.A.dtype, update.B.dtype),
            kernels.get(path, ()),
        )
        for path, update in modules.items()
    }
    magnitudes, whole, offsets = (dict(held or {}) for held in (magnitudes, whole, offsets))
    for path, kernel in kernels.items():
        if infos[path].in_features % math.prod(kernel):
            raise ValueError(f"kernel {kernel} does not divide the columns of {path}")
    return Adapter(
        name=name,
        source=source or Source(reference=name),
        base_model=base_model,
        modules=Modules(infos, dict(modules).__getitem__),
        extras=_extras(infos, magnitudes, whole, offsets),
        config=dict(config or {}),
        magnitudes=Tensors(magnitudes, magnitudes.__getitem__),
        whole=Tensors(whole, whole.__getitem__),
        offsets=Tensors(offsets, offsets.__getitem__),
    )


def _extras(
    modules: Collection[str],
    magnitudes: Mapping[str, Tensor],
    whole: Mapping[str, Tensor],
    offsets: Mapping[str, Tensor],
) -> tuple[Extra, ...]:
    """The extras for these tensors, under the keys of a PEFT file."""

    def extra(kind: str, key: str, module: str, tensor: Tensor) -> Extra:
        dtype = str(tensor.dtype).removeprefix("torch.")
        return Extra(kind, PREFIX + key, module, tuple(tensor.shape), dtype)

    found = [
        extra("dora_magnitude", f"{path}.lora_magnitude_vector", path, m)
        for path, m in magnitudes.items()
    ]
    for name, tensor in whole.items():
        module, _, what = name.rpartition(".")
        kind = "bias" if what == "bias" and f"{module}.weight" not in whole else "modules_to_save"
        key = f"{module}.base_layer.{what}" if module in modules else name
        found.append(extra(kind, key, module, tensor))
    found += [extra("lora_bias", f"{path}.lora_B.bias", path, b) for path, b in offsets.items()]
    return tuple(found)
