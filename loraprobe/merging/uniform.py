"""uniform: the exact mean of the deltas."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from loraprobe.merging._method import LinearMethod


@dataclass(frozen=True)
class Uniform(LinearMethod):
    """(1/n) sum_i dW_i, whatever weights are given.

    The "parameter averaging" of the reuse papers, on the deltas and not on the factors: averaging
    A and B apart is another method (`factor_average`). Equal to gates of 1/n at run time.
    """

    takes_weights: ClassVar[bool] = False
    formula: ClassVar[str] = "dW = (1/n) sum_i dW_i"
    paper: ClassVar[str] = "Wortsman et al. 2022, Model soups (arXiv 2203.05482)"

    def coefficients(self, weights: Sequence[float], n: int) -> tuple[float, ...]:
        """1/n each."""
        return (1.0 / n,) * n
