"""The parts of an audit that a screen adds; what reports show of them is imported when shown."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from loraprobe.extension import AuditPart, Summary
from loraprobe.extensions.screen.records import Screened, screened
from loraprobe.extensions.screen.together.records import Together, together
from loraprobe.formatting import count, listing
from loraprobe.records import Audit, Command


class ScreenPart(AuditPart):
    """The library of an audit, and its short list."""

    record = Screened
    leading = ("chosen",)

    def summary(self, audit: Audit) -> Summary:
        found = screened(audit)
        every, usable = len(found.members), sum(row.state == "usable" for row in found.members)
        if not every:
            return Summary()
        return Summary(
            headline=f"LIBRARY: {usable} of {count(every, 'adapter')} can be used.",
            short=f"{usable} of {every} usable",
            adapters=every,
            brief=bool(found.shortlist),
            fails=not usable,
        )

    def lines(self, audit: Audit) -> Iterable[tuple[str, str | Command]]:
        from loraprobe.extensions.screen.report import about_choice, about_library

        return about_library(audit) if audit.verdict is None else about_choice(audit)

    def sections(self, audit: Audit) -> Iterable[tuple[str, Any]]:
        from loraprobe.extensions.screen.report import library_section, short_list_section

        return ("gains", short_list_section(audit)), ("adapters", library_section(audit))


class TogetherPart(AuditPart):
    """The skills of an audit, and what is forecast of them."""

    record = Together

    def summary(self, audit: Audit) -> Summary:
        groups = together(audit).groups
        if not groups or audit.verdict is not None:
            return Summary()
        best, (low, high) = groups[0], groups[0].ci95
        figure = f"{best.least:.2f} [{max(0.0, low):.2f}, {min(1.0, high):.2f}]"
        names = listing(best.adapters)
        return Summary(
            headline=f"FORECAST: {names} keep at least {figure} of their skills; --own proves it.",
            short=f"forecast {best.least:.2f}",
        )

    def sections(self, audit: Audit) -> Iterable[tuple[str, Any]]:
        if not together(audit).skills:
            return ()
        from loraprobe.extensions.screen.together.report import skills_section

        return [("gains", skills_section(audit))]
