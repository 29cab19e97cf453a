"""Generation and scoring with ensembles of systems whose logits are added.

transformers' generate() keeps caches and positions as it does for one system. A logits processor
gives all members of an ensemble the same logits, so they choose the same token.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from loraprobe.scoring.ensembles import EnsembleRows, LogitEnsemble, Switch
from loraprobe.scoring.forward import padded, read_through, tail_logits
from loraprobe.scoring.scorer import Scorer


def write_together(
    scorer: Scorer,
    prompts: Sequence[str],
    ensembles: Sequence[LogitEnsemble],
    switch: Switch,
    *,
    max_new_tokens: int,
    until_newline: bool = False,
) -> list[list[str]]:
    """The greedy continuation of each prompt by each ensemble: a list per ensemble.

    The scorer's model must carry a composition whose gates `switch` sets. Ends, limits and errors
    are those of `Scorer.generate`.
    """
    order = EnsembleRows(ensembles)

    def write(rows: list[list[int]], most: int) -> list[list[str]]:
        switch(*order.rows(len(rows)))
        texts = scorer.write(
            [row for row in rows for _ in range(order.count)],
            most,
            until_newline,
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
    switch: Switch,
) -> list[list[float]]:
    """Log-probability of each (prompt, continuation) under each ensemble: a list per ensemble.

    As in `Scorer.loglikelihood`, but logits are added before the softmax.
    """
    order = EnsembleRows(ensembles)
    unique = list(dict.fromkeys(pairs))
    encoded = scorer.encoded(unique)
    found: dict[tuple[str, str], list[float]] = {}

    def work(batch: Sequence[int]) -> None:
        switch(*order.rows(len(batch)))
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
    batcher = scorer.batcher.shared_out(order.count)
    batches = batcher.split(lengths, starts, scorer.vocab_size)
    scorer.run("score", batches, work, len(unique), batcher)
    return [[found[pair][e] for pair in pairs] for e in range(len(ensembles))]


def read_together(
    scorer: Scorer,
    pairs: Sequence[tuple[str, str]],
    see: Callable[[Tensor | None], None],
    *,
    whole: bool = False,
) -> None:
    """Runs the model over prompts and their continuations ("" for none), for hooks that observe it.

    Rows are padded on the right. Before each forward pass, see(mask [b, n]) gets the tokens that
    count. After a failed pass, see(None) is called, and its rows are read again in smaller batches:
    observations of the failed pass must be dropped. The first token of a row does not count if
    others follow, because the activations of trained models have another scale there. whole: the
    head also reads every token.
    """
    unique = list(dict.fromkeys(pairs))
    alone = scorer.encoder.prompts([prompt for prompt, _ in unique])
    follow = [pair for pair in unique if pair[1].strip()]
    known = dict(zip(follow, (ids for ids, _ in scorer.encoder.pairs(follow)), strict=True))
    rows = [known.get(pair, ids) for pair, ids in zip(unique, alone, strict=True)]
    for row, (prompt, _) in zip(rows, unique, strict=True):
        scorer.room(row, prompt, 1)

    def work(batch: Sequence[int]) -> None:
        ids, mask = padded([rows[i] for i in batch], scorer.pad, "right")
        counted = mask.bool()
        counted[:, 0] &= mask.sum(-1) == 1
        see(counted.to(scorer.model.device))
        try:
            read_through(scorer.model, ids, mask, whole)
        except Exception:
            see(None)
            raise

    lengths = [len(row) for row in rows]
    starts, width = ([0] * len(rows), scorer.vocab_size) if whole else (None, 0)
    scorer.run("hidden", scorer.batcher.split(lengths, starts, width), work, len(rows))
