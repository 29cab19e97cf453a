"""Gives the modules of an adapter the names that a class of its base has for them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace

from loraprobe.adapters import Adapter
from loraprobe.adapters.paths import root
from loraprobe.adapters.saving import with_paths
from loraprobe.base.geometry import ModuleNames
from loraprobe.findings import finding


def named_like(
    paths: Collection[str], adapters: Sequence[Adapter], find: Callable[[], ModuleNames | None]
) -> list[Adapter]:
    """The adapters with the names of the class whose modules have these paths.

    find: gives the names of the base's classes; it is called only where an adapter changes what the
    paths do not hold. An adapter without such a name is returned as it is.
    """
    places = {root(path) for path in paths}
    strange = [a for a in adapters if not all(root(path) in places for path in touched(a))]
    names = find() if strange else None
    if names is None:
        return list(adapters)
    text = names.is_text(paths)
    return [
        named(adapter, names, text) or adapter if adapter in strange else adapter
        for adapter in adapters
    ]


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


def touched(adapter: Adapter) -> dict[str, None]:
    """The paths of the modules that an adapter changes."""
    whole = (name.rpartition(".")[0] for name in adapter.whole)
    return dict.fromkeys((*adapter.layout, *whole, *adapter.token_rows))
