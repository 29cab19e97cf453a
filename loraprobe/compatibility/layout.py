"""Module paths, shapes, kinds, ranks and scaling conventions, from the files' headers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations

from loraprobe.adapters import Adapter, ModuleInfo
from loraprobe.adapters.experts import conflict
from loraprobe.adapters.paths import VOCABULARY, number, root
from loraprobe.compatibility.naming import places_of, shapes_of, two_names
from loraprobe.findings import finding
from loraprobe.formatting import count, listing
from loraprobe.records import Issue

LARGE_RANK = 64  # vLLM loads rank 16 unless its max_lora_rank is raised, which costs memory


def layout_issues(adapters: Sequence[Adapter], merging: bool) -> Iterator[Issue]:
    """Issues about the modules of each pair of adapters, and of all together."""
    forms = [{path: (info.shape, info.kind) for path, info in a.layout.items()} for a in adapters]
    depths = [_depth(a) for a in adapters]
    places = [places_of(shapes_of(a)) for a in adapters]
    each = zip(adapters, forms, depths, places, strict=True)
    for (a, form, depth, ours), (b, other, deep, theirs) in combinations(each, 2):
        if names := two_names(ours, theirs):
            yield _two_names(a, b, *names)
        elif not form.keys() & other.keys():
            yield _nothing_in_common(a, b)
        elif form != other:
            yield from _shapes(a, b)
            yield from _kinds(a, b)
        if problem := conflict(a, b):
            yield problem
        if None not in (depth, deep) and depth != deep:
            message = f"The last layer that {a.name} touches is {depth}, that of {b.name} {deep}."
            yield finding("depth-differs", (a.name, b.name), message)
    yield from _targets(adapters)
    yield from _ranks(adapters)
    yield from _scalings(adapters)
    total = sum(a.rank_range[1] for a in adapters)
    if merging and total > LARGE_RANK and len(adapters) > 1:
        message = f"A merge that loses nothing may need rank {total}, more than many servers load."
        yield finding("rank-large", tuple(a.name for a in adapters), message)


def different_shapes(
    layout: Mapping[str, ModuleInfo], shapes: Mapping[str, tuple[int, int]]
) -> tuple[list[str], list[str]]:
    """The paths whose shapes differ: embeddings and heads of another vocabulary, and all others."""
    differ = [p for p, info in layout.items() if p in shapes and info.shape != shapes[p]]
    tokens = [p for p in differ if _is_vocabulary(p, layout[p].shape, shapes[p])]
    return tokens, [p for p in differ if p not in tokens]


def _is_vocabulary(path: str, one: tuple[int, int], other: tuple[int, int]) -> bool:
    """Whether two shapes of an embedding or head differ in one side, the number of tokens."""
    named = path.rpartition(".")[2] in VOCABULARY
    return named and (one[0] == other[0]) != (one[1] == other[1])


def _shapes(a: Adapter, b: Adapter) -> Iterator[Issue]:
    tokens, rest = different_shapes(a.layout, {p: info.shape for p, info in b.layout.items()})
    for path in tokens:
        message = (
            f"{path} is {list(a.layout[path].shape)} in {a.name} and "
            f"{list(b.layout[path].shape)} in {b.name}: their vocabularies have different sizes."
        )
        cure = "Train both with one vocabulary, or leave embedding and head out of the adapters."
        yield finding("vocabulary-mismatch", (a.name, b.name), message, path, cure=cure)
    if rest:
        first = rest[0]
        message = (
            f"The shapes of {count(len(rest), 'module')} differ; {first} is "
            f"{list(a.layout[first].shape)} in {a.name} and {list(b.layout[first].shape)} in "
            f"{b.name}."
        )
        yield finding("shapes-differ", (a.name, b.name), message, first)


def _kinds(a: Adapter, b: Adapter) -> Iterator[Issue]:
    """An error if a module is an embedding in one adapter only; a note for Linear and Conv1D.

    Linear and Conv1D differ only in the flag fan_in_fan_out. peft overwrites this flag at every
    layer that it wraps, so that its value is that of the last layer. A and B do not depend on it.
    """
    differ = [p for p in a.layout if p in b.layout and a.layout[p].kind != b.layout[p].kind]
    tables = [p for p in differ if "embedding" in (a.layout[p].kind, b.layout[p].kind)]
    if tables:
        first = tables[0]
        message = (
            f"The kinds of layer of {count(len(tables), 'module')} differ; {first} is "
            f"{a.layout[first].kind} in {a.name} and {b.layout[first].kind} in {b.name}."
        )
        yield finding("kinds-differ", (a.name, b.name), message, first)
    elif differ:
        message = (
            f"The configs of {a.name} and {b.name} differ in fan_in_fan_out; their factors mean "
            "the same either way, and peft uses the layers of the model."
        )
        names = (a.name, b.name)
        yield finding("kinds-differ", names, message, differ[0], severity="note", cure="")


def _nothing_in_common(a: Adapter, b: Adapter) -> Issue:
    """The issue for two adapters without a common path: prefix, architecture or targets differ."""
    names = (a.name, b.name)
    if not a.layout or not b.layout:
        return finding("targets-disjoint", names, "One of them touches no module.")
    if _of_two_architectures(a, b):
        one, other = next(iter(a.layout)), next(iter(b.layout))
        message = f"{a.name} and {b.name} belong to different architectures: {one} and {other}."
        return finding("architecture-mismatch", names, message)
    message = f"{a.name} and {b.name} touch no module in common; composed, each works in its own."
    return finding("targets-disjoint", names, message)


def _two_names(a: Adapter, b: Adapter, one: str, other: str) -> Issue:
    """The issue for layers that may be the same under two names, which could not be translated."""
    message = (
        f"{a.name} changes {one} and {b.name} changes {other}: these may be the same layers, named "
        "as two classes of one base name them, which only the base's config.json tells."
    )
    return finding("prefix-mismatch", (a.name, b.name), message)


def _of_two_architectures(a: Adapter, b: Adapter) -> bool:
    """Whether the paths show that two adapters without a common path are of different models.

    Heads are ignored. One model may have layers in several places (encoder and decoder, vision
    tower and language model); this is assumed if both adapters name the same base.
    """
    tops, roots = [], []
    for adapter in (a, b):
        paths = [path for path in adapter.layout if "." in path]
        tops.append({path.partition(".")[0] for path in paths})
        roots.append({root(path) for path in paths if root(path) != path})
    if not tops[0] or not tops[1] or tops[0] | tops[1] == {"encoder", "decoder"}:
        return False
    if not tops[0] & tops[1]:
        return True
    same_base = a.base_model is not None and a.base_model == b.base_model
    return bool(roots[0] and roots[1]) and not roots[0] & roots[1] and not same_base


def _depth(adapter: Adapter) -> int | None:
    """The largest layer number among the modules, from 0. It is the first number of a path.

    None without numbers, and where the config chooses the layers.
    """
    if adapter.config.get("layers_to_transform"):
        return None
    numbers = [[number(part) for part in path.split(".")[1:]] for path in adapter.layout]
    firsts = [next((n for n in found if n is not None), None) for found in numbers]
    return max((n for n in firsts if n is not None), default=None)


def _targets(adapters: Sequence[Adapter]) -> Iterator[Issue]:
    """One note for all modules that some adapters do not have."""
    everything = list(dict.fromkeys(path for a in adapters for path in a.layout))
    lacking = {a.name: [p for p in everything if p not in a.layout] for a in adapters}
    partial = [p for p in everything if any(p in paths for paths in lacking.values())]
    if partial and len(partial) < len(everything):
        lacks = {name: f"{name} lacks {len(paths)}" for name, paths in lacking.items() if paths}
        message = (
            f"Some adapters lack {len(partial)} of {len(everything)} modules "
            f"({', '.join(lacks.values())}; {partial[0]} first); an adapter adds nothing where "
            "it lacks a module."
        )
        yield finding("targets-differ", tuple(lacks), message, partial[0])


def _ranks(adapters: Sequence[Adapter]) -> Iterator[Issue]:
    ranges = {a.name: a.rank_range for a in adapters if a.layout}
    if len({bound for ends in ranges.values() for bound in ends}) > 1:
        listed = ", ".join(
            f"{name} {low}" if low == high else f"{name} {low} to {high}"
            for name, (low, high) in ranges.items()
        )
        message = (
            f"Ranks differ ({listed}). Merges and routers here take mixed ranks; peft's "
            "combination_type linear and its Arrow do not."
        )
        yield finding("ranks-differ", tuple(ranges), message)


def _scalings(adapters: Sequence[Adapter]) -> Iterator[Issue]:
    rs = [a.name for a in adapters if a.config.get("use_rslora")]
    if rs:
        message = (
            f"The scaling of {listing(rs)} is alpha/sqrt(r) (rsLoRA). That is kept here; peft's "
            "add_weighted_adapter makes such adapters sqrt(r) too large."
        )
        yield finding("rslora", tuple(rs), message)
