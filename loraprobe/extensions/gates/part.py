"""The part of an audit that tells how routers shared their gates."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from loraprobe.extension import AuditPart
from loraprobe.extensions.gates.records import Gates
from loraprobe.records import Audit


class GatesPart(AuditPart):
    """The gates of an audit, which a page shows."""

    record = Gates

    def sections(self, audit: Audit) -> Iterable[tuple[str, Any]]:
        from loraprobe.extensions.gates.report import table
        from loraprobe.report.sections import FULL, section

        rows = audit.of_extension(Gates).gates
        return [
            ("reasons", section("gates", "Gates of routers", (FULL, [table(rows)]), folded=True))
        ]
