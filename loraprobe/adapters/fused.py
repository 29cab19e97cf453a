"""Brings adapters with fused projections and adapters with single ones to one layout.

A fused layer computes several projections by one matrix, which stacks their rows:
W = [Wq; Wk; Wv]. A LoRA on it and LoRAs on the single layers can be converted into each other:

    split   s B A  ->  s B[rows of q] A, s B[rows of k] A, s B[rows of v] A      the same A
    join    s_q B_q A_q, s_k B_k A_k ...  ->  s blockdiag(B_q, B_k, ...) [A_q; A_k; ...]

Both are exact: rows are moved, and B is only multiplied if scalings differ. DoRA magnitudes, whole
modules and biases are split and joined by the same rows. A layer whose rows have another order
(by head) or unknown numbers stays as it is, and an issue says why.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import reduce
from typing import Any

import torch
from torch import Tensor

from loraprobe.adapters.types import Adapter, ModuleInfo, Modules, Tensors
from loraprobe.findings import finding
from loraprobe.formatting import count, listing
from loraprobe.lora.lowrank import LowRank
from loraprobe.records import Issue

Shapes = Mapping[str, tuple[int, int] | None]  # path in the base -> (out, in), None if packed
Piece = tuple[str, slice]  # rows of the output of a module, by its path

QKV = ("q_proj", "k_proj", "v_proj")
PARTS: Mapping[str, tuple[str, ...]] = {
    "qkv_proj": QKV,
    "Wqkv": QKV,
    "W_pack": QKV,
    "query_key_value": (*QKV, "query", "key", "value"),  # never translated: see UNORDERED
    "gate_up_proj": ("gate_proj", "up_proj"),
}
FUSED_OF = {
    part: [fused for fused, parts in PARTS.items() if part in parts]
    for part in {part for parts in PARTS.values() for part in parts}
}
# The models of transformers that have it (GPT-NeoX, Bloom, Persimmon: by head; Falcon: by group of
# heads) have no single projections. Models that stack the rows have either, under other paths:
# ChatGLM and GLM, and the two forms of sarvam_moe in transformers.conversion_mapping.
UNORDERED = (
    "the order of its rows depends on the model: query, key and value of each head in turn "
    "(GPT-NeoX, Bloom), of each group of heads (Falcon), or of all heads (ChatGLM); no model of "
    "transformers has both forms of one layer"
)
BLOCKS = "its rows are cut into blocks for several devices (CodeGen's layout)"


class NotTranslated(Exception):
    """Raised with the reason why a fused layer stays as it is."""


def one_layout(
    adapters: Sequence[Adapter],
    base: Shapes | None = None,
    config: Mapping[str, Any] | None = None,
) -> tuple[list[Adapter], list[Issue]]:
    """The adapters on one layout, and an error for each reason why that is impossible for layers.

    The layout is the base's; without a base it is the split one if any adapter is split. base: the
    shapes of the base's modules. config: its config.json, which may give the rows of heads. An
    adapter that is translated gets a note `fused-translated`; others are returned unchanged.
    """
    todo: list[FusedLayer] = []
    refused: dict[str, list[FusedLayer]] = {}
    for path in _fused_paths(adapters, base or {}):
        layer = FusedLayer(path, adapters, base or {})
        try:
            if layer.split is not None:
                layer.prepare(config or {})
                todo.append(layer)
        except NotTranslated as why:
            refused.setdefault(str(why), []).append(layer)
    issues = [_refusal(reason, layers) for reason, layers in refused.items()]
    return [_translated(adapter, todo) for adapter in adapters], issues


def may_be_fused(path: str) -> bool:
    """Whether the name of a module is that of a fused layer or of a part of one."""
    name = path.rpartition(".")[2]
    return name in PARTS or name in FUSED_OF


def _fused_paths(adapters: Sequence[Adapter], base: Shapes) -> list[str]:
    """The fused layers that an adapter changes as a whole, or by a part if the base fuses it."""
    found: dict[str, None] = {}
    for path in itertools.chain(*(adapter.touched for adapter in adapters)):
        parent, dot, name = path.rpartition(".")
        if name in PARTS:
            found[path] = None
        for fused in FUSED_OF.get(name, ()):
            if f"{parent}{dot}{fused}" in base:
                found[f"{parent}{dot}{fused}"] = None
    return list(found)


class FusedLayer:
    """A fused layer, and the adapters that change it as a whole (`fused`) or by parts (`single`).

    `parts`: the paths of its parts in the order of their rows; `rows`: the number of rows of each,
    once it is prepared. `split`: True if it has to be split, False if its parts have to be joined,
    None if it may stay.
    """

    def __init__(self, path: str, adapters: Sequence[Adapter], base: Shapes) -> None:
        parent, dot, self.name = path.rpartition(".")
        self.path, self.adapters, self.base = path, adapters, base
        self.parts = tuple(f"{parent}{dot}{part}" for part in PARTS[self.name])
        self.fused = [a for a in adapters if path in a.touched]
        self.single = [a for a in adapters if any(part in a.touched for part in self.parts)]
        changed = (part for a in self.single for part in self.parts if part in a.touched)
        self.part = next(changed, self.parts[0])
        self.rows: tuple[int, ...] = ()
        self.split: bool | None = None
        if path in base:
            if self.single and not any(part in base for part in self.parts):
                self.split = False
        elif self.fused and (self.single or all(part in base for part in self.parts)):
            self.split = True

    def prepare(self, config: Mapping[str, Any]) -> None:
        """Finds its rows. Raises NotTranslated if it cannot be split or joined exactly."""
        if self.name == "query_key_value":
            raise NotTranslated(UNORDERED)
        if config.get("model_type") == "codegen" or (
            ".h." in self.path and self.name == "qkv_proj"
        ):
            raise NotTranslated(BLOCKS)
        for adapter in self.fused:
            if adapter in self.single:
                raise NotTranslated(f"{adapter.name} changes both the fused layer and single ones")
        self.rows = self._rows(config)
        for adapter in () if self.split else self.adapters:
            _check_complete(adapter, self.parts)

    def _rows(self, config: Mapping[str, Any]) -> tuple[int, ...]:
        """The number of rows of each part. Raises NotTranslated if it is not known for certain."""
        shapes = {path: self._shapes(path) for path in (self.path, *self.parts)}
        inputs = {inp for found in shapes.values() for _, inp in found}
        if any(len(found) > 1 for found in shapes.values()) or len(inputs) > 1:
            raise NotTranslated("the shapes of its parts contradict each other")
        known = {path: next(iter(found))[0] for path, found in shapes.items() if found}
        total = known.pop(self.path, None)
        missing = [part for part in self.parts if part not in known]
        if missing and self.name == "gate_up_proj" and total is not None:
            known |= dict.fromkeys(missing, total // 2)  # they are multiplied with each other
        elif len(missing) == 1 and total is not None:
            known[missing[0]] = total - sum(known.values())
        elif missing:
            known = {**_by_heads(self.parts, config), **known}
        if lost := [part.rpartition(".")[2] for part in self.parts if part not in known]:
            raise NotTranslated(f"how many rows are {listing(lost)}'s is not known without --base")
        rows = tuple(known[part] for part in self.parts)
        if min(rows) < 1 or (total is not None and sum(rows) != total):
            raise NotTranslated(
                f"the rows of its parts ({', '.join(map(str, rows))}) do not add up to its {total}"
            )
        return rows

    def _shapes(self, path: str) -> set[tuple[int, int]]:
        """The (out, in) of a module in base and adapters; several if they disagree."""
        found = {a.layout[path].shape for a in self.adapters if path in a.layout}
        of_base = self.base.get(path)
        return found | ({of_base} if of_base else set())

    def pieces(self) -> dict[str, list[Piece]]:
        """Path of a new module -> the pieces of old ones of which it consists."""
        if not self.split:
            whole = zip(self.parts, self.rows, strict=True)
            return {self.path: [(part, slice(0, size)) for part, size in whole]}
        ends = itertools.accumulate(self.rows)
        bounds = zip(self.parts, self.rows, ends, strict=True)
        return {part: [(self.path, slice(end - size, end))] for part, size, end in bounds}


def _refusal(reason: str, layers: Sequence[FusedLayer]) -> Issue:
    """The error for layers that are fused in some adapters (or the base) and single in others."""
    first = layers[0]
    fused, single = ([adapter.name for adapter in held] for held in (first.fused, first.single))
    more = f" and {count(len(layers) - 1, 'more such layer')}" if layers[1:] else ""
    return finding(
        "fused-targets",
        (*fused, *single),
        f"{listing(fused) or 'the base'} has the fused {first.path}{more}, "
        f"{listing(single) or 'the base'} the single {first.part.rpartition('.')[2]}, and one "
        f"cannot be made of the other: {reason}.",
        first.path,
    )


def _by_heads(parts: Sequence[str], config: Mapping[str, Any]) -> dict[str, int]:
    """The rows of query, key and value by the base's config; {} if it does not give them."""
    config = config.get("text_config") or config
    heads, width = config.get("num_attention_heads"), config.get("hidden_size")
    if len(parts) != 3 or not heads or not width:
        return {}
    size = config.get("head_dim") or width // heads
    few = config.get("num_key_value_heads") or heads
    return dict(zip(parts, (heads * size, few * size, few * size), strict=True))


def _check_complete(adapter: Adapter, parts: Sequence[str]) -> None:
    """Raises NotTranslated if only some parts have DoRA magnitudes or a replaced weight."""
    for held, suffix in (
        (adapter.magnitudes, ""),
        (adapter.whole, ".weight"),
        (adapter.whole, ".bias"),
    ):
        have = [part + suffix in held for part in parts]
        if any(have) and not all(have):
            what = "DoRA magnitudes" if not suffix else f"a trained {suffix[1:]}"
            raise NotTranslated(
                f"{adapter.name} has {what} of some parts only, and the fused layer needs all"
            )


def _translated(adapter: Adapter, todo: Sequence[FusedLayer]) -> Adapter:
    """The adapter on the common layout."""
    mine = [one for one in todo if adapter in (one.fused if one.split else one.single)]
    if not mine:
        return adapter
    pieces = {new: parts for layer in mine for new, parts in layer.pieces().items()}
    into = {old: new for new, parts in pieces.items() for old, _ in parts}
    infos = {path: info for path, info in adapter.layout.items() if path not in into}
    for new, parts in pieces.items():
        if held := [adapter.layout[old] for old, _ in parts if old in adapter.layout]:
            infos[new] = _joined_info(new, held, sum(rows.stop - rows.start for _, rows in parts))

    def module(path: str) -> LowRank:
        if path not in pieces:
            return adapter.modules[path]
        return _joined(adapter, pieces[path], infos[path])

    def offset(path: str) -> Tensor:
        """The bias of B, on the scaling and dtype of the module that it goes into."""
        if path not in into:
            return adapter.offsets[path]
        info = infos[into[path]]
        factor = _ratio(adapter.layout[path].scaling, info.scaling)
        return adapter.offsets[path].to(info.dtype) * factor

    return replace(
        adapter,
        modules=Modules(infos, module),
        magnitudes=_moved_rows(adapter.magnitudes, pieces, [""]),
        offsets=_moved_rows(Tensors(adapter.offsets, offset), pieces, [""]),
        whole=_moved_rows(adapter.whole, pieces, [".weight", ".bias"]),
        issues=(*adapter.issues, *_notes(adapter, mine)),
    )


def _notes(adapter: Adapter, mine: Sequence[FusedLayer]) -> Iterator[Issue]:
    for split in (True, False):
        done = [layer for layer in mine if layer.split == split]
        if not done:
            continue
        names = sorted({layer.name for layer in done})
        what = "split into the single projections" if split else "joined from single projections"
        yield finding(
            "fused-translated",
            (adapter.name,),
            f"{count(len(done), 'fused layer')} of {adapter.name} ({listing(names)}) "
            f"{'was' if len(done) == 1 else 'were'} {what}, which is exact.",
            done[0].path,
        )


def _joined_info(path: str, held: Sequence[ModuleInfo], rows: int) -> ModuleInfo:
    """The layout of a new module with so many rows, of pieces of these modules."""
    scalings = {info.scaling for info in held}
    dtype = reduce(torch.promote_types, (info.dtype for info in held))
    if len(scalings) > 1:  # multiplied into B, which a 16-bit type would round
        dtype = torch.promote_types(dtype, torch.float32)
    return replace(
        held[0],
        path=path,
        rank=sum(info.rank for info in held),
        out_features=rows,
        scaling=scalings.pop() if len(scalings) == 1 else 1.0,
        dtype=dtype,
    )


def _joined(adapter: Adapter, pieces: Sequence[Piece], info: ModuleInfo) -> LowRank:
    """Joins pieces: B is block-diagonal, A is stacked; a missing part has rows of zeros."""
    updates = {
        old: adapter.modules[old].to(info.dtype) for old, _ in pieces if old in adapter.modules
    }
    A = torch.cat([update.A for update in updates.values()])
    B = A.new_zeros(info.out_features, info.rank)
    row = column = 0
    for old, rows in pieces:
        end = row + rows.stop - rows.start
        if old in updates:
            update = updates[old]
            factor = _ratio(float(update.scaling), info.scaling)
            B[row:end, column : column + update.rank] = update.B[rows] * factor
            column += update.rank
        row = end
    return LowRank(A, B, info.scaling)


def _ratio(own: float, joint: float) -> float:
    """The factor for a part's B and offset; exactly 1 if the scalings are equal."""
    return 1.0 if own == joint else own / joint


def _moved_rows(
    held: Mapping[str, Tensor], pieces: Mapping[str, Sequence[Piece]], suffixes: Sequence[str]
) -> Tensors:
    """Splits or joins tensors whose first dimension is a module's output.

    suffixes: what their names have behind the path of the module. A missing part gets zeros.
    """
    made = {
        new + suffix: [(old + suffix, rows) for old, rows in parts]
        for new, parts in pieces.items()
        for suffix in suffixes
        if any(old + suffix in held for old, _ in parts)
    }
    gone = {old for parts in made.values() for old, _ in parts}

    def read(name: str) -> Tensor:
        if name not in made:
            return held[name]
        dtype = next(held[old].dtype for old, _ in made[name] if old in held)
        return torch.cat(
            [
                held[old][rows] if old in held else torch.zeros(rows.stop, dtype=dtype)
                for old, rows in made[name]
            ]
        )

    return Tensors([*(name for name in held if name not in gone), *made], read)
