"""Reads texts through a model for hooks that observe it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from loraprobe.scoring.forward import arguments, padded
from loraprobe.scoring.scorer import Scorer


def read_texts(
    scorer: Scorer,
    texts: Sequence[str],
    observe: Callable[[Tensor | None], None],
    *,
    whole: bool = False,
) -> None:
    """Runs the model over distinct texts, in rows that are padded on the right.

    Before each forward pass, observe(mask [b, n]) gets the tokens that count. After a failed pass,
    observe(None) is called, and its rows are read again in smaller batches: observations of the
    failed pass must be dropped. The first token of a row does not count if others follow, because
    the activations of trained models have another scale there. whole: the head reads every token;
    otherwise only the last, if the model supports it.
    """
    rows = scorer.encoded_prompts(list(dict.fromkeys(texts)))
    model = scorer.model
    options = {} if whole or "logits_to_keep" not in arguments(model) else {"logits_to_keep": 1}

    def work(batch: Sequence[int]) -> None:
        ids, mask = (
            t.to(model.device) for t in padded([rows[i] for i in batch], scorer.pad, "right")
        )
        counted = mask.bool()
        counted[:, 0] &= mask.sum(-1) == 1
        observe(counted)
        try:
            model(input_ids=ids, attention_mask=mask, use_cache=False, **options)
        except Exception:
            observe(None)
            raise

    lengths = [len(row) for row in rows]
    starts, width = ([0] * len(rows), scorer.vocab_size) if whole else (None, 0)
    scorer.run("hidden", scorer.batcher.split(lengths, starts, width), work, len(rows))
