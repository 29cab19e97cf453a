"""Ensembles: systems whose next-token logits are added, and how they generate and score.

Every system reads the same text in its own row, so one forward pass computes all of them. An
ensemble with one member is that system itself, so several systems can share a batch.

transformers' generate() keeps caches and positions as it does for one system. A logits processor
gives all members of an ensemble the same logits, so they choose the same token.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from loraprobe.scoring.forward import tail_logits
from loraprobe.scoring.generation import Written
from loraprobe.scoring.scorer import Scorer

SetRows = Callable[[Tensor, Tensor], None]  # sets gates [rows, n] and lead [rows]


@dataclass(frozen=True)
class LogitEnsemble:
    """Several systems with common logits sum_j weights[j] z_j; z_j are those of member j.

    gates: [k][n], the gates of the n experts for each of the k members. With several members, the
    first is the base.
    """

    gates: tuple[tuple[float, ...], ...]
    weights: tuple[float, ...]

    @classmethod
    def added(cls, gates: Sequence[float]) -> LogitEnsemble:
        """z0 + sum_i (z_i - z0): the base's logits plus each expert's effect at its gate.

        gates: [n].
        """
        n = len(gates)
        alone = [tuple(gate if j == i else 0.0 for j in range(n)) for i, gate in enumerate(gates)]
        return cls(((0.0,) * n, *alone), (1.0 - n, *(1.0,) * n))


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
        """The common logits [..., vocab] of an ensemble, from those of its members.

        They are added one after the other: einsum transposes the vocabulary, which took longer than
        the model's own pass.
        """
        first, *others = self.ensembles[ensemble].weights
        total = members[..., 0, :] * first
        for k, weight in enumerate(others, 1):
            total.add_(members[..., k, :], alpha=weight)
        return total


def write_together(
    scorer: Scorer,
    prompts: Sequence[str],
    ensembles: Sequence[LogitEnsemble],
    set_rows: SetRows,
    *,
    max_new_tokens: int,
    until_newline: bool = False,
    until: Callable[[str], bool] | None = None,
) -> list[list[Written]]:
    """The greedy continuation of each prompt by each ensemble: a list per ensemble.

    The scorer's model must carry a composition whose gates `set_rows` sets. Ends, limits and errors
    are those of `Scorer.write_all`.
    """
    order = EnsembleRows(ensembles)

    def write(rows: list[list[int]], most: int) -> list[list[Written]]:
        set_rows(*order.rows(len(rows)))
        texts = scorer.write(
            [row for row in rows for _ in range(order.count)],
            most,
            until_newline,
            until,
            processor=_CommonLogits(order, len(rows)),
        )
        return [[texts[b * order.count + s] for s in order.starts] for b in range(len(rows))]

    # Most texts end long before their limit. On a GPU the caches of the longest must fit; on a CPU
    # fewer and larger batches are faster.
    spare = 4 if scorer.batcher.device.type == "cpu" else 1
    found = scorer.each_prompt(prompts, max_new_tokens, write, copies=order.count, spare=spare)
    return [[texts[e] for texts in found] for e in range(len(ensembles))]


class _CommonLogits:
    """A logits processor that gives the members of an ensemble the ensemble's logits."""

    def __init__(self, order: EnsembleRows, texts: int) -> None:
        self.order, self.texts = order, texts

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        z = scores.float().reshape(self.texts, self.order.count, -1)
        made = torch.empty_like(z)
        for e, start in enumerate(self.order.starts):
            own = self.order.members(z, e)
            together = self.order.together(own, e)
            made[:, start : start + own.shape[1]] = together[:, None]
        return made.reshape(scores.shape)


def score_together(
    scorer: Scorer,
    pairs: Sequence[tuple[str, str]],
    ensembles: Sequence[LogitEnsemble],
    set_rows: SetRows,
) -> list[list[float]]:
    """Log-probability of each (prompt, continuation) under each ensemble: a list per ensemble.

    As in `Scorer.loglikelihood`, but logits are added before the softmax.
    """
    order = EnsembleRows(ensembles)
    unique = list(dict.fromkeys(pairs))
    encoded = scorer.encoded(unique)
    found: dict[tuple[str, str], list[float]] = {}

    def work(batch: Sequence[int]) -> None:
        set_rows(*order.rows(len(batch)))
        rows = [encoded[i][0][:-1] for i in batch for _ in range(order.count)]
        starts = [encoded[i][1] - 1 for i in batch for _ in range(order.count)]
        logits = tail_logits(scorer.model, rows, starts, scorer.pad)
        for b, i in enumerate(batch):
            ids, start = encoded[i]
            z = torch.stack(logits[b * order.count : (b + 1) * order.count], dim=1).float()
            gold = torch.tensor(ids[start:], device=z.device)[:, None]
            found[unique[i]] = [
                float(order.together(order.members(z, e), e).log_softmax(-1).gather(-1, gold).sum())
                for e in range(len(ensembles))
            ]

    lengths = [len(ids) * order.count for ids, _ in encoded]
    starts = [(start - 1) * order.count for _, start in encoded]
    batcher = scorer.batcher.with_copies(order.count)
    batches = batcher.split(lengths, starts, scorer.vocab_size)
    scorer.run("score", batches, work, len(unique), batcher)
    return [[found[pair][e] for pair in pairs] for e in range(len(ensembles))]
