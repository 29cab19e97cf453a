"""Tensors that are read when they are needed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TypeVar

from jaxtyping import Float
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


@dataclass(frozen=True, eq=False)
class TokenRows:
    """Trained rows of an embedding or a head (`trainable_token_indices`) and their tokens' ids.

    peft stores the rows themselves, not their change, and puts them in place of the base's:
    TrainableTokensLayer copies them over `W[tokens]`. Where the base ties its head to the
    embedding, the rows of the embedding also replace the head's. `values`: [k, dim], in order.
    """

    tokens: tuple[int, ...]
    read: Callable[[], Tensor]

    @property
    def values(self) -> Float[Tensor, "k dim"]:
        return self.read()
