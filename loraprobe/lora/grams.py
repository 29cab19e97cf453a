"""Gram matrices of many adapters, one module at a time.

All that diagnostics need of n updates s_i B_i A_i of one module (norms, inner products, spectra,
angles between their spaces) follows from two matrices of size (n r) x (n r): the Gram matrix of
all rows of all A_i and that of all columns of all B_i. `GramMatrices` is a batch of such modules.
`gram_matrices` makes them: it reads each module of all adapters once, forms the two matrices and
drops the factors, so memory holds a few modules of all adapters and not their files.

A Gram matrix holds squares: in float64 it resolves directions of a factor down to 3e-7 of its
largest, about the precision of a factor stored in float32. Rows of A and columns of B are scaled to
length one first, so that their sizes cost no precision.

The products of an adapter with itself are computed in float64, and so are those of few adapters and
of factors that are stored in float64. Products of two of many adapters are computed in float32,
with sums in float64. Of 16-bit factors each product of two numbers is then exact, and only sums are
rounded: by at most 3e-8 of the lengths of two unrelated vectors in all that was measured, which an
angle between spaces multiplies by the conditions of both factors. So the rows of an adapter are
computed again in float64 where its factor is ill-conditioned, where its space nearly meets that of
another adapter, so that a sum of updates may cancel, and where float32 cannot hold the products.
`docs/precision.md` has the figures.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor

from loraprobe.lora.lowrank import RANK_TOLERANCE, LowRank
from loraprobe.lora.threads import Buffers, in_order

Side = Literal["in", "out"]
Updates = Sequence[LowRank | None]
Factors = Sequence[Float[Tensor, "_ _"] | None]

# Directions of a factor below this share of its largest, squared, are rounding.
GRAM_TOLERANCE = 1e-13
# Pairs of updates whose sums are decomposed together, so that their matrices stay in the cache.
PAIRS = 1 << 11
# Size of the Gram matrices, and of the factors in float32, that are collected into one batch.
BATCH_BYTES = 1 << 24
# Most adapters whose products are all computed in float64: of files in float32, in 16 bits.
FEW, FEW_OF_16_BITS = 32, 4
# A singular vector of an update is a sum of rows of length one. Where the norm of its coefficients
# is larger, products in float32 do not resolve it.
ILL_CONDITIONED = 64.0
# Two spaces nearly meet if a vector of the one has a larger cosine with a vector of the other.
MEETING = 0.99
# Lengths of which float32 holds the products.
LENGTHS = 1e-15, 1e15
# Products that are added in the precision of the factors; their sums are added in float64.
SUMMED = 4096
# Rows of a Gram matrix in float64 of which all entries are computed; of more rows one half is.
GRAM_ROWS = 80


class Spectrum(NamedTuple):
    """The SVD of each update, its singular vectors as combinations of the stored factors.

    S: [m, n, r] descending; left: [m, n, r, r] with U = B @ left; right: [m, n, r, r] with
    Vh = right @ A; rank: [m, n], the number of singular values above rounding. Vectors beyond the
    rank are zero.
    """

    S: Float64[Tensor, "m n r"]
    left: Float64[Tensor, "m n r r"]
    right: Float64[Tensor, "m n r r"]
    rank: Int[Tensor, "m n"]


@dataclass(frozen=True, eq=False)
class GramMatrices:
    """m modules of n adapters. r is the largest rank; smaller ones are padded with zeros.

    grams_in: [m, n, r, n, r], A A^T of all adapters; grams_out: the same of B^T B; scaling,
    rank (as stored, 0 where an adapter lacks the module), finite: [m, n]; shape: [m, n, 2] as
    (out, in). A module with NaN or infinities counts as zero here and is not `finite`. Tensors
    are float64.
    """

    paths: tuple[str, ...]
    grams_in: Float64[Tensor, "m n r n r"]
    grams_out: Float64[Tensor, "m n r n r"]
    scaling: Float64[Tensor, "m n"]
    rank: Int[Tensor, "m n"]
    shape: Int[Tensor, "m n 2"]
    finite: Bool[Tensor, "m n"]

    @property
    def present(self) -> Bool[Tensor, "m n"]:
        """Which adapter adapts which module: [m, n]."""
        return self.rank > 0

    @functools.cached_property
    def comparable(self) -> Bool[Tensor, "m n n"]:
        """Which pairs have no module in two different shapes: [m, n, n]."""
        return (self.shape[:, :, None] == self.shape[:, None, :]).all(-1) | ~self.both

    @functools.cached_property
    def both(self) -> Bool[Tensor, "m n n"]:
        """Which pairs both adapt a module: [m, n, n]."""
        return self.present[:, :, None] & self.present[:, None, :]

    @functools.cached_property
    def inner(self) -> Float64[Tensor, "m n n"]:
        """<dW_i, dW_j> = s_i s_j sum((B_i^T B_j) * (A_i A_j^T)): [m, n, n]."""
        products = (self.grams_in * self.grams_out).sum((2, 4))
        return products * self.scaling[:, :, None] * self.scaling[:, None, :]

    @functools.cached_property
    def square(self) -> Float64[Tensor, "m n"]:
        """||dW_i||_F^2: [m, n]."""
        return self.inner.diagonal(dim1=1, dim2=2).clamp_min(0)

    @functools.cached_property
    def spectrum(self) -> Spectrum:
        """Singular values of every update, and its singular vectors in terms of the factors."""
        own_in, own_out = own_blocks(self.grams_in), own_blocks(self.grams_out)
        a, b = factor_lengths(own_in), factor_lengths(own_out)
        root_in, root_out = unit_root(own_in, a), unit_root(own_out, b)
        middle = self.scaling[..., None] * a * b
        U, S, Vh = torch.linalg.svd(root_out @ (middle[..., None] * root_in.mT))
        above = (RANK_TOLERANCE * S[..., :1] < S) & (S > 0)
        inverse = torch.where(above, 1 / S, 0.0)
        # Vh = S^-1 U^T dW and U = dW V S^-1, with B and A in the bases of the roots.
        right = inverse[..., None] * (U.mT @ root_out) * (self.scaling[..., None] * b)[..., None, :]
        left = (
            (self.scaling[..., None] * a)[..., None] * (root_in.mT @ Vh.mT) * inverse[..., None, :]
        )
        return Spectrum(S, left, right, above.sum(-1))

    def overlap(self, side: Side) -> Float64[Tensor, "m n n"]:
        """||Q_i^T Q_j||_F^2 of the row ("in") or column ("out") spaces of dW: [m, n, n].

        The sum of squared cosines of the principal angles; i = j gives the numerical rank.
        """
        cosines = self.cosines_in if side == "in" else self.cosines_out
        return cosines.square().sum((-2, -1))

    @functools.cached_property
    def cosines_in(self) -> Float64[Tensor, "m n n r r"]:
        """V_i^T V_j of the right singular vectors of every two updates: [m, n, n, r, r]."""
        return _between(self.spectrum.right, self.grams_in)

    @functools.cached_property
    def cosines_out(self) -> Float64[Tensor, "m n n r r"]:
        """U_i^T U_j of the left singular vectors of every two updates: [m, n, n, r, r]."""
        return _between(self.spectrum.left.mT, self.grams_out)

    def sum_energies(
        self, first: Sequence[int] | Tensor, second: Sequence[int] | Tensor
    ) -> Float64[Tensor, "m p k"]:
        """Squared singular values of dW_i + dW_j, descending, for p pairs (i, j): [m, p, 2 r].

        Values that a Gram matrix cannot resolve are 0.
        """
        i, j = torch.as_tensor(first), torch.as_tensor(second)
        m, r, step = len(self.scaling), self.grams_in.shape[2], max(1, PAIRS // len(self.scaling))
        energies = torch.empty(m, len(i), 2 * r, dtype=torch.float64)
        S = self.spectrum.S
        for part in range(0, len(i), step):
            a, b = i[part : part + step], j[part : part + step]
            square = _square_of_sum(
                S[:, a], S[:, b], self.cosines_in[:, a, b], self.cosines_out[:, a, b]
            )
            energies[:, part : part + step] = torch.linalg.eigvalsh(square).flip(-1)
        return torch.where(energies > GRAM_TOLERANCE * energies[..., :1], energies, 0.0)


def _between(
    basis: Float64[Tensor, "m n k r"], gram: Float64[Tensor, "m n r n r"]
) -> Float64[Tensor, "m n n k k"]:
    """Inner products of `basis` times the factors of every two adapters: [m, n, n, k, k]."""
    m, n, k, r = basis.shape
    half = (basis @ gram.view(m, n, r, n * r)).view(m, n * k, n, r)
    whole = half.transpose(1, 2) @ basis.mT  # [m, j, (i k), l]
    return whole.view(m, n, n, k, k).transpose(1, 2)


def own_blocks(grams: Float64[Tensor, "m n r n r"]) -> Float64[Tensor, "m n r r"]:
    """The diagonal blocks of [m, n, r, n, r]: [m, n, r, r]."""
    return grams.diagonal(dim1=1, dim2=3).permute(0, 3, 1, 2)


def factor_lengths(gram: Float64[Tensor, "*batch r r"]) -> Float64[Tensor, "*batch r"]:
    """Lengths of the vectors of a Gram matrix: [..., r]."""
    return gram.diagonal(dim1=-2, dim2=-1).clamp_min(0).sqrt()


def unit_root(
    gram: Float64[Tensor, "*batch r r"], lengths: Float64[Tensor, "*batch r"]
) -> Float64[Tensor, "*batch r r"]:
    """R with R^T R the Gram matrix of the vectors scaled to length one: [..., r, r].

    Directions that are only rounding are zero in R, so that dependent factors are allowed.
    """
    inverse = torch.where(lengths > 0, 1 / lengths, 0.0)
    values, vectors = torch.linalg.eigh(inverse[..., None] * gram * inverse[..., None, :])
    floor = GRAM_TOLERANCE * values[..., -1:].clamp_min(0)
    return torch.where(values > floor, values, 0.0).sqrt()[..., None] * vectors.mT


def _square_of_sum(
    S: Float64[Tensor, "*p r"],
    T: Float64[Tensor, "*p r"],
    right: Float64[Tensor, "*p r r"],
    left: Float64[Tensor, "*p r r"],
) -> Float64[Tensor, "*p k k"]:
    """A symmetric matrix [..., 2 r, 2 r] whose eigenvalues are the energies of a sum of two SVDs.

    Only its lower triangle is filled. One Cholesky factorisation of r x r and these eigenvalues
    replace two eigendecompositions and an SVD for every pair of adapters in every module.

    dW_i + dW_j = [U_i U_j] D [V_i V_j]^T with D = diag(S, T). Its squared singular values are the
    eigenvalues of L^T (D G D) L, where G holds the cosines of [V_i V_j] (`right` off its
    diagonal) and L L^T those of [U_i U_j]: L = [[1, 0], [left^T, K]], K K^T = 1 - left^T left.
    """
    K = _remainder(left)
    cross = T[..., :, None] * right.mT * S[..., None, :]
    below = cross + T.square()[..., None] * left.mT
    upper = left @ below
    upper += cross.mT @ left.mT
    upper.diagonal(dim1=-2, dim2=-1).add_(S.square())
    lower = K.mT @ torch.cat([below, T.square()[..., None] * K], -1)
    return torch.cat([torch.cat([upper, torch.zeros_like(upper)], -1), lower], -2)


def _remainder(cosines: Float64[Tensor, "*p r r"]) -> Float64[Tensor, "*p r r"]:
    """K with K K^T = 1 - C^T C; negative eigenvalues, from rounding where spaces meet, become 0."""
    rest = torch.eye(cosines.shape[-1], dtype=cosines.dtype) - cosines.mT @ cosines
    K, failed = torch.linalg.cholesky_ex(rest)
    where = failed != 0
    if where.any():
        values, vectors = torch.linalg.eigh(rest[where])
        K[where] = vectors * values.clamp_min(0).sqrt()[..., None, :]
    return K


# Reading the factors of many adapters.

Visitor = Callable[[GramMatrices, Sequence[Updates]], None]


def _batches(
    adapters: Sequence[Mapping[str, Any]], paths: Sequence[str], rank: int = 0
) -> list[tuple[str, ...]]:
    """The modules in batches of about BATCH_BYTES; ranks are padded to at least `rank`.

    adapters: module path -> update, or its rank, in_features and out_features, for each adapter.
    """
    batches: list[tuple[str, ...]] = []
    waiting: list[str] = []
    size = 0
    for path in paths:
        updates = [adapter[path] for adapter in adapters if path in adapter]
        waiting.append(path)
        size += 2 * 8 * (len(adapters) * max([rank, *(update.rank for update in updates)])) ** 2
        size += sum(
            4 * update.rank * (update.in_features + update.out_features) for update in updates
        )
        if size >= BATCH_BYTES:
            batches.append(tuple(waiting))
            waiting, size = [], 0
    return [*batches, tuple(waiting)] if waiting else batches


def gram_matrices(
    adapters: Sequence[Mapping[str, LowRank]],
    paths: Sequence[str] | None = None,
    *,
    rank: int = 0,
    visitor: Visitor | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Iterator[GramMatrices]:
    """Read every module of all adapters once and yield the Gram matrices in batches.

    adapters: module path -> update, for each adapter. paths: the modules in order (default: as the
    adapters list them). Ranks are padded to the largest of a batch, or to `rank` if it is larger.
    visitor: called with each batch and the stored updates of its modules, None where an adapter
    lacks one, before the batch is yielded; batches are computed in several threads.
    """
    if paths is None:
        paths = list(dict.fromkeys(path for a in adapters for path in a))
    batches = _batches([getattr(a, "infos", a) for a in adapters], paths, rank)
    buffers = Buffers()

    def batch(part: tuple[Sequence[str], Sequence[Updates]]) -> GramMatrices:
        names, updates = part
        grams = _batch(tuple(names), updates, rank, buffers)
        if visitor is not None:
            visitor(grams, updates)
        return grams

    done = 0
    parts = ((some, [[a.get(path) for a in adapters] for path in some]) for some in batches)
    for grams in in_order(batch, parts):
        done += len(grams.paths)
        if progress is not None:
            progress(done, len(paths))
        yield grams


def of_products(
    path: str,
    updates: Updates,
    products: tuple[Float64[Tensor, "R R"], Float64[Tensor, "R R"]],
    rank: int,
) -> GramMatrices:
    """The matrices of one module whose products of all rows of A, and of B^T, are known already.

    They are padded to `rank`, at least the largest of the updates.
    """
    n, ranks = len(updates), {i: u.rank for i, u in enumerate(updates) if u is not None}
    grams_in, grams_out = torch.zeros(2, 1, n, rank, n, rank, dtype=torch.float64)
    for grams, known in zip((grams_in, grams_out), products, strict=True):
        _place(grams[0], known, ranks)
    return _of_modules((path,), [updates], grams_in, grams_out)


def _batch(
    paths: tuple[str, ...], modules: Sequence[Updates], rank: int, buffers: Buffers
) -> GramMatrices:
    """The Gram matrices of some modules. modules: the updates of all adapters for each."""
    A = [[None if u is None else u.A.detach() for u in updates] for updates in modules]
    B = [[None if u is None else u.B.detach().mT for u in updates] for updates in modules]
    exact = [_in_float64(updates) for updates in modules]
    n, r = len(modules[0]), max(rank, *(u.rank for updates in modules for u in updates if u))
    grams_in, grams_out = torch.zeros(2, len(paths), n, r, n, r, dtype=torch.float64)
    for grams, side in ((grams_in, A), (grams_out, B)):
        for gram, held, in_float64 in zip(grams, side, exact, strict=True):
            _fill(gram, held, in_float64, buffers)
    statistics = _of_modules(paths, modules, grams_in, grams_out)
    if all(exact):
        return statistics
    spectrum, refined = statistics.spectrum, False
    for grams, factors, vectors, cosines in (
        (grams_in, A, spectrum.right, statistics.cosines_in),
        (grams_out, B, spectrum.left.mT, statistics.cosines_out),
    ):
        unsure = ~statistics.finite | _unresolved(vectors, grams) | _meeting(cosines)
        for m, some in enumerate(unsure):
            if some.any() and not exact[m]:
                _refine(grams[m], factors[m], set(some.nonzero().flatten().tolist()))
                refined = True
    return _of_modules(paths, modules, grams_in, grams_out) if refined else statistics


def _of_modules(
    paths: tuple[str, ...],
    modules: Sequence[Updates],
    grams_in: Float64[Tensor, "m n r n r"],
    grams_out: Float64[Tensor, "m n r n r"],
) -> GramMatrices:
    """The matrices with what else is known of their modules; zeros for what is not finite."""
    # A NaN or infinity in a factor makes the length of its row or column NaN or infinite.
    lengths = factor_lengths(own_blocks(grams_in)) + factor_lengths(own_blocks(grams_out))
    finite = torch.isfinite(lengths).all(-1)
    if not finite.all():
        bad = ~finite
        for grams in (grams_in, grams_out):
            grams[bad] = 0.0
            grams.permute(0, 3, 1, 2, 4)[bad] = 0.0
    absent = LowRank(torch.zeros(0, 0), torch.zeros(0, 0), 0.0)
    stored = [[absent if u is None else u for u in updates] for updates in modules]
    scaling = [[float(u.scaling) for u in updates] for updates in stored]
    return GramMatrices(
        paths=paths,
        grams_in=grams_in,
        grams_out=grams_out,
        scaling=torch.tensor(scaling, dtype=torch.float64),
        rank=torch.tensor([[u.rank for u in updates] for updates in stored]),
        shape=torch.tensor(
            [[(u.out_features, u.in_features) for u in updates] for updates in stored]
        ),
        finite=finite,
    )


def _in_float64(updates: Updates) -> bool:
    """Whether all products of a module are computed in float64."""
    factors = [factor for u in updates if u is not None for factor in (u.A, u.B)]
    dtypes = {factor.dtype for factor in factors}
    few = FEW if torch.float32 in dtypes else FEW_OF_16_BITS
    return torch.float64 in dtypes or len(factors) <= 2 * few


# Inner products of the rows of many factors.


def _fill(
    gram: Float64[Tensor, "n r n r"], factors: Factors, exact: bool, buffers: Buffers
) -> None:
    """Writes the inner products of the rows of all factors; rows beyond a factor's stay zero.

    exact: whether all products are computed in float64, else those of two factors in float32.
    Factors with rows of unequal lengths are not multiplied.
    """
    n, r = gram.shape[:2]
    for alike in _by_length(factors):
        starts = [0, *itertools.accumulate(len(factor) for factor in alike.values())]
        length = next(iter(alike.values())).shape[1]
        rows = buffers.empty("rows", starts[-1], length, torch.float64 if exact else torch.float32)
        for start, factor in zip(starts, alike.values(), strict=False):
            rows[start : start + len(factor)].copy_(factor)
        if len(rows) == n * r:
            _multiply(gram.view(n * r, n * r), rows, starts, buffers)
        else:
            products = torch.empty(len(rows), len(rows), dtype=torch.float64)
            _multiply(products, rows, starts, buffers)
            _place(gram, products, {i: len(factor) for i, factor in alike.items()})


def _place(
    gram: Float64[Tensor, "n r n r"], products: Float64[Tensor, "k k"], ranks: Mapping[int, int]
) -> None:
    """Writes products of the rows of some adapters, whose ranks are given by their place."""
    n, r = gram.shape[:2]
    rows = torch.cat([torch.arange(rank) + i * r for i, rank in ranks.items()])
    gram.view(n * r, n * r)[rows[:, None], rows] = products


def _multiply(
    gram: Float64[Tensor, "k k"],
    rows: Float[Tensor, "k length"],
    starts: Sequence[int],
    buffers: Buffers,
) -> None:
    """Writes rows @ rows^T: one half times the other half, and so on within each half.

    starts: the first row of each factor, and the end. Rows in float32 are multiplied with those of
    other factors in float32, SUMMED products at a time, and with their own factor's in float64.
    """
    first, *_, end = starts
    block = rows[first:end]
    if len(starts) == 2 or (rows.dtype == torch.float64 and len(block) <= GRAM_ROWS):
        if rows.dtype != torch.float64:
            block = buffers.empty("own", len(block), block.shape[1], torch.float64).copy_(block)
        torch.mm(block, block.mT, out=gram[first:end, first:end])
        return
    half = len(starts) // 2
    middle = starts[half]
    above = gram[first:middle, middle:end]
    for at in range(0, rows.shape[1], SUMMED):
        part = rows[:, at : at + SUMMED]
        products = part[first:middle] @ part[middle:end].mT
        above.add_(products) if at else above.copy_(products)
    gram[middle:end, first:middle] = above.mT
    _multiply(gram, rows, starts[: half + 1], buffers)
    _multiply(gram, rows, starts[half:], buffers)


def _refine(gram: Float64[Tensor, "n r n r"], factors: Factors, some: set[int]) -> None:
    """Compute the rows and columns of some adapters again, in float64 and in place."""
    for alike in _by_length(factors):
        chosen = {i: len(factor) for i, factor in alike.items() if i in some}
        if chosen:
            rows = torch.cat([alike[i].double() for i in chosen])
            for j, other in alike.items():
                blocks = (rows @ other.double().mT).split(list(chosen.values()))
                for i, block in zip(chosen, blocks, strict=True):
                    gram[i, : len(block), j, : len(other)] = block
                    gram[j, : len(other), i, : len(block)] = block.mT


def _by_length(factors: Factors) -> list[dict[int, Float[Tensor, "_ _"]]]:
    """The factors by the place of their adapter, those with rows of one length together."""
    by_length: dict[int, dict[int, Tensor]] = {}
    for i, factor in enumerate(factors):
        if factor is not None:
            by_length.setdefault(factor.shape[1], {})[i] = factor
    return list(by_length.values())


def _unresolved(
    vectors: Float64[Tensor, "m n k r"], grams: Float64[Tensor, "m n r n r"]
) -> Bool[Tensor, "m n"]:
    """Where float32 does not hold a product, or does not resolve a singular vector.

    vectors: the coefficients of the rows, as they are stored, in the singular vectors.
    """
    lengths = factor_lengths(own_blocks(grams))
    fits = (lengths == 0) | ((LENGTHS[0] < lengths) & (lengths < LENGTHS[1]))
    coefficients = vectors * lengths[:, :, None]
    return (coefficients.square().sum(-1) > ILL_CONDITIONED**2).any(-1) | ~fits.all(-1)


def _meeting(cosines: Float64[Tensor, "m n n k k"]) -> Bool[Tensor, "m n"]:
    """Where a principal angle with another adapter has a cosine above MEETING."""
    m, i, j = torch.nonzero(cosines.square().sum((-2, -1)).triu(1) > MEETING**2, as_tuple=True)
    blocks = cosines[m, i, j]
    apart = MEETING**2 * torch.eye(blocks.shape[-1], dtype=blocks.dtype) - blocks.mT @ blocks
    meet = torch.linalg.cholesky_ex(apart).info != 0
    meeting = torch.zeros(cosines.shape[:2], dtype=torch.bool)
    meeting[m[meet], i[meet]] = True
    meeting[m[meet], j[meet]] = True
    return meeting
