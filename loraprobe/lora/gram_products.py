"""Gram matrices of the rows of many factors, in float64 or, of many adapters, from float32.

The block of an adapter with itself is computed in float64, and so are all blocks of few adapters
and of factors that are stored in float64. Of many adapters the float64 blocks give an orthonormal
basis of the rows of each factor. The bases are multiplied in float32, and the result is transformed
back in float64. So the error, at most 5e-7 of the lengths of two vectors in all that was measured,
is the same in every direction of an ill-conditioned factor. Where two spaces nearly meet, a sum of
updates may cancel, and the blocks are computed in float64 too. `docs/precision.md` has the figures.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor

from loraprobe.lora.grams import factor_lengths, unit_root

# Most adapters whose products are all computed in float64.
FEW = 32
# Two spaces nearly meet if a vector of the one has a larger cosine with a vector of the other.
MEETING = 0.99
# Products that are added in the precision of the factors; their sums are added in float64.
SUMMED = 4096
# Factors of which float64 copies are held at a time.
TOGETHER = 8
# Rows of a Gram matrix that are computed together, at least; entries below the diagonal are copied.
GRAM_ROWS = 80


def gram_of(factors: Sequence[Float[Tensor, "_ _"] | None]) -> Float64[Tensor, "n r n r"]:
    """Inner products of the rows of all factors, padded with zeros: [n, r, n, r].

    Factors with rows of unequal lengths are not multiplied.
    """
    r = max((factor.shape[0] for factor in factors if factor is not None), default=0)
    gram = torch.zeros(len(factors), r, len(factors), r, dtype=torch.float64)
    by_length: dict[int, list[int]] = {}
    for i, factor in enumerate(factors):
        if factor is not None:
            by_length.setdefault(factor.shape[1], []).append(i)
    for members in by_length.values():
        rows = [factors[i].detach() for i in members]  # type: ignore[union-attr]
        few = len(rows) <= FEW or any(one.dtype == torch.float64 for one in rows)
        found = _exact(rows, r) if few else _of_many(rows, r)
        if len(members) == len(factors):
            return found
        _put(gram, torch.tensor(members), found)
    return gram


def _put(
    gram: Float64[Tensor, "n r n r"], some: Int[Tensor, k], blocks: Float64[Tensor, "k r k r"]
) -> None:
    """Write the blocks of some adapters into the matrix of all."""
    gram[some[:, None], :, some] = blocks.transpose(1, 2)


def _exact(rows: Sequence[Float[Tensor, "_ length"]], r: int) -> Float64[Tensor, "k r k r"]:
    ranks = [one.shape[0] for one in rows]
    stack = torch.empty(sum(ranks), rows[0].shape[1], dtype=torch.float64)
    for place, one in zip(stack.split(ranks), rows, strict=True):
        place.copy_(one)
    return _padded(_products(stack), ranks, r)


def _of_many(rows: Sequence[Float[Tensor, "_ length"]], r: int) -> Float64[Tensor, "k r k r"]:
    """The same with blocks of two adapters from products of orthonormal bases in float32."""
    n, ranks = len(rows), [one.shape[0] for one in rows]
    own, from_basis = torch.zeros(2, n, r, r, dtype=torch.float64)
    stack = torch.empty(sum(ranks), rows[0].shape[1])
    places = stack.split(ranks)
    for start in range(0, n, TOGETHER):
        some = slice(start, start + TOGETHER)
        exact = [one.double() for one in rows[some]]
        for block, one, k in zip(own[some], exact, ranks[some], strict=True):
            torch.mm(one, one.mT, out=block[:k, :k])
        to_basis, from_basis[some] = _bases(own[some])
        for place, one, to, k in zip(places[some], exact, to_basis, ranks[some], strict=True):
            place.copy_(to[:k, :k] @ one)
    cosines = _padded(_products(stack), ranks, r)
    half = from_basis @ cosines.view(n, r, n * r)
    gram = (from_basis @ half.view(n * r, n, r).permute(1, 2, 0)).view(n, r, n, r)
    gram[torch.arange(n), :, torch.arange(n)] = own
    some = _meeting(cosines)
    if len(some):
        _put(gram, some, _exact([rows[i] for i in some.tolist()], r))
    return gram


def _bases(
    own: Float64[Tensor, "n r r"],
) -> tuple[Float64[Tensor, "n r r"], Float64[Tensor, "n r r"]]:
    """Matrices W and T with orthonormal rows W A and A = T W A, from each A A^T.

    Directions that are only rounding are zero. So is all of a factor that is not finite.
    """
    lengths = factor_lengths(own)
    finite = torch.isfinite(lengths).all(-1)
    lengths = torch.where(finite[:, None], lengths, 0.0)
    root = unit_root(torch.where(finite[:, None, None], own, 0.0), lengths).flip(1)
    squares = root.square().sum(-1, keepdim=True)
    scale = torch.where(lengths > 0, 1 / lengths, 0.0)[:, None]
    return torch.where(squares > 0, root / squares, 0.0) * scale, lengths[..., None] * root.mT


def _meeting(cosines: Float64[Tensor, "n r n r"]) -> Int[Tensor, k]:
    """The adapters of which a principal angle with another has a cosine above MEETING."""
    shared = cosines.square().sum((1, 3))
    i, j = torch.nonzero((shared > MEETING**2).triu(1), as_tuple=True)
    blocks = cosines[i, :, j]
    apart = MEETING**2 * torch.eye(cosines.shape[1], dtype=cosines.dtype) - blocks.mT @ blocks
    meet = torch.linalg.cholesky_ex(apart).info != 0
    return torch.cat([i[meet], j[meet]]).unique()


def _padded(
    product: Float64[Tensor, "k k"], ranks: Sequence[int], r: int
) -> Float64[Tensor, "n r n r"]:
    """The matrix with zeros where an adapter has fewer than r rows: [n, r, n, r]."""
    n = len(ranks)
    if len(product) < n * r:
        places = torch.cat([torch.arange(k) + i * r for i, k in enumerate(ranks)])
        small, product = product, product.new_zeros(n * r, n * r)
        product[places[:, None], places] = small
    return product.view(n, r, n, r)


def _products(rows: Float[Tensor, "k length"]) -> Float64[Tensor, "k k"]:
    """rows @ rows^T: [k, k]. Half of a large one is computed, the other half copied."""
    k, length = rows.shape
    step = max(GRAM_ROWS, k // 10)
    gram = torch.zeros(k, k, dtype=torch.float64)
    for start in range(0, k, step):
        stop = min(start + step, k)
        above = gram[start:stop, start:]
        for at in range(0, length, SUMMED):
            part = rows[start:, at : at + SUMMED]
            above += part[:step] @ part.mT
        gram[stop:, start:stop] = above[:, stop - start :].mT
    return gram
