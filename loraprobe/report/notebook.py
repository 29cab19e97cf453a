"""An audit as Python and notebooks show it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from loraprobe.records import Audit, Verdict
from loraprobe.report.answer import answer


@dataclass(frozen=True, repr=False)
class ShownAudit(Audit):
    """An audit whose repr is its answer.

    `places`: a published name -> the references that the caller gave for it, which only the caller
    sees.
    """

    places: Mapping[str, Sequence[str]] = field(default_factory=dict)

    def __repr__(self) -> str:
        return str(answer(self, self.places))

    def _repr_html_(self) -> str:
        """The verdict and the first sections of the page, for notebooks."""
        from loraprobe.report.page import fragment  # which needs jinja2
        from loraprobe.report.sections import heading, sections

        return fragment(heading(self), sections(self))

    def to_dict(self) -> dict[str, Any]:
        """The JSON document as plain data; every number is finite or None."""
        found = super().to_dict()
        del found["places"]
        return found


class JudgedAudit(ShownAudit):
    """An audit of several adapters, which always has a verdict."""

    verdict: Verdict
