"""Records of the stages -> the Audit of a run."""

from __future__ import annotations

import collections
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from loraprobe.lora.workers import in_order
from loraprobe.pipeline.examination import Examination
from loraprobe.pipeline.inputs import Inputs
from loraprobe.pipeline.publishing import published
from loraprobe.pipeline.session import Session
from loraprobe.records import Audit, Compatibility, Issue
from loraprobe.report.showing import ShownAudit


def audit_of(
    session: Session,
    inputs: Inputs,
    examined: Examination,
    notes: Iterable[str] = (),
    **found: Any,
) -> Audit:
    """The audit of a run, as it may be published.

    `found` are fields of Audit; empty notes are left out.
    """
    norms = {
        row.adapters[0]: row.value
        for row in examined.diagnostics
        if row.name == "norm" and row.module is None
    }
    hashes = in_order(lambda adapter: adapter.sha256, inputs.adapters)  # which adapters keep
    collections.deque(hashes, maxlen=0)
    audit = ShownAudit(
        command=session.command,
        provenance=replace(
            session.provenance(), tasks=tuple(task.summary() for task in inputs.tasks)
        ),
        adapters=tuple(
            replace(a.summary(norms.get(a.name)), license=examined.licences.get(a.name))
            for a in inputs.adapters
        ),
        base=inputs.base.summary() if inputs.base is not None else None,
        compatibility=examined.compatibility,
        diagnostics=examined.diagnostics,
        layers=examined.layers,
        notes=tuple(filter(None, notes)),
        **found,
    )
    return published(audit, inputs.adapters, inputs.base, session.options)


def with_issues(found: Compatibility, issues: Iterable[Issue]) -> Compatibility:
    """The issues with further ones after them, each once."""
    return Compatibility(tuple(dict.fromkeys((*found.issues, *issues))))
