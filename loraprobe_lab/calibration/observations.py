"""Observation files: an adapter set's audit and which system answered which item right.

An observation is one gzipped JSON document, from which cases can be computed again.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from loraprobe.evaluation import System, gains, retention
from loraprobe.records import BASELINES, Interval, ItemResult
from loraprobe.verdict.evidence import Evidence
from loraprobe_lab.calibration.cases import CaseError

EVIDENCE = TypeAdapter(Evidence)
STAGES = ("compatibility", "diagnostics", "coverage", "forecasts", "evaluation")
ABSENT = "-"


def read_observation(path: Path) -> dict[str, Any]:
    """Raises CaseError for a file that cannot be read."""
    try:
        return json.loads(gzip.decompress(path.read_bytes()))
    except (OSError, EOFError, ValueError):
        raise CaseError(f"{path} holds no observation: remove it and collect again.") from None


def packed(results: Sequence[ItemResult]) -> dict[str, Any]:
    """Results as plain data: the items, and for each system a mark per item.

    Raises ValueError for losses, which are neither right nor wrong.
    """
    marks: dict[str, dict[tuple[str, ...], str]] = {}
    for row in results:
        if row.metric == "answer_loss":
            raise ValueError("losses are neither right nor wrong")
        key = (row.task, row.part, row.item, row.group)
        marks.setdefault(row.system, {})[key] = "1" if row.value == 1.0 else "0"
    items = list(dict.fromkeys(key for found in marks.values() for key in found))
    right = {s: "".join(found.get(key, ABSENT) for key in items) for s, found in marks.items()}
    return {"items": items, "right": right}


def unpacked(document: Mapping[str, Any]) -> list[ItemResult]:
    """The results that were packed, system by system."""
    return [
        ItemResult(system, task, part, item, "exact_match", float(mark), "", group)
        for system, marks in document["right"].items()
        for (task, part, item, group), mark in zip(document["items"], marks, strict=True)
        if mark != ABSENT
    ]


def evidence_of(audit: Mapping[str, Any]) -> Evidence:
    """The evidence in an audit's document from before any composition was run."""
    tasks = len({score["task"] for score in audit["evaluation"]})
    return EVIDENCE.validate_python(
        {**{name: audit[name] for name in STAGES}, "tasks": tasks, "level": "base"}
    )


@dataclass(frozen=True)
class MeasuredGain:
    """The smallest difference to base and singles, its pointwise interval, and its items."""

    gain: float
    ci95: Interval
    n: int


def measured_gain(
    results: Sequence[ItemResult], kinds: Mapping[str, str], composition: str
) -> MeasuredGain:
    """The gain of one composition over the best of base and singles, as evaluation computes it.

    kinds: system -> kind. The question is asked in both forms and the better one counts, so the
    interval reaches from the larger lower end to the larger upper end of the two forms' intervals.
    Of several tasks the macro mean counts. Raises CaseError without common items.
    """
    names = {name for name, kind in kinds.items() if kind in BASELINES} | {composition}
    own = [row for row in results if row.system in names]
    systems = [System(name, kinds[name]) for name in sorted(names)]  # type: ignore[arg-type]
    rows = [gain for gain in gains(own, systems) if gain.system == composition]
    if not rows:
        raise CaseError(f"{composition} shares no items with base and single adapters.")
    best = max(rows, key=lambda gain: gain.difference)
    items = {(r.task, r.item) for r in own if (r.system, r.part) == (composition, best.part)}
    ends = (max(gain.ci95[0] for gain in rows), max(gain.ci95[1] for gain in rows))
    return MeasuredGain(best.difference, ends, len(items))


def measured_retention(
    results: Sequence[ItemResult], kinds: Mapping[str, str], composition: str, part: str
) -> float | None:
    """The smallest share of a specialist's gain that a composition keeps on one of several tasks.

    None for a single task, and where on some task no adapter is shown to differ from the base.
    """
    names = {name for name, kind in kinds.items() if kind in BASELINES} | {composition}
    systems = [System(name, kinds[name]) for name in sorted(names)]  # type: ignore[arg-type]
    tasks = sorted({row.task for row in results})
    kept = [retention(results, systems, composition, task, part) for task in tasks]
    if len(tasks) < 2 or None in kept:
        return None
    return min(found[0] for found in kept if found is not None)
