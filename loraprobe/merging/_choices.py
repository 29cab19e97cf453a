"""The choices of a merge, with all defaults filled in."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from loraprobe.adapters import Adapter
from loraprobe.errors import UsageError
from loraprobe.lora.spaces import space_named
from loraprobe.merging._method import METHODS, FactorMethod, LinearMethod, MergeMethod
from loraprobe.merging._validation import carried_by, check_rank, check_weights
from loraprobe.records import Issue
from loraprobe.registry import name_of


@runtime_checkable
class BaseTensors(Protocol):
    """The tensors of a base: W0 [out, in] of a module, and a parameter by its name, as stored."""

    def weight(self, module_path: str) -> Tensor: ...

    def parameter(self, name: str) -> Tensor: ...


@dataclass(frozen=True, eq=False)
class Choices:
    """All choices of one merge: nothing is left to a default.

    rank: None for as many components as needed. dtype: of the written factors. dora: whether the
    result is a DoRA adapter, which needs the base.
    """

    method: MergeMethod
    weights: tuple[float, ...]
    space: str
    rank: int | None
    seed: int
    dtype: torch.dtype
    base: BaseTensors | None = None
    dora: bool = False

    @classmethod
    def of(
        cls,
        adapters: Sequence[Adapter],
        method: str | MergeMethod,
        weights: Sequence[float] | None,
        space: str | None,
        rank: int | str,
        seed: int,
        dtype: torch.dtype | None,
        base: BaseTensors | None,
    ) -> tuple[Choices, list[Issue]]:
        """The choices that `merge` was given, with its defaults; and notes for the report."""
        made = METHODS.make(method)
        used, notes = check_weights(weights, made, len(adapters))
        made.check(used)
        if isinstance(made, FactorMethod) and space is not None:
            raise UsageError(
                f"{name_of(made)} acts on the factors as stored and has no space to choose."
            )
        space = space or made.default_space()
        if not isinstance(made, FactorMethod):
            space_named(space)
        dtype = dtype or _widest(adapters)
        chosen = cls(made, used, space, check_rank(rank), seed, dtype, base)
        keeps_dora = "dora_magnitude" in chosen.carried and any(a.magnitudes for a in adapters)
        return replace(chosen, dora=keeps_dora), notes

    @property
    def carried(self) -> frozenset[str]:
        """The kinds of extra that the merge keeps."""
        return carried_by(self.method, self.base is not None)

    @property
    def coefficients(self) -> tuple[float, ...]:
        """The factor of each adapter under a linear method; () under another."""
        if not isinstance(self.method, LinearMethod):
            return ()
        return self.method.coefficients(self.weights)

    @property
    def dense(self) -> bool:
        """Whether the method runs on deltas of full size [out, in].

        Where nothing is lost in `core`, the full space has the same result without them.
        """
        return self.space == "full" and "core" not in self.method.lossless


def _widest(adapters: Sequence[Adapter]) -> torch.dtype:
    """The dtype that holds all sources'. 8-bit floats, in which nothing can be cut, become bf16."""
    dtypes = [torch.bfloat16 if a.dtype.itemsize == 1 else a.dtype for a in adapters]
    return functools.reduce(torch.promote_types, dtypes)
