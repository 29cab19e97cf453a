"""Trained rows of an embedding or a head (`trainable_token_indices`).

peft stores the rows themselves, not their change, and puts them in place of the base's:
TrainableTokensLayer copies them over `W[tokens]`. Where the base ties its head to the embedding,
the rows of the embedding also replace the head's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True, eq=False)
class TokenRows:
    """Rows that replace those of some tokens. tokens: their ids. `values`: [k, dim], in order."""

    tokens: tuple[int, ...]
    read: Callable[[], Tensor]

    @property
    def values(self) -> Float[Tensor, "k dim"]:
        return self.read()


def tokens_of(config: Mapping[str, Any], path: str) -> tuple[int, ...] | None:
    """The ids whose rows of a module the config says to be trained; None if it is not clear.

    A list is that of the input embedding; otherwise a name selects the modules that end with it.
    """
    given = config.get("trainable_token_indices")
    if isinstance(given, Mapping):
        found = [ids for name, ids in given.items() if path.endswith(str(name))]
        given = found[0] if len(found) == 1 else None
    if not isinstance(given, (list, tuple)) or not given:
        return None
    sound = all(type(token) is int and token >= 0 for token in given)
    return tuple(given) if sound and len(set(given)) == len(given) else None
