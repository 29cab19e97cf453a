"""Splits fused projections of adapters and joins single ones, as other adapters or the base are.

A fused layer computes several projections by one matrix, which stacks their rows:
W = [Wq; Wk; Wv]. A LoRA on it becomes LoRAs on the single layers,

    s B A  ->  s B[rows of q] A, s B[rows of k] A, s B[rows of v] A      the same A

and LoRAs on single layers, where the base fuses them, become one on the fused layer, whose rank is
the sum of theirs and whose B has a block for each,

    s Bq Aq, s Bv Av  ->  s [[Bq 0], [0 0], [0 Bv]] [Aq; Av]

which is exact: numbers are moved and none is rounded, unless the scalings of the single ones
differ: these are multiplied into B. DoRA magnitudes, whole modules and biases go by the same rows.
A layer whose rows have another order (by head) or unknown numbers stays as it is, and an issue says
why.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from loraprobe.adapters.layouts import AdapterLayout, BaseForm, Shapes
from loraprobe.adapters.types import Adapter, Extra, Modules, Tensors
from loraprobe.findings import finding
from loraprobe.formatting import count, listing
from loraprobe.lora.lowrank import LowRank
from loraprobe.options import Options
from loraprobe.records import Issue

Piece = tuple[str, slice]  # rows of the output of a fused layer, by its path

QKV = ("q_proj", "k_proj", "v_proj")
PARTS: Mapping[str, tuple[str, ...]] = {
    "qkv_proj": QKV,
    "Wqkv": QKV,
    "W_pack": QKV,
    "in_proj_qkv": ("in_proj_q", "in_proj_k", "in_proj_v"),  # linear attention of Qwen 3.5
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
    """Raised with the reason why a fused layer, or single ones, stay as they are."""


class FusedProjections(AdapterLayout):
    """Splits fused projections, or joins single ones."""

    def align(
        self, adapters: Sequence[Adapter], base: BaseForm, options: Options | None
    ) -> tuple[Sequence[Adapter], Sequence[Issue]]:
        return one_layout(adapters, base.shapes, base.config)


def one_layout(
    adapters: Sequence[Adapter],
    base: Shapes | None = None,
    config: Mapping[str, Any] | None = None,
) -> tuple[list[Adapter], list[Issue]]:
    """The adapters on one layout, and an error for each reason why that is impossible for layers.

    The layout is the base's; without a base it is the split one if any adapter is split. base: the
    shapes of the base's modules. config: its config.json, which may give the rows of heads. An
    adapter that is split or joined gets a note `fused-translated`; others are returned unchanged.
    """
    base = base or {}
    rows: dict[str, tuple[int, ...]] = {}  # fused layer -> the numbers of its parts' rows
    joined: dict[str, tuple[int, ...]] = {}  # the same of those that the base has
    refused: dict[str, list[str]] = {}
    for path in _fused_paths(adapters, base):
        parts = parts_of(path)
        single = [a for a in adapters if any(part in a.touched for part in parts)]
        in_base = any(part in base for part in parts)
        try:
            if path in base and single and not in_base:
                sizes = _rows(path, adapters, base, config or {})
                for adapter in single:
                    _check_joins(adapter, path)
                joined[path] = sizes
            if path not in base and (single or all(part in base for part in parts)):
                rows[path] = _rows(path, adapters, base, config or {})
        except NotSplit as why:
            refused.setdefault(str(why), []).append(path)
    issues = [_refusal(reason, paths, adapters) for reason, paths in refused.items()]
    return [_join(_split(adapter, rows), joined) for adapter in adapters], issues


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
    if parts[0].endswith("in_proj_q"):
        query, value = (
            (config.get(f"linear_num_{of}_heads") or 0) * (config.get(f"linear_{of}_head_dim") or 0)
            for of in ("key", "value")
        )
        return dict(zip(parts, (query, query, value), strict=True)) if query and value else {}
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
    sizes = {path: list(zip(parts_of(path), rows[path], strict=True)) for path in mine}
    for path in mine:
        ends = itertools.accumulate(rows[path])
        for (part, size), end in zip(sizes[path], ends, strict=True):
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
        extras=_extras(adapter, sizes),
        issues=(*adapter.issues, note),
    )


def _check_joins(adapter: Adapter, path: str) -> None:
    """Raises NotSplit where an adapter's single layers are no update of the fused one."""
    parts = parts_of(path)
    kinds = {adapter.layout[part].kind for part in parts if part in adapter.layout}
    if len(kinds) > 1:
        raise NotSplit(f"{adapter.name} has them as layers of several kinds")
    for tensors, end, what in (
        (adapter.magnitudes, "", "DoRA magnitudes"),
        (adapter.whole, ".weight", "whole weights"),
        (adapter.whole, ".bias", "biases"),
    ):
        lacking = [part for part in parts if f"{part}{end}" not in tensors]
        if lacking and len(lacking) < len(parts):
            names = listing([part.rpartition(".")[2] for part in lacking])
            raise NotSplit(f"{adapter.name} has {what} of some of them and none of {names}")


def _join(adapter: Adapter, rows: Mapping[str, tuple[int, ...]]) -> Adapter:
    """The adapter with fused layers in place of single ones. rows: of each part of these."""
    mine = [path for path in rows if any(part in adapter.touched for part in parts_of(path))]
    if not mine:
        return adapter
    sizes = {
        part: size for path in mine for part, size in zip(parts_of(path), rows[path], strict=True)
    }
    infos = {path: info for path, info in adapter.layout.items() if path not in sizes}
    for path in mine:
        held = [adapter.layout[part] for part in parts_of(path) if part in adapter.layout]
        if held:
            alike = len({info.scaling for info in held}) == 1
            infos[path] = replace(
                held[0],
                path=path,
                rank=sum(info.rank for info in held),
                out_features=sum(rows[path]),
                scaling=held[0].scaling if alike else 1.0,
                dtype=functools.reduce(torch.promote_types, [info.dtype for info in held]),
            )

    def folded(tensor: Tensor, part: str, path: str) -> Tensor:
        """What the scaling of a part multiplies, for the scaling of the fused layer."""
        scaling = adapter.layout[part].scaling
        same = scaling == infos[path].scaling
        return tensor if same else (tensor.double() * scaling).to(tensor.dtype)

    def module(path: str) -> LowRank:
        if path not in mine:
            return adapter.modules[path]
        info, parts = infos[path], parts_of(path)
        updates = {part: adapter.modules[part] for part in parts if part in adapter.layout}
        blocks = [
            folded(updates[part].B, part, path).to(info.dtype)
            if part in updates
            else torch.zeros(sizes[part], 0, dtype=info.dtype)
            for part in parts
        ]
        A = torch.cat([update.A.to(info.dtype) for update in updates.values()])
        return LowRank(A, torch.block_diag(*blocks), info.scaling)

    def offset(path: str) -> Tensor:
        parts = [
            folded(adapter.offsets[part], part, path)
            if part in adapter.offsets
            else torch.zeros(sizes[part], dtype=infos[path].dtype)
            for part in parts_of(path)
        ]
        return torch.cat(parts)

    singles = [part for part in sizes if part in adapter.touched]
    names = listing(sorted({part.rpartition(".")[2] for part in singles}))
    note = finding(
        "fused-translated",
        (adapter.name,),
        f"{count(len(singles), 'single projection')} of {adapter.name} ({names}) "
        f"{'was' if len(singles) == 1 else 'were'} joined to {count(len(mine), 'fused layer')} of "
        "the base, whose ranks are the sums of theirs, which is exact.",
        mine[0],
    )
    return replace(
        adapter,
        modules=Modules(infos, module),
        magnitudes=_joined(adapter.magnitudes, mine, ""),
        offsets=_joined(adapter.offsets, mine, "", offset),
        whole=_joined(_joined(adapter.whole, mine, ".weight"), mine, ".bias"),
        extras=_extras(
            adapter, {part: [(path, sum(rows[path]))] for path in mine for part in parts_of(path)}
        ),
        issues=(*adapter.issues, note),
    )


def _extras(adapter: Adapter, places: Mapping[str, Sequence[tuple[str, int]]]) -> tuple[Extra, ...]:
    """The extras with those of some layers at other ones. places: old path -> new ones, rows."""
    made: dict[str, Extra] = {}
    for extra in adapter.extras:
        if extra.module is None or extra.module not in places:
            made[extra.key] = extra
            continue
        for path, rows in places[extra.module]:
            key = extra.key.replace(extra.module, path, 1)
            made[key] = replace(extra, key=key, module=path, shape=(rows, *extra.shape[1:]))
    return tuple(made.values())


def _joined(
    tensors: Mapping[str, Tensor],
    paths: Sequence[str],
    end: str,
    of: Callable[[str], Tensor] | None = None,
) -> Tensors:
    """The tensors with those of fused layers in place of their parts'.

    end: of the names, behind the path of a layer. of: makes the tensor of a layer; without it the
    rows of all parts are stacked.
    """
    made, parts = dict[str, str](), dict[str, list[str]]()
    for path in paths:
        rows = [f"{part}{end}" for part in parts_of(path)]
        if any(name in tensors for name in rows):
            made[f"{path}{end}"], parts[f"{path}{end}"] = path, rows
    gone = {name for rows in parts.values() for name in rows}

    def read(name: str) -> Tensor:
        if name not in made:
            return tensors[name]
        if of is not None:
            return of(made[name])
        return torch.cat([tensors[part] for part in parts[name]])

    return Tensors([*(name for name in tensors if name not in gone), *made], read)


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
