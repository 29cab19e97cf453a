"""Facts per rank: the bound of the exact edit, and trained LoRAs.

An exact edit needs the rank of its residual (see `edits`). Training needs less: the right answer
has to be the most likely token, but no exact value is required. Facts are questions about people
unknown to the base, each with its own answer, so that none can be guessed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from loraprobe_lab.experiments.theory import edits
from loraprobe_lab.experiments.theory.fact_store import FactStore, PromptKeys
from loraprobe_lab.training.batches import IGNORED
from loraprobe_lab.training.train import Recipe, trained

Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class NewFacts:
    """N prompts, the layer's inputs and keys for them, and the tokens of their answers [N]."""

    prompts: tuple[str, ...]
    asked: PromptKeys
    answers: Tensor

    @classmethod
    def of(cls, store: FactStore, prompts: Sequence[str], answers: Sequence[str]) -> NewFacts:
        return cls(tuple(prompts), store.read(prompts), store.token(answers))

    def __len__(self) -> int:
        return len(self.answers)

    def first(self, count: int) -> NewFacts:
        return NewFacts(self.prompts[:count], self.asked[:count], self.answers[:count])


def bound(
    store: FactStore,
    facts: NewFacts,
    kind: str,
    counts: Sequence[int],
    ranks: Sequence[int],
    known: tuple[PromptKeys, Tensor],
) -> Rows:
    """The exact edit of the first N facts for each N, and its best approximations of low rank.

    `residual rank` bounds the rank of every exact edit from below; `edit rank` is what the least
    one has; `error` is the largest relative error of a value that it writes. `recalled` maps a
    rank to the share of facts recalled with the best edit of that rank. `kept` is the share of
    `known` answers (prompts, tokens) that are still given.
    """
    return [{"facts": kind, **_edit(store, facts.first(n), ranks, known)} for n in counts]


def _edit(
    store: FactStore, facts: NewFacts, ranks: Sequence[int], known: tuple[PromptKeys, Tensor]
) -> dict[str, Any]:
    """The figures of the exact edit of these facts; see `bound`."""

    def right(asked: PromptKeys, answers: Tensor, edit: Tensor) -> float:
        return float((store.predicted(asked, asked.keys @ edit.T) == answers).double().mean())

    keys, changes = facts.asked.keys, store.changes(facts.asked, facts.answers)
    edit = edits.exact(keys, changes)
    error = (keys @ edit.T - changes).norm(dim=-1) / changes.norm(dim=-1)
    low = {rank: edits.of_rank(keys, changes, rank) for rank in ranks}
    return {
        "n": len(facts),
        "answers": len(set(facts.answers.tolist())),
        "residual rank": edits.rank(changes),
        "rank of 99 % energy": edits.rank_of_energy(changes),
        "edit rank": edits.rank(edit),
        "error": float(error.max()),
        "norm": float(edit.norm() / store.down.norm()),
        "kept": right(*known, edit),
        "recalled": {r: right(facts.asked, facts.answers, e) for r, e in low.items()},
    }


# the modules of a place, and how many of the last layers it has (None: all)
PLACES: dict[str, tuple[str | tuple[str, ...], int | None]] = {
    "down": (("down_proj",), 1),
    "mlp": ("mlp", 1),
    "all layers": ("all-linear", None),
}


def train(
    store: FactStore, facts: NewFacts, place: str, rank: int, recipe: Recipe, seed: int
) -> dict[str, Any]:
    """Trains a LoRA of the last layer's `down`, of its MLP, or of all layers by AdamW.

    The loss is that of the answer's token. Returns the recalled facts; the model does not change.
    """
    (targets, upper), size = PLACES[place], min(recipe.batch_size, len(facts))
    recipe = replace(recipe, rank=rank, seed=seed, target_modules=targets, upper=upper)
    prompts = store.tokenizer(list(facts.prompts))["input_ids"]
    rows = [
        ([*prompt, answer], [IGNORED] * len(prompt) + [answer])
        for prompt, answer in zip(prompts, facts.answers.tolist(), strict=True)
    ]
    pad = store.tokenizer.pad_token_id
    with trained(store.model, rows, replace(recipe, batch_size=size), pad) as (wrapped, _):
        with torch.no_grad():
            parts = torch.tensor(prompts).split(100)
            logits = [wrapped(input_ids=ids, use_cache=False).logits[:, -1] for ids in parts]
        count = sum(p.numel() for p in wrapped.parameters() if p.requires_grad)
    share = float((torch.cat(logits).argmax(-1) == facts.answers).double().mean())
    return {
        "place": place,
        "rank": rank,
        "n": len(facts),
        "recalled": share,
        "facts": round(share * len(facts)),
        "parameters": count,
    }
