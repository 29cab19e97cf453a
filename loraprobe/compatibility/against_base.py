"""Compares adapters with the shapes of the base model, from the headers of the files alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from loraprobe.adapters import Adapter
from loraprobe.adapters.experts import TRAINED_ON, places, stacks, without_experts
from loraprobe.adapters.paths import VOCABULARY
from loraprobe.base import Base
from loraprobe.compatibility.layout import different_shapes
from loraprobe.compatibility.naming import places_of, two_names
from loraprobe.findings import finding
from loraprobe.formatting import count
from loraprobe.records import Issue


def base_issues(adapters: Sequence[Adapter], base: Base) -> Iterator[Issue]:
    """Issues about missing modules, different shapes, vocabularies and quantised weights."""
    if base.quantization:
        message = (
            f"The weights of {base.reference} are stored quantised, so figures that need them are "
            "left out and scores hold for the quantised model."
        )
        cure = "Give the unquantised base if it will be served unquantised."
        yield finding("quantised-base", (), message, severity="warning", cure=cure)
    size, rows = base.tokenizer_size, base.vocab_size
    if size is not None and rows is not None and size > rows:
        message = f"The base's tokenizer has {size} tokens and its embedding only {rows} rows."
        cure = "Check that tokenizer and weights belong together."
        yield finding("vocabulary-mismatch", (), message, severity="warning", cure=cure)
    for adapter in adapters:
        yield from _missing(adapter, base)
        yield from _shapes(adapter, base)
        yield from _tied(adapter, base)
        yield from _parameters(adapter, base)
        yield from _tokens(adapter, base)


def _missing(adapter: Adapter, base: Base) -> Iterator[Issue]:
    lost = [path for path in without_experts(adapter.layout) if path not in base.weights]
    if not lost or base.quantization:  # packed weights have other names
        return
    if places := two_names(
        places_of({p: adapter.layout[p].shape for p in lost}), places_of(base.shapes)
    ):
        message = (
            f"{adapter.name} changes {places[0]}, and the layers of {base.reference} are "
            f"{places[1]}; with these paths the adapter has no effect."
        )
        cure = "Rename its keys, or save it from the model that it will run on."
        yield finding("prefix-mismatch", (adapter.name,), message, lost[0], cure=cure)
        return
    message = (
        f"{base.reference} ({base.architecture}) has no module for {len(lost)} of the "
        f"{len(adapter.layout)} modules of {adapter.name}, {lost[0]} first."
    )
    yield finding("module-not-in-base", (adapter.name,), message, lost[0])


def _shapes(adapter: Adapter, base: Base) -> Iterator[Issue]:
    tokens, others = different_shapes(adapter.layout, base.shapes)
    for code, paths, cure in (
        ("vocabulary-mismatch", tokens, None),
        ("shapes-differ", others, TRAINED_ON),
    ):
        if paths:
            first = paths[0]
            message = (
                f"{base.reference} has other shapes for {count(len(paths), 'module')} of "
                f"{adapter.name}; {first} is {list(adapter.layout[first].shape)} in the adapter "
                f"and {list(base.shapes[first])} in the base."
            )
            yield finding(code, (adapter.name,), message, first, cure=cure)


def _parameters(adapter: Adapter, base: Base) -> Iterator[Issue]:
    """An error for the first parameter that the base lacks or has in another shape.

    A file may hold the weights of each expert apart, so the model is built, without weights.
    """
    if not stacks(adapter.layout) or base.skeleton is None:
        return
    wrong = [one for one in places(base.skeleton, adapter) if isinstance(one, Issue)]
    if wrong:
        more = (
            f" {count(len(wrong) - 1, 'other parameter')} of it fit neither." if wrong[1:] else ""
        )
        yield replace(wrong[0], message=f"{wrong[0].message}{more}")


def _tokens(adapter: Adapter, base: Base) -> Iterator[Issue]:
    """An error for trained token rows that the base's embedding or head does not have."""
    for path, rows in adapter.token_rows.items():
        weight = base.weights.get(path)
        if weight is None and not base.quantization:
            message = f"{base.reference} has no {path}, of which {adapter.name} trained rows."
            yield finding("module-not-in-base", (adapter.name,), message, path)
        elif weight is not None and max(rows.tokens) >= weight.shape[0]:
            message = (
                f"{adapter.name} trained token {max(rows.tokens)} of {path}, which has "
                f"{weight.shape[0]} rows in {base.reference}."
            )
            yield finding("vocabulary-mismatch", (adapter.name,), message, path)


def _tied(adapter: Adapter, base: Base) -> Iterator[Issue]:
    """A warning for an adapted layer that shares its weight: peft changes only that layer."""
    places: dict[tuple[str, str], list[str]] = {}
    for path, weight in base.weights.items():
        places.setdefault((str(weight.file), weight.key), []).append(path)
    for paths in places.values():
        touched = [p for p in paths if p in adapter.layout and p.rpartition(".")[2] in VOCABULARY]
        if len(paths) > 1 and touched and len(touched) < len(paths):
            other = next(p for p in paths if p not in touched)
            message = (
                f"{adapter.name} changes {touched[0]}, which shares its weight with {other} in "
                "this base; composed, only the targeted layer changes."
            )
            yield finding("tied-embeddings", (adapter.name,), message, touched[0])
