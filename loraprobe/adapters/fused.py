"""Splits fused projections of adapters, where other adapters or the base have single ones.

A fused layer computes several projections by one matrix, which stacks their rows:
W = [Wq; Wk; Wv]. A LoRA on it becomes LoRAs on the single layers,

    s B A  ->  s B[rows of q] A, s B[rows of k] A, s B[rows of v] A      the same A

which is exact: rows are moved and nothing is rounded. DoRA magnitudes, whole modules and biases are
split by the same rows. A layer whose rows have another order (by head) or unknown numbers stays as
it is, and an issue says why; so do single ones where the base fuses them.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from loraprobe.adapters.types import Adapter, Modules, Tensors
from loraprobe.findings import finding
from loraprobe.formatting import count, listing
from loraprobe.lora.lowrank import LowRank
from loraprobe.records import Issue

Shapes = Mapping[str, tuple[int, int] | None]  # path in the base -> (out, in), None if packed
Piece = tuple[str, slice]  # rows of the output of a fused layer, by its path

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


class NotSplit(Exception):
    """Raised with the reason why a fused layer stays as it is."""


def one_layout(
    adapters: Sequence[Adapter],
    base: Shapes | None = None,
    config: Mapping[str, Any] | None = None,
) -> tuple[list[Adapter], list[Issue]]:
    """The adapters on one layout, and an error for each reason why that is impossible for layers.

    The layout is the base's; without a base it is the split one if any adapter is split. base: the
    shapes of the base's modules. config: its config.json, which may give the rows of heads. An
    adapter that is split gets a note `fused-translated`; others are returned unchanged.
    """
    base = base or {}
    rows: dict[str, tuple[int, ...]] = {}  # fused layer -> the numbers of its parts' rows
    refused: dict[str, list[str]] = {}
    for path in _fused_paths(adapters, base):
        parts = parts_of(path)
        single = [a for a in adapters if any(part in a.touched for part in parts)]
        in_base = any(part in base for part in parts)
        try:
            if path in base and single and not in_base:
                raise NotSplit("the base fuses them, and single projections are not joined")
            if path not in base and (single or all(part in base for part in parts)):
                rows[path] = _rows(path, adapters, base, config or {})
        except NotSplit as why:
            refused.setdefault(str(why), []).append(path)
    issues = [_refusal(reason, paths, adapters) for reason, paths in refused.items()]
    return [_split(adapter, rows) for adapter in adapters], issues


def may_be_fused(path: str) -> bool:
    """Whether the name of a module is that of a fused layer or of a part of one."""
    name = path.rpartition(".")[2]
    return name in PARTS or name in FUSED_OF


def parts_of(path: str) -> list[str]:
    """The paths of the parts of a fused layer in the order of their rows."""
    parent, dot, name = path.rpartition(".")
    return [f"{parent}{dot}{part}" for part in PARTS[name]]


def _fused_paths(adapters: Sequence[Adapter], base: Shapes) -> list[str]:
    """The fused layers that an adapter changes as a whole, or by a part if the base fuses it."""
    fused_paths: dict[str, None] = {}
    for path in itertools.chain(*(adapter.touched for adapter in adapters)):
        parent, dot, name = path.rpartition(".")
        if name in PARTS:
            fused_paths[path] = None
        for fused in FUSED_OF.get(name, ()):
            if f"{parent}{dot}{fused}" in base:
                fused_paths[f"{parent}{dot}{fused}"] = None
    return list(fused_paths)


def _rows(
    path: str, adapters: Sequence[Adapter], base: Shapes, config: Mapping[str, Any]
) -> tuple[int, ...]:
    """The number of rows of each part. Raises NotSplit if it is not known for certain."""
    name, parts = path.rpartition(".")[2], parts_of(path)
    if name == "query_key_value":
        raise NotSplit(UNORDERED)
    if config.get("model_type") == "codegen" or (".h." in path and name == "qkv_proj"):
        raise NotSplit(BLOCKS)
    for adapter in adapters:
        if path in adapter.touched and any(part in adapter.touched for part in parts):
            raise NotSplit(f"{adapter.name} changes both the fused layer and single ones")
    shapes = {
        each: {a.layout[each].shape for a in adapters if each in a.layout}
        | ({shape} if (shape := base.get(each)) else set())
        for each in (path, *parts)
    }
    inputs = {inp for stated in shapes.values() for _, inp in stated}
    if any(len(stated) > 1 for stated in shapes.values()) or len(inputs) > 1:
        raise NotSplit("the shapes of its parts contradict each other")
    known = {each: next(iter(stated))[0] for each, stated in shapes.items() if stated}
    total = known.pop(path, None)
    missing = [part for part in parts if part not in known]
    if missing and name == "gate_up_proj" and total is not None:
        known |= dict.fromkeys(missing, total // 2)  # they are multiplied with each other
    elif len(missing) == 1 and total is not None:
        known[missing[0]] = total - sum(known.values())
    elif missing:
        known = {**_by_heads(parts, config), **known}
    if lost := [part.rpartition(".")[2] for part in parts if part not in known]:
        raise NotSplit(f"how many rows are {listing(lost)}'s is not known without --base")
    rows = tuple(known[part] for part in parts)
    if min(rows) < 1 or (total is not None and sum(rows) != total):
        raise NotSplit(
            f"the rows of its parts ({', '.join(map(str, rows))}) do not add up to its {total}"
        )
    return rows


def _by_heads(parts: Sequence[str], config: Mapping[str, Any]) -> dict[str, int]:
    """The rows of query, key and value by the base's config; {} if it does not give them."""
    config = config.get("text_config") or config
    heads, width = config.get("num_attention_heads"), config.get("hidden_size")
    if len(parts) != 3 or not heads or not width:
        return {}
    size = config.get("head_dim") or width // heads
    few = config.get("num_key_value_heads") or heads
    return dict(zip(parts, (heads * size, few * size, few * size), strict=True))


def _refusal(reason: str, paths: Sequence[str], adapters: Sequence[Adapter]) -> Issue:
    """The error for layers that are fused in some adapters (or the base) and single in others."""
    path, parts = paths[0], parts_of(paths[0])
    fused = [a.name for a in adapters if path in a.touched]
    single = [a.name for a in adapters if any(part in a.touched for part in parts)]
    touched = [part for part in parts if any(part in a.touched for a in adapters)]
    part = (touched or parts)[0].rpartition(".")[2]
    more = f" and {count(len(paths) - 1, 'more such layer')}" if paths[1:] else ""
    return finding(
        "fused-targets",
        (*fused, *single),
        f"{listing(fused) or 'the base'} has the fused {path}{more}, "
        f"{listing(single) or 'the base'} the single {part}, and one cannot be made of the other: "
        f"{reason}.",
        path,
    )


def _split(adapter: Adapter, rows: Mapping[str, tuple[int, ...]]) -> Adapter:
    """The adapter with single layers in place of the fused ones. rows: of each part of these."""
    mine = [path for path in rows if path in adapter.touched]
    if not mine:
        return adapter
    pieces: dict[str, Piece] = {}
    for path in mine:
        ends = itertools.accumulate(rows[path])
        for part, size, end in zip(parts_of(path), rows[path], ends, strict=True):
            pieces[part] = path, slice(end - size, end)
    infos = {path: info for path, info in adapter.layout.items() if path not in mine}
    for part, (path, piece) in pieces.items():
        if path in adapter.layout:
            out = piece.stop - piece.start
            infos[part] = replace(adapter.layout[path], path=part, out_features=out)

    def module(path: str) -> LowRank:
        if path not in pieces:
            return adapter.modules[path]
        fused, piece = pieces[path]
        update = adapter.modules[fused]
        return LowRank(update.A, update.B[piece], update.scaling)

    names = listing(sorted({path.rpartition(".")[2] for path in mine}))
    note = finding(
        "fused-translated",
        (adapter.name,),
        f"{count(len(mine), 'fused layer')} of {adapter.name} ({names}) "
        f"{'was' if len(mine) == 1 else 'were'} split into the single projections, which is exact.",
        mine[0],
    )
    whole = {
        f"{part}{end}": (f"{path}{end}", piece)
        for part, (path, piece) in pieces.items()
        for end in (".weight", ".bias")
    }
    return replace(
        adapter,
        modules=Modules(infos, module),
        magnitudes=_rows_of(adapter.magnitudes, pieces),
        offsets=_rows_of(adapter.offsets, pieces),
        whole=_rows_of(adapter.whole, whole),
        issues=(*adapter.issues, note),
    )


def _rows_of(tensors: Mapping[str, Tensor], pieces: Mapping[str, Piece]) -> Tensors:
    """The tensors with rows of them under other names. pieces: new name -> old name, its rows."""
    moved = {new: piece for new, piece in pieces.items() if piece[0] in tensors}
    split = {old for old, _ in moved.values()}

    def read(name: str) -> Tensor:
        if name not in moved:
            return tensors[name]
        old, rows = moved[name]
        return tensors[old][rows]

    return Tensors([*(name for name in tensors if name not in split), *moved], read)
