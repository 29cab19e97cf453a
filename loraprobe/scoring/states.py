"""The hidden states from which a model's head predicts given tokens, and how they are kept.

The head of most models is linear, so the logits of any token follow from a state: z = W h + b. The
states of each adapter alone are therefore enough for the logits of every set of adapters whose
effects are added, and they are as wide as the model, not as its vocabulary.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from loraprobe.scoring.forward import tail_logits
from loraprobe.scoring.likelihood import likelihood
from loraprobe.scoring.scorer import Scorer

TOP = 4  # first choices that are kept at each position
TOLERANCE = 0.02  # of the largest logit: 16-bit rounding stays below it, a soft cap does not

TokenRow = tuple[tuple[int, ...], int]  # token ids, and the index of the first that is predicted


@dataclass(frozen=True)
class States:
    """What predicts the tokens of rows, row after row: position `start - 1` to the last one.

    hidden [p, width] float16: inputs of the head. top [p, TOP] int64: the tokens of the largest
    logits, the largest first. total [p] float32: the log-sum-exp of all logits. linear: whether the
    head of the base alone explains the logits; False for a soft cap and for an adapter of the head.
    """

    hidden: Tensor
    top: Tensor
    total: Tensor
    linear: bool

    @classmethod
    def joined(cls, parts: Sequence[States]) -> States:
        """The states of several readings as those of one, in their order."""
        hidden, top, total = (
            torch.cat([getattr(one, name) for one in parts]) for name in ("hidden", "top", "total")
        )
        return cls(hidden, top, total, all(one.linear for one in parts))

    def save(self, path: Path, mark: str) -> None:
        """Writes the states, all or nothing; raises OSError. mark: says of what they are."""
        path.parent.mkdir(parents=True, exist_ok=True)
        tensors = {"hidden": self.hidden, "top": self.top, "total": self.total}
        part = path.with_suffix(".part")
        # a full disk has another error in safetensors
        part.write_bytes(save(tensors, {"mark": mark, "linear": str(int(self.linear))}))
        os.replace(part, path)

    @classmethod
    def load(cls, path: Path, mark: str) -> States | None:
        """The states in a file; None without a whole file of this mark."""
        try:
            with safe_open(path, "pt") as file:
                known = file.metadata() or {}
                if known.get("mark") != mark:
                    return None
                held = {name: file.get_tensor(name) for name in ("hidden", "top", "total")}
        except (OSError, SafetensorError):
            return None
        return cls(**held, linear=known.get("linear") == "1")


def linear_head(model: Any) -> tuple[Tensor, Tensor | None] | None:
    """Weight [vocab, width] and bias of a model's head; None unless it is one plain matrix."""
    head = model.get_output_embeddings()
    weight = getattr(head, "weight", None)
    if not isinstance(weight, Tensor) or weight.ndim != 2 or not weight.is_floating_point():
        return None
    if weight.device.type == "meta":  # accelerate has it elsewhere
        return None
    return weight.detach(), getattr(head, "bias", None)


def first_states(rows: Sequence[TokenRow]) -> list[int]:
    """The index of each row's first state, and after the last row the number of all states."""
    places = [0]
    for ids, start in rows:
        places.append(places[-1] + len(ids) - start + 1)
    return places


def read_states(
    scorer: Scorer, rows: Sequence[TokenRow], texts: Sequence[Sequence[tuple[int, ...]]]
) -> tuple[States, list[list[float]]]:
    """One pass of the scorer's model over rows, and the log-probabilities of each row's texts.

    texts: of each row, the token ids that may follow ids[:start]; a row holds all of a text but its
    last token. The model has to have a linear head (`linear_head`). Raises OutOfMemory if one row
    does not fit.
    """
    kept: dict[int, tuple[Tensor, ...]] = {}
    scores: dict[int, list[float]] = {}
    head = linear_head(scorer.model)
    assert head is not None

    def work(batch: Sequence[int]) -> None:
        read = _tails(scorer, [rows[i] for i in batch])
        for i, (hidden, logits) in zip(batch, read, strict=True):
            kept[i] = _kept(hidden, logits, head)
            golds = [torch.tensor(text, device=logits.device) for text in texts[i]]
            scores[i] = [likelihood(logits[: len(gold)], gold).logprob for gold in golds]

    lengths, starts = [len(ids) for ids, _ in rows], [start - 1 for _, start in rows]
    batches = scorer.batcher.split(lengths, starts, scorer.vocab_size)
    scorer.run(batches, work)
    parts = zip(*(kept[i] for i in range(len(rows))), strict=True)
    hidden, top, total, linear = (torch.cat(part) for part in parts)
    return States(hidden, top, total, bool(linear.all())), [scores[i] for i in range(len(rows))]


def _tails(scorer: Scorer, rows: Sequence[TokenRow]) -> Iterator[tuple[Tensor, Tensor]]:
    """For each row the head's inputs and the model's logits, from position start - 1 on."""
    model, caught = scorer.model, list[Tensor]()
    head = model.get_output_embeddings()
    hook = head.register_forward_pre_hook(lambda _, args: caught.append(args[0]))
    starts = [start - 1 for _, start in rows]
    try:
        logits = tail_logits(model, [ids for ids, _ in rows], starts, scorer.pad)
    finally:
        hook.remove()
    width = max(len(ids) for ids, _ in rows)
    first = width - caught[-1].shape[1]  # the head may have seen the last positions only
    for i, ((ids, _), start) in enumerate(zip(rows, starts, strict=True)):
        yield caught[-1][i, start - first : len(ids) - first], logits[i]


def _kept(hidden: Tensor, logits: Tensor, head: tuple[Tensor, Tensor | None]) -> tuple[Tensor, ...]:
    weight, bias = head
    logits = logits.float()
    top = logits.topk(min(TOP, logits.shape[-1]), -1)
    found = torch.einsum("pkw,pw->pk", weight[top.indices].float(), hidden.float())
    if bias is not None:
        found = found + bias[top.indices].float()
    least = TOLERANCE * logits.abs().amax() + TOLERANCE
    linear = ((found - top.values).abs() <= least).all(-1)
    total = logits.logsumexp(-1)
    return hidden.half().cpu(), top.indices.cpu(), total.cpu(), linear.cpu()
