"""Forward passes over batches of padded rows, what a model keeps of rows that it has read, and the
state of a model during them.

`auto` packs sequences of similar length up to a number of tokens. A batch that does not fit into
memory is halved, down to a single sequence, and later batches keep the smaller size.
"""

from __future__ import annotations

import contextlib
import copy
import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from loraprobe.composition.forward_pass import is_followed, rows_of_batch
from loraprobe.errors import OutOfMemory
from loraprobe.memory import is_out_of_memory

# Tokens per forward pass that only reads, and per pass whose rows write more tokens afterwards.
# Measured on a CPU: to read, 1024 at once are the fastest, but many rows write faster than few.
TOKENS = {"cpu": (1024, 4096), "mps": (8192, 8192)}
TOKENS_ELSEWHERE = (32768, 32768)
LOGITS = 1 << 26  # entries of the largest tensor of logits, 256 MB in float32
LEAST_SHARED = (
    4  # tokens with which all prompts of a batch begin that are worth a pass of their own
)
CURE = (
    "use --dtype=bfloat16 or --quantize=4bit, fewer --max-new-tokens, shorter prompts, a smaller "
    "base model, or another --device"
)


@dataclass
class Batcher:
    """Splits work into batches. rows: the largest number of sequences per batch, None for auto.

    failed: the largest batch that did not fit into memory; kept: the most that later ones may have.
    """

    device: torch.device
    rows: int | None = None
    failed: int | None = None
    kept: int | None = None

    def split(
        self,
        lengths: Sequence[int],
        starts: Sequence[int] | None = None,
        vocab: int = 0,
        *,
        new: int = 0,
        kept: int = 0,
    ) -> Iterator[list[int]]:
        """Indices in batches, longest first.

        lengths: tokens of each piece of work. starts: the first token for which it needs logits of
        width `vocab`; None if it needs only those of the last token. new: tokens that each writes
        after its own. kept: tokens whose keys and values may be in memory, at least as many as are
        read at once.
        """
        order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
        budget = TOKENS.get(self.device.type, TOKENS_ELSEWHERE)[bool(new)]
        kept = max(kept, budget)
        while order:
            longest = first = lengths[order[0]]
            known = [size for size in (self.rows, self.kept) if size is not None]
            if self.rows is None and new:
                known.append(kept // (longest + new))
            most = max(1, min(known)) if known else None
            count = 0
            for i in order[:most]:
                first = min(first, starts[i] if starts else longest)
                tokens, logits = (count + 1) * longest, (count + 1) * (longest - first) * vocab
                if count and self.rows is None and (tokens > budget or logits > LOGITS):
                    break
                count += 1
            yield order[:count]
            order = order[count:]

    def run(self, batch: Sequence[int], work: Callable[[Sequence[int]], None]) -> None:
        """Calls work(batch), with the batch halved as often as necessary.

        `work` may be called again with parts of an earlier batch. It may itself run batches; if one
        piece of its work does not fit, the outer batch is halved. Raises OutOfMemory if a batch of
        one does not fit.
        """
        try:
            work(batch)
            return
        except Exception as error:
            if not isinstance(error, OutOfMemory) and not is_out_of_memory(error):
                raise
            if len(batch) == 1:
                if isinstance(error, OutOfMemory):
                    raise
                raise OutOfMemory(
                    "Even a batch of one sequence does not fit into the memory of "
                    f"{self.device}; {CURE}."
                ) from None
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        half = max(1, len(batch) // 2)
        self.failed = max(len(batch), self.failed or 0)
        self.kept = min(half, self.kept or half)
        for start in range(0, len(batch), half):
            self.run(batch[start : start + half], work)

    def note(self) -> str:
        """A note for the report on batches that did not fit; "" if all did."""
        if self.failed is None:
            return ""
        return (
            f"A batch of {self.failed} sequences did not fit into the memory of {self.device}, so "
            f"batches were halved until they did: {self.kept} at a time. --batch-size {self.kept} "
            "starts with this size."
        )


def padded(
    rows: Sequence[Sequence[int]], pad: int, side: str, device: Any = "cpu"
) -> tuple[Tensor, Tensor]:
    """input_ids and attention_mask [b, longest] (int64), padded on the "left" or the "right"."""
    width = max(len(row) for row in rows)
    ids = torch.full((len(rows), width), pad, dtype=torch.long)
    mask = torch.zeros((len(rows), width), dtype=torch.long)
    for i, row in enumerate(rows):
        place = slice(width - len(row), width) if side == "left" else slice(0, len(row))
        ids[i, place] = torch.tensor(row, dtype=torch.long)
        mask[i, place] = 1
    return ids.to(device), mask.to(device)


def positions(mask: Tensor) -> Tensor:
    """position_ids [b, n] of an attention mask; padding does not count."""
    return (mask.cumsum(-1) - 1).clamp_min(0)


def tail_logits(
    model: Any, rows: Sequence[Sequence[int]], starts: Sequence[int], pad: int
) -> list[Tensor]:
    """Logits of each row from position `start` on: [len(row) - start, vocab] each.

    Rows are padded on the right, where causal attention does not see the padding. Logits are
    computed only for positions that some row needs, if the model supports it.
    """
    ids, mask = padded(rows, pad, "right", model.device)
    first, options = 0, {}
    if "logits_to_keep" in forward_arguments(model):
        first = min(starts)
        # A number: the device of a tensor would have to be that of the last layer.
        options = {"logits_to_keep": ids.shape[1] - first}
    with rows_of_batch(ends=[start + 1 for start in starts]):
        logits = model(input_ids=ids, attention_mask=mask, use_cache=False, **options).logits
    return [
        logits[i, start - first : len(row) - first]
        for i, (row, start) in enumerate(zip(rows, starts, strict=True))
    ]


def forward_arguments(model: Any) -> frozenset[str]:
    """The names of the arguments of a model's forward()."""
    return frozenset(inspect.signature(model.forward).parameters)


def can_share(model: Any) -> bool:
    """Whether a model's cache consists of keys and values of every position, which can be shared.

    False for sliding windows, recurrent layers, and models without position_ids as an argument;
    their prompts are read again with each continuation.
    """
    return cache_kinds(model) == {"DynamicLayer"}


def cache_kinds(model: Any) -> set[str]:
    """The classes of the layers of a model's cache; none where forward() takes no such cache."""
    if not _cache_argument(model) or not {"position_ids", "attention_mask"} <= forward_arguments(
        model
    ):
        return set()
    if getattr(model, "_is_stateful", False):
        return set()
    return {type(layer).__name__ for layer in _empty_cache(model).layers}


@dataclass(eq=False)
class Prefix:
    """The keys and values of c rows that a model has read.

    mask: [c, tokens], 0 for padding. logits: [c, vocab], those after each row. rows: for each row
    the one of the first pass that it continues.
    """

    model: Any
    cache: Any
    mask: Tensor
    logits: Tensor
    rows: list[int]

    @classmethod
    def read(cls, model: Any, prompts: Sequence[Sequence[int]], pad: int) -> Prefix:
        """Reads prompts, padded on the left.

        The tokens with which all of them begin are read once, unless gates are decided for whole
        prompts, or the cache cannot be shared.
        """
        shared = shared_tokens(prompts)
        if shared < LEAST_SHARED or is_followed(model) or not can_share(model):
            shared = 0
        ids, mask = padded([row[shared:] for row in prompts], pad, "left", model.device)
        empty = mask.new_empty
        prefix = cls(model, _empty_cache(model), empty((1, 0)), empty(0), [0])
        if shared:
            prefix.forward(torch.tensor([prompts[0][:shared]], device=mask.device))
            prefix.select([0] * len(prompts))
        prefix.mask, prefix.rows = prefix.mask.expand(len(prompts), -1), [*range(len(prompts))]
        prefix.forward(ids, mask)
        return prefix

    def forward(self, ids: Tensor, mask: Tensor | None = None, last: bool = True) -> Tensor:
        """Reads ids [c, n] after the rows and returns logits: [c, n, vocab], or with `last` those
        of the last tokens only. mask: [c, n], 0 for padding."""
        mask_of_ids = torch.ones_like(ids) if mask is None else mask
        self.mask = torch.cat([self.mask, mask_of_ids], dim=1)
        keep = (
            {"logits_to_keep": 1}
            if last and "logits_to_keep" in forward_arguments(self.model)
            else {}
        )
        with rows_of_batch(follows=self.rows):
            logits: Tensor = self.model(
                input_ids=ids,
                attention_mask=self.mask,
                position_ids=positions(self.mask)[:, -ids.shape[1] :],
                use_cache=True,
                **{_cache_argument(self.model): self.cache},
                **keep,
            ).logits
        self.logits = logits[:, -1]
        return logits

    def select(self, rows: Sequence[int]) -> None:
        """Keeps these rows, in this order; a row may be named several times."""
        index = torch.tensor(rows)  # on the CPU, since layers may have several devices
        self.cache.batch_select_indices(index)
        self.mask, self.rows = self.mask[index], [self.rows[row] for row in rows]

    def tails(self, rows: Sequence[int], tails: Sequence[Sequence[int]], pad: int) -> list[Tensor]:
        """Logits at each token of tail i, which follows row rows[i]: [len(tail), vocab]."""
        ids, mask = padded(tails, pad, "right", self.mask.device)
        cache = copy.copy(self.cache)  # selecting rows replaces tensors of layers
        cache.layers = [copy.copy(layer) for layer in self.cache.layers]
        other = replace(self, cache=cache)
        other.select(rows)
        logits = other.forward(ids, mask, last=False)
        return [logits[i, : len(tail)] for i, tail in enumerate(tails)]


def cache_bytes(model: Any) -> int:
    """The bytes of the keys and values of one token; 0 where the config does not say it."""
    config = model.config.get_text_config()
    try:
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        width = getattr(config, "head_dim", None)
        width = width or config.hidden_size // config.num_attention_heads
        return int(2 * config.num_hidden_layers * heads * width * model.dtype.itemsize)
    except AttributeError:
        return 0


def shared_tokens(rows: Sequence[Sequence[int]]) -> int:
    """With how many equal tokens all rows begin, at most all but one of the shortest; 0 of one."""
    if len(rows) == 1:
        return 0
    most = min(map(len, rows)) - 1
    first, last = min(map(list, rows)), max(map(list, rows))
    return next((k for k in range(most) if first[k] != last[k]), most)


def _empty_cache(model: Any) -> Any:
    from transformers import DynamicCache

    return DynamicCache(config=model.config)


def _cache_argument(model: Any) -> str:
    """The cache argument of forward(): `cache` in newer transformers, `past_key_values`, or ""."""
    known = forward_arguments(model)
    return next((name for name in ("cache", "past_key_values") if name in known), "")


@contextlib.contextmanager
def inference_mode(model: Any) -> Iterator[None]:
    """Inference mode without dropout; afterwards modules return to their training mode."""
    with _evaluating(model), torch.inference_mode():
        yield


@contextlib.contextmanager
def differentiable(model: Any) -> Iterator[None]:
    """Passes without dropout that record gradients, but none of the model's own parameters."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    try:
        for parameter in trained:
            parameter.requires_grad_(False)
        with _evaluating(model), torch.inference_mode(False), torch.enable_grad():
            yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)


@contextlib.contextmanager
def _evaluating(model: Any) -> Iterator[None]:
    """Evaluation mode; afterwards modules return to their training mode.

    The head gets contiguous hidden states. transformers passes it a slice of the last positions,
    for which torch copies the head's weight once a row: 19 s instead of 0.05 s for 144 rows of
    SmolLM2-135M in bfloat16 on a CPU.
    """
    head = model.get_output_embeddings()
    hook = None
    if head is not None:
        hook = head.register_forward_pre_hook(lambda _, args: (args[0].contiguous(), *args[1:]))
    training = [module for module in model.modules() if module.training]
    try:
        for module in training:
            module.training = False
        yield
    finally:
        for module in training:
            module.training = True
        if hook is not None:
            hook.remove()


@contextlib.contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Seeds torch's generators; afterwards they return to their earlier state."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield
