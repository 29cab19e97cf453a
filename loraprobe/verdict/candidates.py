"""From the records of an evaluation to candidates: the gain, controls and retention of each."""

from __future__ import annotations

from loraprobe.verdict.evaluated import ORDER, Candidate, Control, Retained
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
        key=lambda c: (-ORDER[c.outcome], -round(c.difference, 9), c.kind, c.system),
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
        clusters=own.clusters or own.n,
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
