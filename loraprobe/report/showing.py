"""An audit as Python and notebooks show it."""

from __future__ import annotations

from loraprobe.records import Audit
from loraprobe.report.answer import answer


class ShownAudit(Audit):
    """An audit whose repr is its answer, in at most twelve lines."""

    def __repr__(self) -> str:
        return str(answer(self))

    def _repr_html_(self) -> str:
        """The verdict and the first sections of the page, for notebooks."""
        from loraprobe.report.html import fragment  # draws with matplotlib, which is slow to import

        return fragment(self)
