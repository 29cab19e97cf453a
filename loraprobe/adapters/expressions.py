"""Matches regular expressions of untrusted configs as peft does, within limits.

peft passes target_modules, rank_pattern and others to Python's `re`. A match of `re` cannot be
interrupted, and other engines differ from it. Expressions are therefore matched by `re` in a child
process with limited time and memory, or in this process if they are simple. The child runs this
file, which therefore imports only the standard library.
"""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
import sys
from collections.abc import Sequence

# A plain expression has no repetition and no alternative. Matching takes at most the length of the
# text times that of the expression, which PLAIN_LENGTH and PLAIN_QUESTIONS bound.
PLAIN = re.compile(r"\^?(?:[\w.-]|\\[.-])*\$?")
PLAIN_LENGTH = 1000
PLAIN_QUESTIONS = 2_000_000

SECONDS = 1  # of processor time in the child process
QUESTIONS_A_SECOND = 50_000  # each further second is granted for this many pairs
MOST_SECONDS = 30
WAITING = 60  # seconds of the clock, however busy the machine is
MEMORY = 1 << 30

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
    if _is_quick(expressions, texts):
        return _answers(expressions, form, texts, whole)
    questions = len(expressions) * len(texts)
    seconds = min(SECONDS + questions // QUESTIONS_A_SECOND, MOST_SECONDS)
    asked = json.dumps([list(expressions), form, list(texts), whole, seconds])
    try:
        child = subprocess.run(
            [sys.executable, "-I", "-S", "-W", "ignore", __file__],
            input=asked,
            capture_output=True,
            text=True,
            encoding="utf-8",
            timeout=WAITING,
        )
    except subprocess.TimeoutExpired:
        child = None
    except OSError as error:
        raise ExpressionError(
            f"{_short(expressions)} cannot be matched here, since no process can be started "
            f"({error})"
        ) from None
    if child is None or child.returncode:
        raise ExpressionError(f"{_short(expressions)} did not come to an end in {seconds} s")
    answer = json.loads(child.stdout)
    if isinstance(answer, str):
        raise ExpressionError(answer)
    return [None if found is None else (found[0], found[1]) for found in answer]


def _is_quick(expressions: Sequence[str], texts: Sequence[str]) -> bool:
    return (
        len(expressions) * len(texts) <= PLAIN_QUESTIONS
        and all(len(text) <= PLAIN_LENGTH for text in texts)
        and all(len(part) <= PLAIN_LENGTH and PLAIN.fullmatch(part) for part in expressions)
    )


def _answers(
    expressions: Sequence[str], form: str, texts: Sequence[str], whole: bool
) -> list[Match | None]:
    """Matches by `re`. Raises ExpressionError for an expression that does not compile."""
    ask = []
    for expression in expressions:
        try:
            compiled = re.compile(form.replace("{}", expression))
        except (re.error, ValueError, OverflowError, RecursionError, MemoryError) as error:
            reason = str(error) or type(error).__name__
            raise ExpressionError(
                f"{_short([expression])} is no regular expression of Python's re ({reason})"
            ) from None
        ask.append(compiled.fullmatch if whole else compiled.match)
    answers: list[Match | None] = []
    for text in texts:
        found = next(((i, match) for i, one in enumerate(ask) if (match := one(text))), None)
        answers.append(None if found is None else (found[0], found[1].groupdict().get("idx")))
    return answers


def _short(expressions: Sequence[str]) -> str:
    """The first expression, shortened, for a message."""
    more = f" (or one of {len(expressions) - 1} more)" if expressions[1:] else ""
    return f"{expressions[0][:80]!r}{more}"


def _limit(seconds: int) -> None:
    """Limits the processor time (seconds) and memory of this process, except on Windows."""
    try:
        import resource
    except ImportError:
        return
    for kind, amount in (
        (resource.RLIMIT_CPU, seconds),
        (resource.RLIMIT_AS, MEMORY),
        (resource.RLIMIT_CORE, 0),
    ):
        hard = resource.getrlimit(kind)[1]
        within = amount if hard == resource.RLIM_INFINITY else min(amount, hard)
        # A system may lack a limit; the parent's timeout still applies.
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(kind, (within, hard))


def _child() -> None:
    """Reads a question of `first_matches` from standard input and prints matches or an error."""
    expressions, form, texts, whole, seconds = json.loads(sys.stdin.buffer.read())
    _limit(seconds)
    try:
        answer: object = _answers(expressions, form, texts, whole)
    except ExpressionError as error:
        answer = str(error)
    print(json.dumps(answer))


if __name__ == "__main__":
    _child()
