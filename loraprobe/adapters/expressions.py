"""Matches regular expressions of untrusted configs as peft does, with a time limit.

peft passes target_modules, rank_pattern and others to Python's `re`, whose matches have no limit.
Expressions that need none, of which most configs consist, are matched by `re` too, others by
`regex`, which reads what `re` accepts alike but for two things that are written otherwise here.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from typing import Any

from loraprobe.patterns import PatternError, compiled

# A plain expression has no repetition and no alternative. Matching takes at most the length of the
# text times that of the expression.
PLAIN = re.compile(r"\^?(?:[\w.-]|\\[.-])*\$?")
PLAIN_LENGTH = 1000

SECONDS = 1.0  # of processor time
QUESTIONS_A_SECOND = 50_000  # each further second is granted for this many pairs
MOST_SECONDS = 30.0

# An escaped character, a brace that begins no count (`regex` reads {e<=1} as one error), and the
# beginning of a class of POSIX, of which `re` knows nothing.
_OTHERWISE = re.compile(r"(\\(?:N\{[^}]*\}|.))|\{(?!\d*,?\d*\})|\[:", re.DOTALL)

Match = tuple[int, str | None]  # which expression, and what its group `idx` holds


class ExpressionError(Exception):
    """An expression that `re` does not compile, or that takes too long."""


def first_matches(
    expressions: Sequence[str], form: str, texts: Sequence[str], *, whole: bool = False
) -> list[Match | None]:
    """For each text the first expression that matches it, None if none does.

    form: the pattern around each expression, such as r"(.*\\.)?({})$"; {} is the expression.
    whole: match the whole text (`re.fullmatch`) instead of its beginning (`re.match`).
    Raises ExpressionError, with the expression in its message.
    """
    if not expressions or not texts:
        return [None] * len(texts)
    seconds = min(SECONDS + len(expressions) * len(texts) / QUESTIONS_A_SECOND, MOST_SECONDS)
    end = time.thread_time() + seconds
    quick = max(map(len, texts)) <= PLAIN_LENGTH
    ask = [_matcher(expression, form, whole, quick) for expression in expressions]
    answers: list[Match | None] = []
    for text in texts:
        for number, matches in enumerate(ask):
            if (left := end - time.thread_time()) <= 0:
                raise _late(expressions, seconds)
            try:
                match = matches(text, left)
            except (TimeoutError, MemoryError):
                raise _late(expressions, seconds) from None
            if match:
                answers.append((number, match.groupdict().get("idx")))
                break
        else:
            answers.append(None)
    return answers


def _matcher(expression: str, form: str, whole: bool, quick: bool) -> Callable[[str, float], Any]:
    """Matches a text within seconds. Raises ExpressionError for what `re` does not compile."""
    pattern = form.replace("{}", expression)
    try:
        plain = re.compile(pattern)
        if quick and len(expression) <= PLAIN_LENGTH and PLAIN.fullmatch(expression):
            find = plain.fullmatch if whole else plain.match
            return lambda text, _: find(text)
        limited = compiled(_OTHERWISE.sub(_as_re_reads, pattern))
    except PatternError as error:
        raise ExpressionError(f"{expression[:80]!r} {error}") from None
    except (re.error, ValueError, OverflowError, RecursionError, MemoryError) as error:
        reason = str(error) or type(error).__name__
        raise ExpressionError(
            f"{expression[:80]!r} is no regular expression of Python's re ({reason})"
        ) from None
    bounded = limited.fullmatch if whole else limited.match
    return lambda text, seconds: bounded(text, timeout=seconds)


def _as_re_reads(found: re.Match[str]) -> str:
    return found[1] or ("[\\:" if found[0] == "[:" else "\\{")


def _late(expressions: Sequence[str], seconds: float) -> ExpressionError:
    more = f" (or one of {len(expressions) - 1} more)" if expressions[1:] else ""
    return ExpressionError(
        f"{expressions[0][:80]!r}{more} did not come to an end in {seconds:.0f} s"
    )
