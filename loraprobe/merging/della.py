"""della: drop by magnitude at random, rescale, elect a sign, average what agrees."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch

from loraprobe.merging._election import ElectingMethod
from loraprobe.merging._method import Deltas, Matrix, Weights
from loraprobe.merging._sparse import Rescale, by_rank, check_epsilon, fuse, settle


@dataclass(frozen=True)
class Della(ElectingMethod):
    """DELLA: drop small entries more likely than large ones, rescale, elect, average what agrees.

    MagPrune ranks the magnitudes within each row of a delta [out, in]; the probability of staying
    rises evenly with the rank from density - epsilon to density + epsilon (the authors' window_size
    is 2 epsilon; 0.15 is mergekit's default). Then, in every definition, entries are weighted, a
    sign is elected, the weighted entries that carry it are divided by the weights that agree
    (`normalize=false`: they are not), and `lambda` scales the result.

    peft has no DELLA. The two definitions there are differ in the rescaling of what stays:
    `variant="authors"` (the paper and its code) divides each entry by its own probability of
    staying, so that the expectation over masks is the delta; `variant="mergekit"` keeps each
    delta's l1 norm. `rescale` sets it by name: probability, l1, l2, linf or off. At density 1
    nothing is dropped. `election` as in `ties`.

    Not covered: the authors' experiments with adaptive lambda and with ranks over a whole layer.
    Rows mean nothing in `core`, so DELLA in `core` is another method than DELLA in `full`.
    """

    epsilon: float = 0.15
    variant: Literal["authors", "mergekit"] = "authors"
    rescale: Rescale = "auto"

    formula: ClassVar[str] = (
        "dW = mean over {i: sign(w_i D_i) = elected} of D_i, D_i = m_i * dW_i / p_i, "
        "m_i ~ Bernoulli(p_i), p_i = density + epsilon (2 rank - q - 1) / (q - 1)"
    )
    paper: ClassVar[str] = "Deep et al. 2024, DELLA-Merging (arXiv 2406.11617)"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_epsilon(self.density, self.epsilon)
        settle(self, normalize=True, rescale="l1" if self.variant == "mergekit" else "probability")

    def __call__(
        self, deltas: Deltas, weights: Weights, generators: Sequence[torch.Generator] = ()
    ) -> Matrix:
        divide = self.rescale == "probability"
        kept = by_rank(self.density, self.epsilon, generators, divide)
        return fuse(deltas, kept, self.elected(weights), self.rescale)
