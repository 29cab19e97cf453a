"""Brings adapters that name the modules of one base differently to the names of one class.

A base with vision has a text-only class too, whose modules have other names (`model.layers.0` and
`model.language_model.layers.0`), and older versions of transformers had other names again. Which
names mean the same weights is known from the base's config.json, by transformers' own tables
(`loraprobe.base.ModuleNames`). Where that is out of reach nothing is translated.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import combinations

from loraprobe import hub
from loraprobe.adapters import Adapter
from loraprobe.adapters.paths import root
from loraprobe.adapters.portable import with_paths
from loraprobe.base import Base, ModuleNames, module_names
from loraprobe.findings import finding

Shape = tuple[int, int]


def one_naming(adapters: Sequence[Adapter], base: Base | None) -> list[Adapter]:
    """The adapters with the names of one class: the base's, else that of the first adapter.

    If the others change modules that the first one's class lacks, it is the class with vision. A
    translated adapter gets a note `modules-renamed`. Adapters whose names already agree are
    returned as they are, and so are those whose names are not known.
    """
    paths = [touched(adapter) for adapter in adapters]
    if base is not None:
        places = {root(path) for path in base.module_paths}
        if all(root(path) in places for path in {p for own in paths for p in own}):
            return list(adapters)
        names = module_names(base.path)
        if names is None:
            return list(adapters)
        text = names.is_text(base.module_paths)
        return [named(adapter, names, text) or adapter for adapter in adapters]
    pairs = combinations([_shapes(adapter) for adapter in adapters], 2)
    if not any(two_names(one, other) for one, other in pairs):
        return list(adapters)
    for adapter in adapters:
        names = names_of(adapter.base_model)
        if names is None:
            continue
        first = names.is_text(paths[0])
        for text in dict.fromkeys((first, False)):
            made = [named(adapter, names, text, whole=True) for adapter in adapters]
            if all(one is not None for one in made):
                return [one for one in made if one is not None]
    return list(adapters)


def named(
    adapter: Adapter, names: ModuleNames, text: bool, *, whole: bool = False
) -> Adapter | None:
    """The adapter with the names of a base's text-only class or of its class with vision.

    None if two modules would have one name; with `whole` also if the class lacks a module, which
    otherwise keeps its name.
    """
    new = {path: names.name(path, text=text) for path in touched(adapter)}
    if whole and None in new.values():
        return None
    changed = {path: name for path, name in new.items() if name and name != path}
    if not changed:
        return adapter

    def path_of(path: str) -> str:
        module, _, what = path.rpartition(".")
        return changed.get(path) or (f"{changed[module]}.{what}" if module in changed else path)

    made = with_paths(adapter, path_of)
    if made is None:
        return None
    old, name = next(iter(changed.items()))
    kind = names.text if text and names.text else names.whole
    message = (
        f"{adapter.name} names its modules as another class of its base does, such as {root(old)}; "
        f"here they have the names of {kind.name}, {root(name)}."
    )
    note = finding("modules-renamed", (adapter.name,), message, name)
    return replace(made, issues=(*adapter.issues, note))


def names_of(base: str | None) -> ModuleNames | None:
    """The names of a base's modules; None if its config.json is out of reach or tells none."""
    place = hub.base_directory(base) if base else None
    return None if place is None else module_names(place)


def touched(adapter: Adapter) -> dict[str, None]:
    """The paths of the modules that an adapter changes."""
    whole = (name.rpartition(".")[0] for name in adapter.whole)
    return dict.fromkeys((*adapter.layout, *whole, *adapter.token_rows))


def two_names(ours: Mapping[str, Shape], theirs: Mapping[str, Shape]) -> tuple[str, str] | None:
    """The places of layers that may be the same under two names; None if there are none.

    They may be if no place of layers is common to both sides, two of them have modules of the same
    names and shapes, and one of these two is named by all parts of the other, in any order:
    `model.layers` and `language_model.model.layers`, but not `encoder.layers` and `decoder.layers`.
    """
    mine, others = _by_root(ours), _by_root(theirs)
    if mine.keys() & others.keys():
        return None
    for one, inside in mine.items():
        for other, beside in others.items():
            parts, more = set(one.split(".")), set(other.split("."))
            if (parts <= more or more <= parts) and inside.items() & beside.items():
                return one, other
    return None


def _shapes(adapter: Adapter) -> dict[str, Shape]:
    return {path: info.shape for path, info in adapter.layout.items()}


def _by_root(shapes: Mapping[str, Shape]) -> dict[str, dict[str, Shape]]:
    """Place of layers -> path inside of it -> shape; modules outside of layers are left out."""
    found: dict[str, dict[str, Shape]] = {}
    for path, shape in shapes.items():
        if (start := root(path)) != path:
            found.setdefault(start, {})[path.removeprefix(start)] = shape
    return found
