"""What the stages return: plain frozen data, no torch, no I/O.

A stage measures, a record says what was measured. The verdict is a pure function of records and
the sections of a report one of the `Audit` that holds them all. Field names are the names of the
JSON document (schema_version 2), except for those that DOCUMENT_FIELDS renames.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, TypeVar

from loraprobe.records.command import LOAD_ADAPTER, NOTHING, Command, adapter_name
from loraprobe.records.inputs import (
    AdapterSummary,
    BaseSummary,
    Compatibility,
    Issue,
    LayerGroup,
    Provenance,
    Severity,
    TaskSummary,
    Transformation,
    by_severity,
)
from loraprobe.records.measurements import (
    ALONE,
    BASELINES,
    BY_PROMPT,
    BY_TEXT,
    COMPOSITIONS,
    FIXED,
    FORMS,
    KINDS,
    MULTI_ADAPTER_KINDS,
    QUESTION,
    SHRUNK,
    STEPS,
    TOGETHER,
    ActionKind,
    Attribution,
    ChainHop,
    Comparison,
    Coverage,
    Estimate,
    EvaluationRecords,
    Gain,
    GuardScore,
    Interval,
    ItemPart,
    ItemResult,
    Kind,
    LearnedWeights,
    Measurement,
    Reply,
    Rounds,
    Sample,
    Score,
    TestResult,
    averaged,
    by_change,
    display_name,
    effort,
    example,
    hop_part,
    items_needed,
    judged_elsewhere,
    kinds,
    pooled,
    references,
)
from loraprobe.records.plain import as_text, document, plain
from loraprobe.records.verdict import (
    Action,
    Decision,
    DecisiveGain,
    EvidenceLevel,
    Missing,
    Reason,
    Verdict,
)
from loraprobe.wiring import claim, extensions

SCHEMA_VERSION = 2
Record = TypeVar("Record")
Progress = Callable[[str, int, int], None]  # called with (stage, done, total)
# Field of the JSON document -> field of `EvaluationRecords`.
DOCUMENT_FIELDS = {
    "evaluation" if one.name == "scores" else one.name: one.name
    for one in fields(EvaluationRecords)
}


def added_records() -> list[type[Any]]:
    """The classes of the records that extensions add to an audit.

    Raises UsageError where two have a field of one name, and for one of the core's names.
    """
    classes = [part.record for one in extensions() for part in one.audit_parts()]
    core = {"schema_version", *DOCUMENT_FIELDS, *(one.name for one in fields(Audit))}
    taken = {f"the key {name}": __name__ for name in core}
    for record in classes:
        claim(taken, {f"the key {one.name}": record.__module__ for one in fields(record)})
    return classes


@dataclass(frozen=True)
class Audit:
    """All records of one run, in the order of its stages.

    `added` are the records of extensions (`AuditPart`), those with content. Their fields are keys
    of the document and attributes here.
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
    added: tuple[Any, ...] = ()
    verdict: Verdict | None = None
    notes: tuple[str, ...] = ()

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            """What an extension added under this name."""
            for kind in added_records():
                if name in kind.__dataclass_fields__:
                    return getattr(self.of_extension(kind), name)
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def of_extension(self, kind: type[Record]) -> Record:
        """The record of an extension, the class of which it names."""
        return next((one for one in self.added if isinstance(one, kind)), kind())

    def to_dict(self) -> dict[str, Any]:
        """The JSON document as plain data; every number is finite or None.

        What was measured on the base model stands beside the other records (`DOCUMENT_FIELDS`).
        """
        found: dict[str, Any] = {"schema_version": SCHEMA_VERSION}
        for name, value in plain(self).items():
            if name == "added":
                for kind in added_records():
                    found |= plain(self.of_extension(kind))
            elif name == "evaluation":
                found |= {key: value[field] for key, field in DOCUMENT_FIELDS.items()}
            else:
                found[name] = value
        found["compatibility"]["compatible"] = self.compatibility.compatible
        return found

    def to_json(self) -> str:
        """The JSON document, a record a line; the line feed at the end is left to the caller."""
        return as_text(self.to_dict())
