"""From the records of an evaluation to candidates: the gain, controls and retention of each."""

from __future__ import annotations

import math

from loraprobe.records import Comparison, Interval
from loraprobe.verdict.evaluated import ORDER, Candidate, Control, Retained
from loraprobe.verdict.evidence import COMPOSITIONS, Evidence


def candidates(
    evidence: Evidence, part: str, kinds: tuple[str, ...] = COMPOSITIONS
) -> tuple[Candidate, ...]:
    """All systems of these kinds on one part, the most promising first, then by name."""
    found = [_candidate(evidence, system, part) for system in evidence.systems(kinds, part)]
    return tuple(
        sorted(
            (c for c in found if c is not None),
            key=lambda c: (-ORDER[c.outcome], -c.difference, c.system),
        )
    )


def chain_gain(evidence: Evidence) -> Candidate | None:
    """The chain's gain over the best of base and single adapters on the plain question."""
    return next(iter(candidates(evidence, "question", ("chain",))), None)


def _candidate(evidence: Evidence, system: str, part: str) -> Candidate | None:
    gains = [gain for gain in evidence.gains if (gain.system, gain.part) == (system, part)]
    if evidence.several:
        gains = [gain for gain in gains if gain.task is None]
    if not gains:
        return None
    own, rows = gains[0], evidence.scores(system, part)
    errors = [row.compression_error for row in rows if row.compression_error is not None]
    kept = [Retained(row.task, row.retention, row.retention_ci95, row.n) for row in rows]
    return Candidate(
        system=system,
        kind=str(evidence.kind(system)),
        part=part,
        against=own.against,
        against_part=own.against_part,
        difference=own.difference,
        low=own.adjusted_ci95[0],
        high=own.adjusted_ci95[1],
        n=own.n,
        needed=own.n_needed,
        margin=evidence.margin,
        threshold=evidence.retention,
        controls=_controls(evidence, system, part),
        kept=tuple(kept) if evidence.several else (),
        compression_error=max(errors, default=None),
    )


def _controls(evidence: Evidence, system: str, part: str) -> tuple[Control, ...]:
    found = []
    for name in evidence.systems(("control",), part):
        rows = [
            row
            for row in evidence.comparisons
            if (row.system, row.against, row.part) == (system, name, part)
        ]
        pair = pool(rows, evidence.task_names)
        if pair is not None:
            low, high = pair.adjusted_ci95 or pair.ci95
            found.append(Control(name, pair.difference, low, high, evidence.margin, pair.n))
    return tuple(found)


def pool(rows: list[Comparison], tasks: tuple[str, ...]) -> Comparison | None:
    """The macro mean of one pair's comparisons over all tasks; None unless every task has one.

    Tasks have items of their own, so the squared half-widths add up: the mean over T tasks has
    the root of their sum, divided by T.
    """
    rows = sorted({row.task: row for row in rows}.values(), key=lambda row: row.task)
    if not rows or tuple(row.task for row in rows) != tasks:
        return None
    if len(rows) == 1:
        return rows[0]
    mean = sum(row.difference for row in rows) / len(rows)

    def interval(pairs: list[tuple[float, Interval]]) -> Interval:
        below = math.sqrt(sum((d - ci[0]) ** 2 for d, ci in pairs)) / len(pairs)
        above = math.sqrt(sum((ci[1] - d) ** 2 for d, ci in pairs)) / len(pairs)
        return mean - below, mean + above

    adjusted = [(r.difference, r.adjusted_ci95) for r in rows if r.adjusted_ci95 is not None]
    return Comparison(
        rows[0].system,
        rows[0].against,
        " + ".join(tasks),
        rows[0].part,
        mean,
        interval([(row.difference, row.ci95) for row in rows]),
        sum(row.n for row in rows),
        interval(adjusted) if len(adjusted) == len(rows) else None,
    )
