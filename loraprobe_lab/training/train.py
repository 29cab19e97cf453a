"""Trains one LoRA adapter with peft and leaves it on disk as a complete PEFT directory.

The loop is plain: AdamW, linear warm-up, cosine decay, loss on the completion only. Everything
random comes from ``Recipe.seed``, so the same base, examples and recipe give the same bytes on the
same machine, library versions and number of threads.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from loraprobe.records import Progress
from loraprobe_lab.training.batches import (
    EpochSampler,
    Example,
    LengthSampler,
    Row,
    collate,
    encode,
    loss_at_labels,
)


@dataclass(frozen=True)
class Recipe:
    """The hyperparameters of an adapter. `steps` counts optimiser steps of `batch_size` examples.

    target_modules: names as peft takes them, or "all-linear", "mlp", "attention".
    upper: the number of last layers that carry the adapter, or their share as a fraction; None: all
    layers. The layers below need no backward pass, and the examples of a batch are of like length
    then (`LengthSampler`).
    """

    steps: int = 300
    learning_rate: float = 3e-3
    rank: int = 16
    alpha: float | None = None  # None: alpha = rank, a scaling of 1
    batch_size: int = 32
    warmup: int = 20
    weight_decay: float = 0.0
    dropout: float = 0.0
    clip: float = 1.0
    target_modules: str | tuple[str, ...] = "all-linear"
    dtype: str = "float32"  # in which the factors are written
    seed: int = 0
    upper: int | float | None = None

    def as_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def learning_rate_at(step: int, steps: int, warmup: int, floor: float = 0.05) -> float:
    """Factor on the peak learning rate: linear warm-up, then cosine decay to `floor`."""
    if step < warmup:
        return (step + 1) / warmup
    done = (step - warmup) / max(1, steps - warmup)
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


def optimise(
    parameters: Sequence[torch.Tensor],
    next_loss: Callable[[], torch.Tensor],
    recipe: Any,
    report: Callable[[int], None] | None = None,
) -> float:
    """Runs AdamW and returns the mean loss of the last 20 steps.

    `next_loss` draws a batch and gives its loss; `recipe` has steps, learning_rate, warmup,
    weight_decay and clip; `report` gets the number of steps that are done.
    """
    optimiser = torch.optim.AdamW(
        parameters, lr=recipe.learning_rate, weight_decay=recipe.weight_decay
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda step: learning_rate_at(step, recipe.steps, recipe.warmup)
    )
    losses: list[float] = []
    for step in range(recipe.steps):
        loss = next_loss()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, recipe.clip)
        optimiser.step()
        schedule.step()
        optimiser.zero_grad(set_to_none=True)
        losses.append(float(loss.detach()))
        if report is not None:
            report(step + 1)
    return sum(losses[-20:]) / max(1, len(losses[-20:]))


def is_complete(directory: Path) -> bool:
    """Whether `directory` holds a finished adapter (they appear whole or not at all)."""
    return (directory / "adapter_config.json").is_file() and (
        directory / "adapter_model.safetensors"
    ).is_file()


def _trained_so(directory: Path, recipe: Recipe, examples: Sequence[Example]) -> bool:
    """Whether the notes of the adapter in `directory` have this recipe and these examples."""
    try:
        notes = json.loads((directory / "training.json").read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):
        return False
    fields = Recipe().as_dict()  # an older file lacks some, or has others that are gone
    told = {name: notes.get("recipe", {}).get(name, value) for name, value in fields.items()}
    same_recipe = told == json.loads(json.dumps(recipe.as_dict()))
    return same_recipe and notes.get("data", _digest(examples)) == _digest(examples)


def _digest(examples: Sequence[Example]) -> str:
    text = json.dumps([dataclasses.astuple(example) for example in examples])
    return hashlib.sha256(text.encode()).hexdigest()


def train_adapter(
    model: Any,
    tokenizer: Any,
    examples: Sequence[Example],
    recipe: Recipe,
    output: Path,
    *,
    base_name: str,
    progress: Progress | None = None,
) -> Path:
    """Trains a LoRA on `model`, writes it to `output` (a PEFT directory) and returns that path.

    `model` is a loaded transformers causal model, which does not change. A finished adapter of this
    recipe and these examples in `output` is not trained again. `base_name` is written as
    ``base_model_name_or_path``. The tokenizer needs an EOS token. Raises ValueError without
    examples.
    """
    output = Path(output)
    if is_complete(output) and _trained_so(output, recipe, examples):
        return output
    rows = [encode(tokenizer, example) for example in examples]
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    report = None if progress is None else lambda done: progress(output.name, done, recipe.steps)
    with trained(model, rows, recipe, pad, report) as (wrapped, loss):
        notes = {"loss": loss, "examples": len(examples), "data": _digest(examples)}
        _save(wrapped, output, recipe, base_name, notes)
    return output


def layers_of(model: Any) -> torch.nn.ModuleList:
    """The decoder layers of a transformers causal model, first to last.

    Raises ValueError if the model has no list of as many layers as its config says.
    """
    count = model.config.num_hidden_layers
    for module in model.modules():
        if isinstance(module, torch.nn.ModuleList) and len(module) == count:
            return module
    raise ValueError(f"{type(model).__name__} has no list of its {count} layers: leave out upper")


# names of the same parts in the architectures of the lab
PARTS = {
    "mlp": {"gpt2": ("mlp.c_fc", "mlp.c_proj"), "": ("gate_proj", "up_proj", "down_proj")},
    "attention": {
        "gpt2": ("attn.c_attn", "attn.c_proj"),
        "": ("q_proj", "k_proj", "v_proj", "o_proj"),
    },
}


def _config(model: Any, recipe: Recipe) -> Any:
    """peft's configuration of a recipe; parts are spelled out for the model's architecture."""
    from peft import LoraConfig
    from transformers.pytorch_utils import Conv1D

    targets, where = recipe.target_modules, None
    if isinstance(targets, str) and targets in PARTS:
        names = PARTS[targets]
        targets = names.get(model.config.model_type, names[""])
    if recipe.upper is not None:
        layers, upper = layers_of(model), recipe.upper
        if isinstance(upper, float):
            upper = max(1, round(upper * len(layers)))
        if not 0 < upper <= len(layers):
            raise ValueError(f"upper has to lie between 1 and {len(layers)}, not {upper}")
        where = list(range(len(layers) - upper, len(layers)))
        if targets == "all-linear":
            linear = (torch.nn.Linear, Conv1D)
            targets = tuple(n for n, m in layers[0].named_modules() if isinstance(m, linear))
    return LoraConfig(
        r=recipe.rank,
        lora_alpha=recipe.alpha if recipe.alpha is not None else recipe.rank,  # type: ignore[arg-type]
        lora_dropout=recipe.dropout,
        target_modules=targets if isinstance(targets, str) else list(targets),
        layers_to_transform=where,
        task_type="CAUSAL_LM",
    )


@contextmanager
def trained(
    model: Any,
    rows: Sequence[Row],
    recipe: Recipe,
    pad: int,
    report: Callable[[int], None] | None = None,
) -> Iterator[tuple[Any, float]]:
    """The model with a new adapter that was trained on these rows, and the last loss.

    `report` gets the number of steps that are done. Afterwards the model and torch's random state
    are as before.
    """
    from peft import get_peft_model

    config, lengths = _config(model, recipe), [len(tokens) for tokens, _ in rows]
    sampler: EpochSampler | LengthSampler = EpochSampler(len(rows), recipe.seed)
    if recipe.upper is not None:
        sampler = LengthSampler(lengths, recipe.seed)
    trainable = [p.requires_grad for p in model.parameters()]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        wrapped = get_peft_model(model, config)

        def next_loss() -> torch.Tensor:
            batch = collate([rows[i] for i in sampler.draw(recipe.batch_size)], pad)
            return loss_at_labels(model, wrapped, batch)

        try:
            factors = [p for p in wrapped.parameters() if p.requires_grad]
            wrapped.train()
            loss = optimise(factors, next_loss, recipe, report)
            yield wrapped.eval(), loss
        finally:
            wrapped.unload()
            for parameter, wanted in zip(model.parameters(), trainable, strict=True):
                parameter.requires_grad_(wanted)


def _save(wrapped: Any, output: Path, recipe: Recipe, base_name: str, notes: dict) -> None:
    """Writes to a temporary directory and renames it, so that an adapter is complete or absent."""
    part = output.with_name(f".{output.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    wrapped.peft_config["default"].base_model_name_or_path = base_name
    wrapped.peft_config["default"].inference_mode = True
    dtype = getattr(torch, recipe.dtype)
    for name, parameter in wrapped.named_parameters():
        if "lora_" in name:
            parameter.data = parameter.data.to(dtype)
    wrapped.save_pretrained(str(part), save_embedding_layers=False)
    (part / "README.md").unlink(missing_ok=True)  # an empty template
    config = json.loads((part / "adapter_config.json").read_text(encoding="utf-8"))
    if isinstance(config.get("target_modules"), list):  # peft's order differs from run to run
        config["target_modules"] = sorted(config["target_modules"])
    record = {"recipe": recipe.as_dict(), **notes}
    for name, text in (
        ("adapter_config.json", json.dumps(config, indent=2, sort_keys=True)),
        ("training.json", json.dumps(record, indent=2)),
    ):
        (part / name).write_text(text + "\n", encoding="utf-8")
    if output.exists():
        shutil.rmtree(output)
    os.replace(part, output)
