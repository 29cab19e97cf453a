"""The contract of a sparse method: select entries of each delta, then sum them or elect a sign.

`elect` is the last two steps of TIES: elect a sign per entry, fuse the entries that have it.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch

from loraprobe.merging._method import Deltas, Generators, Matrix, MergeMethod, Weights, weighted_sum
from loraprobe.merging._selection import Selection, fuse

Election = Literal["total", "frequency"]
Voters = Literal["plain", "weighted"]
Divisor = Literal["count", "weights", "none"]


@dataclass(frozen=True)
class SparseMethod(MergeMethod):
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
        for name, value in self.variant_options().items():  # so that `repr` shows what is done
            if getattr(self, name) in (None, "auto"):
                object.__setattr__(self, name, value)

    def variant_options(self) -> Mapping[str, object]:
        """The values of options that were left to the variant (None or "auto")."""
        return {}

    @abstractmethod
    def select(self, deltas: Deltas, generators: Generators) -> tuple[Selection, str]:
        """Which entries are kept, and the norm that each delta keeps ("l1", "l2", "linf")."""

    def combine(self, weights: Weights) -> Callable[[Deltas], Matrix]:
        """The function that combines selected entries [n, rows, q] into [rows, q]."""
        return partial(weighted_sum, weights=weights)

    def __call__(self, deltas: Deltas, weights: Weights, generators: Generators = ()) -> Matrix:
        selection, norm = self.select(deltas, generators)
        return fuse(deltas, selection, self.combine(weights), norm)


@dataclass(frozen=True)
class ElectingMethod(SparseMethod):
    """Entries are selected, a sign is elected per entry, and the entries with that sign are fused.

    election: "total" elects the sign of the sum of the entries (as in the papers), "frequency" the
        sign of the majority.
    normalize: whether the sum of the agreeing entries is divided by their number or by the sum of
        their weights, whichever the variant uses. None leaves the choice to the variant.
    lambda_: a factor of the whole result, written `lambda` on the command line.
    """

    election: Election = "total"
    normalize: bool | None = None
    lambda_: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not math.isfinite(self.lambda_) or self.lambda_ == 0:
            raise ValueError(
                f"lambda, the factor of the result, is finite and not 0, but {self.lambda_}."
            )

    def variant_options(self) -> Mapping[str, object]:
        return {**super().variant_options(), "normalize": True}

    def default_weights(self, n: int) -> tuple[float, ...]:
        """1 each where the sum is divided; else 1/n each, so that the sum is an average."""
        return (1.0 if self.normalize else 1.0 / n,) * n

    def combine(self, weights: Weights) -> Callable[[Deltas], Matrix]:
        # peft elects before it weights the entries and divides by how many agree.
        as_peft = getattr(self, "variant", None) == "peft"
        return partial(
            elect,
            weights=weights,
            election=self.election,
            voters="plain" if as_peft else "weighted",
            divisor="none" if not self.normalize else "count" if as_peft else "weights",
            factor=self.lambda_,
        )


def elect(
    deltas: Deltas,
    weights: Weights,
    election: Election = "total",
    voters: Voters = "weighted",
    divisor: Divisor = "weights",
    factor: float = 1.0,
) -> Matrix:
    """Elect a sign per entry and sum the entries with that sign: [n, p, q], [n] -> [p, q].

    election: the sign of the sum of the entries ("total") or of their majority ("frequency"). A tie
        elects plus. An entry of zero never agrees.
    voters: whether the election uses the entries as they are ("plain") or times their weights.
    divisor: what the sum of the agreeing weighted entries is divided by: how many they are
        ("count"), the sum of their weights ("weights"; 1 where that sum vanishes), or 1 ("none").
    factor: multiplies the result.
    """
    given = weights.tolist()
    leans = given if voters == "weighted" else [1.0] * len(given)
    sums = torch.zeros_like(deltas[0])
    for delta, lean in zip(deltas, leans, strict=True):
        if election == "total":
            sums.add_(delta, alpha=lean)
        else:
            sums.add_(delta.sign(), alpha=(lean > 0) - (lean < 0))
    elected = torch.where(sums >= 0, 1.0, -1.0).to(deltas)
    total, share = torch.zeros_like(sums), torch.zeros_like(sums)
    for delta, lean, weight in zip(deltas, leans, given, strict=True):
        agreeing = torch.mul(delta, elected * lean).clamp_min_(0)
        total.add_(agreeing, alpha=weight if voters == "plain" else 1.0)
        if divisor != "none":
            share.add_(agreeing.sign_(), alpha=1.0 if divisor == "count" else weight)
    total.mul_(elected * factor)
    if divisor == "count":
        total.div_(share.clamp_min_(1))
    elif divisor == "weights":
        # 1 in place of zero, and of what rounding leaves where weights cancel.
        least = 1e-6 * float(weights.abs().max()) if bool((weights < 0).any()) else 0.0
        total.div_(torch.where(share.abs() <= least, 1.0, share))
    return total
