"""What several systems write together, token by token, and how likely they find a continuation.

transformers' generate() writes, so caches and positions are kept as it keeps them for one system;
a logits processor makes the members of a voice choose the same token.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from loraprobe.errors import UsageError
from loraprobe.scoring.ensembles import EnsembleRows, LogitEnsemble, Switch
from loraprobe.scoring.forward import padded, read_through, tail_logits
from loraprobe.scoring.generation import first_line, generate_batch


def write_together(
    scorer: Any,
    prompts: Sequence[str],
    voices: Sequence[LogitEnsemble],
    switch: Switch,
    *,
    max_new_tokens: int,
    until_newline: bool = False,
) -> list[list[str]]:
    """What each voice writes after each prompt, greedily: a list a voice, in the given order.

    The scorer's model must carry a composition whose gates `switch` sets. Ends, limits and errors
    are those of `Scorer.generate`.
    """
    if max_new_tokens < 1:
        raise UsageError(f"max_new_tokens must be at least 1, not {max_new_tokens}.")
    choir = EnsembleRows(voices)
    unique = list(dict.fromkeys(prompts))
    ids = scorer.encoder.prompts(unique)
    room = [
        scorer.room(row, prompt, max_new_tokens) for row, prompt in zip(ids, unique, strict=True)
    ]
    found: dict[int, list[str]] = {}

    def work(batch: Sequence[int]) -> None:
        rows = [ids[i] for i in batch]
        made = _batch(scorer, rows, choir, switch, room[batch[0]], until_newline)
        found.update(zip(batch, made, strict=True))

    batcher = scorer.batcher.shared_out(choir.count)
    # Most texts end long before their limit. On a GPU the caches of the longest have to fit; on a
    # CPU fewer, larger batches are worth more.
    spare = 4 if batcher.device.type == "cpu" else 1
    batches = (
        [group[i] for i in batch]
        for size in sorted(set(room), reverse=True)
        for group in ([i for i in range(len(unique)) if room[i] == size],)
        for batch in batcher.split([(len(ids[i]) + size // spare) * choir.count for i in group])
    )
    scorer.run("generate", batches, work, len(unique), batcher)
    place = {prompt: i for i, prompt in enumerate(unique)}
    return [[found[place[prompt]][v] for prompt in prompts] for v in range(len(voices))]


def _batch(
    scorer: Any,
    rows: Sequence[Sequence[int]],
    choir: EnsembleRows,
    switch: Switch,
    max_new_tokens: int,
    until_newline: bool,
) -> list[list[str]]:
    """One list a row, of each voice's text."""
    switch(*choir.rows(len(rows)))
    new = generate_batch(
        scorer.model,
        [row for row in rows for _ in range(choir.count)],
        pad=scorer.pad,
        stops=scorer.stops,
        max_new_tokens=max_new_tokens,
        stopper=scorer.newlines.stopper() if until_newline else None,
        processor=_Choice(choir, len(rows)),
    )
    texts = [
        [scorer.decode(new[b * choir.count + start]) for start in choir.starts]
        for b in range(len(rows))
    ]
    return [[first_line(text) for text in own] for own in texts] if until_newline else texts


class _Choice:
    """A logits processor: the members of a voice get the voice's logits."""

    def __init__(self, choir: EnsembleRows, texts: int) -> None:
        self.choir, self.texts = choir, texts

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        z = scores.float().reshape(self.texts, self.choir.count, -1)
        made = torch.empty_like(z)
        for v, start in enumerate(self.choir.starts):
            own = self.choir.members(z, v)
            together = self.choir.together(own, v)
            made[:, start : start + own.shape[1]] = together[:, None]
        return made.reshape(scores.shape)


def score_together(
    scorer: Any, pairs: Sequence[tuple[str, str]], voices: Sequence[LogitEnsemble], switch: Switch
) -> list[list[float]]:
    """Log-probability of each (prompt, continuation) under each voice: a list a voice.

    As `Scorer.loglikelihood` has it, with logits added before the softmax.
    """
    choir = EnsembleRows(voices)
    unique = list(dict.fromkeys(pairs))
    encoded = scorer.encoder.pairs(unique)
    for (ids, _), (prompt, _) in zip(encoded, unique, strict=True):
        scorer.room(ids[:-1], prompt, 1, " with its answer")
    found: dict[tuple[str, str], list[float]] = {}

    def work(batch: Sequence[int]) -> None:
        switch(*choir.rows(len(batch)))
        rows = [encoded[i][0][:-1] for i in batch for _ in range(choir.count)]
        starts = [encoded[i][1] - 1 for i in batch for _ in range(choir.count)]
        logits = tail_logits(scorer.model, rows, starts, scorer.pad)
        for b, i in enumerate(batch):
            ids, start = encoded[i]
            z = torch.stack(logits[b * choir.count : (b + 1) * choir.count], dim=1).float()
            gold = torch.tensor(ids[start:], device=z.device)[:, None]
            found[unique[i]] = [
                float(choir.together(choir.members(z, v), v).log_softmax(-1).gather(-1, gold).sum())
                for v in range(len(voices))
            ]

    lengths = [len(ids) * choir.count for ids, _ in encoded]
    starts = [(start - 1) * choir.count for _, start in encoded]
    batcher = scorer.batcher.shared_out(choir.count)
    batches = batcher.split(lengths, starts, scorer.vocab_size)
    scorer.run("score", batches, work, len(unique), batcher)
    return [[found[pair][v] for pair in pairs] for v in range(len(voices))]


def read_together(
    scorer: Any,
    pairs: Sequence[tuple[str, str]],
    see: Callable[[Tensor | None], None],
    *,
    whole: bool = False,
) -> None:
    """Reads prompts, each with the continuation that follows it ("" for none), for who watches.

    Rows are padded on the right; before each forward pass see(mask) is told which tokens [b, n]
    are text, and see(None) after one that failed, whose rows are read again in smaller batches:
    what was seen of it must not count. The first token of a row is left out where others follow:
    trained models keep activations of quite another size there. whole: the head too reads every
    token.
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
