"""Gives an adapter the paths that peft looks for, and drops what cannot be written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor

from loraprobe.adapters.keys import PREFIX
from loraprobe.adapters.saving import WRITTEN
from loraprobe.adapters.types import Adapter, Modules, Tensors

MENDED = ("doubled-prefix", "unprefixed-keys", "tensors-unused")  # issues that saving removes


def mended(adapter: Adapter) -> Adapter:
    """The adapter with the paths of its base's modules, and only tensors that can be written.

    A module whose keys have peft's prefix twice gets the path that peft would look for. The caller
    refuses extras that must not be dropped.
    """
    places = (*adapter.layout, *adapter.whole, *adapter.token_rows)
    names = {path: _unwrapped(path) for path in places}
    if len(set(names.values())) < len(names):  # one of two would be lost
        return adapter
    paths = {new: old for old, new in names.items()}
    infos = {names[path]: replace(i, path=names[path]) for path, i in adapter.layout.items()}

    def renamed(held: Mapping[str, Tensor]) -> Tensors:
        return Tensors([names[name] for name in held], lambda name: held[paths[name]])

    return replace(
        adapter,
        modules=Modules(infos, lambda path: adapter.modules[paths[path]]),
        magnitudes=renamed(adapter.magnitudes),
        whole=renamed(adapter.whole),
        offsets=renamed(adapter.offsets),
        token_rows={names[path]: rows for path, rows in adapter.token_rows.items()},
        extras=tuple(extra for extra in adapter.extras if extra.kind in WRITTEN),
        issues=tuple(issue for issue in adapter.issues if issue.code not in MENDED),
    )


def _unwrapped(path: str) -> str:
    while path.startswith(PREFIX):
        path = path.removeprefix(PREFIX)
    return path
