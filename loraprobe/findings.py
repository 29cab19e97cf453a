"""Findings about adapters: meaning, severity and cure of each code, as in findings.toml and in the
files of extensions."""

from __future__ import annotations

import tomllib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from loraprobe.records import Issue, Severity
from loraprobe.wiring import extensions


@dataclass(frozen=True)
class FindingCode:
    """What all findings of one code have in common, unless a check says otherwise.

    mended_by: the command that writes an adapter again without the finding; "" for none.
    """

    meaning: str
    severity: Severity = "note"
    cure: str = ""
    mended_by: str = ""


_FILES = [one.codes for one in extensions() if one.codes is not None]
_TABLES = [tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))]
_TABLES += [tomllib.loads(file.read_text(encoding="utf-8")).get("findings", {}) for file in _FILES]
_ROWS: dict[str, dict[str, dict[str, Any]]] = {}
for _table in _TABLES:
    for _subject, _group in _table.items():
        _rows = _ROWS.setdefault(_subject, {})
        _rows |= {code: _rows.get(code, {}) | row for code, row in _group.items()}
# What the findings are about -> code -> FindingCode.
SUBJECTS: Mapping[str, Mapping[str, FindingCode]] = {
    subject: {code: FindingCode(**row) for code, row in group.items()}
    for subject, group in _ROWS.items()
}
CODES = {code: row for group in SUBJECTS.values() for code, row in group.items()}


def finding(
    code: str,
    adapters: tuple[str, ...],
    message: str,
    module: str | None = None,
    *,
    severity: Severity | None = None,
    cure: str | None = None,
) -> Issue:
    """A finding of this code, with the code's severity and cure unless others are given."""
    row = CODES[code]
    cure = row.cure if cure is None else cure
    return Issue(severity or row.severity, code, adapters, message, cure, module)


def accepted(issue: Issue, allow: Collection[str]) -> Issue:
    """The finding, an error as a warning where `allow` names its code."""
    if issue.severity != "error" or issue.code not in allow:
        return issue
    return replace(issue, severity="warning", message=f"Allowed: {issue.message}")
