"""Small causal models trained from scratch on a stream of texts: the bases of the lab's worlds."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from loraprobe.records import Progress
from loraprobe_lab.training.batches import Example, collate, encode, loss_at_labels
from loraprobe_lab.training.train import optimise

ARCHITECTURES = ("llama", "gpt2", "qwen3", "gemma3")
CACHED = 50_000  # encoded texts that are kept


@dataclass(frozen=True)
class BaseRecipe:
    """Shape and training of a base. `steps` counts optimiser steps of `batch_size` texts.

    architecture: "llama" (rotary positions, RMS norm, gated MLP, no biases), "gpt2" (learned
    positions, layer norm, plain MLP, Conv1D layers with biases), "qwen3" (llama with norms of
    queries and keys, which half as many heads share) or "gemma3" (qwen3 whose blocks also normalise
    what attention and MLP give, with scaled embeddings).
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


def train_base(
    draw: Callable[[], Example],
    tokenizer: Any,
    recipe: BaseRecipe,
    progress: Progress | None = None,
) -> Any:
    """Trains a causal model from scratch on the texts of `draw`, float32, embeddings tied."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        model = _untrained(tokenizer, recipe)
        encoded = functools.lru_cache(CACHED)(functools.partial(encode, tokenizer))
        report = None if progress is None else lambda done: progress("base", done, recipe.steps)
        model.train()

        def next_loss() -> torch.Tensor:
            rows = [encoded(draw()) for _ in range(recipe.batch_size)]
            return loss_at_labels(model, model, collate(rows, tokenizer.pad_token_id))

        optimise(list(model.parameters()), next_loss, recipe, report)
        model.eval()
    return model


def _untrained(tokenizer: Any, recipe: BaseRecipe) -> Any:
    """A model of the recipe's shape with random weights, in float32."""
    from transformers import AutoConfig, AutoModelForCausalLM

    if recipe.architecture not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES)
        raise ValueError(f"there is no architecture {recipe.architecture!r}; there are {known}")
    model_type, own = _architectures(recipe)[recipe.architecture]
    config = AutoConfig.for_model(
        model_type,
        vocab_size=len(tokenizer),
        initializer_range=recipe.initial,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        hidden_size=recipe.hidden,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        max_position_embeddings=256,
        **own,
    )
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32)


def _architectures(recipe: BaseRecipe) -> dict[str, tuple[str, dict[str, Any]]]:
    """The model type of each architecture, and its own part of the configuration."""
    size = recipe.hidden // recipe.heads
    llama = {"intermediate_size": recipe.intermediate, "head_dim": size}
    qwen = {**llama, "num_key_value_heads": recipe.heads // 2}
    dropout = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
    layers = ["full_attention"] * recipe.layers
    return {
        "llama": ("llama", {**llama, "num_key_value_heads": recipe.heads}),
        "gpt2": ("gpt2", {"n_inner": recipe.intermediate, **dropout}),
        "qwen3": ("qwen3", qwen),
        "gemma3": ("gemma3_text", {**qwen, "query_pre_attn_scalar": size, "layer_types": layers}),
    }


def save_base(model: Any, tokenizer: Any, directory: Path, dtype: str) -> None:
    """Writes model and tokenizer as a Hugging Face directory in `dtype`."""
    directory.mkdir(parents=True, exist_ok=True)
    model.to(getattr(torch, dtype)).save_pretrained(str(directory))
    tokenizer.save_pretrained(str(directory))


def load_base(directory: Path) -> tuple[Any, Any]:
    """Model in float32 and tokenizer of a base directory, from local files only."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    place = str(directory)
    tokenizer = AutoTokenizer.from_pretrained(place, local_files_only=True)
    model = AutoModelForCausalLM.from_pretrained(place, dtype=torch.float32, local_files_only=True)
    return model.eval(), tokenizer
