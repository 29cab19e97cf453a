"""Batches: how many sequences go through the model at once, and what happens when they do not fit.

`auto` packs sequences of similar length up to a number of tokens; a batch that does not fit into
memory is halved, down to a single sequence, and the smaller size is kept from then on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from loraprobe.errors import OutOfMemory, UsageError

# Tokens per forward pass, measured: past a few thousand a CPU gains nothing.
TOKENS = {"cpu": 4096, "mps": 8192}
TOKENS_ELSEWHERE = 32768
LOGITS = 1 << 26  # entries of the largest tensor of logits, 256 MB in float32


@dataclass
class Batcher:
    """Splits work into batches. `rows` is the most sequences a batch may have, None for auto."""

    device: torch.device
    rows: int | None = None
    forced: int | None = None  # what running out of memory has taught

    @classmethod
    def of(cls, batch_size: int | Literal["auto"], device: torch.device) -> Batcher:
        """From `--batch-size`. Raises UsageError for anything but a positive number or "auto"."""
        if batch_size == "auto":
            return cls(device)
        if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
            raise UsageError(f"The batch size must be a positive number or auto, not "
                             f"{batch_size!r}.")  # fmt: skip
        return cls(device, batch_size)

    def split(
        self, lengths: Sequence[int], starts: Sequence[int] | None = None, vocab: int = 0
    ) -> Iterator[list[int]]:
        """Indices in batches, longest first.

        lengths: tokens that each sequence takes; starts: from which token on it needs logits of
        width `vocab` (None: only of its last).
        """
        order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
        budget = TOKENS.get(self.device.type, TOKENS_ELSEWHERE)
        while order:
            longest = first = lengths[order[0]]
            count = 0
            for i in order[: self._most()]:
                first = min(first, starts[i] if starts else longest)
                tokens, logits = (count + 1) * longest, (count + 1) * (longest - first) * vocab
                if count and self.rows is None and (tokens > budget or logits > LOGITS):
                    break
                count += 1
            yield order[:count]
            order = order[count:]

    def _most(self) -> int | None:
        known = [size for size in (self.rows, self.forced) if size is not None]
        return min(known) if known else None

    def run(self, batch: Sequence[int], work: Callable[[Sequence[int]], None]) -> None:
        """work(batch), halved as often as memory demands. Raises OutOfMemory at one sequence."""
        try:
            work(batch)
            return
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            if len(batch) == 1:
                raise OutOfMemory(
                    f"Even one sequence at a time does not fit into the memory of {self.device}; "
                    "use a smaller base model, --dtype bfloat16, or another --device."
                ) from None
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        half = self.forced = max(1, len(batch) // 2)
        for start in range(0, len(batch), half):
            self.run(batch[start : start + half], work)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that memory ran out, on whichever device."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(
        sign in text for sign in ("out of memory", "can't allocate memory", "not enough memory")
    )
