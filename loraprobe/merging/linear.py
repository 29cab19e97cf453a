"""Linear methods: a weighted sum of the deltas."""

from __future__ import annotations

from dataclasses import dataclass

from loraprobe.merging._method import LinearMethod


@dataclass(frozen=True)
class TaskArithmetic(LinearMethod):
    """sum_i w_i dW_i, the weights as given, negative ones included; 1/n each if none are given.

    The sum is that of the deltas. peft's `cat` and full-rank `svd` agree with it; peft's `linear`,
    which combines A and B separately, does not (`factor_average:variant=peft`).
    """

    formula = "dW = sum_i w_i dW_i"
    paper = "Ilharco et al. 2023, Task arithmetic (arXiv 2212.04089)"


@dataclass(frozen=True)
class Uniform(LinearMethod):
    """(1/n) sum_i dW_i, whatever weights are given.

    The "parameter averaging" of the reuse papers, on the deltas and not on the factors: averaging
    A and B separately is another method (`factor_average`). Equal to gates of 1/n at run time.
    """

    takes_weights = False
    formula = "dW = (1/n) sum_i dW_i"
    paper = "Wortsman et al. 2022, Model soups (arXiv 2203.05482)"


@dataclass(frozen=True)
class Sum(LinearMethod):
    """sum_i dW_i, whatever weights are given (`task_arithmetic` takes them).

    The result of merging the adapters into the base one after the other. Equal to gates of 1.
    """

    takes_weights = False
    formula = "dW = sum_i dW_i"
    paper = "Ilharco et al. 2023, Task arithmetic (arXiv 2212.04089)"

    def default_weights(self, n: int) -> tuple[float, ...]:
        """1 each."""
        return (1.0,) * n
