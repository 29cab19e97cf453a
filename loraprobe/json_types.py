"""The types of JSON values under the names of messages, and what is wrong with a document."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pydantic import ValidationError

# Name in messages -> the types of the value, and of the items where the value may be a list.
TYPES: dict[str, tuple[Sequence[type], Sequence[type]]] = {
    "a text": ([str], []),
    "a list of texts": ([], [str]),
    "a text or a list of texts": ([str], [str]),
    "true or false": ([bool], []),
    "true, false or a text": ([bool, str], []),
    "a number": ([int, float], []),
    "a whole number": ([int], []),
    "a whole number or a list of them": ([int], [int]),
    "an object": ([dict], []),
}


def is_of_type(value: Any, name: str) -> bool:
    """Whether a JSON value has the type of this name, without any conversion.

    A number is finite, and true and false are no numbers.
    """
    kinds, items = TYPES[name]
    if isinstance(value, list):
        return bool(items) and all(type(item) in items for item in value)
    return type(value) in kinds and (float not in kinds or abs(value) <= sys.float_info.max)


def wrong_types(
    document: Mapping[str, Any], keys: Mapping[str, Sequence[str]]
) -> Iterator[tuple[str, Any, str]]:
    """(key, value, name of the right type) of each value of a wrong type; null is never wrong.

    keys: name of a type in `TYPES` -> the keys that have this type.
    """
    for name, typed in keys.items():
        for key in typed:
            value = document.get(key)
            if value is not None and not is_of_type(value, name):
                yield key, value, name


WORDS = {"missing": "it is missing", "unexpected_keyword_argument": "there is no such field"}


def first_problem(error: ValidationError) -> str:
    """The first problem of a document, behind its place as in `evaluation[0].ci95`."""
    first = error.errors(include_url=False, include_input=False)[0]
    told = WORDS.get(first["type"], first["msg"].removeprefix("Value error, "))
    steps = (f"[{step}]" if isinstance(step, int) else f".{step:.60}" for step in first["loc"])
    place = "".join(steps).lstrip(".") or "the document"
    return f"{place}: {told.replace('Input should', 'it should')}"


def is_unicode(text: str) -> bool:
    """Whether a text can be encoded: JSON and pickles may hold halves of surrogate pairs."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
