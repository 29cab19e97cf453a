"""Read the factors of many adapters once and form their Gram matrices.

`gram_matrices` reads each module of all adapters once, forms the two matrices in float64 and drops
the factors, so memory holds one module of all adapters and not their files.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from loraprobe.lora.grams import GramMatrices, factor_lengths, own_blocks
from loraprobe.lora.lowrank import LowRank

Updates = Sequence[LowRank | None]
Visitor = Callable[[str, Updates], None]

# Size of the Gram matrices that are collected into one batch.
BATCH_BYTES = 1 << 24
# Rows of a Gram matrix that are computed together; entries below the diagonal are copied.
GRAM_ROWS = 400


class _ModuleGrams(NamedTuple):
    """The Gram matrices of one module of all adapters, before they are batched."""

    path: str
    gram_in: Float64[Tensor, "n r n r"]
    gram_out: Float64[Tensor, "n r n r"]
    scaling: list[float]
    rank: list[int]
    shape: list[tuple[int, int]]


def gram_matrices(
    adapters: Sequence[Mapping[str, LowRank]],
    paths: Sequence[str] | None = None,
    *,
    rank: int = 0,
    visitors: Sequence[Visitor] = (),
    progress: Callable[[int, int], None] | None = None,
) -> Iterator[GramMatrices]:
    """Read every module of all adapters once and yield the Gram matrices in batches.

    adapters: module path -> update, for each adapter. paths: the modules in order (default: as the
    adapters list them). Ranks are padded to the largest of a batch, or to `rank` if it is larger.
    visitors: called with each module's factors in float64, None where an adapter lacks the module;
    these tensors are views of memory that the next module overwrites.
    """
    paths = list(dict.fromkeys(path for a in adapters for path in a) if paths is None else paths)
    buffers = _Buffers({})
    waiting: list[_ModuleGrams] = []
    size = 0
    for done, path in enumerate(paths):
        updates = [a.get(path) for a in adapters]
        module, updates = buffers.grams(path, updates)
        for visit in visitors:
            visit(path, updates)
        waiting.append(module)
        size += 2 * 8 * (len(adapters) * max([rank, *module.rank])) ** 2
        if size >= BATCH_BYTES:
            yield _batch(waiting, rank)
            waiting, size = [], 0
        if progress is not None:
            progress(done + 1, len(paths))
    if waiting:
        yield _batch(waiting, rank)


def modules_a_batch(adapters: int, rank: int) -> int:
    """How many modules `gram_matrices` puts into a batch if no rank is above `rank`."""
    return math.ceil(BATCH_BYTES / max(1, 2 * 8 * (adapters * rank) ** 2))


@dataclass
class _Buffers:
    """Memory for the concatenated float64 factors of one module, reused for the next module."""

    memory: dict[int, Float64[Tensor, k]]  # one for the A's (dim 0), one for the B's (dim 1)

    def grams(self, path: str, updates: Updates) -> tuple[_ModuleGrams, list[LowRank | None]]:
        """Two Gram matrices of one module, and the updates in float64 as views of the buffers."""
        rank = [0 if u is None else u.rank for u in updates]
        gram_in, As = self._gram([None if u is None else u.A for u in updates], 0, max(rank))
        gram_out, Bs = self._gram([None if u is None else u.B for u in updates], 1, max(rank))
        module = _ModuleGrams(
            path,
            gram_in,
            gram_out,
            scaling=[0.0 if u is None else float(u.scaling) for u in updates],
            rank=rank,
            shape=[(0, 0) if u is None else (u.out_features, u.in_features) for u in updates],
        )
        copies = [
            None if u is None else LowRank(As[i], Bs[i], float(u.scaling))
            for i, u in enumerate(updates)
        ]
        return module, copies

    def _gram(
        self, factors: Sequence[Float[Tensor, "_ _"] | None], dim: int, r: int
    ) -> tuple[Float64[Tensor, "n r n r"], dict[int, Float64[Tensor, "_ _"]]]:
        """Inner products along `dim`, [n, r, n, r] padded with zeros; and the copied factors.

        dim 0: of rows (A); dim 1: of columns (B). Factors of unequal length are not multiplied.
        """
        n = len(factors)
        by_length: dict[int, list[int]] = {}
        for i, factor in enumerate(factors):
            if factor is not None:
                by_length.setdefault(factor.shape[1 - dim], []).append(i)
        gram = torch.zeros(n, r, n, r, dtype=torch.float64)
        copies: dict[int, Tensor] = {}
        free = self._memory(dim, sum(factor.numel() for factor in factors if factor is not None))
        for length, members in by_length.items():
            ranks = [factors[i].shape[dim] for i in members]  # type: ignore[union-attr]
            shape = (sum(ranks), length) if dim == 0 else (length, sum(ranks))
            stacked, free = free[: shape[0] * shape[1]].view(shape), free[shape[0] * shape[1] :]
            for i, place in zip(members, stacked.split(ranks, dim), strict=True):
                copies[i] = place.copy_(factors[i].detach())  # type: ignore[union-attr]
            product = _gram(stacked if dim == 0 else stacked.mT)
            if ranks == [r] * n:
                return product.view(n, r, n, r), copies
            for i, rows in zip(members, product.split(ranks), strict=True):
                for j, block in zip(members, rows.split(ranks, 1), strict=True):
                    gram[i, : len(block), j, : block.shape[1]] = block
        return gram, copies

    def _memory(self, dim: int, size: int) -> Float64[Tensor, k]:
        if dim not in self.memory or len(self.memory[dim]) < size:
            self.memory[dim] = torch.empty(size, dtype=torch.float64)
        return self.memory[dim]


def _batch(modules: Sequence[_ModuleGrams], rank: int) -> GramMatrices:
    r = max([rank, *(module.gram_in.shape[1] for module in modules)])

    def padded(gram: Float64[Tensor, "n _ n _"]) -> Float64[Tensor, "n r n r"]:
        more = r - gram.shape[1]
        return torch.nn.functional.pad(gram, (0, more, 0, 0, 0, more)) if more else gram

    def together(grams: list[Float64[Tensor, "n r n r"]]) -> Float64[Tensor, "m n r n r"]:
        return torch.stack(grams) if len(grams) > 1 else grams[0][None]

    grams_in = together([padded(module.gram_in) for module in modules])
    grams_out = together([padded(module.gram_out) for module in modules])
    # A NaN or infinity in a factor makes the length of its row or column NaN or infinite.
    lengths = factor_lengths(own_blocks(grams_in)) + factor_lengths(own_blocks(grams_out))
    finite = torch.isfinite(lengths).all(-1)
    if not finite.all():
        bad = ~finite
        for grams in (grams_in, grams_out):
            grams[bad] = 0.0
            grams.permute(0, 3, 1, 2, 4)[bad] = 0.0
    return GramMatrices(
        paths=tuple(module.path for module in modules),
        grams_in=grams_in,
        grams_out=grams_out,
        scaling=torch.tensor([module.scaling for module in modules], dtype=torch.float64),
        rank=torch.tensor([module.rank for module in modules]),
        shape=torch.tensor([module.shape for module in modules]),
        finite=finite,
    )


def _gram(rows: Float64[Tensor, "k length"]) -> Float64[Tensor, "k k"]:
    """rows @ rows^T: [k, k]. Half of a large one is computed, the other half copied."""
    k = len(rows)
    if k < 2 * GRAM_ROWS:
        return rows @ rows.mT
    gram = rows.new_empty(k, k)
    for start in range(0, k, GRAM_ROWS):
        stop = min(start + GRAM_ROWS, k)
        torch.matmul(rows[start:stop], rows[start:].mT, out=gram[start:stop, start:])
        gram[stop:, start:stop] = gram[start:stop, stop:].mT
    return gram
