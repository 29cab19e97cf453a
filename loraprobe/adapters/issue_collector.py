"""Collects the issues that are found while an adapter's files are read."""

from __future__ import annotations

from loraprobe.records import Issue, Severity


class IssueCollector:
    """The issues of one adapter, in the order in which they were found."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.issues: list[Issue] = []

    def add(
        self, severity: Severity, code: str, message: str, cure: str = "", module: str | None = None
    ) -> None:
        self.issues.append(Issue(severity, code, (self.name,), message, cure, module))

    def error(self, code: str, message: str, cure: str, module: str | None = None) -> None:
        self.add("error", code, message, cure, module)

    def warning(self, code: str, message: str, cure: str, module: str | None = None) -> None:
        self.add("warning", code, message, cure, module)

    def note(self, code: str, message: str, cure: str = "", module: str | None = None) -> None:
        self.add("note", code, message, cure, module)
