"""Findings about adapters: meaning, severity and cure of each code, from findings.toml."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from loraprobe.records import Issue, Severity


@dataclass(frozen=True)
class FindingCode:
    """What all findings of one code have in common, unless a check says otherwise."""

    meaning: str
    severity: Severity = "note"
    cure: str = ""


# What the findings are about -> code -> FindingCode.
SUBJECTS: Mapping[str, Mapping[str, FindingCode]] = {
    subject: {code: FindingCode(**row) for code, row in group.items()}
    for subject, group in tomllib.loads(
        Path(__file__).with_suffix(".toml").read_text(encoding="utf-8")
    ).items()
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
