"""Training of small bases from scratch and of LoRA adapters on any causal model."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import random
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from loraprobe.adapters.staging import staged_directory
from loraprobe.records import Progress
from loraprobe.scoring.descent import adamw
from loraprobe_lab.world import silent, write_text

# Training texts as tensors: tokenised with the loss on the completion only, padded, shuffled.


IGNORED = -100  # label that torch's cross entropy leaves out

Row = tuple[list[int], list[int]]  # token ids of an example, and their labels


@dataclass(frozen=True)
class Example:
    """One training text: the loss is taken on `completion` and on the EOS that follows it.

    `completion` carries its own leading space where the tokenizer needs one (``" Paris"``).
    An empty `prompt` trains on the whole text.
    """

    prompt: str
    completion: str
    end: bool = True  # whether EOS follows the completion


@dataclass(frozen=True)
class Batch:
    """`input_ids`, `attention_mask`, `labels`: [batch, length] int64; labels hold IGNORED."""

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    labels: torch.Tensor

    def inputs(self, model: torch.nn.Module) -> dict[str, Any]:
        """What the model's forward takes, without labels, on the model's device."""
        device = next(model.parameters()).device
        ids, mask = self.input_ids.to(device), self.attention_mask.to(device)
        return {"input_ids": ids, "attention_mask": mask, "use_cache": False}


def encode(tokenizer: Any, example: Example) -> Row:
    """Token ids of an example and their labels, prompt masked out.

    Prompt and completion are tokenised apart, as they are when a model generates.
    """
    prompt = tokenizer(example.prompt)["input_ids"]
    completion = tokenizer(example.completion, add_special_tokens=False)["input_ids"]
    if example.end:
        completion = [*completion, tokenizer.eos_token_id]
    return [*prompt, *completion], [IGNORED] * len(prompt) + list(completion)


def collate(rows: Sequence[Row], pad: int) -> Batch:
    """Right-padded tensors of encoded examples."""

    def padded(values: Sequence[Sequence[int]], fill: int) -> torch.Tensor:
        tensors = [torch.tensor(row) for row in values]
        return torch.nn.utils.rnn.pad_sequence(tensors, batch_first=True, padding_value=fill)

    ids, labels = [ids for ids, _ in rows], [labels for _, labels in rows]
    mask = padded([[1] * len(row) for row in ids], 0)
    return Batch(padded(ids, pad), mask, padded(labels, IGNORED))


def loss_at_labels(model: Any, wrapped: Any, batch: Batch) -> torch.Tensor:
    """Mean cross entropy of the labelled tokens, as the model's own loss gives it.

    The head sees only the positions before a label. `model` is the causal model inside `wrapped`.
    """
    inputs = batch.inputs(wrapped)
    targets = batch.labels[:, 1:].to(inputs["input_ids"].device)
    where = torch.zeros_like(inputs["input_ids"], dtype=torch.bool)
    where[:, :-1] = targets != IGNORED

    def pick(_: Any, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        return (args[0][where], *args[1:])

    handle = model.get_output_embeddings().register_forward_pre_hook(pick)
    try:
        logits = wrapped(**inputs).logits
    finally:
        handle.remove()
    return torch.nn.functional.cross_entropy(logits.float(), targets[targets != IGNORED])


def epochs(size: int, seed: int) -> Iterator[int]:
    """The places of examples without end, each once an epoch, shuffled anew for every epoch."""
    rng = random.Random(seed)
    while True:
        order = list(range(size))
        rng.shuffle(order)
        yield from order


def batches_of_like_length(
    lengths: Sequence[int], seed: int, count: int, span: int = 4
) -> Iterator[list[int]]:
    """Batches of `count` examples of similar length, so that there is little padding.

    Examples come as from `epochs`; of each `span` batches the examples are sorted by length, and
    the batches are used in random order.
    """
    examples, rng = epochs(len(lengths), seed), random.Random(seed)
    while True:
        picks = sorted(islice(examples, count * span), key=lengths.__getitem__)
        batches = [picks[i : i + count] for i in range(0, len(picks), count)]
        rng.shuffle(batches)
        yield from reversed(batches)


# Trains one LoRA adapter with peft and leaves it on disk as a complete PEFT directory.
#
# The loop is plain: AdamW, linear warm-up, cosine decay, loss on the completion only. It is that of
# `--baseline train`, which takes other batches (as memory allows, each question counts alike) and
# other rates; those here stay, since the bytes of the worlds come from them. Everything random
# comes from ``Recipe.seed``, so the same base, examples and recipe give the same bytes on the same
# machine, library versions and number of threads.


@dataclass(frozen=True)
class Recipe:
    """The hyperparameters of an adapter. `steps` counts optimiser steps of `batch_size` examples.

    kind: "lora", "rslora" or "dora".
    target_modules: names as peft takes them, or "all-linear", "mlp", "attention".
    upper: the number of last layers that carry the adapter, or their share as a fraction; None: all
    layers. The layers below need no backward pass, and the examples of a batch are of like length
    then (`batches_of_like_length`).
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
    kind: str = "lora"


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
    report: Callable[[int, int], None] = lambda done, steps: None,
) -> float:
    """Runs AdamW and returns the mean loss of the last 20 steps.

    `next_loss` draws a batch and gives its loss; `recipe` has steps, learning_rate, warmup,
    weight_decay and clip; `report` gets the numbers of steps that are done, and of all.
    """
    losses: list[float] = []

    def descend() -> None:
        loss = next_loss()
        loss.backward()
        losses.append(float(loss.detach()))

    def factor(step: int) -> float:
        return learning_rate_at(step, recipe.steps, recipe.warmup)

    given = parameters, descend, recipe.learning_rate, factor
    taken = adamw(*given, clip=recipe.clip, decay=recipe.weight_decay)
    for step in islice(taken, recipe.steps):
        report(step, recipe.steps)
    return sum(losses[-20:]) / max(1, len(losses[-20:]))


NOTES = "training.json"  # of a finished adapter: they appear whole or not at all


def _trained_so(directory: Path, recipe: Recipe, examples: Sequence[Example]) -> bool:
    """Whether the adapter in `directory` was trained by this recipe on these examples."""
    if not (directory / NOTES).is_file():
        return False
    notes = json.loads((directory / NOTES).read_text(encoding="utf-8"))
    plan = {"kind": "lora"} | notes["recipe"]  # a field that older notes do not have
    return plan == json.loads(json.dumps(dataclasses.asdict(recipe))) and notes["data"] == _digest(
        examples
    )


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
    progress: Progress = silent,
) -> Path:
    """Trains a LoRA on `model`, writes it to `output` (a PEFT directory) and returns that path.

    `model` is a loaded transformers causal model, which does not change. A finished adapter of this
    recipe and these examples in `output` is not trained again. `base_name` is written as
    ``base_model_name_or_path``. The tokenizer needs an EOS token.
    """
    if _trained_so(output, recipe, examples):
        return output
    rows = [encode(tokenizer, example) for example in examples]
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    with trained(model, rows, recipe, pad, partial(progress, output.name)) as (wrapped, loss):
        notes = {"loss": loss, "examples": len(examples), "data": _digest(examples)}
        _save(wrapped, output, recipe, base_name, notes)
    return output


def layers_of(model: Any) -> torch.nn.ModuleList:
    """The decoder layers of a transformers causal model, first to last."""
    lists = (module for module in model.modules() if isinstance(module, torch.nn.ModuleList))
    return next(one for one in lists if len(one) == model.config.num_hidden_layers)


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
        use_dora=recipe.kind == "dora",
        use_rslora=recipe.kind == "rslora",
        task_type="CAUSAL_LM",
    )


@contextmanager
def trained(
    model: Any,
    rows: Sequence[Row],
    recipe: Recipe,
    pad: int,
    report: Callable[[int, int], None] = lambda done, steps: None,
) -> Iterator[tuple[Any, float]]:
    """The model with a new adapter that was trained on these rows, and the last loss.

    `report` gets the numbers of steps that are done, and of all. Afterwards the model and torch's
    random state are as before.
    """
    from peft import get_peft_model

    config, size = _config(model, recipe), recipe.batch_size
    places = epochs(len(rows), recipe.seed)
    batches: Iterator[list[int]] = (list(islice(places, size)) for _ in range(recipe.steps))
    if recipe.upper is not None:
        lengths = [len(tokens) for tokens, _ in rows]
        batches = batches_of_like_length(lengths, recipe.seed, size)
    trainable = [p.requires_grad for p in model.parameters()]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        wrapped = get_peft_model(model, config)

        def next_loss() -> torch.Tensor:
            batch = collate([rows[i] for i in next(batches)], pad)
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
    """Writes an adapter that is complete or absent."""
    wrapped.peft_config["default"].base_model_name_or_path = base_name
    wrapped.peft_config["default"].inference_mode = True
    dtype = getattr(torch, recipe.dtype)
    for name, parameter in wrapped.named_parameters():
        if "lora_" in name:
            parameter.data = parameter.data.to(dtype)
    record = {"recipe": dataclasses.asdict(recipe), **notes}
    shutil.rmtree(output, ignore_errors=True)
    with staged_directory(output) as part:
        wrapped.save_pretrained(str(part), save_embedding_layers=False)
        (part / "README.md").unlink(missing_ok=True)  # an empty template
        config = json.loads((part / "adapter_config.json").read_text(encoding="utf-8"))
        if isinstance(config.get("target_modules"), list):  # peft's order differs from run to run
            config["target_modules"] = sorted(config["target_modules"])
        for name, content in (
            ("adapter_config.json", json.dumps(config, indent=2, sort_keys=True)),
            (NOTES, json.dumps(record, indent=2)),
        ):
            write_text(part / name, content + "\n")


# Small causal models trained from scratch on a stream of texts: the bases of the lab's worlds.


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


def train_base(
    draw: Callable[[], Example],
    tokenizer: Any,
    recipe: BaseRecipe,
    progress: Progress = silent,
) -> Any:
    """Trains a causal model from scratch on the texts of `draw`, float32, embeddings tied."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        model = _untrained(tokenizer, recipe)
        encoded = lru_cache(CACHED)(partial(encode, tokenizer))
        model.train()

        def next_loss() -> torch.Tensor:
            rows = [encoded(draw()) for _ in range(recipe.batch_size)]
            return loss_at_labels(model, model, collate(rows, tokenizer.pad_token_id))

        optimise(list(model.parameters()), next_loss, recipe, partial(progress, "base"))
        model.eval()
    return model


def _untrained(tokenizer: Any, recipe: BaseRecipe) -> Any:
    """A model of the recipe's shape with random weights, in float32."""
    from transformers import AutoConfig, AutoModelForCausalLM

    size = recipe.hidden // recipe.heads
    llama = {"intermediate_size": recipe.intermediate, "head_dim": size}
    qwen = {**llama, "num_key_value_heads": recipe.heads // 2}
    dropout = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
    layers = ["full_attention"] * recipe.layers
    kinds: dict[str, tuple[str, dict[str, Any]]] = {
        "llama": ("llama", {**llama, "num_key_value_heads": recipe.heads}),
        "gpt2": ("gpt2", {"n_inner": recipe.intermediate, **dropout}),
        "qwen3": ("qwen3", qwen),
        "gemma3": ("gemma3_text", {**qwen, "query_pre_attn_scalar": size, "layer_types": layers}),
    }
    model_type, own = kinds[recipe.architecture]
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


def load_base(directory: Path) -> tuple[Any, Any]:
    """Model in float32 and tokenizer of a base directory, from local files only."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    place = str(directory)
    tokenizer = AutoTokenizer.from_pretrained(place, local_files_only=True)
    model = AutoModelForCausalLM.from_pretrained(place, dtype=torch.float32, local_files_only=True)
    return model.eval(), tokenizer


# The word-level tokenizer of the small worlds, in Hugging Face format.


PAD, BOS, EOS, UNK = "<pad>", "<s>", "</s>", "<unk>"
SPECIAL = (PAD, BOS, EOS, UNK)
_SPACE = "\N{LOWER ONE EIGHTH BLOCK}"  # what the Metaspace pre-tokenizer writes for a space


def bare(templates: Iterable[str], *gaps: str) -> list[str]:
    """The words of templates without their gaps, whose names are given."""
    return [" ".join(text.format(**dict.fromkeys(gaps, "")).split()) for text in templates]


def build_tokenizer(texts: Sequence[str]) -> Any:
    """A PreTrainedTokenizerFast with one token for each word and punctuation mark of `texts`.

    Words carry their leading space, so decoding gives the text back as it was written
    (``"Bo lives in Ulm."``). Encoding puts BOS in front; unknown words become UNK.
    """
    from tokenizers import (
        Regex,
        Tokenizer,
        decoders,
        models,
        normalizers,
        pre_tokenizers,
        processors,
    )
    from transformers import PreTrainedTokenizerFast

    cut = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Metaspace(replacement=_SPACE, prepend_scheme="always"),
            pre_tokenizers.Punctuation("isolated"),
        ]
    )
    words = sorted({piece for text in texts for piece, _ in cut.pre_tokenize_str(text)})
    vocabulary = {token: i for i, token in enumerate((*SPECIAL, *words))}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token=UNK))
    core.normalizer = normalizers.Sequence(
        [normalizers.Strip(), normalizers.Replace(Regex(r"\s+"), " ")]
    )
    core.pre_tokenizer = cut
    core.decoder = decoders.Metaspace(replacement=_SPACE, prepend_scheme="always")
    core.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", special_tokens=[(BOS, vocabulary[BOS])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        unk_token=UNK,
        padding_side="left",
        model_max_length=256,
    )
