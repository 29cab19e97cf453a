"""Evaluates the small arithmetic programs that an adapter may write; nothing is executed.

A program is one expression of whole numbers and calls of the known operations, such as
``minus( plus( 3, 2), 1)``. It is parsed, and its syntax tree is walked over a whitelist.
"""

from __future__ import annotations

import ast
import re

from loraprobe.errors import LoraprobeError
from loraprobe_lab.math.problems import OPERATIONS

LONGEST = 200  # characters
DEEPEST = 8  # calls inside calls
LARGEST_VALUE = 10**6

# A program as it stands in a text; the answer pattern of task items.
PATTERN = rf"((?:{'|'.join(OPERATIONS)})\(.*\))"


class ProgramError(LoraprobeError):
    """A text that is not a program of the known operations."""


def evaluate(text: str) -> int:
    """The value of a program.

    Raises:
        ProgramError: anything but whole numbers and calls of the known operations with two
            arguments; too long, too deep or too large.
    """
    if len(text) > LONGEST:
        raise ProgramError(f"A program has at most {LONGEST} characters, this one {len(text)}.")
    try:
        tree = ast.parse(text.strip(), mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise ProgramError(f"{text!r} is not an expression.") from None
    return _value(tree.body, DEEPEST)


def read(text: str) -> int | None:
    """The value of the last program in a text, None where there is none that can be evaluated."""
    found = re.findall(PATTERN, text)
    try:
        return evaluate(found[-1]) if found else None
    except ProgramError:
        return None


def _value(node: ast.expr, depth: int) -> int:
    if depth < 0:
        raise ProgramError(f"A program has at most {DEEPEST} calls inside each other.")
    if isinstance(node, ast.Constant) and type(node.value) is int:
        return _small(node.value)
    if (
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id in OPERATIONS
        and len(node.args) == 2
        and not node.keywords
    ):
        have, number = (_value(argument, depth - 1) for argument in node.args)
        return _small(OPERATIONS[node.func.id](have, number))
    raise ProgramError(
        f"A program holds whole numbers and {', '.join(OPERATIONS)} of two, "
        f"not {ast.unparse(node)!r}."
    )


def _small(value: int) -> int:
    if abs(value) > LARGEST_VALUE:
        raise ProgramError(f"Numbers in a program stay below {LARGEST_VALUE:,}.")
    return value
