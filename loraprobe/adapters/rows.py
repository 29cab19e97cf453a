"""Splits the tensors of fused layers by rows, and joins those of single layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce

import torch
from torch import Tensor

from loraprobe.adapters.lazy import Tensors
from loraprobe.adapters.types import Adapter, ModuleInfo, Modules
from loraprobe.lora.lowrank import LowRank


@dataclass(frozen=True)
class Fusion:
    """One fused layer, its parts, and the number of rows of each part."""

    path: str
    parts: tuple[str, ...]
    rows: tuple[int, ...]
    split: bool  # whether the fused layer is split; else its parts are joined

    def slices(self) -> dict[str, slice]:
        """Part -> its rows in the fused matrix."""
        ends = torch.tensor(self.rows).cumsum(0).tolist()
        bounds = zip(self.parts, self.rows, ends, strict=True)
        return {part: slice(end - size, end) for part, size, end in bounds}


def moved_modules(adapter: Adapter, mine: Sequence[Fusion]) -> Modules:
    """The adapter's modules with all fusions applied when a module is read."""
    infos = dict(adapter.layout)
    made: dict[str, tuple[Fusion, slice | None]] = {}
    for fusion in mine:
        if fusion.split and fusion.path in infos:
            info = infos.pop(fusion.path)
            for part, rows in fusion.slices().items():
                infos[part] = replace(info, path=part, out_features=rows.stop - rows.start)
                made[part] = (fusion, rows)
        elif not fusion.split and any(part in infos for part in fusion.parts):
            infos[fusion.path] = _joined_info(fusion, infos)
            infos = {p: i for p, i in infos.items() if p not in fusion.parts}
            made[fusion.path] = (fusion, None)

    def read(path: str) -> LowRank:
        fusion, rows = made.get(path, (None, None))
        if fusion is None:
            return adapter.modules[path]
        if rows is None:
            return _joined(adapter, fusion)
        update = adapter.modules[fusion.path]
        return LowRank(update.A, update.B[rows], update.scaling)

    return Modules(infos, read)


def _joined_info(fusion: Fusion, infos: Mapping[str, ModuleInfo]) -> ModuleInfo:
    found = [infos[part] for part in fusion.parts if part in infos]
    scalings = {info.scaling for info in found}
    dtype = reduce(torch.promote_types, (info.dtype for info in found))
    if len(scalings) > 1:  # multiplied into B, which a 16-bit type would round
        dtype = torch.promote_types(dtype, torch.float32)
    return replace(
        found[0],
        path=fusion.path,
        rank=sum(info.rank for info in found),
        out_features=sum(fusion.rows),
        scaling=scalings.pop() if len(scalings) == 1 else 1.0,
        dtype=dtype,
    )


def _joined(adapter: Adapter, fusion: Fusion) -> LowRank:
    """Joins the parts: B is block-diagonal, A is stacked, a missing part has rows of zeros."""
    info = _joined_info(fusion, adapter.layout)
    held = [part for part in fusion.parts if part in adapter.modules]
    updates = {part: adapter.modules[part].to(info.dtype) for part in held}
    A = torch.cat([update.A for update in updates.values()])
    B = A.new_zeros(info.out_features, info.rank)
    done = 0
    for part, rows in fusion.slices().items():
        if part in updates:
            factor = _ratio(float(updates[part].scaling), info.scaling)
            B[rows, done : done + updates[part].rank] = updates[part].B * factor
            done += updates[part].rank
    return LowRank(A, B, info.scaling)


def _ratio(own: float, joint: float) -> float:
    """The factor for a part's B and offset; exactly 1 if the scalings are equal."""
    return 1.0 if own == joint else own / joint


def moved_rows(held: Mapping[str, Tensor], mine: Sequence[Fusion], suffix: str = "") -> Tensors:
    """Splits or joins tensors whose first dimension is a module's output."""
    made: dict[str, list[tuple[str, slice]]] = {}  # name -> the tensors and rows that it joins
    gone: set[str] = set()
    for fusion in mine:
        path, parts = fusion.path + suffix, [part + suffix for part in fusion.parts]
        if fusion.split and path in held:
            gone.add(path)
            made |= {part + suffix: [(path, rows)] for part, rows in fusion.slices().items()}
        elif not fusion.split and parts[0] in held:
            gone.update(parts)
            made[path] = [(part, slice(None)) for part in parts]

    def read(name: str) -> Tensor:
        if name not in made:
            return held[name]
        return torch.cat([held[source][rows] for source, rows in made[name]])

    return Tensors([*(name for name in held if name not in gone), *made], read)


def moved_offsets(adapter: Adapter, mine: Sequence[Fusion]) -> Tensors:
    """Splits or joins the biases of B by rows; a part without a bias gets zeros."""
    held = adapter.offsets
    joins = {
        part: (fusion, size)
        for fusion in mine
        if not fusion.split and any(part in held for part in fusion.parts)
        for part, size in zip(fusion.parts, fusion.rows, strict=True)
    }

    def read(path: str) -> Tensor:
        """The bias of a part, on the scaling and dtype of the module that it joins."""
        if path not in joins:
            return held[path]
        fusion, size = joins[path]
        info = _joined_info(fusion, adapter.layout)
        if path not in held:
            return torch.zeros(size, dtype=info.dtype)
        return held[path].to(info.dtype) * _ratio(adapter.layout[path].scaling, info.scaling)

    return moved_rows(Tensors({*held, *joins}, read), mine)
