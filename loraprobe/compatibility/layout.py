"""Compares module paths, shapes, kinds, ranks and scalings of adapters and a base, from headers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations

from loraprobe.adapters import Adapter
from loraprobe.adapters.experts import conflict, target_parameters, transposed_in
from loraprobe.adapters.names import VOCABULARY, number_in
from loraprobe.base import Base
from loraprobe.compatibility.aligning import Shape, layer_shapes, shapes_of, two_names
from loraprobe.errors import CompatibilityError
from loraprobe.findings import CODES, finding
from loraprobe.formatting import count, listing
from loraprobe.records import Issue

# Cures of shapes that differ between two adapters, and between an adapter and the base.
APART = {
    "vocabulary-mismatch": "Train both with one vocabulary, or leave embedding and head out of the "
    "adapters."
}
IN_BASE = {"shapes-differ": CODES["module-not-in-base"].cure}


def layout_issues(adapters: Sequence[Adapter]) -> Iterator[Issue]:
    """Issues about the modules of each pair of adapters, and of all together."""
    forms = [{path: (info.shape, info.kind) for path, info in a.layout.items()} for a in adapters]
    depths = [_depth(a) for a in adapters]
    layers = [layer_shapes(shapes_of(a)) for a in adapters]
    each = zip(adapters, forms, depths, layers, strict=True)
    for (a, form, depth, ours), (b, other, deep, theirs) in combinations(each, 2):
        if names := two_names(ours, theirs):
            yield finding(
                "prefix-mismatch",
                (a.name, b.name),
                f"{a.name} changes {names[0]} and {b.name} changes {names[1]}: these may be the "
                "same layers, named as two classes of one base name them, which only the base's "
                "config.json tells.",
            )
        elif not form.keys() & other.keys():
            yield _nothing_in_common(a, b)
        elif form != other:
            turned = transposed_in(a, b)
            shapes = {path: shape for path, shape in shapes_of(b).items() if path not in turned}
            yield from _shapes(a, shapes, b.name, (a.name, b.name), APART)
            yield from _kinds(a, b)
        if problem := conflict(a, b):
            yield problem
        if None not in (depth, deep) and depth != deep:
            yield finding(
                "depth-differs",
                (a.name, b.name),
                f"The last layer that {a.name} touches is {depth}, that of {b.name} {deep}.",
            )
    everything = list(dict.fromkeys(path for a in adapters for path in a.layout))
    lacking = {a.name: [p for p in everything if p not in a.layout] for a in adapters}
    partial = [p for p in everything if any(p in paths for paths in lacking.values())]
    if partial and len(partial) < len(everything):
        lacks = {name: f"{name} lacks {len(paths)}" for name, paths in lacking.items() if paths}
        yield finding(
            "targets-differ",
            tuple(lacks),
            f"Some adapters lack {len(partial)} of {len(everything)} modules "
            f"({', '.join(lacks.values())}; {partial[0]} first); an adapter adds nothing where "
            "it lacks a module.",
            partial[0],
        )
    ranges = {a.name: a.rank_range for a in adapters if a.layout}
    if len({bound for ends in ranges.values() for bound in ends}) > 1:
        listed = ", ".join(
            f"{name} {low}" if low == high else f"{name} {low} to {high}"
            for name, (low, high) in ranges.items()
        )
        yield finding(
            "ranks-differ",
            tuple(ranges),
            f"Ranks differ ({listed}). Merges and routers here take mixed ranks; peft's "
            "combination_type linear and its Arrow do not.",
        )


def _shapes(
    adapter: Adapter,
    shapes: Mapping[str, Shape],
    other: str,
    names: tuple[str, ...],
    cures: Mapping[str, str],
) -> Iterator[Issue]:
    """Errors for the modules that have another shape in another adapter, or in the base.

    shapes: the other's, by path. names: of the adapters concerned, which all have these shapes
    unless the other is one of them. cures: those that are not the usual ones, by code.
    """
    who = listing([name for name in names if name != other])
    found = shapes_of(adapter)
    differ = [path for path in found if path in shapes and found[path] != shapes[path]]
    tokens = [path for path in differ if _is_vocabulary(path, found[path], shapes[path])]
    others = [path for path in differ if path not in tokens]
    for code, paths in (("vocabulary-mismatch", tokens), ("shapes-differ", others)):
        if paths:
            first = paths[0]
            yield finding(
                code,
                names,
                f"The shapes of {count(len(paths), 'module')} differ; {first} is "
                f"{list(found[first])} in {who}, {list(shapes[first])} in {other}.",
                first,
                cure=cures.get(code),
            )


def _is_vocabulary(path: str, shape: Shape, other: Shape) -> bool:
    """Whether two shapes of an embedding or head differ in one side, the number of tokens."""
    named = path.rpartition(".")[2] in VOCABULARY
    return named and (shape[0] == other[0]) != (shape[1] == other[1])


def _kinds(a: Adapter, b: Adapter) -> Iterator[Issue]:
    """An error if a module is an embedding in one adapter only.

    Linear and Conv1D differ only in the flag fan_in_fan_out. peft overwrites this flag at every
    layer that it wraps, so that its value is that of the last layer. A and B do not depend on it.
    """
    differ = [p for p in a.layout if p in b.layout and a.layout[p].kind != b.layout[p].kind]
    if tables := [p for p in differ if "embedding" in (a.layout[p].kind, b.layout[p].kind)]:
        first = tables[0]
        yield finding(
            "kinds-differ",
            (a.name, b.name),
            f"The kinds of layer of {count(len(tables), 'module')} differ; {first} is "
            f"{a.layout[first].kind} in {a.name} and {b.layout[first].kind} in {b.name}.",
            first,
        )


def _nothing_in_common(a: Adapter, b: Adapter) -> Issue:
    """The issue for two adapters without a common path: prefix, architecture or targets differ."""
    names = (a.name, b.name)
    if not a.layout or not b.layout:
        return finding("targets-disjoint", names, "One of them touches no module.")
    if _of_two_architectures(a, b):
        path, other = next(iter(a.layout)), next(iter(b.layout))
        return finding(
            "architecture-mismatch",
            names,
            f"{a.name} and {b.name} belong to different architectures: {path} and {other}.",
        )
    return finding(
        "targets-disjoint",
        names,
        f"{a.name} and {b.name} touch no module in common; composed, each works in its own.",
    )


def _of_two_architectures(a: Adapter, b: Adapter) -> bool:
    """Whether the paths show that two adapters without a common path are of different models.

    Heads are ignored; encoder and decoder may be of one model.
    """
    ours, theirs = (
        {path.partition(".")[0] for path in adapter.layout if "." in path} for adapter in (a, b)
    )
    return bool(ours and theirs) and not ours & theirs and ours | theirs != {"encoder", "decoder"}


def _depth(adapter: Adapter) -> int | None:
    """The largest layer number among the modules, from 0. It is the first number of a path.

    None without numbers, and where the config chooses the layers.
    """
    if adapter.config.get("layers_to_transform"):
        return None
    numbers = [[number_in(part) for part in path.split(".")[1:]] for path in adapter.layout]
    firsts = [next((n for n in depths if n is not None), None) for depths in numbers]
    return max((n for n in firsts if n is not None), default=None)


def base_issues(adapters: Sequence[Adapter], base: Base) -> Iterator[Issue]:
    """Issues about missing modules, different shapes, vocabularies and quantised weights."""
    if base.quantization:
        yield finding(
            "quantised-base",
            (),
            f"The weights of {base.reference} are stored quantised, so figures that need them are "
            "left out and scores hold for the quantised model.",
            severity="warning",
            cure="Give the unquantised base if it will be served unquantised.",
        )
    size, rows = base.tokenizer_size, base.vocab_size
    if size is not None and rows is not None and size > rows:
        yield finding(
            "vocabulary-mismatch",
            (),
            f"The base's tokenizer has {size} tokens and its embedding only {rows} rows.",
            severity="warning",
            cure="Check that tokenizer and weights belong together.",
        )
    alike = dict[tuple[tuple[str, Shape], ...], list[Adapter]]()  # by what differs in the base
    for adapter in adapters:
        yield from _not_in_base(adapter, base)
        own = shapes_of(adapter).items()
        unlike = sorted((p, shape) for p, shape in own if shape != base.shapes.get(p, shape))
        alike.setdefault(tuple(unlike), []).append(adapter)
        yield from _tied(adapter, base)
        yield from _parameters(adapter, base)
        yield from _tokens(adapter, base)
    for group in alike.values():  # said once of all that agree
        names = tuple(adapter.name for adapter in group)
        yield from _shapes(group[0], base.shapes, base.reference, names, IN_BASE)


def _not_in_base(adapter: Adapter, base: Base) -> Iterator[Issue]:
    lost = [path for path in adapter.unstacked if path not in base.weights]
    if not lost or base.quantization:  # packed weights have other names
        return
    if names := two_names(
        layer_shapes({p: adapter.layout[p].shape for p in lost}), layer_shapes(base.shapes)
    ):
        yield finding(
            "prefix-mismatch",
            (adapter.name,),
            f"{adapter.name} changes {names[0]}, and the layers of {base.reference} are "
            f"{names[1]}; with these paths the adapter has no effect.",
            lost[0],
            cure="Rename its keys, or save it from the model that it will run on.",
        )
        return
    yield finding(
        "module-not-in-base",
        (adapter.name,),
        f"{base.reference} ({base.architecture}) has no module for {len(lost)} of the "
        f"{len(adapter.layout)} modules of {adapter.name}, {lost[0]} first.",
        lost[0],
    )


def _parameters(adapter: Adapter, base: Base) -> Iterator[Issue]:
    """An error for a stacked parameter that the base lacks or has in another shape.

    A file may hold the weights of each expert apart, so the model is built, without weights.
    """
    if not adapter.stacks or base.skeleton is None:
        return
    try:
        target_parameters(base.skeleton, adapter)
    except CompatibilityError as error:
        stack = next(iter(adapter.stacks))
        yield finding("module-not-in-base", (adapter.name,), error.problem, stack)


def _tokens(adapter: Adapter, base: Base) -> Iterator[Issue]:
    """An error for trained token rows that the base's embedding or head does not have."""
    for path, rows in adapter.token_rows.items():
        weight = base.weights.get(path)
        if weight is None and not base.quantization:
            yield finding(
                "module-not-in-base",
                (adapter.name,),
                f"{base.reference} has no {path}, of which {adapter.name} trained rows.",
                path,
            )
        elif weight is not None and max(rows.tokens) >= weight.shape[0]:
            yield finding(
                "vocabulary-mismatch",
                (adapter.name,),
                f"{adapter.name} trained token {max(rows.tokens)} of {path}, which has "
                f"{weight.shape[0]} rows in {base.reference}.",
                path,
            )


def _tied(adapter: Adapter, base: Base) -> Iterator[Issue]:
    """A warning for an adapted layer that shares its weight: peft changes only that layer."""
    shared: dict[tuple[str, str], list[str]] = {}
    for path, weight in base.weights.items():
        shared.setdefault((str(weight.file.path), weight.key), []).append(path)
    for paths in shared.values():
        adapted = [p for p in paths if p in adapter.layout and p.rpartition(".")[2] in VOCABULARY]
        if len(paths) > 1 and adapted and len(adapted) < len(paths):
            other = next(p for p in paths if p not in adapted)
            yield finding(
                "tied-embeddings",
                (adapter.name,),
                f"{adapter.name} changes {adapted[0]}, which shares its weight with {other} in "
                "this base; composed, only the targeted layer changes.",
                adapted[0],
            )
