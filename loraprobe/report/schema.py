"""The schema of the JSON document, derived from the records: it reads documents and is published.

pydantic derives it; `_exact` makes it strict: a document has every field of each record and no
other, and null stands for a number that is not finite.
"""

from __future__ import annotations

import functools
import math
from typing import Any

from pydantic import TypeAdapter
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import SchemaValidator, core_schema

from loraprobe.records import SCHEMA_VERSION, Audit

LARGEST = 1e300  # of a number; no figure of an audit comes near


def json_schema() -> dict[str, Any]:
    """JSON Schema (draft 2020-12) that every document of `--json` satisfies."""
    audit = _Published(by_alias=False).generate(_core())
    _add(audit, "schema_version", {"const": SCHEMA_VERSION})
    _add(audit["$defs"]["Compatibility"], "compatible", {"type": "boolean"})
    return {"$schema": GenerateJsonSchema.schema_dialect, **audit, "title": "loraprobe audit"}


@functools.cache
def validator() -> SchemaValidator:
    """Makes an Audit of its fields as JSON text; raises pydantic's ValidationError."""
    return SchemaValidator(_core())


@functools.cache
def _core() -> Any:
    return _exact(TypeAdapter(Audit).core_schema)


def _exact(schema: Any) -> Any:
    """The core schema with no default, no other field, and numbers within bounds."""
    if isinstance(schema, list):
        return [_exact(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    kind = schema.get("type")
    if kind == "default":
        return _exact(schema["schema"])
    if kind == "float":
        return core_schema.no_info_before_validator_function(_finite, core_schema.float_schema())
    if kind == "int":
        return core_schema.int_schema(gt=-(1 << 63), lt=1 << 63)
    made = {key: value if key == "metadata" else _exact(value) for key, value in schema.items()}
    if kind == "dataclass":
        made["config"] = {"extra_fields_behavior": "forbid", "strict": True}
    return made


def _finite(value: Any) -> Any:
    """NaN for null; other numbers as they are. Raises ValueError for those that are too large."""
    if value is None:
        return math.nan
    if isinstance(value, int | float) and not abs(value) < LARGEST:
        raise ValueError("it must be a finite number")
    return value


def _add(record: dict[str, Any], name: str, schema: dict[str, Any]) -> None:
    """Adds a required property that is no field of the record."""
    record["properties"][name] = schema
    record["required"].append(name)


class _Published(GenerateJsonSchema):
    """A number is finite or null, since JSON has no infinity and no NaN; bounds are left out."""

    def int_schema(self, schema: Any) -> JsonSchemaValue:
        return {"type": "integer"}

    def float_schema(self, schema: Any) -> JsonSchemaValue:
        return {"type": ["number", "null"]}

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False
