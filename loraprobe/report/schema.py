"""The JSON Schema of the JSON document, derived from the records it is made of."""

from __future__ import annotations

from typing import Any

from pydantic import TypeAdapter
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue

from loraprobe.records import SCHEMA_VERSION, Audit


def json_schema() -> dict[str, Any]:
    """JSON Schema (draft 2020-12) that every document of `--json` satisfies."""
    audit = TypeAdapter(Audit).json_schema(schema_generator=_ExactFields)
    _add(audit, "schema_version", {"const": SCHEMA_VERSION})
    _add(audit["$defs"]["Compatibility"], "compatible", {"type": "boolean"})
    return {"$schema": GenerateJsonSchema.schema_dialect, **audit, "title": "loraprobe audit"}


def _add(record: dict[str, Any], name: str, schema: dict[str, Any]) -> None:
    """Adds a required property that is no field of the record."""
    record["properties"][name] = schema
    record["required"].append(name)


class _ExactFields(GenerateJsonSchema):
    """Records have exactly their fields; a number is finite or null."""

    def dataclass_schema(self, schema: Any) -> JsonSchemaValue:
        found = super().dataclass_schema(schema)
        required = list(found["properties"])
        return {**found, "required": required, "additionalProperties": False}

    def float_schema(self, schema: Any) -> JsonSchemaValue:
        return {"type": ["number", "null"]}  # JSON has no infinity and no NaN

    def default_schema(self, schema: Any) -> JsonSchemaValue:
        return self.generate_inner(schema["schema"])

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False
