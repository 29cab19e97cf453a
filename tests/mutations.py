"""Documents with values that nobody expects, drawn by a seed."""

import copy
import json
import random
from collections.abc import Iterator
from typing import Any

ODD: list[Any] = [
    None, True, 0, -1, 10**30, 1e308, 1e-320, float("nan"), float("-inf"), "", "x", "nan", "-0.5",
    "\0", "\ud800", "ev\x1b[31mil\u202e", "../../x", "%s%d{0}", "é" * 300, "x" * 9000, "a\nb",
    "<script>", [], [[]], {}, {"": None}, [None], [[[[[[]]]]]],
]  # fmt: skip


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """(list or object, index or key) of every value in a document."""
    for key in [*value] if isinstance(value, dict) else range(len(value)):
        yield value, key
        if isinstance(value[key], (dict, list)):
            yield from _places(value[key])


def mutated(document: Any, drawn: random.Random, changes: int = 2) -> bytes:
    """The JSON of a document some of whose values are others, are gone, or stand deeper.

    Of one in ten some bytes are others too.
    """
    changed = [copy.deepcopy(document)]
    for _ in range(drawn.randint(1, changes)):
        parent, key = drawn.choice([*_places(changed)])
        how = drawn.random()
        if how < 0.1 and isinstance(parent, dict):
            del parent[key]
        elif how < 0.2:
            parent[key] = [parent[key]]
        else:
            parent[key] = copy.deepcopy(drawn.choice(ODD))
    made = bytearray(json.dumps(changed[0] if changed else None), "utf-8")
    if drawn.random() < 0.1:
        made[drawn.randrange(len(made))] = drawn.randrange(256)
    return bytes(made)
