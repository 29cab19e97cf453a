"""An audit from the JSON document that `--json` printed."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from loraprobe.errors import UsageError
from loraprobe.records import SCHEMA_VERSION, Audit

LARGEST = 1e300
MADE_BY = "give a file that loraprobe printed with --json"


def read_audit(path: Path) -> Audit:
    """The audit of a saved document: exactly the fields of the records, each of its own type.

    null stands for a number that was not finite. Raises UsageError, which says what is wrong and
    where.
    """
    if not path.is_file():
        raise UsageError(f"{path} is no file; {MADE_BY}.")
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"{path} cannot be read ({error.strerror}).") from None
    except (ValueError, RecursionError):
        raise UsageError(f"{path} is no JSON document; {MADE_BY}.") from None
    try:
        return audit_from(document)
    except ValueError as error:
        raise UsageError(f"{path} is no audit of this version: {error}; {MADE_BY}.") from None


def audit_from(document: Any) -> Audit:
    """The audit whose `to_dict` is this document. Raises ValueError where there is none."""
    if not isinstance(document, dict) or "schema_version" not in document:
        raise ValueError("it has no schema_version")
    if document["schema_version"] != SCHEMA_VERSION:
        raise ValueError(f"its schema_version is not {SCHEMA_VERSION}")
    fields = {name: value for name, value in document.items() if name != "schema_version"}
    found = fields.get("compatibility")
    if isinstance(found, dict):  # `compatible` follows from the issues
        fields["compatibility"] = {k: v for k, v in found.items() if k != "compatible"}
    audit: Audit = _value(Audit, fields, "")
    if not isinstance(found, dict) or found.get("compatible") is not audit.compatibility.compatible:
        raise ValueError("compatibility.compatible does not follow from the issues")
    if any(row.rank.keys() != {"min", "max"} for row in audit.adapters):
        raise ValueError("adapters.rank must have min and max")
    return audit


@functools.cache
def _hints(record: Any) -> Mapping[str, Any]:
    return typing.get_type_hints(record)


def _value(kind: Any, value: Any, where: str) -> Any:
    """A value of JSON as the type that a field of a record declares."""
    origin, parts = typing.get_origin(kind), typing.get_args(kind)
    if dataclasses.is_dataclass(kind):
        return _record(kind, value, where)
    if origin in (typing.Union, types.UnionType):  # a type or None
        (kept,) = (part for part in parts if part is not type(None))
        return None if value is None else _value(kept, value, where)
    if origin is Literal:
        return _one_of(parts, value, where)
    if origin is tuple:
        return _items(parts, value, where)
    if isinstance(origin, type) and issubclass(origin, Mapping):
        _check(isinstance(value, dict), where, "an object")
        return {key: _value(parts[1], held, f"{where}.{key}") for key, held in value.items()}
    if kind is float:
        if value is None:
            return math.nan
        sound = type(value) in (int, float) and abs(value) < LARGEST
        _check(sound, where, "a finite number")
        return float(value)
    _check(type(value) is kind, where, {str: "a text", int: "a whole number"}.get(kind, "a bool"))
    _check(kind is not int or abs(value) < 1 << 63, where, "below 2^63")
    return value


def _record(kind: Any, value: Any, where: str) -> Any:
    names = [field.name for field in dataclasses.fields(kind)]
    _check(isinstance(value, dict), where, "an object")
    if missing := [name for name in names if name not in value]:
        raise ValueError(f"{where.lstrip('.') or 'the document'} has no {missing[0]!r}")
    if unknown := [name for name in value if name not in names]:
        raise ValueError(f"{where.lstrip('.') or 'the document'} has an unknown {unknown[0]!r}")
    hints = _hints(kind)
    return kind(**{name: _value(hints[name], value[name], f"{where}.{name}") for name in names})


def _one_of(allowed: tuple[Any, ...], value: Any, where: str) -> Any:
    _check(isinstance(value, str) and value in allowed, where, f"one of {', '.join(allowed)}")
    return value


def _items(parts: tuple[Any, ...], value: Any, where: str) -> tuple[Any, ...]:
    _check(isinstance(value, list), where, "a list")
    if parts[-1] is not Ellipsis:
        _check(len(value) == len(parts), where, f"a list of {len(parts)}")
    kinds = [parts[0]] * len(value) if parts[-1] is Ellipsis else parts
    return tuple(
        _value(kind, held, f"{where}[{i}]")
        for i, (kind, held) in enumerate(zip(kinds, value, strict=True))
    )


def _check(holds: bool, where: str, wanted: str) -> None:
    if not holds:
        raise ValueError(f"{where.lstrip('.') or 'the document'} must be {wanted}")
