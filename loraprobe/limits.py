"""Limits on the resources that a stranger's file may use. A file beyond one is refused by name.

The safetensors library itself limits headers to 100 MB.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

DEEPEST = 50  # levels of lists and objects in a config
CONFIG = 10_000_000  # bytes of an adapter's or a base's config, and of an index of shards
TOKENIZER = 200_000_000  # bytes of a tokenizer.json
CARD = 5_000_000  # bytes of a model card
TENSORS = 2_000_000  # tensors in one weight file
MODULES = 500_000  # modules of one adapter
LINE = 1_000_000  # bytes of one line of a task or probe file
ITEMS = 2_000_000_000  # bytes of a task or probe file
ROWS = 500_000  # rows of a task
CHOICES = 1_000  # of one item
INFLATION = 4  # the largest factor by which unpacking may enlarge a weight file


def nested_values(document: Mapping[str, Any]) -> Iterator[tuple[str, Any, int]]:
    """(dotted path of keys, value, depth) of every value in a JSON object, without recursion.

    Values deeper than DEEPEST + 1 levels are left out.
    """
    waiting: list[tuple[str, Any, int]] = [("", document, 0)]
    while waiting:
        key, value, depth = waiting.pop()
        if depth:
            yield key, value, depth
        if depth > DEEPEST:
            continue
        if isinstance(value, Mapping):
            waiting += [(f"{key}.{k}".lstrip("."), v, depth + 1) for k, v in value.items()]
        elif isinstance(value, list):
            waiting += [(key, v, depth + 1) for v in value]
