"""Splits sequences into batches, and halves batches that do not fit into memory.

`auto` packs sequences of similar length up to a number of tokens. A batch that does not fit into
memory is halved, down to a single sequence, and later batches keep the smaller size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch

from loraprobe.errors import OutOfMemory
from loraprobe.memory import is_out_of_memory

# Tokens per forward pass. Measured: more than a few thousand are not faster on a CPU.
TOKENS = {"cpu": 4096, "mps": 8192}
TOKENS_ELSEWHERE = 32768
LOGITS = 1 << 26  # entries of the largest tensor of logits, 256 MB in float32
CURE = (
    "use --dtype bfloat16 or --quantize 4bit, fewer --max-new-tokens, shorter prompts, a smaller "
    "base model, or another --device"
)


@dataclass
class MemoryHistory:
    """The batches of one model that did not fit into memory; sizes in sequences."""

    failed: int | None = None  # the largest batch that did not fit
    kept: int | None = None  # the most that later batches may have

    def learn(self, failed: int, kept: int) -> None:
        self.failed = max(failed, self.failed or 0)
        self.kept = min(kept, self.kept or kept)


@dataclass
class Batcher:
    """Splits work into batches. rows: the largest number of sequences per batch, None for auto.

    copies: sequences that each piece of work needs. The memory history is shared with every batcher
    made by `with_copies`.
    """

    device: torch.device
    rows: int | None = None
    copies: int = 1
    memory: MemoryHistory = field(default_factory=MemoryHistory)

    def with_copies(self, copies: int) -> Batcher:
        """A batcher with the same memory history for work of `copies` sequences each."""
        return replace(self, copies=self.copies * copies)

    def split(
        self, lengths: Sequence[int], starts: Sequence[int] | None = None, vocab: int = 0
    ) -> Iterator[list[int]]:
        """Indices in batches, longest first.

        lengths: tokens of each piece of work with all its copies. starts: the first token for which
        it needs logits of width `vocab`; None if it needs only those of the last token.
        """
        order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
        budget = TOKENS.get(self.device.type, TOKENS_ELSEWHERE)
        while order:
            known = [size for size in (self.rows, self.memory.kept) if size is not None]
            most = max(1, min(known) // self.copies) if known else None
            longest = first = lengths[order[0]]
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
                raise (error if isinstance(error, OutOfMemory) else self._last()) from None
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        half = max(1, len(batch) // 2)
        self.memory.learn(len(batch) * self.copies, half * self.copies)
        for start in range(0, len(batch), half):
            self.run(batch[start : start + half], work)

    def _last(self) -> OutOfMemory:
        """The error of a batch that cannot be halved again."""
        several = f"one text at a time for {self.copies} systems does"
        what = "a batch of one sequence does" if self.copies == 1 else several
        return OutOfMemory(f"Even {what} not fit into the memory of {self.device}; {CURE}.")

    def note(self) -> str:
        """A note for the report on batches that did not fit; "" if all did."""
        if self.memory.failed is None:
            return ""
        return (
            f"A batch of {self.memory.failed} sequences did not fit into the memory of "
            f"{self.device}, so batches were halved until they did: {self.memory.kept} at a "
            f"time. --batch-size {self.memory.kept} starts with this size."
        )
