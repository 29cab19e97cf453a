"""Passes of a scorer's model for other ends than one system's scores."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from loraprobe.scoring.forward import arguments, padded, tail_logits
from loraprobe.scoring.scorer import Scorer


def read_texts(
    scorer: Scorer,
    texts: Sequence[str],
    observe: Callable[[Tensor | None], None],
    *,
    whole: bool = False,
) -> None:
    """Runs the model over distinct texts, in rows that are padded on the right.

    Before each forward pass, observe(mask [b, n]) gets the tokens that count: all but padding.
    After a failed pass, observe(None) is called, and its rows are read again in smaller batches:
    observations of the failed pass must be dropped. whole: the head reads every token; otherwise
    only the last, if the model supports it.
    """
    rows = scorer.encoded_prompts(list(dict.fromkeys(texts)))
    model = scorer.model
    options = {} if whole or "logits_to_keep" not in arguments(model) else {"logits_to_keep": 1}

    done = 0

    def work(batch: Sequence[int]) -> None:
        nonlocal done
        chosen = [rows[i] for i in batch]
        ids, mask = padded(chosen, scorer.pad, "right", model.device)
        observe(mask.bool())
        try:
            model(input_ids=ids, attention_mask=mask, use_cache=False, **options)
        except Exception:
            observe(None)
            raise
        done += len(batch)
        if scorer.progress is not None:
            scorer.progress("read prompts", done, len(rows))

    lengths = [len(row) for row in rows]
    starts, width = ([0] * len(rows), scorer.vocab_size) if whole else (None, 0)
    scorer.run(scorer.batcher.split(lengths, starts, width), work)


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
    scorer.run(batches, work, batcher)
    return [[found[pair][c] for pair in pairs] for c in range(copies)]
