"""Splits the tensors of fused layers by rows, and joins those of single layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from loraprobe.adapters.types import Adapter, ModuleInfo, Modules, Tensors
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
    dtype = found[0].dtype
    for info in found:
        dtype = torch.promote_types(dtype, info.dtype)
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
    names = dict.fromkeys(held)
    made: dict[str, tuple[str, slice] | list[str]] = {}
    for fusion in mine:
        path, parts = fusion.path + suffix, [part + suffix for part in fusion.parts]
        if fusion.split and path in held:
            made |= {part + suffix: (path, rows) for part, rows in fusion.slices().items()}
            del names[path]
        elif not fusion.split and parts[0] in held:
            made[path] = parts
            for part in parts:
                del names[part]

    def read(name: str) -> Tensor:
        place = made.get(name)
        if place is None:
            return held[name]
        if isinstance(place, list):
            return torch.cat([held[part] for part in place])
        return held[place[0]][place[1]]

    return Tensors([*names, *made], read)


def moved_offsets(adapter: Adapter, mine: Sequence[Fusion]) -> Tensors:
    """Splits or joins the biases of B by rows; a part without a bias gets zeros."""
    splits = [fusion for fusion in mine if fusion.split]
    held: Mapping[str, Tensor] = moved_rows(adapter.offsets, splits)
    joins = {
        fusion.path: fusion
        for fusion in mine
        if not fusion.split and any(part in held for part in fusion.parts)
    }
    gone = {part for fusion in joins.values() for part in fusion.parts}

    def read(path: str) -> Tensor:
        if path not in joins:
            return held[path]
        fusion = joins[path]
        info = _joined_info(fusion, adapter.layout)
        joined = torch.zeros(info.out_features, dtype=info.dtype)
        for part, rows in fusion.slices().items():
            if part in held:
                factor = _ratio(adapter.layout[part].scaling, info.scaling)
                joined[rows] = held[part].to(info.dtype) * factor
        return joined

    return Tensors([*(name for name in held if name not in gone), *joins], read)
