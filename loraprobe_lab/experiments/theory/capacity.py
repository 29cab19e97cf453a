"""Facts per rank: the bound of the exact edit, and trained LoRAs.

An exact edit needs the rank of its residual (see `edits`). Training needs less: the right answer
has to be the most likely token, but no exact value is required. Facts are questions about people
unknown to the base, each with its own answer, so that none can be guessed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from loraprobe_lab.experiments.theory import edits
from loraprobe_lab.experiments.theory.fact_store import FactStore, PromptKeys
from loraprobe_lab.training.batches import EpochSampler
from loraprobe_lab.training.train import Recipe, optimise

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


PLACES = {"down": ("down",), "mlp": ("gate", "up", "down")}
EVERYWHERE = "all layers"
Factors = list[Tensor]
Logits = Callable[[Tensor], Tensor]  # rows of the facts -> logits of their answers
Build = Callable[[torch.Generator], tuple[Factors, Logits]]


def train(
    store: FactStore, facts: NewFacts, place: str, rank: int, recipe: Recipe, seed: int
) -> dict[str, Any]:
    """Trains a LoRA of the last layer's `down`, of its MLP, or of all layers by AdamW.

    The loss is that of the answer's token. Returns the recalled facts; the model does not change.
    """
    if place != EVERYWHERE:
        return _trained(_in_layer(store, facts, place, rank), facts, recipe, seed, place, rank)
    from peft import LoraConfig, get_peft_model

    ids = torch.tensor(store.tokenizer(list(facts.prompts))["input_ids"])
    wrapped: list[Any] = []

    def build(generator: torch.Generator) -> tuple[Factors, Logits]:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(torch.randint(2**31, (1,), generator=generator)))
            config = LoraConfig(
                r=rank, lora_alpha=rank, target_modules="all-linear", task_type="CAUSAL_LM"
            )
            wrapped.append(get_peft_model(store.model, config))
        factors = [p for p in wrapped[0].parameters() if p.requires_grad]
        return factors, lambda rows: wrapped[0](
            input_ids=ids[rows], use_cache=False, logits_to_keep=1
        ).logits[:, -1]

    try:
        return _trained(build, facts, recipe, seed, place, rank)
    finally:
        for model in wrapped:
            model.unload()
        store.model.requires_grad_(True)


def _in_layer(store: FactStore, facts: NewFacts, place: str, rank: int) -> Build:
    """Nothing before the layer changes, so a step needs this MLP, the norm and the head alone."""
    small = store.to(torch.float32)
    inputs, before = facts.asked.inputs.float(), facts.asked.before.float()

    def build(generator: torch.Generator) -> tuple[Factors, Logits]:
        lora = {name: _factors(getattr(small, name), rank, generator) for name in PLACES[place]}

        def through(name: str, x: Tensor) -> Tensor:
            out = x @ getattr(small, name).T
            return out + x @ lora[name][0].T @ lora[name][1].T if name in lora else out

        def logits(rows: Tensor) -> Tensor:
            x = inputs[rows]
            key = torch.nn.functional.silu(through("gate", x)) * through("up", x)
            return small.logits(before[rows] + through("down", key))

        return [factor for pair in lora.values() for factor in pair], logits

    return build


def _factors(weight: Tensor, rank: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """A and B as peft initialises them: A uniform (Kaiming, a = sqrt 5), B zero."""
    out, size = weight.shape
    reach = 1 / math.sqrt(size)
    a = (torch.rand(rank, size, generator=generator) * 2 - 1) * reach
    return a.requires_grad_(), torch.zeros(out, rank, requires_grad=True)


def _trained(
    build: Build, facts: NewFacts, recipe: Recipe, seed: int, place: str, rank: int
) -> dict[str, Any]:
    factors, logits = build(torch.Generator().manual_seed(seed))
    sampler = EpochSampler(len(facts), seed)
    recipe = replace(recipe, batch_size=min(recipe.batch_size, len(facts)))

    def next_loss() -> Tensor:
        rows = torch.tensor(sampler.draw(recipe.batch_size))
        return torch.nn.functional.cross_entropy(logits(rows), facts.answers[rows])

    optimise(factors, next_loss, recipe)
    with torch.no_grad():
        parts = torch.arange(len(facts)).split(100)
        said = torch.cat([logits(rows).argmax(-1) for rows in parts])
    share = float((said == facts.answers).double().mean())
    return {
        "place": place,
        "rank": rank,
        "n": len(facts),
        "recalled": share,
        "facts": round(share * len(facts)),
        "parameters": sum(factor.numel() for factor in factors),
    }
