"""The document that is read and written as JSON: an audit, with its schema.

pydantic derives the schema from the records; `_exact` makes it strict: a document has every field
of each record and no other, and null stands for a number that is not finite.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_type_hints

from pydantic import TypeAdapter, ValidationError
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import SchemaValidator, core_schema

from loraprobe.errors import UsageError
from loraprobe.records import DOCUMENT_FIELDS, SCHEMA_VERSION, Audit, added_records
from loraprobe.untrusted import error_line, first_problem, unique_keys

LARGEST = 1e300  # of a number; no figure of an audit comes near
MADE_BY = "give a file that loraprobe printed with --json"
LARGEST_FILE = 200_000_000  # bytes of a saved document


def json_schema() -> dict[str, Any]:
    """JSON Schema (draft 2020-12) that every document of `--json` satisfies."""
    audit = _Published(by_alias=False).generate(_core())
    measured = audit["$defs"].pop("EvaluationRecords")["properties"]
    properties = {name: measured[field] for name, field in DOCUMENT_FIELDS.items()}
    audit["properties"] = _in_place(audit["properties"], properties)
    audit["required"] = [*_in_place(dict.fromkeys(audit["required"]), properties)]
    _add(audit, "schema_version", {"const": SCHEMA_VERSION})
    _add(audit["$defs"]["Compatibility"], "compatible", {"type": "boolean"})
    return {"$schema": GenerateJsonSchema.schema_dialect, **audit, "title": "loraprobe audit"}


@functools.cache
def _validator() -> SchemaValidator:
    """Makes a `_document` of its fields as JSON text; raises pydantic's ValidationError."""
    return SchemaValidator(_core())


@functools.cache
def _core() -> Any:
    return _exact(TypeAdapter(_document()).core_schema)


def _document() -> type:
    """A dataclass with the fields of an audit, and in place of `added` those of the records."""
    named = dict[str, Any]()
    for name, hint in get_type_hints(Audit).items():
        own = added_records() if name == "added" else []
        named |= {key: one for kind in own for key, one in get_type_hints(kind).items()}
        named |= {} if name == "added" else {name: hint}
    return dataclasses.make_dataclass("Audit", named.items(), namespace={"__doc__": Audit.__doc__})


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


def _in_place(fields: Mapping[str, Any], measured: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of an audit with what was measured in place of its record."""
    placed: dict[str, Any] = {}
    for name, value in fields.items():
        placed |= measured if name == "evaluation" else {name: value}
    return placed


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


def read_audit(path: Path) -> Audit:
    """The audit of a saved document of this version, with each field of its own type.

    null stands for a number that was not finite. Raises UsageError, which says what is wrong and
    where.
    """
    if not path.is_file():
        raise UsageError(f"{path} is no file; {MADE_BY}.")
    try:
        if path.stat().st_size > LARGEST_FILE:
            raise UsageError(f"{path} has more than {LARGEST_FILE:,} bytes; {MADE_BY}.")
        text = path.read_text(encoding="utf-8")
        document = json.loads(text, object_pairs_hook=unique_keys)
    except OSError as error:
        raise UsageError(f"{path} cannot be read ({error.strerror}); {MADE_BY}.") from None
    except (ValueError, RecursionError) as error:
        why = error_line(error)
        raise UsageError(f"{path} is no JSON document ({why}); {MADE_BY}.") from None
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
    compatibility: Any = fields.get("compatibility")
    if isinstance(compatibility, dict):  # whose `compatible` follows from the issues
        fields["compatibility"] = {k: v for k, v in compatibility.items() if k != "compatible"}
    if isinstance(verdict := fields.get("verdict"), dict):  # whose `next_in` follows from `next`
        fields["verdict"] = {**verdict, "next_in": None}
    fields["evaluation"] = {
        field: fields.pop(name) for name, field in DOCUMENT_FIELDS.items() if name in fields
    }
    try:
        found = vars(_validator().validate_json(json.dumps(fields, allow_nan=False)))
    except ValidationError as error:
        problem = first_problem(error).removeprefix("evaluation.")
        raise ValueError(re.sub("^scores", "evaluation", problem)) from None
    added = [
        kind(**{one.name: found.pop(one.name) for one in dataclasses.fields(kind)})
        for kind in added_records()
    ]
    audit = Audit(**found, added=tuple(one for one in added if one != type(one)()))
    if compatibility.get("compatible") is not audit.compatibility.compatible:
        raise ValueError("compatibility.compatible does not follow from the issues")
    if any(row.rank.keys() != {"min", "max"} for row in audit.adapters):
        raise ValueError("adapters.rank must have min and max")
    return audit
