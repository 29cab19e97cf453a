"""Scores continuations under several gates at once, each candidate in rows of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from loraprobe.scoring.forward import tail_logits
from loraprobe.scoring.scorer import Scorer


def score_rows(
    scorer: Scorer,
    pairs: Sequence[tuple[str, str]],
    candidates: Sequence[Sequence[float]],
    set_rows: Callable[[Tensor], None],
) -> list[list[float]]:
    """Log-probability of each (prompt, continuation) under each candidate: a list per candidate.

    candidates: gates [n] of the n experts. The scorer's model must carry a composition whose gates
    [rows, n] `set_rows` sets. Otherwise as `Scorer.loglikelihood`.
    """
    gates, copies = torch.tensor(candidates), len(candidates)
    unique = list(dict.fromkeys(pairs))
    encoded = scorer.encoded(unique)
    found: dict[tuple[str, str], list[float]] = {}

    def work(batch: Sequence[int]) -> None:
        set_rows(gates.repeat(len(batch), 1))
        rows = [encoded[i][0][:-1] for i in batch for _ in candidates]
        starts = [encoded[i][1] - 1 for i in batch for _ in candidates]
        logits = tail_logits(scorer.model, rows, starts, scorer.pad)
        for b, i in enumerate(batch):
            ids, start = encoded[i]
            gold = torch.tensor(ids[start:], device=logits[0].device)[:, None]
            # Clamped, so that a logit of -inf gives a finite loss.
            own = [z.float().clamp_min(-1e4) for z in logits[b * copies : (b + 1) * copies]]
            found[unique[i]] = [float(z.log_softmax(-1).gather(-1, gold).sum()) for z in own]

    lengths = [len(ids) * copies for ids, _ in encoded]
    starts = [(start - 1) * copies for _, start in encoded]
    batcher = scorer.batcher.with_copies(copies)
    batches = batcher.split(lengths, starts, scorer.vocab_size)
    scorer.run("score", batches, work, len(unique), batcher)
    return [[found[pair][c] for pair in pairs] for c in range(copies)]
