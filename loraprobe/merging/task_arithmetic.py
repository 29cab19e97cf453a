"""task_arithmetic: a weighted sum of the deltas."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from loraprobe.merging._method import LinearMethod


@dataclass(frozen=True)
class TaskArithmetic(LinearMethod):
    """sum_i w_i dW_i, the weights as given, negative ones included; 1/n each if none are given.

    Exactly this, on the deltas: peft's `cat` and full-rank `svd` agree with it, peft's `linear`,
    which weighs A and B apart, does not (`factor_average:variant=peft`).
    """

    formula: ClassVar[str] = "dW = sum_i w_i dW_i"
    paper: ClassVar[str] = "Ilharco et al. 2023, Task arithmetic (arXiv 2212.04089)"
