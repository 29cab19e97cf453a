"""Passes information about the rows of a batch from the caller of a model to its hooks.

The arguments of forward() do not say where each row's prompt ends, nor which cached prompt a row
continues. The caller sets both here for the duration of a context.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from contextvars import ContextVar

_ENDS: ContextVar[tuple[int, ...] | None] = ContextVar("prompt_ends", default=None)
_ROWS: ContextVar[tuple[int, ...] | None] = ContextVar("followed_rows", default=None)


@contextlib.contextmanager
def prompts_end(ends: Sequence[int]) -> Iterator[None]:
    """Row i of the batch (padded on the right) begins with a prompt of ends[i] tokens."""
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
    """The number of prompt tokens of each row; None if it was not set."""
    return _ENDS.get()


def followed_rows() -> tuple[int, ...] | None:
    """The earlier row that each row continues; None if it was not set."""
    return _ROWS.get()
