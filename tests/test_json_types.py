"""The types of JSON values: nothing is converted, and true is no number."""

from __future__ import annotations

import math

import pytest

from loraprobe.json_types import TYPES, is_of_type

# Values, and the names of the types that take them.
VALUES = [
    (None, ""),
    ("a", "text; text or texts; bool or text"),
    (True, "bool; bool or text"),
    (0, "number; whole; whole or list"),
    (10**400, "whole; whole or list"),
    (1.5, "number"),
    (math.inf, ""),
    (math.nan, ""),
    ([], "texts; text or texts; whole or list"),
    (["a"], "texts; text or texts"),
    (["a", 1], ""),
    ([1], "whole or list"),
    ([True], ""),
    ({}, "object"),
]
NAMES = {
    "text": "a text",
    "texts": "a list of texts",
    "text or texts": "a text or a list of texts",
    "bool": "true or false",
    "bool or text": "true, false or a text",
    "number": "a number",
    "whole": "a whole number",
    "whole or list": "a whole number or a list of them",
    "object": "an object",
}


@pytest.mark.parametrize("value, takes", VALUES, ids=[f"{v!r:.12}" for v, _ in VALUES])
def test_each_value_is_of_its_types_alone(value, takes):
    wanted = {NAMES[name] for name in takes.split("; ") if name}
    assert {name for name in TYPES if is_of_type(value, name)} == wanted
