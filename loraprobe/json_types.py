"""What is wrong with a JSON document or a text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError, create_model

STRICT = ConfigDict(strict=True)  # nothing is converted, and true is no number


def document_model(name: str, types: Mapping[Any, str]) -> type[BaseModel]:
    """A model that checks a JSON object: type of a value -> the keys that have this type.

    A key may be absent; other keys may have any value.
    """
    fields: dict[str, Any] = {key: (kind, None) for kind in types for key in types[kind].split()}
    return create_model(name, __config__=STRICT, **fields)


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
