"""Brings the adapters of one composition to one naming of modules and one layout.

A base with vision has a text-only class too, whose modules have other names (`model.layers.0` and
`model.language_model.layers.0`), and older versions of transformers had other names again. Which
names mean the same weights is known from the base's config.json, by transformers' own tables
(`loraprobe.base.ModuleNames`). Where that is out of reach nothing is translated.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations

from loraprobe import hub
from loraprobe.adapters import Adapter
from loraprobe.adapters.layouts import BaseForm, in_one_layout
from loraprobe.adapters.names import root
from loraprobe.base import Base, ModuleNames, module_names
from loraprobe.base.naming import named_like, with_base_names
from loraprobe.options import Options
from loraprobe.records import Issue

Shape = tuple[int, int]
LayerShapes = Mapping[str, Mapping[str, Shape]]  # place of layers -> path inside of it -> shape


def aligned(
    adapters: Sequence[Adapter], base: Base | None = None, options: Options | None = None
) -> list[Adapter]:
    """The adapters with one class's names of modules and in one layout.

    These are the base's, else the first adapter's names and the layout that all can have. A
    translated adapter gets a note, such as `modules-renamed`. One that cannot be translated stays
    as it is, and `check` reports it. Compositions and merges use these adapters. options: those of
    the command that reads the adapters.
    """
    return align(adapters, base, options)[0]


def align(
    adapters: Sequence[Adapter], base: Base | None, options: Options | None = None
) -> tuple[list[Adapter], list[Issue]]:
    """`aligned`, and an error for each reason why layers could not get one layout."""
    if base is None:
        return in_one_layout(one_naming(adapters), BaseForm(), options)
    shapes = {path: base.shapes.get(path) for path in base.weights}
    renamed = named_like(base.module_paths, adapters, lambda: module_names(base.path))
    return in_one_layout(renamed, BaseForm(shapes, base.config, lambda: base.skeleton), options)


def one_naming(adapters: Sequence[Adapter]) -> list[Adapter]:
    """The adapters with the names of one class, that of the first adapter.

    If the others change modules that the first one's class lacks, it is the class with vision. A
    translated adapter gets a note `modules-renamed`. Adapters whose names already agree are
    returned as they are, and so are those whose names are not known.
    """
    pairs = combinations([layer_shapes(shapes_of(adapter)) for adapter in adapters], 2)
    if not any(two_names(one, other) for one, other in pairs):
        return list(adapters)
    for adapter in adapters:
        names = names_of(adapter.base_model)
        if names is None:
            continue
        first = names.is_text(adapters[0].touched)
        for text in dict.fromkeys((first, False)):
            made = [with_base_names(adapter, names, text, whole=True) for adapter in adapters]
            if all(one is not None for one in made):
                return [one for one in made if one is not None]
    return list(adapters)


def names_of(base: str | None) -> ModuleNames | None:
    """The names of a base's modules; None if its config.json is out of reach or tells none."""
    place = hub.base_directory(base)
    return None if place is None else module_names(place)


def two_names(ours: LayerShapes, theirs: LayerShapes) -> tuple[str, str] | None:
    """The places of layers that may be the same under two names; None if there are none.

    They may be if no place of layers is common to both sides, two of them have modules of the same
    names and shapes, and one of these two is named by all parts of the other, in any order:
    `model.layers` and `language_model.model.layers`, but not `encoder.layers` and `decoder.layers`.
    """
    if ours.keys() & theirs.keys():
        return None
    for one, inside in ours.items():
        for other, beside in theirs.items():
            parts, more = set(one.split(".")), set(other.split("."))
            if (parts <= more or more <= parts) and inside.items() & beside.items():
                return one, other
    return None


def shapes_of(adapter: Adapter) -> dict[str, Shape]:
    """Path -> (out, in)."""
    return {path: info.shape for path, info in adapter.layout.items()}


def layer_shapes(shapes: Mapping[str, Shape]) -> LayerShapes:
    """Place of layers -> path inside of it -> shape; modules outside of layers are left out."""
    by_start: dict[str, dict[str, Shape]] = {}
    for path, shape in shapes.items():
        if (start := root(path)) != path:
            by_start.setdefault(start, {})[path.removeprefix(start)] = shape
    return by_start
