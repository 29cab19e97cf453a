"""What the stages return: plain frozen data, no torch, no I/O.

A stage measures, a record says what was measured. The verdict is a pure function of records and
the sections of a report one of the `Audit` that holds them all. Field names are the names of the
JSON document (schema_version 2), except for those that DOCUMENT_FIELDS renames.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any

from loraprobe.records.inputs import (
    AdapterSummary,
    BaseSummary,
    Compatibility,
    Issue,
    LayerGroup,
    Provenance,
    Served,
    Severity,
    TaskSummary,
    Transformation,
    by_severity,
)
from loraprobe.records.measurements import (
    ALONE,
    BASELINES,
    BY_PROMPT,
    COMPOSITIONS,
    FIXED,
    FORMS,
    KINDS,
    QUESTION,
    SEVERAL_ADAPTERS,
    SHRUNK,
    STEPS,
    TOGETHER,
    Attribution,
    ChainHop,
    Comparison,
    Coverage,
    Estimate,
    EvaluationRecords,
    Forecast,
    Gain,
    GateStatistics,
    GuardScore,
    Interval,
    ItemPart,
    ItemResult,
    Kind,
    LearnedWeights,
    Library,
    LibraryAdapter,
    LibraryScore,
    Measurement,
    Reply,
    Rounds,
    Sample,
    Score,
    ScoredKind,
    Shortlisted,
    ShortlistOutcome,
    Standing,
    SystemKind,
    averaged,
    called,
    example,
    hop_part,
    items_needed,
    judged_elsewhere,
    pooled,
)
from loraprobe.records.plain import as_text, document, plain
from loraprobe.records.verdict import (
    NOTHING,
    Command,
    Decision,
    DecisiveGain,
    EvidenceLevel,
    Missing,
    Reason,
    Verdict,
    adapter_name,
)

SCHEMA_VERSION = 2
Progress = Callable[[str, int, int], None]  # called with (stage, done, total)
# Field of the JSON document -> field of `EvaluationRecords`.
DOCUMENT_FIELDS = {
    "evaluation" if one.name == "scores" else one.name: one.name
    for one in fields(EvaluationRecords)
}


@dataclass(frozen=True)
class Audit:
    """All records of one run, in the order of its stages.

    `serve` are the commands that serve what was made or what the verdict advises.
    """

    command: str
    provenance: Provenance
    adapters: tuple[AdapterSummary, ...] = ()
    base: BaseSummary | None = None
    layers: tuple[LayerGroup, ...] = ()
    compatibility: Compatibility = field(default_factory=Compatibility)
    transformations: tuple[Transformation, ...] = ()
    search: LearnedWeights | None = None
    diagnostics: tuple[Measurement, ...] = ()
    evaluation: EvaluationRecords = field(default_factory=EvaluationRecords)
    samples: tuple[Sample, ...] = ()
    gates: tuple[GateStatistics, ...] = ()
    library: Library | None = None
    shortlist: tuple[Shortlisted, ...] = ()
    verdict: Verdict | None = None
    serve: tuple[Command, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def members(self) -> tuple[LibraryAdapter, ...]:
        """The adapters of the library; none where there is no library."""
        return self.library.adapters if self.library is not None else ()

    def to_dict(self) -> dict[str, Any]:
        """The JSON document as plain data; every number is finite or None.

        What was measured on the base model stands beside the other records (`DOCUMENT_FIELDS`).
        """
        found: dict[str, Any] = {"schema_version": SCHEMA_VERSION}
        for name, value in plain(self).items():
            if name == "evaluation":
                found |= {key: value[field] for key, field in DOCUMENT_FIELDS.items()}
            else:
                found[name] = value
        found["compatibility"]["compatible"] = self.compatibility.compatible
        return found

    def to_json(self) -> str:
        """The JSON document, a record a line; the line feed at the end is left to the caller."""
        return as_text(self.to_dict())
