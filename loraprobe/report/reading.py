"""An audit from the JSON document that `--json` printed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from loraprobe.errors import UsageError
from loraprobe.json_types import first_problem
from loraprobe.records import SCHEMA_VERSION, Audit
from loraprobe.report.schema import validator

MADE_BY = "give a file that loraprobe printed with --json"
# Fields that only `screen` fills; audits of earlier versions lack them.
LATER: dict[str, Any] = {"library": None, "shortlist": []}


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
        raise UsageError(f"{path} cannot be read ({error.strerror}); {MADE_BY}.") from None
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
    fields = LATER | {name: value for name, value in document.items() if name != "schema_version"}
    found = fields.get("compatibility")
    if isinstance(found, dict):  # `compatible` follows from the issues
        fields["compatibility"] = {k: v for k, v in found.items() if k != "compatible"}
    audit = _validated(fields)
    if not isinstance(found, dict) or found.get("compatible") is not audit.compatibility.compatible:
        raise ValueError("compatibility.compatible does not follow from the issues")
    if any(row.rank.keys() != {"min", "max"} for row in audit.adapters):
        raise ValueError("adapters.rank must have min and max")
    return audit


def _validated(fields: dict[str, Any]) -> Audit:
    try:
        audit: Audit = validator().validate_json(json.dumps(fields, allow_nan=False))
    except ValidationError as error:
        raise ValueError(first_problem(error)) from None
    return audit
