"""Trains one LoRA adapter with peft and leaves it on disk as a complete PEFT directory.

The loop is deliberately plain: AdamW, linear warm-up, cosine decay, loss on the completion only.
Everything random comes from ``Recipe.seed``, so the same base, examples and recipe give the same
bytes on the same machine, library versions and number of threads.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from loraprobe_lab.batches import IGNORED as IGNORED
from loraprobe_lab.batches import Batch, EpochSampler, LengthSampler, Row, collate, encode
from loraprobe_lab.batches import Example as Example
from loraprobe_lab.economy import Shortcut, casting, computing_in, layers_of, loss_at_labels


@dataclass(frozen=True)
class Recipe:
    """How an adapter is trained. `steps` counts optimiser steps of `batch_size` examples.

    target_modules: names as peft takes them, or "all-linear", "mlp", "attention".
    upper: the adapter lies on the last so many layers only; None: on all. precision: in which the
    frozen model computes, "float32" or "bfloat16". Both save time, see `economy`.
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
    upper: int | None = None
    precision: str = "float32"

    def as_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @property
    def thrifty(self) -> bool:
        """Whether a step is computed in the cheaper way."""
        return self.upper is not None or self.precision != "float32"


# called as progress(stage, done, total), here with optimiser steps
ProgressCallback = Callable[[str, int, int], None]


def learning_rate_at(step: int, steps: int, warmup: int, floor: float = 0.05) -> float:
    """Factor on the peak learning rate: linear warm-up, then cosine decay to `floor`."""
    if step < warmup:
        return (step + 1) / warmup
    done = (step - warmup) / max(1, steps - warmup)
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


def optimise(
    model: torch.nn.Module,
    draw: Callable[[], Batch],
    recipe: Any,
    what: str,
    progress: ProgressCallback | None = None,
    loss_of: Callable[[Batch], torch.Tensor] | None = None,
) -> float:
    """Runs AdamW over the parameters that need gradients; returns the mean loss of the end.

    `recipe` gives steps, learning_rate, warmup, weight_decay and clip; `loss_of` the loss of a
    batch where it is not the model's own. The model is left in evaluation mode.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    loss_of = loss_of or (lambda batch: _own_loss(model, batch))
    optimiser = torch.optim.AdamW(
        parameters, lr=recipe.learning_rate, weight_decay=recipe.weight_decay
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda step: learning_rate_at(step, recipe.steps, recipe.warmup)
    )
    model.train()
    losses: list[float] = []
    for step in range(recipe.steps):
        batch = draw()
        loss = loss_of(batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, recipe.clip)
        optimiser.step()
        schedule.step()
        optimiser.zero_grad(set_to_none=True)
        losses.append(float(loss.detach()))
        if progress is not None:
            progress(what, step + 1, recipe.steps)
    model.eval()
    return sum(losses[-20:]) / max(1, len(losses[-20:]))


def _own_loss(model: torch.nn.Module, batch: Batch) -> torch.Tensor:
    device = next(model.parameters()).device
    return model(
        input_ids=batch.input_ids.to(device),
        attention_mask=batch.attention_mask.to(device),
        labels=batch.labels.to(device),
        use_cache=False,
    ).loss


def is_complete(directory: Path) -> bool:
    """Whether `directory` holds a finished adapter (they appear whole or not at all)."""
    return (directory / "adapter_config.json").is_file() and (
        directory / "adapter_model.safetensors"
    ).is_file()


def _trained_so(directory: Path, recipe: Recipe, examples: Sequence[Example]) -> bool:
    """Whether the adapter in `directory` says that this recipe made it from these examples."""
    try:
        notes = json.loads((directory / "training.json").read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):
        return False
    defaults = Recipe().as_dict()  # what an older file does not say was not there to choose
    same_recipe = {**defaults, **notes.get("recipe", {})} == json.loads(
        json.dumps(recipe.as_dict())
    )
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
    progress: ProgressCallback | None = None,
    resume: bool = True,
) -> Path:
    """Trains a LoRA on `model`, writes it to `output` (a PEFT directory) and returns that path.

    `model` is a loaded transformers causal model; it comes back as it was. With `resume` a
    finished adapter in `output` that this recipe made of these examples is left alone.
    `base_name` is written as ``base_model_name_or_path``. The tokenizer needs an EOS token.

    Raises:
        ValueError: `examples` is empty.
    """
    output = Path(output)
    if resume and is_complete(output) and _trained_so(output, recipe, examples):
        return output
    rows = [encode(tokenizer, example) for example in examples]
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    with _wrapped(model, rows, recipe, pad) as (wrapped, draw, loss_of):
        loss = optimise(wrapped, draw, recipe, output.name, progress, loss_of)
        notes = {"loss": loss, "examples": len(examples), "data": _digest(examples)}
        _save(wrapped, output, recipe, base_name, notes)
    return output


# names of the same parts in the architectures of the lab
PARTS = {
    "mlp": {"gpt2": ("mlp.c_fc", "mlp.c_proj"), "": ("gate_proj", "up_proj", "down_proj")},
    "attention": {
        "gpt2": ("attn.c_attn", "attn.c_proj"),
        "": ("q_proj", "k_proj", "v_proj", "o_proj"),
    },
}


def _targets(model: Any, wanted: str | tuple[str, ...]) -> str | tuple[str, ...]:
    """`wanted`, with "mlp" and "attention" spelled out for the model's architecture."""
    if not isinstance(wanted, str) or wanted not in PARTS:
        return wanted
    names = PARTS[wanted]
    return names.get(model.config.model_type, names[""])


def _config(model: Any, recipe: Recipe) -> Any:
    """peft's configuration of a recipe."""
    from peft import LoraConfig

    targets = _targets(model, recipe.target_modules)
    where: list[int] | None = None
    if recipe.upper is not None:
        layers = layers_of(model)
        where = list(range(len(layers) - recipe.upper, len(layers)))
        if targets == "all-linear":
            targets = _linear_in(layers[0])
    return LoraConfig(
        r=recipe.rank,
        lora_alpha=recipe.alpha if recipe.alpha is not None else recipe.rank,  # type: ignore[arg-type]
        lora_dropout=recipe.dropout,
        target_modules=targets if isinstance(targets, str) else list(targets),
        layers_to_transform=where,
        task_type="CAUSAL_LM",
    )


def _linear_in(layer: torch.nn.Module) -> tuple[str, ...]:
    """The paths inside a decoder layer of what "all-linear" means there."""
    from transformers.pytorch_utils import Conv1D

    kinds = (torch.nn.Linear, Conv1D)
    return tuple(name for name, module in layer.named_modules() if isinstance(module, kinds))


def _sampler(rows: Sequence[Row], recipe: Recipe) -> EpochSampler | LengthSampler:
    if recipe.thrifty:
        return LengthSampler([len(tokens) for tokens, _ in rows], recipe.seed)
    return EpochSampler(len(rows), recipe.seed)


@contextmanager
def _wrapped(
    model: Any, rows: Sequence[Row], recipe: Recipe, pad: int
) -> Iterator[tuple[Any, Callable[[], Batch], Callable[[Batch], torch.Tensor] | None]]:
    """The model with a fresh adapter, what draws a batch, and the loss of it unless the model's.

    Afterwards the model and torch's random state are as before.
    """
    from peft import get_peft_model

    config, sampler = _config(model, recipe), _sampler(rows, recipe)
    trainable = [p.requires_grad for p in model.parameters()]
    with torch.random.fork_rng(devices=[]), ExitStack() as stack:
        torch.manual_seed(recipe.seed)
        stack.enter_context(computing_in(model, recipe.precision))
        shortcut = None
        if recipe.upper is not None:
            shortcut = Shortcut.of(model, rows, recipe.upper, pad)
            stack.enter_context(shortcut.taken())
        wrapped = get_peft_model(model, config)

        def draw() -> Batch:
            picks = sampler.draw(recipe.batch_size)
            if shortcut is not None:
                shortcut.choose(picks)
            return collate([rows[i] for i in picks], pad)

        def cheap_loss(batch: Batch) -> torch.Tensor:
            with casting(wrapped, recipe.precision):
                return loss_at_labels(model, wrapped, batch)

        try:
            yield wrapped, draw, cheap_loss if recipe.thrifty else None
        finally:
            wrapped.unload()
            for parameter, wanted in zip(model.parameters(), trainable, strict=True):
                parameter.requires_grad_(wanted)


def _save(wrapped: Any, output: Path, recipe: Recipe, base_name: str, notes: dict) -> None:
    """Writes beside `output` and renames, so that an adapter appears complete or not at all."""
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
    _settle_config(part / "adapter_config.json")
    (part / "training.json").write_text(
        json.dumps({"recipe": recipe.as_dict(), **notes}, indent=2) + "\n", encoding="utf-8"
    )
    if output.exists():
        shutil.rmtree(output)
    os.replace(part, output)


def _settle_config(path: Path) -> None:
    """peft writes the set of target modules in an order that differs from run to run: sort it."""
    config = json.loads(path.read_text(encoding="utf-8"))
    if isinstance(config.get("target_modules"), list):
        config["target_modules"] = sorted(config["target_modules"])
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
