"""The part of an audit that tells which skills live together; its report is imported when shown."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from loraprobe.extension import AuditPart
from loraprobe.extensions.together.records import Together, together
from loraprobe.records import Audit


class TogetherPart(AuditPart):
    """The skills of an audit, and what is forecast of them."""

    record = Together

    def sections(self, audit: Audit) -> Iterable[tuple[str, Any]]:
        if not together(audit).skills:
            return ()
        from loraprobe.extensions.together.report import skills_section

        return [("gains", skills_section(audit))]
