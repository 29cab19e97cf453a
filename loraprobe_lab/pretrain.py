"""The small bases of the lab: what the base of the fact worlds reads; training from scratch."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from loraprobe_lab.facts import (
    CITY_QUESTIONS,
    CITY_SENTENCES,
    NUMBERS,
    SPOUSE_QUESTIONS,
    SPOUSE_SENTENCES,
    TARGET_QUESTIONS,
    Facts,
    Link,
    ask,
    tell,
)
from loraprobe_lab.train import Example, ProgressCallback, collate, encode, optimise

MEETING = "{first} met {second}."


@dataclass(frozen=True)
class BaseRecipe:
    """Shape and training of the base. `steps` counts optimiser steps of `batch_size` texts.

    architecture: "llama" (rotary positions, RMS norm, gated MLP, no biases) or "gpt2" (learned
    positions, layer norm, plain MLP, Conv1D layers with biases).
    """

    hidden: int = 160
    layers: int = 4
    heads: int = 4
    intermediate: int = 400
    initial: float = 0.08  # standard deviation of the initial weights, about 1/sqrt(hidden)
    steps: int = 900
    batch_size: int = 48
    learning_rate: float = 3e-3
    warmup: int = 100
    weight_decay: float = 0.01
    clip: float = 1.0
    seed: int = 0
    architecture: str = "llama"

    def as_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


class Corpus:
    """An endless stream of pretraining texts.

    Sentences about familiar people in pairs (one fact in two wordings, or two unrelated facts),
    questions with one hop, composed questions answered at once, and meetings, in which every
    name of the world occurs. No text holds worked steps. The loss is taken where a text can be
    foreseen, not on the names that it opens with.

    held: familiar couples of whom no composed question is asked, only both its hops. rare:
    familiar couples of whom everything is told and asked a share `rarity` as often as of others.
    """

    def __init__(
        self,
        facts: Facts,
        seed: int,
        *,
        held: Collection[Link] = (),
        rare: Collection[Link] = (),
        rarity: float = 0.125,
    ) -> None:
        self._facts, self._rng = facts, random.Random(f"corpus:{seed}")
        self._names, self._rare, self._rarity = facts.names(), frozenset(rare), rarity
        without = frozenset(held)
        self._composed = tuple(link for link in facts.familiar if link not in without)

    def draw(self) -> Example:
        kind = self._rng.random()
        if kind < 0.40:
            return self._sentences()
        if kind < 0.72:
            return self._question()
        if kind < 0.82:
            link = self._couple(self._composed)
            return ask(self._rng.choice(TARGET_QUESTIONS), "{c}", link)
        if kind < 0.98:
            first, second = self._rng.sample(self._names, 2)
            return Example(
                MEETING.format(first=first, second=second),
                " " + MEETING.format(first=second, second=first),
            )
        return Example("Count:", " " + " ".join(NUMBERS) + ".")

    def _sentences(self) -> Example:
        """A fact and the same fact in its other wording, or a fact after an unrelated one."""
        link, wording = self._couple(self._facts.familiar), self._wording()
        one, other = self._rng.sample(wording, 2)
        told = tell(one, link)
        if self._rng.random() < 0.5:
            return Example(told.prompt, f"{told.completion} {link.fill(other)}")
        before = self._other(link).fill(self._rng.choice(self._wording()))
        return Example(f"{before} {told.prompt}", told.completion)

    def _other(self, link: Link) -> Link:
        """Somebody else, so that no text tells both steps of one chain."""
        while (other := self._couple(self._facts.familiar)) is link:
            pass
        return other

    def _couple(self, links: Sequence[Link]) -> Link:
        """One of these couples; a rare one only in a share `rarity` of the draws that hit it."""
        while True:
            link = self._rng.choice(links)
            if link not in self._rare or self._rng.random() < self._rarity:
                return link

    def _wording(self) -> tuple[str, ...]:
        return SPOUSE_SENTENCES if self._rng.random() < 0.5 else CITY_SENTENCES

    def _question(self) -> Example:
        link = self._couple(self._facts.familiar)
        if self._rng.random() < 0.5:
            return ask(self._rng.choice(SPOUSE_QUESTIONS), "{b}", link)
        return ask(self._rng.choice(CITY_QUESTIONS), "{c}", link)


def build_base(
    draw: Callable[[], Example],
    tokenizer: Any,
    recipe: BaseRecipe,
    progress: ProgressCallback | None = None,
) -> Any:
    """Trains a causal model from scratch on the texts of `draw`, float32, embeddings tied."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        model = _untrained(tokenizer, recipe)
        optimise(model, _batches(draw, tokenizer, recipe.batch_size), recipe, "base", progress)
    return model


def _untrained(tokenizer: Any, recipe: BaseRecipe) -> Any:
    import transformers

    common = {
        "vocab_size": len(tokenizer),
        "initializer_range": recipe.initial,
        "tie_word_embeddings": True,
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
    if recipe.architecture == "llama":
        return transformers.LlamaForCausalLM(
            transformers.LlamaConfig(
                hidden_size=recipe.hidden,
                intermediate_size=recipe.intermediate,
                num_hidden_layers=recipe.layers,
                num_attention_heads=recipe.heads,
                num_key_value_heads=recipe.heads,
                max_position_embeddings=256,
                **common,
            )
        )
    if recipe.architecture == "gpt2":
        return transformers.GPT2LMHeadModel(
            transformers.GPT2Config(
                n_embd=recipe.hidden,
                n_inner=recipe.intermediate,
                n_layer=recipe.layers,
                n_head=recipe.heads,
                n_positions=256,
                resid_pdrop=0.0,
                embd_pdrop=0.0,
                attn_pdrop=0.0,
                **common,
            )
        )
    raise ValueError(f"there is no architecture {recipe.architecture!r}; there are llama and gpt2")


def _batches(draw: Callable[[], Example], tokenizer: Any, size: int) -> Callable:
    cache: dict[Example, tuple[list[int], list[int]]] = {}

    def encoded(example: Example) -> tuple[list[int], list[int]]:
        if example not in cache:
            if len(cache) > 50_000:
                cache.clear()
            cache[example] = encode(tokenizer, example)
        return cache[example]

    return lambda: collate([encoded(draw()) for _ in range(size)], tokenizer.pad_token_id)


def save_base(model: Any, tokenizer: Any, directory: Path, dtype: str) -> None:
    """Writes model and tokenizer as a Hugging Face directory in `dtype`."""
    directory.mkdir(parents=True, exist_ok=True)
    model.to(getattr(torch, dtype)).save_pretrained(str(directory))
    tokenizer.save_pretrained(str(directory))
