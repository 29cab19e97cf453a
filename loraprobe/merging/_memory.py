"""Whether a merge fits into memory, from the layouts alone, before any factor is read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from loraprobe import memory
from loraprobe.adapters import Adapter, ModuleInfo
from loraprobe.merging._choices import Choices

# Matrices of a module's size in addition to the n deltas: the result, a scratch matrix, and the
# remainder of the sketch.
MORE_MATRICES = 3


def check_memory(
    adapters: Sequence[Adapter], layout: Mapping[str, ModuleInfo], choices: Choices
) -> None:
    """Raises OutOfMemory, naming the largest module and what would fit.

    Counted are the result's factors of all modules, [rank, in] and [out, rank] in the written
    dtype, and for one module all factors in float64, twice, and, where the method works on dense
    deltas, n + 3 matrices [out, in] in float32 (float64 for float64 factors).
    """
    itemsize = choices.dtype.itemsize
    ranks = {p: sum(a.layout[p].rank for a in adapters if p in a.layout) for p in layout}
    kept, needs = 0, {}
    for path, info in layout.items():
        width = info.in_features + info.out_features
        kept += (choices.rank or ranks[path]) * width * itemsize
        needs[path] = 16 * ranks[path] * width
        if choices.dense:
            entries = info.out_features * info.in_features
            needs[path] += (len(adapters) + MORE_MATRICES) * entries * max(itemsize, 4)
    largest = max(needs, key=lambda path: needs[path])
    info = layout[largest]
    memory.require(
        kept + needs[largest],
        f"The merge (largest module {largest}, [{info.out_features}, {info.in_features}])",
        "take --space core or knots, which stay small, or a method in factors such as uniform"
        if choices.dense
        else "give a smaller --rank, or fewer adapters at a time",
    )
