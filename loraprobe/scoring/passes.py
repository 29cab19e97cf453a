"""Passes of a scorer's model for other ends than one system's scores."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from loraprobe.scoring.forward import arguments, differentiable, padded, tail_logits
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


def loss_with_gradients(
    scorer: Scorer, items: Sequence[Sequence[tuple[str, str]]], shares: Sequence[float]
) -> float:
    """The sum of share * loss over items, and its gradients added to the gates of the composition.

    items: the (prompt, answer) pairs of each; its loss is the smallest of them, in nats a token.
    The scorer's model must carry a composition with gates that require gradients. Raises TaskError
    for a pair that the context cannot hold.
    """
    encoded = [scorer.encoded(pairs) for pairs in items]
    model, total = scorer.model, 0.0

    def work(batch: Sequence[int]) -> None:
        nonlocal total
        rows = [row for i in batch for row in encoded[i]]
        ids, starts = [row[:-1] for row, _ in rows], [start - 1 for _, start in rows]
        logits = iter(tail_logits(model, ids, starts, scorer.pad))
        loss = torch.zeros((), device=model.device)
        for i in batch:
            golds = (torch.tensor(row[start:], device=model.device) for row, start in encoded[i])
            # Clamped, so that a logit of -inf gives a finite loss.
            each = [F.cross_entropy(next(logits).float().clamp_min(-1e4), gold) for gold in golds]
            loss = loss + shares[i] * torch.stack(each).min()
        loss.backward()
        total += loss.item()

    lengths = [sum(len(row) for row, _ in pairs) for pairs in encoded]
    starts = [min(start - 1 for _, start in pairs) for pairs in encoded]
    with differentiable(model):
        for batch in scorer.batcher.split(lengths, starts, scorer.vocab_size):
            scorer.batcher.run(batch, work)
    return total
