"""The parts of an audit that a screen adds; what reports show of them is imported when shown."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from loraprobe.extension import AuditPart
from loraprobe.extensions.screen.records import Screened, screened
from loraprobe.extensions.screen.together.records import Together, together
from loraprobe.formatting import count
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

    def sections(self, audit: Audit) -> Iterable[tuple[str, Any]]:
        if not together(audit).skills:
            return ()
        from loraprobe.extensions.screen.together.report import skills_section

        return [("gains", skills_section(audit))]
