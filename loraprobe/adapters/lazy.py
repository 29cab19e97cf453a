"""Mappings whose values are read when they are needed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TypeVar

from torch import Tensor

from loraprobe.adapters.paths import natural

Value = TypeVar("Value")


class LazyMapping(Mapping[str, Value]):
    """Name -> value, read when needed.

    Iteration is in natural order of the names (layer 2 before layer 10).
    """

    def __init__(self, names: Iterable[str], read: Callable[[str], Value]) -> None:
        self._names = dict.fromkeys(sorted(names, key=natural))
        self._read = read

    def __getitem__(self, name: str) -> Value:
        if name not in self._names:
            raise KeyError(name)
        return self._read(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def __contains__(self, name: object) -> bool:
        return name in self._names


class Tensors(LazyMapping[Tensor]):
    """Name -> tensor, read when needed, in natural order."""
