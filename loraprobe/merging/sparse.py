"""Sparse methods: select entries of each delta, then sum them or elect a sign.

| selection                                | weighted sum      | election of a sign |
| ---------------------------------------- | ----------------- | ------------------ |
| the largest entries                      | `magnitude_prune` | `ties`             |
| all but the largest and the smallest     | `breadcrumbs`     | `breadcrumbs_ties` |
| at random                                | `dare_linear`     | `dare_ties`        |
| at random, large entries more probably   | `della_linear`    | `della`            |
| where the adapters differ most           |                   | `sce`              |

peft and mergekit implement some of these methods differently; the option `variant` chooses between
their definitions. A selection gives the deltas in blocks of rows, so besides them and the result
no matrix of full size is held.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor

from loraprobe.merging._method import Deltas, Generators, Matrix, MergeMethod, Weights, weighted_sum

Variant = Literal["peft", "mergekit"]
Divisor = Literal["count", "weights", "none"]
Block = Float[Tensor, "n _ q"]  # some rows of the deltas

# Entries of all adapters in one block of rows, so that temporaries fit into the cache.
BLOCK = 1 << 18
# Entries processed together, so that they fit into the cache.
COUNTED = 1 << 17
# Entries of a sample that brackets a magnitude.
SAMPLE = 1 << 16
# Below this number of entries numpy's selection is used directly.
FEW = 1 << 18


@dataclass(frozen=True)
class _Sparse(MergeMethod):
    """Entries of each delta are selected and summed with the weights."""

    density: float = 0.5

    # Not "identity": a single adapter is made sparse too.
    laws = frozenset({"order", "gauge", "homogeneity"})

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.density <= 1:
            raise ValueError(
                f"density, the share of entries kept, is above 0 and at most 1, not {self.density}."
            )

    @abstractmethod
    def select(self, deltas: Deltas, generators: Generators) -> Iterable[Block]:
        """The deltas with zeros for the entries that are dropped, in blocks [n, rows, q]."""

    def __call__(self, deltas: Deltas, weights: Weights, generators: Generators = ()) -> Matrix:
        selected = self.select(deltas, generators)
        return torch.cat([weighted_sum(block, weights) for block in selected])


@dataclass(frozen=True)
class _Electing(_Sparse):
    """Entries are selected, a sign is elected per entry, and the entries with that sign are fused.

    lambda_: a factor of the whole result, written `lambda` on the command line.
    """

    lambda_: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not math.isfinite(self.lambda_) or self.lambda_ == 0:
            raise ValueError(
                f"lambda, the factor of the result, is finite and not 0, but {self.lambda_}."
            )

    @property
    @abstractmethod
    def divisor(self) -> Divisor:
        """What the sum of the entries that agree is divided by (`elect`)."""

    def default_weights(self, n: int) -> tuple[float, ...]:
        """1 each where the sum is divided; else 1/n each, so that the sum is an average."""
        return (1.0 / n if self.divisor == "none" else 1.0,) * n

    def __call__(self, deltas: Deltas, weights: Weights, generators: Generators = ()) -> Matrix:
        # peft, which divides by the count, elects before it weights the entries.
        votes = torch.ones_like(weights) if self.divisor == "count" else weights
        selected = self.select(deltas, generators)
        return elect(selected, weights, votes, self.divisor).mul_(self.lambda_)


# The largest entries.


@dataclass(frozen=True)
class MagnitudePrune(_Sparse):
    """Keep the largest entries of each delta and take the weighted sum.

    `density` is the share that is kept; weights are 1/n if none are given. This is peft's method;
    mergekit has none of this name.
    """

    formula = "dW = sum_i w_i trim(dW_i)"
    paper = "Han et al. 2015, Learning weights and connections (arXiv 1506.02626)"

    def select(self, deltas: Deltas, generators: Generators) -> Iterable[Block]:
        return between(deltas, self.density)


@dataclass(frozen=True)
class Ties(_Electing, MagnitudePrune):
    """TIES: keep the largest entries of each delta, elect a sign per entry, average what agrees.

    Two methods have this name. `variant="peft"` elects from the entries before they are weighted
    and divides by how many agree, so weights of 1 are the paper's method with lambda = 1, and
    weights of 1/n shrink the result. `variant="mergekit"` elects after weighting and divides by
    the weights of those that agree, so a common factor of the weights cancels and only `lambda`
    scales the result. Without weights (1 each) the two agree. The sign that is elected is that of
    the sum, as in the paper.

    The paper trims to density 0.2 of a model's parameters taken as one vector; here, as in peft
    and mergekit, each module is trimmed separately. int(density p q) entries are kept, and all
    entries as large as the smallest of them. Where the sum is zero, plus is elected. fusion_bench
    keeps one entry more, and gives such entries the sign of the sum of all signs.

    Not supported: peft's election by the majority of signs; from mergekit a density or a weight
    for each layer, normalize, rescale, int8_mask (which only saves memory), and its thresholds for
    small numbers, which make the result depend on the unit of the weights.

    At density < 1 a single adapter is trimmed too, so the method does not return it unchanged.
    Signs and sizes of entries change with the basis, so TIES in `core` is another method than in
    `full`.
    """

    density: float = 0.2
    variant: Variant = "peft"

    formula = "dW = mean over {i: sign(T_i) = elected} of w_i T_i, T_i = trim(dW_i)"
    paper = "Yadav et al. 2023, TIES-Merging (arXiv 2306.01708)"

    @property
    def divisor(self) -> Divisor:
        return "count" if self.variant == "peft" else "weights"


# All but the largest and the smallest entries.


@dataclass(frozen=True)
class Breadcrumbs(_Sparse):
    """Model Breadcrumbs: drop each delta's largest and smallest entries, take the weighted sum.

    The int(gamma p q) entries of largest magnitude are dropped, and then as many of the smallest
    as leave int(density p q). The counting and the default gamma are mergekit's; peft has no such
    method. The paper drops a share of its own at each end; here the share dropped at the top and
    the share that remains are given. If there are not enough small entries to drop, fewer of the
    largest are dropped. At density 1 nothing is dropped, whatever gamma is. Weights are 1/n if
    none are given.

    Difference to mergekit: if int(gamma p q) is 0 (gamma=0, or a module of few entries), mergekit
    drops everything, by a slice that ends at -0; here no large entry is dropped then. Entries as
    large as a kept one are kept. mergekit's normalize and lambda are factors of the weights.
    """

    gamma: float = 0.01

    formula = "dW = sum_i w_i m_i * dW_i, m_i = 1 between two magnitudes of dW_i"
    paper = "Davari & Belilovsky 2023, Model Breadcrumbs (arXiv 2312.06795)"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.gamma < 1:
            raise ValueError(
                "gamma, the share of largest entries dropped, is at least 0 and below 1, not "
                f"{self.gamma}."
            )

    def select(self, deltas: Deltas, generators: Generators) -> Iterable[Block]:
        return between(deltas, self.density, self.gamma)


@dataclass(frozen=True)
class BreadcrumbsTies(_Electing, Breadcrumbs):
    """The selection of Model Breadcrumbs in place of TIES' trimming, then TIES' election.

    `density` and `gamma` are those of `breadcrumbs`, `lambda` scales the result. The combination is
    mergekit's own, without a paper, and peft has none, so there is one variant: entries are
    weighted, a sign is elected, and the entries with that sign are *summed*, with weights of 1/n if
    none are given.
    """

    formula = "dW = sum over {i: sign(w_i M_i) = elected} of w_i M_i, M_i = m_i * dW_i"

    @property
    def divisor(self) -> Divisor:
        return "none"


# At random (DARE).


@dataclass(frozen=True)
class DareLinear(_Sparse):
    """DARE: drop entries of each delta at random, rescale the rest, take the weighted sum.

    An entry is kept with probability `density` (0.5 by default; the paper goes down to 0.1);
    weights are 1/n if none are given. What is kept is rescaled: by 1/density in the paper and in
    `variant="peft"`, so that the expectation over masks is task arithmetic; in
    `variant="mergekit"` (0.1.x; older releases divided by density too) so that each delta keeps
    its l1 norm.

    mergekit's normalize and lambda are factors of the weights here: give w_i / sum of w, or
    lambda w_i. One density is used for all adapters and layers.

    A masked delta has full rank, so compression to the sources' ranks removes most of the mask's
    noise and the error that it reports is large. The mask is drawn from the seed, the module and
    the content of the adapter's delta: equal adapters get equal masks.
    """

    variant: Variant = "peft"

    takes_generators = True
    formula = "dW = sum_i w_i (m_i * dW_i) / density, m_i ~ Bernoulli(density)"
    paper = "Yu et al. 2024, Language models are super Mario (arXiv 2311.03099)"

    def select(self, deltas: Deltas, generators: Generators) -> Iterable[Block]:
        chances = partial(chances_of, density=self.density, epsilon=None)
        return at_random(deltas, chances, generators, self.variant == "mergekit")


@dataclass(frozen=True)
class DareTies(_Electing, DareLinear):
    """DARE's random dropping in place of TIES' trimming, then TIES' election and merge.

    `density` and the masks are those of `dare_linear`. `variant="peft"` divides what is kept by
    density, elects before weighting and divides what agrees by its count. `variant="mergekit"`
    keeps each delta's l1 norm, elects after weighting and *sums* what agrees, since mergekit does
    not normalize here by default. `lambda` scales the result.
    """

    formula = "dW = mean over {i: sign(D_i) = elected} of w_i D_i, D_i = dare(dW_i)"

    @property
    def divisor(self) -> Divisor:
        return "count" if self.variant == "peft" else "none"


# At random, large entries more probably (DELLA).


@dataclass(frozen=True)
class DellaLinear(_Sparse):
    """DELLA's dropping by magnitude and rescaling, then the weighted sum, without an election.

    `density`, `epsilon` and `variant` are those of `della`; weights are 1/n if none are given. With
    `variant="authors"` the expectation over masks is task arithmetic. mergekit's normalize and
    lambda are factors of the weights here: give w_i / sum of w, or lambda w_i.
    """

    epsilon: float = 0.15
    variant: Literal["authors", "mergekit"] = "authors"

    takes_generators = True
    formula = "dW = sum_i w_i m_i * dW_i / p_i, m_i ~ Bernoulli(p_i), p_i as in della"
    paper = "Deep et al. 2024, DELLA-Merging (arXiv 2406.11617)"

    def __post_init__(self) -> None:
        super().__post_init__()
        widest = min(self.density, 1 - self.density)
        if not self.epsilon >= 0 or (self.density < 1 and not self.epsilon < widest):
            raise ValueError(
                "epsilon, half the width of the window of probabilities, is at least 0 and less "
                f"than density and 1 - density, so below {widest:g} here, not {self.epsilon}."
            )

    def select(self, deltas: Deltas, generators: Generators) -> Iterable[Block]:
        if self.density == 1:
            return in_blocks(deltas)
        chances = partial(chances_of, density=self.density, epsilon=self.epsilon)
        return at_random(deltas, chances, generators, self.variant == "mergekit")


@dataclass(frozen=True)
class Della(_Electing, DellaLinear):
    """DELLA: drop small entries more likely than large ones, rescale, elect, average what agrees.

    MagPrune ranks the magnitudes within each row of a delta [out, in]. The probability of keeping
    an entry rises evenly with its rank from density - epsilon to density + epsilon (the authors'
    window_size is 2 epsilon; 0.15 is mergekit's default). Then, in every definition, entries are
    weighted, a sign is elected, the weighted entries with that sign are divided by the weights that
    agree, and `lambda` scales the result.

    peft has no DELLA. The two existing definitions differ in how what is kept is rescaled:
    `variant="authors"` (the paper and its code) divides each entry by its own probability of being
    kept, so that the expectation over masks is the delta; `variant="mergekit"` keeps each delta's
    l1 norm. At density 1 nothing is dropped.

    Not supported: the authors' experiments with adaptive lambda and with ranks over a whole layer.
    Rows mean nothing in `core`, so DELLA in `core` is another method than DELLA in `full`.
    """

    formula = (
        "dW = mean over {i: sign(w_i D_i) = elected} of D_i, D_i = m_i * dW_i / p_i, "
        "m_i ~ Bernoulli(p_i), p_i = density + epsilon (2 rank - q - 1) / (q - 1)"
    )

    @property
    def divisor(self) -> Divisor:
        return "weights"


# Where the adapters differ most (SCE).


@dataclass(frozen=True)
class Sce(MergeMethod):
    """SCE: weight each adapter by its energy where the adapters differ most, then elect signs.

    Select: of the entries whose variance over the adapters is not zero, the int(select_topk count)
    of largest variance (all, by default), and zero in place of the others. Calculate: the weight of
    an adapter is its share of the squares of the selected entries, so given weights are not used.
    Erase: the sign of the plain sum is elected per entry (a tie elects plus), and the entries that
    carry it are averaged by these weights.

    That is mergekit's definition. In the code of its authors (FuseChat) the selection decides only
    the weights and every entry is fused; the two agree at select_topk = 1.

    Differences to mergekit: it uses equal weights if the mean squares of the deltas sum to less
    than 1e-6, which is so in all examined modules of five of six published GPT-2 adapters, and
    divides by at least 1e-6; here the unit of the deltas does not matter. Where no entry differs (a
    single adapter, equal ones) all are selected here and none there. All entries with as much
    variance as a selected one are selected.
    """

    select_topk: float = 1.0

    laws = frozenset({"identity", "order", "gauge", "homogeneity"})
    takes_weights = False
    formula = (
        "dW = sum over {i: sign(S_i) = sign(sum S)} of e_i S_i / sum of these e_i, "
        "e_i = ||S_i||^2, S_i = dW_i where the variance is among the largest"
    )
    paper = "Wan et al. 2024, FuseChat (arXiv 2408.07990)"

    def __post_init__(self) -> None:
        if not 0 < self.select_topk <= 1:
            raise ValueError(
                "select_topk, the share of entries selected, is above 0 and at most 1, not "
                f"{self.select_topk}."
            )

    def __call__(self, deltas: Deltas, weights: Weights, generators: Generators = ()) -> Matrix:
        selected = largest_variance(deltas, self.select_topk)
        energies = norms(selected, 2).square()
        shares = torch.nan_to_num(energies / energies.sum(), nan=1 / len(deltas))
        return elect(in_blocks(selected), shares, torch.ones_like(shares), "weights")


def largest_variance(deltas: Deltas, share: float) -> Deltas:
    """The entries of largest variance over the adapters, the same entries of each adapter."""
    if share == 1:
        return deltas
    variances = torch.cat([variance(block) for block in in_blocks(deltas)])
    count = int(torch.count_nonzero(variances))
    if count == 0:
        return deltas
    place = variances.numel() - max(1, int(share * count))
    least = float(magnitudes_at(variances.flatten().numpy(), [place])[0])
    return deltas * (variances >= least)


def variance(deltas: Deltas) -> Matrix:
    """The variance of each entry over the adapters, divided by n: [n, p, q] -> [p, q].

    Computed from the differences to the first adapter, so it is exactly 0 where all are equal.
    torch.var over a short first dimension takes ten times as long.
    """
    apart = deltas - deltas[0]
    return (apart - apart.mean(0)).square().mean(0)


def norms(deltas: Deltas, order: float) -> Float64[Tensor, n]:
    """The norm of each delta as a vector: [n]."""
    return torch.linalg.vector_norm(deltas, order, dim=(1, 2), dtype=torch.float64)


# The election of a sign.


def elect(blocks: Iterable[Block], weights: Weights, votes: Weights, divisor: Divisor) -> Matrix:
    """Elect a sign per entry and sum the entries with that sign.

    blocks: of rows of the deltas, [n, rows, q]. Returns [p, q].

    The sign is that of the sum of the entries, each times its adapter's vote. A tie elects plus. An
    entry of zero never agrees.

    divisor: what the sum of the agreeing weighted entries is divided by: how many they are
        ("count"), the sum of their weights ("weights"; 1 where that sum vanishes), or 1 ("none").
    """
    # What rounding leaves of weights that cancel counts as zero.
    least = 1e-6 * float(weights.abs().max()) if bool((weights < 0).any()) else 0.0
    return torch.cat([_elected(block, weights, votes, divisor, least) for block in blocks])


def _elected(
    deltas: Deltas, weights: Weights, votes: Weights, divisor: Divisor, least: float
) -> Matrix:
    sums = torch.zeros_like(deltas[0])
    for delta, vote in zip(deltas, votes.tolist(), strict=True):
        sums.add_(delta, alpha=vote)
    elected = torch.where(sums >= 0, 1.0, -1.0).to(deltas)
    total, share = torch.zeros_like(sums), torch.zeros_like(sums)
    for delta, weight, vote in zip(deltas, weights.tolist(), votes.tolist(), strict=True):
        sign = math.copysign(1.0, vote)
        agreeing = torch.mul(delta, elected * sign).clamp_min_(0)
        total.add_(agreeing, alpha=weight * sign)
        if divisor != "none":
            share.add_(agreeing.sign_(), alpha=1.0 if divisor == "count" else weight)
    total.mul_(elected)
    if divisor == "none":
        return total
    return total.div_(torch.where(share.abs() <= least, 1.0, share))


def in_blocks(deltas: Deltas) -> tuple[Block, ...]:
    """Views [n, rows, q] that together are the deltas [n, p, q]."""
    return deltas.split(max(1, BLOCK // max(1, deltas[:, 0].numel())), dim=1)


# Selections.


def between(deltas: Deltas, density: float, gamma: float = 0.0) -> Iterator[Block]:
    """Keep int(density p q) entries of each delta by magnitude, at least one.

    The int(gamma p q) largest are dropped first, then the smallest; with gamma 0 the largest are
    kept. If there are not enough small entries to drop, fewer of the largest are dropped. All
    entries as large as a kept one are kept, so the order in memory does not matter.
    """
    entries = deltas[0].numel()
    kept = max(1, int(density * entries))
    if kept == entries:
        yield from in_blocks(deltas)
        return
    top = min(int(gamma * entries), entries - kept)
    places = [entries - kept - top, entries - top - 1]
    flat = [delta.contiguous().view(-1).numpy() for delta in deltas]
    with ThreadPoolExecutor(torch.get_num_threads()) as threads:  # one for each delta
        limits = threads.map(partial(magnitudes_at, places=places[: 2 if top else 1]), flat)
    # hardshrink keeps what is strictly above its bound, and the smallest kept magnitude stays.
    bounds = [(float(np.nextafter(low, low.dtype.type(0))), *highs) for low, *highs in limits]
    shrink = torch.nn.functional.hardshrink
    for block in in_blocks(deltas):
        selected = torch.empty_like(block)
        for out, rows, (low, *highs) in zip(selected, block, bounds, strict=True):
            out.copy_(shrink(rows, low))
            for high in highs:  # the largest entries are dropped again
                out.sub_(shrink(rows, float(high)))
        yield selected


def at_random(
    deltas: Deltas, chances: Callable[[Matrix], Tensor], generators: Generators, keep_norm: bool
) -> Iterable[Block]:
    """Keep each entry with the probability that `chances` gives it.

    Entries are divided by that probability or, with `keep_norm`, multiplied so that each delta
    keeps its l1 norm, as in mergekit.
    """
    blocks = (_drawn(block, chances, generators, not keep_norm) for block in in_blocks(deltas))
    if not keep_norm:
        return blocks
    selected = torch.cat([*blocks], dim=1)
    ratios = torch.nan_to_num(norms(deltas, 1) / norms(selected, 1), nan=1.0, posinf=1.0)
    return in_blocks(selected.mul_(ratios.to(deltas)[:, None, None]))


def _drawn(
    block: Block, chances: Callable[[Matrix], Tensor], generators: Generators, divide: bool
) -> Block:
    selected = torch.empty_like(block)
    for out, rows, generator in zip(selected, block, generators, strict=True):
        chance = chances(rows)
        torch.mul(rows, uniform(rows.shape, generator) < chance, out=out)
        if divide:
            out.div_(chance)
    return selected


def chances_of(delta: Matrix, density: float, epsilon: float | None) -> Tensor:
    """The probability of keeping each entry: [p, q] -> [p, q] float64; density without epsilon.

    With epsilon it is density - epsilon for the smallest magnitude of each row, density + epsilon
    for the largest, in even steps; density where a row has one entry.
    """
    if epsilon is None:
        return torch.tensor(density, dtype=torch.float64)
    steps = np.linspace(-epsilon, epsilon, delta.shape[1]) if delta.shape[1] > 1 else np.zeros(1)
    order = np.argsort(delta.abs().numpy(), axis=1)
    chances = np.empty(delta.shape, dtype=np.float64)
    np.put_along_axis(chances, order, density + steps[None], axis=1)
    return torch.from_numpy(chances)


def uniform(shape: torch.Size, generator: torch.Generator) -> Tensor:
    """Random numbers in [0, 1) of a shape."""
    return torch.rand(shape, generator=generator, dtype=torch.float32)


# Order statistics of magnitudes, without sorting all of them.


def magnitudes_at(entries: np.ndarray, places: Sequence[int]) -> np.ndarray:
    """|entries| at these places of the ascending order, exactly; entries: [n], places: [k].

    A sample gives a bracket for each; one pass counts the magnitudes below the bracket and collects
    those inside it, so only these few are sorted. Where the bracket misses, or most entries are
    equal, numpy's selection is used, in a fifth of the time of torch.kthvalue or torch.topk.
    """
    if len(entries) < FEW:
        return _selected(np.abs(entries), places)
    sample = np.sort(np.abs(entries[:: max(1, len(entries) // SAMPLE)]))
    return np.array([_at(entries, place, sample) for place in places], dtype=entries.dtype)


def _at(entries: np.ndarray, place: int, sample: np.ndarray) -> np.floating:
    share = place / len(entries)
    margin = 4 * math.sqrt(share * (1 - share) * len(sample)) + 2
    low = sample[max(0, int(share * len(sample) - margin))]
    high = sample[min(len(sample) - 1, int(share * len(sample) + margin))]
    below, inside = _bracketed(entries, low, high)
    if below <= place < below + len(inside):
        return _selected(inside, [place - below])[0]
    return _selected(np.abs(entries), [place])[0]


def _bracketed(entries: np.ndarray, low: np.floating, high: np.floating) -> tuple[int, np.ndarray]:
    """How many magnitudes lie below `low`, and those from `low` to `high`."""
    memory = np.empty(min(COUNTED, len(entries)), entries.dtype)
    below, inside = 0, []
    for start in range(0, len(entries), COUNTED):
        block = entries[start : start + COUNTED]
        magnitudes = np.abs(block, out=memory[: len(block)])
        under = magnitudes < low
        below += int(np.count_nonzero(under))
        inside.append(magnitudes[(magnitudes <= high) ^ under])
    return below, np.concatenate(inside)


def _selected(magnitudes: np.ndarray, places: Sequence[int]) -> np.ndarray:
    magnitudes.partition(places)
    return magnitudes[list(places)]
