"""Records as plain data, and plain data as JSON text."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import re
from collections.abc import Mapping
from typing import Any, Self

DOCUMENT_VERSION = 1  # of documents that are no audit
_SCALARS = frozenset((str, int, bool, type(None)))


class WrittenAsText:
    """A value that stands in documents as a text: `str` writes it, and `read` reads it."""

    @classmethod
    def read(cls, text: str) -> Self:
        """The value of a text."""
        raise NotImplementedError

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: Any) -> Any:
        from pydantic_core import core_schema

        return core_schema.no_info_after_validator_function(cls.read, core_schema.str_schema())


def plain(value: Any) -> Any:
    """Frozen records as dicts and lists; NaN and infinities become None."""
    if type(value) in _SCALARS:  # most values by far
        return value
    if type(value) is float:
        return value if math.isfinite(value) else None
    if isinstance(value, (list, tuple)):
        return [item if type(item) in _SCALARS else plain(item) for item in value]
    if isinstance(value, WrittenAsText):
        return str(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        held = value.__dict__
        return {
            name: held[name] if type(held[name]) in _SCALARS else plain(held[name])
            for name in _names(type(value))
        }
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


@functools.cache
def _names(kind: type) -> tuple[str, ...]:
    """The fields of a record."""
    return tuple(field.name for field in dataclasses.fields(kind))


def document(command: str, fields: Mapping[str, Any], version: int = DOCUMENT_VERSION) -> str:
    """The JSON document of a command whose result is no audit, as text.

    Fields hold records or plain data. docs/reports.md lists these documents.
    """
    return as_text({"schema_version": version, "command": command, **plain(fields)})


def as_text(document: Mapping[str, Any]) -> str:
    """A JSON document with a record a line; the line feed at the end is left to the caller.

    Control characters in names, which could drive a terminal, become JSON escapes; half of a
    surrogate pair becomes U+FFFD.
    """
    lines = (f' "{key}": {_lines(value)}' for key, value in document.items())
    return _DRIVING.sub(_escaped, "{\n" + ",\n".join(lines) + "\n}")


def _lines(value: Any) -> str:
    """JSON with the items of a list on lines of their own, each as json's fast encoder has it."""
    if isinstance(value, list) and value:
        return "[\n  " + ",\n  ".join(map(_encode, value)) + "\n ]"
    return _encode(value)


def _escaped(found: re.Match[str]) -> str:
    code = ord(found[0])
    return f"\\u{0xFFFD if 0xD800 <= code <= 0xDFFF else code:04x}"


_encode = json.JSONEncoder(ensure_ascii=False, allow_nan=False).encode
# json escapes what lies below a space; these drive terminals too, or turn the direction of text.
_DRIVING = re.compile(r"[\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
