"""Regular expressions from untrusted files: compiled within bounds, matched with a time limit.

The library `regex` stops a match after some time, which Python's `re` cannot. It unrolls counted
repetitions when it compiles, so these are bounded here.
"""

from __future__ import annotations

import functools
import re

import regex

MOST = 1_000_000  # characters of an expression whose counted repetitions are written out
_COUNT = re.compile(r"(\))?\{(\d*),?(\d*)\}")


class PatternError(ValueError):
    """An expression that is none, is too large, or takes too long."""


@functools.lru_cache(maxsize=1024)
def compiled(pattern: str) -> regex.Pattern[str]:
    """The expression, whose methods take a `timeout` in seconds and then raise TimeoutError.

    Raises PatternError.
    """
    size, repeated = len(pattern), 1
    for group, least, most in _COUNT.findall(pattern):
        count = max(int((most or least or "1")[:9]), 1)
        size, repeated = (size, repeated * count) if group else (size + count, repeated)
        if size * repeated > MOST:
            raise PatternError("repeats more often than is tried; write it with * or +")
    try:
        return regex.compile(pattern)
    except (regex.error, ValueError, OverflowError, RecursionError, MemoryError) as error:
        reason = str(error) or type(error).__name__
        raise PatternError(f"is not a regular expression: {reason}") from None
