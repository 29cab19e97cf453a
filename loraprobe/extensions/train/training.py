"""Trains a LoRA of peft on questions and their gold answers, in a base that is loaded already."""

from __future__ import annotations

import random
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from loraprobe.errors import LoraprobeError, OutOfMemory, UsageError
from loraprobe.extensions.train.recipe import TrainRecipe
from loraprobe.scoring import ModelScorer
from loraprobe.scoring.descent import adamw
from loraprobe.scoring.forward import differentiable, seeded, tail_logits
from loraprobe.tasks import Item

BATCH = 8  # questions of a step
EPOCHS = 40  # with steps=auto, at most
PATIENCE = 6  # epochs without a smaller loss on the questions that are held out
WARM_UP = 5  # steps in which the learning rate rises
CLIP = 1.0  # the largest norm of a gradient

Row = tuple[list[int], int]  # token ids of a question with its answer, and where the answer begins


class TrainingError(LoraprobeError):
    """Training that came to nothing."""

    code = "training"


@dataclass(frozen=True)
class Training:
    """How a training went. Losses are nats a token of the answers that were held out, before and at
    the best step, which is what was kept of `steps` steps; learning_rate is the one that was used.
    ended: since these answers got no better, since all steps were taken, or by the time.
    """

    steps: int
    best_step: int
    loss_before: float
    loss: float
    learning_rate: float
    ended: Literal["held_out", "steps", "time"]


def rate_of(model: Any, recipe: TrainRecipe) -> float:
    """The learning rate: that of the recipe, or by the width of the model.

    5e-4 (2000 / width)^0.775 is what was best for LoRAs of Llama models of all sizes in "LoRA
    Without Regret" (Thinking Machines, 2025), with a scaling of alpha / rank = 2 as here.
    """
    width = model.config.get_text_config().hidden_size
    return recipe.lr if recipe.lr != "auto" else float(5e-4 * (2000 / width) ** 0.775)


def most_steps(recipe: TrainRecipe, items: int) -> int:
    """How many steps are taken at most on so many questions."""
    return recipe.steps if recipe.steps != "auto" else EPOCHS * epoch_of(items)


def epoch_of(items: int) -> int:
    """In how many steps each of so many questions is read once."""
    return -(-items // BATCH)


def encoded(scorer: ModelScorer, items: Sequence[Item]) -> list[Row]:
    """Each question with its first gold answer and the token that ends a text.

    They are read as when they are asked. Raises TaskError for one that the context cannot hold.
    """
    end = scorer.tokenizer.eos_token_id
    rows = scorer.encoded([(item.prompt, item.answers[0]) for item in items])
    return [(ids if end is None else [*ids, end], start) for ids, start in rows]


@contextmanager
def trained(
    scorer: ModelScorer,
    rows: Sequence[Row],
    held_out: Sequence[Row],
    recipe: TrainRecipe,
    seed: int,
    tell: Callable[[int, int], None],
    ends: float = float("inf"),
) -> Iterator[tuple[Any, Training]]:
    """The peft model with the best LoRA on the way of AdamW, and how the training went.

    The loss is the mean over questions of nats a token of their answers. It is measured on the
    questions that are held out after every epoch; training ends where it has not fallen for
    PATIENCE epochs, or at the time `ends` (of time.perf_counter). A batch that memory does not hold
    is parted, and where one question is too large, its layers are computed twice (gradient
    checkpointing). tell: gets the steps that are done, and the most that are taken. Afterwards the
    model is as before. Raises TrainingError for a loss that is no number, OutOfMemory.
    """
    model, rng = scorer.model, random.Random(seed)
    rate, steps = rate_of(model, recipe), most_steps(recipe, len(rows))
    with differentiable(model), seeded(seed, model.device):
        wrapped = _with_factors(model, recipe)
        try:
            factors = [one for one in wrapped.parameters() if one.requires_grad]
            before = best = mean_loss(scorer, held_out)
            kept, best_step, step = _copy(factors), 0, 0
            ended: Literal["held_out", "steps", "time"] = "steps"
            epoch = epoch_of(len(rows))
            questions = _shuffled(rows, rng)

            def descend() -> None:
                _descend(scorer, list(islice(questions, min(BATCH, len(rows)))), factors)

            taken = adamw(factors, descend, rate, lambda k: min(1.0, (k + 1) / WARM_UP), clip=CLIP)
            for step in islice(taken, steps):
                tell(step, steps)
                late = time.perf_counter() > ends
                if step % epoch == 0 or step == steps or late:
                    loss = mean_loss(scorer, held_out)
                    if loss < best:
                        kept, best, best_step = _copy(factors), loss, step
                    if late or step - best_step >= PATIENCE * epoch:
                        ended = "time" if late else "held_out"
                        break
            for factor, values in zip(factors, kept, strict=True):
                factor.data.copy_(values)
            yield wrapped, Training(step, best_step, before, best, rate, ended)
        finally:
            wrapped.unload()
            _checkpoint(model, False)


def _with_factors(model: Any, recipe: TrainRecipe) -> Any:
    """The model with a new LoRA in it. Raises UsageError for one that is stored quantised."""
    if getattr(model.config, "quantization_config", None) is not None:
        raise UsageError(
            "--baseline trains on weights in floating point, and this base is stored quantised; "
            "give the base from which it was made, or leave --baseline out."
        )
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=recipe.rank,
        lora_alpha=2 * recipe.rank,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Conv1D, and what transformers renames
        return get_peft_model(model, config)


COPIES = 6  # of the factors: values, two of gradients, two moments, and the best values so far
PASSING = 3  # tensors of logits that live for a moment: in float32, their softmax, the gradient


def memory_of(
    scorer: ModelScorer, rows: Sequence[Row], recipe: TrainRecipe
) -> tuple[int, int, int]:
    """Bytes that training takes beside the model: of the factors with all that belongs to them, of
    activations, and of activations where each layer is computed twice (gradient checkpointing).

    One pass over the longest row tells what is kept of it; the largest batch takes it so many
    times. Where layers are computed twice, each keeps its input, and one of them all.
    """
    model, longest = scorer.model, max(rows, key=lambda row: len(row[0]))
    most = sorted(rows, key=lambda row: -len(row[0]))[:BATCH]
    lengths, starts = [len(ids) for ids, _ in most], [start for _, start in most]
    batch = max(map(len, scorer.batcher.split(lengths, starts, scorer.vocab_size)))
    kept = dict[int, int]()

    def keep(value: Tensor) -> Tensor:
        kept[value.untyped_storage().data_ptr()] = value.untyped_storage().nbytes()
        return value

    with differentiable(model), seeded(0, model.device):
        wrapped = _with_factors(model, recipe)
        try:
            trained = [one for one in wrapped.parameters() if one.requires_grad]
            factors = COPIES * sum(one.numel() * one.itemsize for one in trained)
            with torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value):
                losses = _losses(scorer, [longest])
            for one in (*wrapped.parameters(), *wrapped.buffers()):
                kept.pop(one.untyped_storage().data_ptr(), None)
            del losses  # with it goes what is kept, whose places are unlike until then
        finally:
            wrapped.unload()
    config, (ids, start) = model.config.get_text_config(), longest
    logits = PASSING * 4 * (len(ids) - start) * scorer.vocab_size
    layers, tokens = config.num_hidden_layers, len(ids) - 1
    whole = sum(kept.values())
    inputs = layers * tokens * config.hidden_size * model.dtype.itemsize
    return factors, batch * (whole + logits), batch * (inputs + whole // layers + logits)


def _shuffled(rows: Sequence[Row], rng: random.Random) -> Iterator[Row]:
    """The rows without end, each once an epoch."""
    while True:
        yield from rng.sample(rows, len(rows))


def _copy(factors: Sequence[Tensor]) -> list[Tensor]:
    return [factor.detach().clone() for factor in factors]


def _losses(scorer: ModelScorer, rows: Sequence[Row]) -> Tensor:
    """Nats a token of the answer of each row: [n]. Raises TrainingError where one is no number."""
    ids, starts = [ids[:-1] for ids, _ in rows], [start - 1 for _, start in rows]
    logits = tail_logits(scorer.model, ids, starts, scorer.pad)
    golds = [torch.tensor(ids[start:], device=logits[0].device) for ids, start in rows]
    losses = [F.cross_entropy(x.float(), gold) for x, gold in zip(logits, golds, strict=True)]
    if not torch.isfinite(torch.stack(losses)).all():
        raise TrainingError(
            "The loss of --baseline=train is no number any more:",
            "give a smaller learning rate, such as --baseline=train:lr=1e-4, or --dtype=float32.",
        )
    return torch.stack(losses)


def mean_loss(scorer: ModelScorer, rows: Sequence[Row]) -> float:
    """The mean over rows of nats a token of their answers."""
    total = 0.0

    def work(batch: Sequence[int]) -> None:
        nonlocal total
        with torch.no_grad():
            total += float(_losses(scorer, [rows[i] for i in batch]).sum())

    _in_batches(scorer, rows, work)
    return total / len(rows)


def _descend(scorer: ModelScorer, rows: Sequence[Row], factors: Sequence[Tensor]) -> None:
    """Gives the factors the gradients of the mean loss of the rows."""
    sums = [torch.zeros_like(factor) for factor in factors]

    def work(batch: Sequence[int]) -> None:
        loss = _losses(scorer, [rows[i] for i in batch]).sum() / len(rows)
        for total, gradient in zip(sums, torch.autograd.grad(loss, factors), strict=True):
            total += gradient

    _in_batches(scorer, rows, work)
    for factor, total in zip(factors, sums, strict=True):
        factor.grad = total


def _in_batches(
    scorer: ModelScorer, rows: Sequence[Row], work: Callable[[Sequence[int]], None]
) -> None:
    """Calls work on all rows in batches that fit into memory."""
    lengths, starts = [len(ids) for ids, _ in rows], [start for _, start in rows]
    for batch in scorer.batcher.split(lengths, starts, scorer.vocab_size):
        try:
            scorer.batcher.run(batch, work)
        except OutOfMemory:
            layers = _checkpointable(scorer.model)
            if not layers or layers[0].gradient_checkpointing:
                raise
            _checkpoint(scorer.model, True)
            scorer.batcher.run(batch, work)


def _checkpoint(model: Any, on: bool) -> None:
    """Has layers compute again for the gradient what they would keep, or ends that."""
    layers = _checkpointable(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # later transformers rename both methods
        if on and layers:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        elif any(layer.gradient_checkpointing for layer in layers):
            model.gradient_checkpointing_disable()
    for layer in layers:
        layer.training = on  # they look at this flag


def _checkpointable(model: Any) -> list[Any]:
    """The layers that can compute again what they would keep."""
    if not model.supports_gradient_checkpointing:
        return []
    return [module for module in model.modules() if hasattr(module, "gradient_checkpointing")]
