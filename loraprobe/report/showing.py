"""An audit and a verification as Python and notebooks show them."""

from __future__ import annotations

from loraprobe.records import Audit, Verification
from loraprobe.report.answer import answer
from loraprobe.report.verification import verification_answer


class ShownAudit(Audit):
    """An audit whose repr is its answer, in at most twelve lines."""

    def __repr__(self) -> str:
        return str(answer(self))

    def _repr_html_(self) -> str:
        """The verdict and the first sections of the page, for notebooks."""
        from loraprobe.report.html import fragment  # draws with matplotlib, which is slow to import

        return fragment(self)


class ShownVerification(Verification):
    """A verification whose repr is its answer, in at most twelve lines."""

    def __repr__(self) -> str:
        return str(verification_answer(self))
