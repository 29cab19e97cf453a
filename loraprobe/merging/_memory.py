"""Whether a merge fits into memory, from the layouts alone, before any factor is read."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from loraprobe import memory
from loraprobe.adapter import Adapter, ModuleInfo
from loraprobe.merging._method import MergeMethod

# Matrices of a module's size beside the n deltas: the result, a scratch, the sketch's remainder.
BESIDE = 3


def check_room(
    adapters: Sequence[Adapter],
    infos: Mapping[str, ModuleInfo],
    method: MergeMethod,
    space: str,
    rank: int | None,
    itemsize: int,
) -> None:
    """Raises OutOfMemory, naming the largest module and what would fit.

    What is held: the result's factors of all modules, [rank, in] and [out, rank] in `itemsize`
    bytes an entry, and of the module in hand all factors in float64 and, where the method works
    on dense deltas, n + 3 matrices [out, in] in float32 (float64 for float64 factors).
    """
    kept = sum(
        (rank or _sum_of_ranks(adapters, path)) * (info.in_features + info.out_features)
        for path, info in infos.items()
    )
    dense = space == "full" and "core" not in method.lossless
    needs = {
        path: _in_hand(adapters, path, info, itemsize if dense else 0)
        for path, info in infos.items()
    }
    largest = max(needs, key=lambda path: needs[path])
    info = infos[largest]
    instead = (
        "take --space core or knots, which stay small, or a method in factors such as uniform"
        if dense
        else "give a smaller --rank, or fewer adapters at a time"
    )
    memory.require(
        kept * itemsize + needs[largest],
        f"The merge (largest module {largest}, [{info.out_features}, {info.in_features}])",
        instead,
    )


def _sum_of_ranks(adapters: Sequence[Adapter], path: str) -> int:
    return sum(a.layout[path].rank for a in adapters if path in a.layout)


def _in_hand(adapters: Sequence[Adapter], path: str, info: ModuleInfo, itemsize: int) -> int:
    """Bytes of one module: factors in float64, twice, and dense deltas where there are any."""
    factors = 16 * _sum_of_ranks(adapters, path) * (info.in_features + info.out_features)
    entries = math.prod((info.out_features, info.in_features))
    work = max(itemsize, 4) if itemsize else 0
    return factors + (len(adapters) + BESIDE) * entries * work
