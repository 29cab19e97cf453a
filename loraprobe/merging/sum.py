"""sum: all deltas at full strength."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from loraprobe.merging._method import LinearMethod


@dataclass(frozen=True)
class Sum(LinearMethod):
    """sum_i dW_i, whatever weights are given (`task_arithmetic` takes them).

    What merging the adapters into the base one after the other does. Equal to gates of 1.
    """

    takes_weights: ClassVar[bool] = False
    formula: ClassVar[str] = "dW = sum_i dW_i"
    paper: ClassVar[str] = "Ilharco et al. 2023, Task arithmetic (arXiv 2212.04089)"

    def coefficients(self, weights: Sequence[float], n: int) -> tuple[float, ...]:
        """1 each."""
        return (1.0,) * n

    def default_weights(self, n: int) -> tuple[float, ...]:
        """1 each."""
        return (1.0,) * n
