"""What those who call a model know of the rows of a batch, for those who look into the pass.

Whoever scores continuations knows where each row's prompt ends, and whoever continues cached
prompts knows which row follows which. Neither stands in the arguments of a model's forward(), so
it is told here, for as long as a context lasts.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from contextvars import ContextVar

_ENDS: ContextVar[tuple[int, ...] | None] = ContextVar("prompt_ends", default=None)
_ROWS: ContextVar[tuple[int, ...] | None] = ContextVar("followed_rows", default=None)


@contextlib.contextmanager
def prompts_end(ends: Sequence[int]) -> Iterator[None]:
    """Row i of the batch (padded on the right) is a prompt of ends[i] tokens and what follows."""
    token = _ENDS.set(tuple(ends))
    try:
        yield
    finally:
        _ENDS.reset(token)


@contextlib.contextmanager
def rows_follow(rows: Sequence[int]) -> Iterator[None]:
    """Row i of the batch continues row rows[i] of the last batch that began with an empty cache."""
    token = _ROWS.set(tuple(rows))
    try:
        yield
    finally:
        _ROWS.reset(token)


def prompt_ends() -> tuple[int, ...] | None:
    """How many tokens of each row are its prompt; None if nobody has said so."""
    return _ENDS.get()


def followed_rows() -> tuple[int, ...] | None:
    """Which earlier row each row continues; None if nobody has said so."""
    return _ROWS.get()
