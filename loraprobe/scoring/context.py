"""How many tokens a model's context holds, and how many of them a text leaves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from loraprobe.errors import TaskError


def context_length(model: Any) -> int | None:
    """The largest number of tokens of a sequence; None if the model sets no limit."""
    length = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return int(length) if length and length > 0 else None


def tokens_left(
    context: int | None, ids: Sequence[int], prompt: str, wanted: int, more: str = ""
) -> int:
    """How many tokens may follow the ids, at most `wanted`. Raises TaskError if none.

    more: text for the error that says what the ids contain besides the prompt.
    """
    if context is None:
        return wanted
    # The last token needs no position, because nothing follows it.
    left = context - len(ids) + 1
    if left < 1:
        raise TaskError(
            f"The prompt {prompt[:60]!r}{more} has {len(ids):,} tokens, but the "
            f"model's context holds {context:,}; shorten {'both' if more else 'it'}."
        )
    return min(wanted, left)
