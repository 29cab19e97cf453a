"""How many facts a rank holds: the bound of the exact edit, and LoRAs that were trained.

An exact edit needs the rank of its residual (see `edits`). Training asks for less: the right
answer has to come first, not a value to be met. Facts are questions about people the base does
not know, each with an answer of its own, so that none can be guessed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from loraprobe_lab.theory import edits
from loraprobe_lab.theory.store import Asked, Store
from loraprobe_lab.train import EpochSampler, learning_rate_at

Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Lessons:
    """N prompts, what reaches the layer for each, and the tokens of their answers [N]."""

    prompts: tuple[str, ...]
    asked: Asked
    answers: Tensor

    @classmethod
    def of(cls, store: Store, prompts: Sequence[str], answers: Sequence[str]) -> Lessons:
        return cls(tuple(prompts), store.ask(prompts), store.token(answers))

    def __len__(self) -> int:
        return len(self.answers)

    def first(self, count: int) -> Lessons:
        return Lessons(self.prompts[:count], self.asked[:count], self.answers[:count])


def bound(store: Store, lessons: Lessons, kind: str, counts: Sequence[int],
          ranks: Sequence[int], known: tuple[Asked, Tensor]) -> Rows:  # fmt: skip
    """The exact edit of the first N facts for each N, and its best approximations of low rank.

    `residual rank` bounds the rank of every exact edit from below; `edit rank` is what the least
    one has; `error` is the largest relative error of a value that it writes. `recalled` maps a
    rank to the share of facts recalled with the best edit of that rank. `kept` is the share of
    `known` answers (prompts, tokens) that are still given.
    """
    rows: Rows = []
    for count in counts:
        some = lessons.first(count)
        keys, changes = some.asked.keys, store.towards(some.asked, some.answers)
        edit = edits.exact(keys, changes)
        error = (keys @ edit.T - changes).norm(dim=-1) / changes.norm(dim=-1)
        asked, answers = known
        still = store.says(asked, asked.keys @ edit.T) == answers
        low = {rank: edits.of_rank(keys, changes, rank) for rank in ranks}
        rows.append(
            {
                "facts": kind,
                "n": count,
                "answers": len(set(some.answers.tolist())),
                "residual rank": edits.rank(changes),
                "rank of 99 % energy": edits.rank_of_energy(changes),
                "edit rank": edits.rank(edit),
                "error": float(error.max()),
                "norm": float(edit.norm() / store.down.norm()),
                "kept": float(still.double().mean()),
                "recalled": {rank: _recalled(store, some, e) for rank, e in low.items()},
            }
        )
    return rows


def _recalled(store: Store, lessons: Lessons, edit: Tensor) -> float:
    said = store.says(lessons.asked, lessons.asked.keys @ edit.T)
    return float((said == lessons.answers).double().mean())


@dataclass(frozen=True)
class Training:
    """AdamW on the answer's token. `rates` are tried one after the other until all is recalled."""

    steps: int = 500
    batch_size: int = 64
    rates: tuple[float, ...] = (1e-2, 3e-3)
    warmup: int = 20


PLACES = {"down": ("down",), "mlp": ("gate", "up", "down")}


def train_in_layer(store: Store, lessons: Lessons, place: str, rank: int, training: Training,
                   seed: int) -> dict[str, Any]:  # fmt: skip
    """Trains a LoRA of the last layer's `down` or of its whole MLP; the best rate counts.

    Nothing before the layer changes, so a step needs this MLP, the norm and the head alone.
    """
    small = store.to(torch.float32)
    inputs, before = lessons.asked.inputs.float(), lessons.asked.before.float()

    def build(generator: torch.Generator) -> tuple[list[Tensor], Callable[[Tensor], Tensor]]:
        lora = {name: _factors(getattr(small, name), rank, generator) for name in PLACES[place]}

        def through(name: str, x: Tensor) -> Tensor:
            out = x @ getattr(small, name).T
            return out + x @ lora[name][0].T @ lora[name][1].T if name in lora else out

        def logits(rows: Tensor) -> Tensor:
            x = inputs[rows]
            key = torch.nn.functional.silu(through("gate", x)) * through("up", x)
            return small.logits(before[rows] + through("down", key))

        return [factor for pair in lora.values() for factor in pair], logits

    return _best(build, lessons, training, seed, place, rank)


def train_everywhere(store: Store, lessons: Lessons, rank: int, training: Training,
                     seed: int) -> dict[str, Any]:  # fmt: skip
    """Trains a LoRA of all linear layers with peft; the model is left as it was."""
    from peft import LoraConfig, get_peft_model

    ids = torch.tensor(store.tokenizer(list(lessons.prompts))["input_ids"])
    model = store.model
    wrapped: list[Any] = []

    def build(generator: torch.Generator) -> tuple[list[Tensor], Callable[[Tensor], Tensor]]:
        while wrapped:
            wrapped.pop().unload()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(torch.randint(2**31, (1,), generator=generator)))
            config = LoraConfig(r=rank, lora_alpha=rank, target_modules="all-linear",
                                task_type="CAUSAL_LM")  # fmt: skip
            wrapped.append(get_peft_model(model, config))
        factors = [p for p in wrapped[0].parameters() if p.requires_grad]
        return factors, lambda rows: wrapped[0](
            input_ids=ids[rows], use_cache=False, logits_to_keep=1
        ).logits[:, -1]

    try:
        return _best(build, lessons, training, seed, "all layers", rank)
    finally:
        while wrapped:
            wrapped.pop().unload()
        model.requires_grad_(True)


def _factors(weight: Tensor, rank: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """A and B as peft initialises them: A uniform (Kaiming, a = sqrt 5), B zero."""
    out, size = weight.shape
    reach = 1 / math.sqrt(size)
    a = (torch.rand(rank, size, generator=generator) * 2 - 1) * reach
    return a.requires_grad_(), torch.zeros(out, rank, requires_grad=True)


def _best(build: Callable, lessons: Lessons, training: Training, seed: int, place: str,
          rank: int) -> dict[str, Any]:  # fmt: skip
    """Trains with each rate until one recalls everything; the row of the best."""
    best: dict[str, Any] = {}
    for rate in training.rates:
        generator = torch.Generator().manual_seed(seed)
        factors, logits = build(generator)
        _train(factors, logits, lessons.answers, training, rate, seed)
        with torch.no_grad():
            said = torch.cat([logits(rows).argmax(-1) for rows in _parts(len(lessons))])
        share = float((said == lessons.answers).double().mean())
        if not best or share > best["recalled"]:
            best = {"place": place, "rank": rank, "n": len(lessons), "recalled": share,
                    "facts": round(share * len(lessons)), "learning rate": rate,
                    "parameters": sum(factor.numel() for factor in factors)}  # fmt: skip
        if share == 1:
            break
    return best


def _parts(count: int) -> Iterator[Tensor]:
    yield from torch.arange(count).split(100)


def _train(factors: list[Tensor], logits: Callable[[Tensor], Tensor], answers: Tensor,
           training: Training, rate: float, seed: int) -> None:  # fmt: skip
    optimiser = torch.optim.AdamW(factors, lr=rate, weight_decay=0.0)
    sampler = EpochSampler(len(answers), seed)
    size = min(training.batch_size, len(answers))
    for step in range(training.steps):
        for group in optimiser.param_groups:
            group["lr"] = rate * learning_rate_at(step, training.steps, training.warmup)
        rows = torch.tensor(sampler.draw(size))
        loss = torch.nn.functional.cross_entropy(logits(rows), answers[rows])
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(factors, 1.0)
        optimiser.step()
