"""Ensembles: systems whose next-token logits are added, and their rows in one batch.

Every system reads the same text in its own row, so one forward pass computes all of them. An
ensemble with one member is that system itself, so several systems can share a batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Switch = Callable[[Tensor, Tensor], None]  # sets gates [rows, n] and lead [rows]


@dataclass(frozen=True)
class LogitEnsemble:
    """Several systems with common logits sum_j weights[j] z_j; z_j are those of member j.

    gates: [k][n], the gates of the n experts for each of the k members. With several members, the
    first is the base.
    """

    gates: tuple[tuple[float, ...], ...]
    weights: tuple[float, ...]

    @classmethod
    def alone(cls, i: int, n: int, gate: float = 1.0) -> LogitEnsemble:
        """The i-th of n experts alone, at a gate."""
        return cls((_one(i, n, gate),), (1.0,))

    @classmethod
    def added(cls, gates: Sequence[float]) -> LogitEnsemble:
        """z0 + sum_i (z_i - z0): the base's logits plus each expert's effect at its gate.

        gates: [n].
        """
        n = len(gates)
        members = ((0.0,) * n, *(_one(i, n, gate) for i, gate in enumerate(gates)))
        return cls(members, (1.0 - n, *(1.0,) * n))


def _one(i: int, n: int, gate: float) -> tuple[float, ...]:
    return tuple(gate if j == i else 0.0 for j in range(n))


class EnsembleRows:
    """The order of rows in a batch: texts, within a text ensembles, within them members."""

    def __init__(self, ensembles: Sequence[LogitEnsemble]) -> None:
        self.ensembles = tuple(ensembles)
        sizes = [len(ensemble.gates) for ensemble in ensembles]
        self.starts = tuple(sum(sizes[:v]) for v in range(len(ensembles)))
        self.count = sum(sizes)  # rows a text

    def rows(self, texts: int) -> tuple[Tensor, Tensor]:
        """gates [rows, n], and for each row the index of its ensemble's first member [rows]."""
        gates = torch.tensor([gates for ensemble in self.ensembles for gates in ensemble.gates])
        first = [
            start
            for start, ensemble in zip(self.starts, self.ensembles, strict=True)
            for _ in ensemble.gates
        ]
        steps = torch.arange(texts)[:, None] * self.count
        return gates.repeat(texts, 1), (steps + torch.tensor(first)).reshape(-1)

    def members(self, z: Tensor, ensemble: int) -> Tensor:
        """The logits of one ensemble's members: [..., k, vocab] of z [..., count, vocab].

        They are clamped, so that a logit of -inf gives no NaN when it is weighed.
        """
        start = self.starts[ensemble]
        return z[..., start : start + len(self.ensembles[ensemble].gates), :].clamp_min(-1e4)

    def together(self, members: Tensor, ensemble: int) -> Tensor:
        """The common logits [..., vocab] of an ensemble, from those of its members."""
        weights = torch.tensor(self.ensembles[ensemble].weights).to(members)
        return torch.einsum("...kv,k->...v", members, weights)
