"""From the records of an evaluation to candidates: the gain, controls and retention of each."""

from __future__ import annotations

from loraprobe.records import Score
from loraprobe.verdict.evaluated import ORDER, Candidate, Estimate, estimate_of
from loraprobe.verdict.evidence import COMPOSITIONS, Evidence
from loraprobe.verdict.ranking import best_option, option, pool


def candidates(
    evidence: Evidence, part: str, kinds: tuple[str, ...] = COMPOSITIONS
) -> tuple[Candidate, ...]:
    """All systems of these kinds on one part, the most promising first.

    They stand by outcome, gain, kind (merges before routers) and name. Of several that are `likely`
    the first is the best option (`ranking`).
    """
    found = [_candidate(evidence, system, part) for system in evidence.systems(kinds, part)]
    ordered = sorted(
        (c for c in found if c is not None),
        key=lambda c: (-ORDER[c.outcome], -round(c.gain.value, 9), c.kind, c.system),
    )
    likely = [c.system for c in ordered if c.outcome == "likely"]
    options = [one for name in likely if (one := option(evidence, name, part)) is not None]
    best = best_option(evidence, options)
    first = best.system if best is not None else None
    return tuple(sorted(ordered, key=lambda c: c.system != first))


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
    gain = estimate_of(own, evidence.margin)
    errors = [row.compression_error for row in rows if row.compression_error is not None]
    return Candidate(
        system,
        str(evidence.kind(system)),
        part,
        own.against,
        own.against_part,
        gain,
        _controls(evidence, system, part, gain),
        {row.task: _kept(row, evidence.retention, gain) for row in rows if evidence.several},
        max(errors, default=None),
    )


def _kept(row: Score, threshold: float, gain: Estimate) -> Estimate | None:
    if row.retention is None or row.retention_ci95 is None:
        return None
    return gain.like(row.retention, row.retention_ci95, threshold, row.n, "--retention")


def _controls(evidence: Evidence, system: str, part: str, gain: Estimate) -> dict[str, Estimate]:
    found = {}
    for name in evidence.systems(("control",), part):
        rows = [
            row
            for row in evidence.comparisons
            if (row.system, row.against, row.part) == (system, name, part)
        ]
        pair = pool(rows, evidence.task_names)
        if pair is not None:
            ends = pair.adjusted_ci95 or pair.ci95
            found[name] = gain.like(pair.difference, ends, evidence.margin, pair.n)
    return found
