"""The parts of an audit that a screen adds; what reports show of them is imported when shown."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from loraprobe.extension import AuditPart
from loraprobe.extensions.screen.records import Screened, screened
from loraprobe.extensions.screen.together.records import Together, together
from loraprobe.formatting import count, listing
from loraprobe.records import Audit


class ScreenPart(AuditPart):
    """The library of an audit, and its short list."""

    record = Screened

    def headline(self, audit: Audit) -> str:
        every = self.adapters(audit)
        usable = f"LIBRARY: {self._usable(audit)} of {count(every, 'adapter')} can be used."
        return usable if every else ""

    def in_short(self, audit: Audit) -> str:
        every = self.adapters(audit)
        return f"{self._usable(audit)} of {every} usable" if every else ""

    def sections(self, audit: Audit) -> Iterable[tuple[str, Any]]:
        from loraprobe.extensions.screen.report import library_section, short_list_section

        return ("gains", short_list_section(audit)), ("adapters", library_section(audit))

    def adapters(self, audit: Audit) -> int:
        return len(screened(audit).members)

    def sums_up(self, audit: Audit) -> bool:
        return bool(screened(audit).shortlist)

    def fails(self, audit: Audit) -> bool:
        return self.adapters(audit) > 0 and not self._usable(audit)

    def _usable(self, audit: Audit) -> int:
        """How many adapters can be used."""
        return sum(row.state == "usable" for row in screened(audit).members)


class TogetherPart(AuditPart):
    """The skills of an audit, and what is forecast of them."""

    record = Together

    def headline(self, audit: Audit) -> str:
        groups = together(audit).groups
        if not groups or audit.verdict is not None:
            return ""
        best, (low, high) = groups[0], groups[0].ci95
        figure = f"{best.least:.2f} [{max(0.0, low):.2f}, {min(1.0, high):.2f}]"
        names = listing(best.adapters)
        return f"FORECAST: {names} keep at least {figure} of their skills; --own proves it."

    def in_short(self, audit: Audit) -> str:
        groups = together(audit).groups
        return f"forecast {groups[0].least:.2f}" if groups and audit.verdict is None else ""

    def sections(self, audit: Audit) -> Iterable[tuple[str, Any]]:
        if not together(audit).skills:
            return ()
        from loraprobe.extensions.screen.together.report import skills_section

        return [("gains", skills_section(audit))]
