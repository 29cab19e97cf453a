"""Matches texts with a stranger's regular expressions, within limits of time and memory.

Python's `re`, to which peft passes them, cannot stop a match; the library `regex` can. It reads
what `re` accepts alike but for two things that are written otherwise here, and unrolls counted
repetitions when it compiles, so these are bounded.
"""

from __future__ import annotations

import functools
import re
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import regex

REPETITIONS = 1_000_000  # characters of an expression whose counted repetitions are written out
_COUNT = re.compile(r"(\))?\{(\d*),?(\d*)\}")
SECONDS = 10.0  # of processor time, for all matches of one rule
# An escaped character, a brace that begins no count (`regex` reads {e<=1} as one error), and the
# beginning of a class of POSIX, of which `re` knows nothing.
_OTHERWISE = re.compile(r"(\\(?:N\{[^}]*\}|.))|\{(?!\d*,?\d*\})|\[:", re.DOTALL)


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
        if size * repeated > REPETITIONS:
            raise PatternError("repeats more often than is tried; write it with * or +")
    import regex

    try:
        return regex.compile(pattern)
    except (regex.error, ValueError, OverflowError, RecursionError, MemoryError) as error:
        reason = str(error) or type(error).__name__
        raise PatternError(f"is not a regular expression: {reason}") from None


def first_matches(
    expressions: Sequence[str], form: str, texts: Sequence[str], *, whole: bool = False
) -> list[tuple[int, str | None] | None]:
    """For each text the first expression that matches it, None if none does.

    A match is the expression's number and what its group `idx` holds. form: the pattern around each
    expression, such as r"(.*\\.)?({})$"; {} is the expression. whole: match the whole text
    (`re.fullmatch`) instead of its beginning (`re.match`). Raises PatternError, with the
    expression in its message.
    """
    end = time.thread_time() + SECONDS
    matchers = [_matcher(expression, form, whole) for expression in expressions]

    def first_match(text: str) -> tuple[int, str | None] | None:
        for at, matches in enumerate(matchers):
            try:
                if (left := end - time.thread_time()) <= 0:
                    raise TimeoutError
                match = matches(text, left)
            except (TimeoutError, MemoryError):
                raise PatternError(
                    f"{expressions[at][:80]!r} did not come to an end in {SECONDS:.0f} s"
                ) from None
            if match:
                return at, match.groupdict().get("idx")
        return None

    return [first_match(text) for text in texts]


def _matcher(expression: str, form: str, whole: bool) -> Callable[[str, float], Any]:
    """Matches a text within seconds. Raises PatternError for what `re` does not compile."""
    pattern = form.replace("{}", expression)
    try:
        re.compile(pattern)
        limited = compiled(_OTHERWISE.sub(_as_re_reads, pattern))
    except PatternError as error:
        raise PatternError(f"{expression[:80]!r} {error}") from None
    except (re.error, ValueError, OverflowError, RecursionError, MemoryError) as error:
        reason = str(error) or type(error).__name__
        raise PatternError(
            f"{expression[:80]!r} is no regular expression of Python's re ({reason})"
        ) from None
    bounded = limited.fullmatch if whole else limited.match
    return lambda text, seconds: bounded(text, timeout=seconds)


def _as_re_reads(found: re.Match[str]) -> str:
    return found[1] or ("[\\:" if found[0] == "[:" else "\\{")
