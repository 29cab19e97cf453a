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
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from loraprobe.adapters.rows import Fusion, moved_modules, moved_offsets, moved_rows
from loraprobe.adapters.types import Adapter
from loraprobe.findings import finding
from loraprobe.formatting import count, listing
from loraprobe.records import Issue

Shapes = Mapping[str, tuple[int, int] | None]  # path in the base -> (out, in), None if packed

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
    todo: list[Fusion] = []
    refused: dict[str, list[_FusedLayer]] = {}
    touched = [_touched(adapter) for adapter in adapters]
    for path in _fused_paths(touched, base or {}):
        layer = _FusedLayer(path, adapters, touched, base or {}, config or {})
        split = layer.wants_split()
        if split is None:
            continue
        try:
            todo.append(layer.fusion(split))
        except NotTranslated as why:
            refused.setdefault(str(why), []).append(layer)
    each = zip(adapters, touched, strict=True)
    issues = [_refusal(reason, layers) for reason, layers in refused.items()]
    return [_translated(adapter, paths, todo) for adapter, paths in each], issues


def may_be_fused(path: str) -> bool:
    """Whether the name of a module is that of a fused layer or of a part of one."""
    name = path.rpartition(".")[2]
    return name in PARTS or name in FUSED_OF


def _touched(adapter: Adapter) -> dict[str, None]:
    """Paths of modules that an adapter changes, by factors or whole."""
    return dict.fromkeys([*adapter.layout, *(name.rpartition(".")[0] for name in adapter.whole)])


def _fused_paths(touched: Sequence[Iterable[str]], base: Shapes) -> list[str]:
    """The fused layers that an adapter changes as a whole, or by a part if the base fuses it."""
    found: dict[str, None] = {}
    for path in itertools.chain(*touched):
        parent, dot, name = path.rpartition(".")
        if name in PARTS:
            found[path] = None
        for fused in FUSED_OF.get(name, ()):
            if f"{parent}{dot}{fused}" in base:
                found[f"{parent}{dot}{fused}"] = None
    return list(found)


class _FusedLayer:
    """A fused layer of a base, and the adapters that change it as a whole or by its parts.

    touched: the paths that each adapter changes. `parts`: the paths of its parts in the order of
    their rows, `part` the first that is changed.
    """

    def __init__(
        self,
        path: str,
        adapters: Sequence[Adapter],
        touched: Sequence[Collection[str]],
        base: Shapes,
        config: Mapping[str, Any],
    ) -> None:
        parent, dot, name = path.rpartition(".")
        self.path, self.parts = path, tuple(f"{parent}{dot}{part}" for part in PARTS[name])
        self.adapters, self.base, self.config = adapters, base, config
        each = list(zip(adapters, touched, strict=True))
        self.fused = [adapter for adapter, paths in each if path in paths]
        self.single = [adapter for adapter, paths in each if any(p in paths for p in self.parts)]
        held = (part for paths in touched for part in self.parts if part in paths)
        self.part = next(held, self.parts[0])

    def wants_split(self) -> bool | None:
        """True if it must be split, False if its parts must be joined, None if it may stay."""
        if self.path in self.base:
            join = self.single and not any(part in self.base for part in self.parts)
            return False if join else None
        split = self.fused and (self.single or all(part in self.base for part in self.parts))
        return True if split else None

    def fusion(self, split: bool) -> Fusion:
        """Raises NotTranslated if it cannot be split or joined exactly."""
        name = self.path.rpartition(".")[2]
        if name == "query_key_value":
            raise NotTranslated(UNORDERED)
        if self.config.get("model_type") == "codegen" or (
            ".h." in self.path and name == "qkv_proj"
        ):
            raise NotTranslated(BLOCKS)
        for adapter in self.fused:
            if adapter in self.single:
                raise NotTranslated(f"{adapter.name} changes both the fused layer and single ones")
        rows = self.rows()
        for adapter in () if split else self.adapters:
            _check_complete(adapter, self.parts)
        return Fusion(self.path, self.parts, rows, split)

    def rows(self) -> tuple[int, ...]:
        """The number of rows of each part. Raises NotTranslated if it is not known for certain."""
        shapes = {path: self.shapes(path) for path in (self.path, *self.parts)}
        inputs = {inp for found in shapes.values() for _, inp in found}
        if any(len(found) > 1 for found in shapes.values()) or len(inputs) > 1:
            raise NotTranslated("the shapes of its parts contradict each other")
        known = {path: next(iter(found))[0] for path, found in shapes.items() if found}
        total = known.pop(self.path, None)
        missing = [part for part in self.parts if part not in known]
        if missing and self.path.endswith("gate_up_proj") and total is not None:
            known |= dict.fromkeys(missing, total // 2)  # they are multiplied with each other
        elif len(missing) == 1 and total is not None:
            known[missing[0]] = total - sum(known.values())
        elif missing:
            known = {**_by_heads(self.parts, self.config), **known}
        if lost := [part.rpartition(".")[2] for part in self.parts if part not in known]:
            raise NotTranslated(f"how many rows are {listing(lost)}'s is not known without --base")
        rows = tuple(known[part] for part in self.parts)
        if min(rows) < 1 or (total is not None and sum(rows) != total):
            raise NotTranslated(
                f"the rows of its parts ({', '.join(map(str, rows))}) do not add up to its {total}"
            )
        return rows

    def shapes(self, path: str) -> set[tuple[int, int]]:
        """The (out, in) of a module in base and adapters; several if they disagree."""
        infos = [adapter.layout[path] for adapter in self.adapters if path in adapter.layout]
        of_base = self.base.get(path)
        found = {info.shape for info in infos}
        return found | ({of_base} if of_base else set())


def _refusal(reason: str, layers: Sequence[_FusedLayer]) -> Issue:
    """The error for layers that are fused in some adapters (or the base) and single in others."""
    first = layers[0]
    fused, single = ([adapter.name for adapter in held] for held in (first.fused, first.single))
    more = f" and {count(len(layers) - 1, 'more such layer')}" if layers[1:] else ""
    message = (
        f"{listing(fused) or 'the base'} has the fused {first.path}{more}, "
        f"{listing(single) or 'the base'} the single {first.part.rpartition('.')[2]}, and one "
        f"cannot be made of the other: {reason}."
    )
    return finding("fused-targets", (*fused, *single), message, first.path)


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


def _translated(adapter: Adapter, touched: Collection[str], todo: Sequence[Fusion]) -> Adapter:
    """The adapter on the common layout. touched: the paths that it changes."""
    mine = [
        f for f in todo if (f.path in touched if f.split else any(p in touched for p in f.parts))
    ]
    if not mine:
        return adapter
    return replace(
        adapter,
        modules=moved_modules(adapter, mine),
        magnitudes=moved_rows(adapter.magnitudes, mine),
        offsets=moved_offsets(adapter, mine),
        whole=moved_rows(moved_rows(adapter.whole, mine, ".weight"), mine, ".bias"),
        issues=(*adapter.issues, *_notes(adapter, mine)),
    )


def _notes(adapter: Adapter, mine: Sequence[Fusion]) -> Iterator[Issue]:
    for split in (True, False):
        done = [fusion for fusion in mine if fusion.split == split]
        if not done:
            continue
        names = sorted({fusion.path.rpartition(".")[2] for fusion in done})
        what = "split into the single projections" if split else "joined from single projections"
        message = (
            f"{count(len(done), 'fused layer')} of {adapter.name} ({listing(names)}) "
            f"{'was' if len(done) == 1 else 'were'} {what}, which is exact."
        )
        yield finding("fused-translated", (adapter.name,), message, done[0].path)
