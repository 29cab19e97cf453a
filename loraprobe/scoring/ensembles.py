"""Voices: systems whose next-token logits are added, and their rows in one batch.

Every system reads the same text in a row of its own, so one forward pass serves all of them. A
voice with one member is that system by itself, so that many systems can answer side by side.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Switch = Callable[[Tensor, Tensor], None]  # gates [rows, n], lead [rows]; before a forward pass


@dataclass(frozen=True)
class LogitEnsemble:
    """Systems that speak as one: logits = sum_j weights[j] z_j, z_j those of member j.

    gates: [k][n], the gates of the n experts for each of the k members. Where there is more than
    one member, the first is what the others' effects are measured from (the base).
    """

    gates: tuple[tuple[float, ...], ...]
    weights: tuple[float, ...]

    @classmethod
    def alone(cls, i: int, n: int, gate: float = 1.0) -> LogitEnsemble:
        """The i-th of n experts at a gate, speaking for itself."""
        return cls((_one(i, n, gate),), (1.0,))

    @classmethod
    def added(cls, gates: Sequence[float]) -> LogitEnsemble:
        """z0 + sum_i (z_i - z0): each expert's effect at its own gate, added to the base's logits.

        gates: [n].
        """
        n = len(gates)
        members = ((0.0,) * n, *(_one(i, n, gate) for i, gate in enumerate(gates)))
        return cls(members, (1.0 - n, *(1.0,) * n))


def _one(i: int, n: int, gate: float) -> tuple[float, ...]:
    return tuple(gate if j == i else 0.0 for j in range(n))


class EnsembleRows:
    """The members of several voices as rows: for each text, for each voice, its members."""

    def __init__(self, voices: Sequence[LogitEnsemble]) -> None:
        self.voices = tuple(voices)
        sizes = [len(voice.gates) for voice in voices]
        self.starts = tuple(sum(sizes[:v]) for v in range(len(voices)))
        self.count = sum(sizes)  # rows a text

    def rows(self, texts: int) -> tuple[Tensor, Tensor]:
        """gates [rows, n], and for each row the index of its voice's first member [rows]."""
        gates = torch.tensor([gates for voice in self.voices for gates in voice.gates])
        first = [
            start
            for start, voice in zip(self.starts, self.voices, strict=True)
            for _ in voice.gates
        ]
        steps = torch.arange(texts)[:, None] * self.count
        return gates.repeat(texts, 1), (steps + torch.tensor(first)).reshape(-1)

    def members(self, z: Tensor, voice: int) -> Tensor:
        """The logits of one voice's members: [..., k, vocab] of z [..., count, vocab].

        Clamped, so that a token which a model rules out (-inf) gives no NaN when weighed.
        """
        start = self.starts[voice]
        return z[..., start : start + len(self.voices[voice].gates), :].clamp_min(-1e4)

    def together(self, members: Tensor, voice: int) -> Tensor:
        """What a voice says: [..., vocab] of its members' logits."""
        weights = torch.tensor(self.voices[voice].weights).to(members)
        return torch.einsum("...kv,k->...v", members, weights)
