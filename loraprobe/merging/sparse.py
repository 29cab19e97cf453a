"""Sparse methods: select entries of each delta, then sum them or elect a sign.

| selection                                | weighted sum      | election of a sign |
| ---------------------------------------- | ----------------- | ------------------ |
| the largest entries                      | `magnitude_prune` | `ties`             |
| all but the largest and the smallest     | `breadcrumbs`     | `breadcrumbs_ties` |
| at random                                | `dare_linear`     | `dare_ties`        |
| at random, large entries more probably   | `della_linear`    | `della`            |

peft and mergekit implement some of these methods differently; the option `variant` chooses between
their definitions. `rescale` multiplies what was selected: by 1/probability of its selection, or so
that each delta keeps its l1, l2 or linf norm, as mergekit can.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from loraprobe.merging._method import Deltas, Generators
from loraprobe.merging._selection import Selection, at_random, between
from loraprobe.merging._sparse import ElectingMethod, SparseMethod

Variant = Literal["peft", "mergekit"]
Norm = Literal["off", "l1", "l2", "linf"]
Rescale = Literal["auto", "off", "probability", "l1", "l2", "linf"]


# The largest entries.


@dataclass(frozen=True)
class MagnitudePrune(SparseMethod):
    """Keep the largest entries of each delta and take the weighted sum.

    `density` is the share that is kept; weights are 1/n if none are given. `rescale` is off, as in
    peft, or gives what is left of each delta the l1, l2 or linf norm that the delta had. mergekit
    has no method of this name; it has the same `rescale` in its other sparse methods.
    """

    rescale: Norm = "off"

    formula = "dW = sum_i w_i trim(dW_i)"
    paper = "Han et al. 2015, Learning weights and connections (arXiv 1506.02626)"

    def select(self, deltas: Deltas, generators: Generators) -> tuple[Selection, str]:
        return between(deltas, self.density), self.rescale


@dataclass(frozen=True)
class Ties(ElectingMethod):
    """TIES: keep the largest entries of each delta, elect a sign per entry, average what agrees.

    Two methods have this name. `variant="peft"` elects from the entries before they are weighted
    and divides by how many agree, so weights of 1 are the paper's method with lambda = 1, and
    weights of 1/n shrink the result. `variant="mergekit"` elects after weighting and divides by
    the weights of those that agree, so a common factor of the weights cancels and only `lambda`
    scales the result. Without weights (1 each) the two agree. `normalize=false` sums what agrees
    in either variant. `election` is "total" (sign of the sum, as in the paper) or "frequency"
    (sign of the majority). `rescale` (off in both) gives what is left of each delta the l1, l2 or
    linf norm that the delta had, as mergekit can.

    The paper trims to density 0.2 of a model's parameters taken as one vector; here, as in peft
    and mergekit, each module is trimmed separately. int(density p q) entries are kept, and all
    entries as large as the smallest of them. Where the sum is zero, plus is elected. fusion_bench
    keeps one entry more, and gives such entries the sign of the sum of all signs.

    Not supported from mergekit: a density or a weight for each layer, int8_mask (which only saves
    memory), and its thresholds for small numbers, which make the result depend on the unit of the
    weights.

    At density < 1 a single adapter is trimmed too, so the method does not return it unchanged.
    Signs and sizes of entries change with the basis, so TIES in `core` is another method than in
    `full`.
    """

    density: float = 0.2
    variant: Variant = "peft"
    rescale: Norm = "off"

    formula = "dW = mean over {i: sign(T_i) = elected} of w_i T_i, T_i = trim(dW_i)"
    paper = "Yadav et al. 2023, TIES-Merging (arXiv 2306.01708)"

    def select(self, deltas: Deltas, generators: Generators) -> tuple[Selection, str]:
        return between(deltas, self.density), self.rescale


# All but the largest and the smallest entries.


@dataclass(frozen=True)
class _Band(SparseMethod):
    """Entries whose magnitude is neither among the largest nor among the smallest are kept."""

    gamma: float = 0.01
    rescale: Norm = "off"

    paper = "Davari & Belilovsky 2023, Model Breadcrumbs (arXiv 2312.06795)"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.gamma < 1:
            raise ValueError(
                "gamma, the share of largest entries dropped, is at least 0 and below 1, not "
                f"{self.gamma}."
            )

    def select(self, deltas: Deltas, generators: Generators) -> tuple[Selection, str]:
        return between(deltas, self.density, self.gamma), self.rescale


@dataclass(frozen=True)
class Breadcrumbs(_Band):
    """Model Breadcrumbs: drop each delta's largest and smallest entries, take the weighted sum.

    The int(gamma p q) entries of largest magnitude are dropped, and then as many of the smallest
    as leave int(density p q). The counting and the default gamma are mergekit's; peft has no such
    method. The paper drops a share of its own at each end; here the share dropped at the top and
    the share that remains are given. If there are not enough small entries to drop, fewer of the
    largest are dropped. At density 1 nothing is dropped, whatever gamma is. Weights are 1/n if
    none are given. `rescale` is off, as in mergekit, or gives what is left of each delta the l1, l2
    or linf norm that it had.

    Difference to mergekit: if int(gamma p q) is 0 (gamma=0, or a module of few entries), mergekit
    drops everything, by a slice that ends at -0; here no large entry is dropped then. Entries as
    large as a kept one are kept. mergekit's normalize and lambda are factors of the weights.
    """

    formula = "dW = sum_i w_i m_i * dW_i, m_i = 1 between two magnitudes of dW_i"


@dataclass(frozen=True)
class BreadcrumbsTies(_Band, ElectingMethod):
    """The selection of Model Breadcrumbs in place of TIES' trimming, then TIES' election.

    `density`, `gamma` and `rescale` are those of `breadcrumbs`, `election` and `lambda` those of
    `ties`. The combination is mergekit's own, without a paper, and peft has none, so there is one
    variant: entries are weighted, a sign is elected, and the entries with that sign are *summed*,
    with weights of 1/n if none are given; `normalize=true` divides by the weights that agree.
    """

    formula = "dW = sum over {i: sign(w_i M_i) = elected} of w_i M_i, M_i = m_i * dW_i"

    def variant_options(self) -> Mapping[str, object]:
        return {"normalize": False}


# At random (DARE).


@dataclass(frozen=True)
class _Random(SparseMethod):
    """Each entry is kept with the same probability."""

    variant: Variant = "peft"
    rescale: Rescale = "auto"

    paper = "Yu et al. 2024, Language models are super Mario (arXiv 2311.03099)"

    def variant_options(self) -> Mapping[str, object]:
        rescale = "probability" if self.variant == "peft" else "l1"
        return {**super().variant_options(), "rescale": rescale}

    def select(self, deltas: Deltas, generators: Generators) -> tuple[Selection, str]:
        divide = self.rescale == "probability"
        return at_random(self.density, generators, divide), self.rescale


@dataclass(frozen=True)
class DareLinear(_Random):
    """DARE: drop entries of each delta at random, rescale the rest, take the weighted sum.

    An entry is kept with probability `density` (0.5 by default; the paper goes down to 0.1);
    weights are 1/n if none are given. What is kept is rescaled: by 1/density in the paper and in
    `variant="peft"`, so that the expectation over masks is task arithmetic; in
    `variant="mergekit"` (0.1.x; older releases divided by density too) so that each delta keeps
    its l1 norm. `rescale` chooses one by name: probability, l1, l2, linf or off.

    mergekit's normalize and lambda are factors of the weights here: give w_i / sum of w, or
    lambda w_i. One density is used for all adapters and layers.

    A masked delta has full rank, so compression to the sources' ranks removes most of the mask's
    noise and the error that it reports is large. The mask is drawn from the seed, the module and
    the content of the adapter's delta: equal adapters get equal masks.
    """

    formula = "dW = sum_i w_i (m_i * dW_i) / density, m_i ~ Bernoulli(density)"


@dataclass(frozen=True)
class DareTies(_Random, ElectingMethod):
    """DARE's random dropping in place of TIES' trimming, then TIES' election and merge.

    `density`, the masks and `rescale` are those of `dare_linear`, `election` is that of `ties`.
    `variant="peft"` divides what is kept by density, elects before weighting and divides what
    agrees by its count. `variant="mergekit"` keeps each delta's l1 norm, elects after weighting
    and *sums* what agrees, since mergekit does not normalize here by default: `normalize=true`
    divides by the weights that agree. `lambda` scales the result.
    """

    formula = "dW = mean over {i: sign(D_i) = elected} of w_i D_i, D_i = dare(dW_i)"

    def variant_options(self) -> Mapping[str, object]:
        return {**super().variant_options(), "normalize": self.variant == "peft"}


# At random, large entries more probably (DELLA).


@dataclass(frozen=True)
class _RandomByRank(SparseMethod):
    """Each entry is kept with a probability that rises with the rank of its magnitude."""

    epsilon: float = 0.15
    variant: Literal["authors", "mergekit"] = "authors"
    rescale: Rescale = "auto"

    paper = "Deep et al. 2024, DELLA-Merging (arXiv 2406.11617)"

    def __post_init__(self) -> None:
        super().__post_init__()
        widest = min(self.density, 1 - self.density)
        if not self.epsilon >= 0 or (self.density < 1 and not self.epsilon < widest):
            raise ValueError(
                "epsilon, half the width of the window of probabilities, is at least 0 and less "
                f"than density and 1 - density, so below {widest:g} here, not {self.epsilon}."
            )

    def variant_options(self) -> Mapping[str, object]:
        rescale = "l1" if self.variant == "mergekit" else "probability"
        return {**super().variant_options(), "rescale": rescale}

    def select(self, deltas: Deltas, generators: Generators) -> tuple[Selection, str]:
        divide = self.rescale == "probability"
        return at_random(self.density, generators, divide, self.epsilon), self.rescale


@dataclass(frozen=True)
class DellaLinear(_RandomByRank):
    """DELLA's dropping by magnitude and rescaling, then the weighted sum, without an election.

    `density`, `epsilon`, `variant` and `rescale` are those of `della`; weights are 1/n if none are
    given. With `variant="authors"` the expectation over masks is task arithmetic. mergekit's
    normalize and lambda are factors of the weights here: give w_i / sum of w, or lambda w_i.
    """

    formula = "dW = sum_i w_i m_i * dW_i / p_i, m_i ~ Bernoulli(p_i), p_i as in della"


@dataclass(frozen=True)
class Della(_RandomByRank, ElectingMethod):
    """DELLA: drop small entries more likely than large ones, rescale, elect, average what agrees.

    MagPrune ranks the magnitudes within each row of a delta [out, in]. The probability of keeping
    an entry rises evenly with its rank from density - epsilon to density + epsilon (the authors'
    window_size is 2 epsilon; 0.15 is mergekit's default). Then, in every definition, entries are
    weighted, a sign is elected, the weighted entries with that sign are divided by the weights that
    agree (`normalize=false`: they are not), and `lambda` scales the result.

    peft has no DELLA. The two existing definitions differ in how what is kept is rescaled:
    `variant="authors"` (the paper and its code) divides each entry by its own probability of being
    kept, so that the expectation over masks is the delta; `variant="mergekit"` keeps each delta's
    l1 norm. `rescale` chooses one by name: probability, l1, l2, linf or off. At density 1 nothing
    is dropped. `election` is that of `ties`.

    Not supported: the authors' experiments with adaptive lambda and with ranks over a whole layer.
    Rows mean nothing in `core`, so DELLA in `core` is another method than DELLA in `full`.
    """

    formula = (
        "dW = mean over {i: sign(w_i D_i) = elected} of D_i, D_i = m_i * dW_i / p_i, "
        "m_i ~ Bernoulli(p_i), p_i = density + epsilon (2 rank - q - 1) / (q - 1)"
    )
