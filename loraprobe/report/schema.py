"""The JSON Schema of the JSON document, derived from the records it is made of."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from typing import Any

from loraprobe.records import SCHEMA_VERSION, Audit, Compatibility


def json_schema() -> dict[str, Any]:
    """JSON Schema (draft 2020-12) that every document of `--json` satisfies."""
    definitions: dict[str, Any] = {}
    audit = _record(Audit, definitions)
    audit["properties"] = {"schema_version": {"const": SCHEMA_VERSION}, **audit["properties"]}
    audit["required"] = ["schema_version", *audit["required"]]
    compatibility = definitions[Compatibility.__name__]
    compatibility["properties"]["compatible"] = {"type": "boolean"}
    compatibility["required"].append("compatible")
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "loraprobe audit",
        **audit,
        "$defs": definitions,
    }


def _record(cls: type, definitions: dict[str, Any]) -> dict[str, Any]:
    """A frozen record as an object with exactly its fields."""
    hints = typing.get_type_hints(cls)
    names = [field.name for field in dataclasses.fields(cls)]
    return {
        "type": "object",
        "description": (cls.__doc__ or "").strip().splitlines()[0],
        "properties": {name: _schema(hints[name], definitions) for name in names},
        "required": names,
        "additionalProperties": False,
    }


def _schema(hint: Any, definitions: dict[str, Any]) -> dict[str, Any]:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return {"anyOf": [_schema(argument, definitions) for argument in arguments]}
    if origin is typing.Literal:
        return {"enum": list(arguments)}
    if origin is tuple and len(arguments) == 2 and arguments[1] is Ellipsis:
        return {"type": "array", "items": _schema(arguments[0], definitions)}
    if origin is tuple:
        items = [_schema(argument, definitions) for argument in arguments]
        return {"type": "array", "prefixItems": items, "minItems": len(items), "items": False}
    if origin in (dict, Mapping):
        return {"type": "object", "additionalProperties": _schema(arguments[1], definitions)}
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        if hint.__name__ not in definitions:
            definitions[hint.__name__] = {}
            definitions[hint.__name__].update(_record(hint, definitions))
        return {"$ref": f"#/$defs/{hint.__name__}"}
    if hint is float:
        return {"type": ["number", "null"]}  # finite or null: JSON has no infinity
    simple = {str: "string", int: "integer", bool: "boolean", type(None): "null"}
    return {"type": simple[hint]}
