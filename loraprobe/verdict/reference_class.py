"""What measured compositions of the same kind gained, beside a verdict that rests on little."""

from __future__ import annotations

from loraprobe.records import Reason, Verdict
from loraprobe.verdict import formatting as fmt
from loraprobe.verdict.calibration import Calibration, share_above
from loraprobe.verdict.evidence import Evidence

FEWEST_SETS = 10  # adapter sets, from which their share is told


def reference_class(evidence: Evidence, verdict: Verdict, calibration: Calibration) -> list[Reason]:
    """The share that gained, of adapter sets on such a base and kind of task, if enough are known.

    Weights and probes know no task; for them see `before_evaluation`.
    """
    if verdict.evidence not in ("base", "pilot") or verdict.decision != "inconclusive":
        return []
    found = calibration.reference_class(evidence.base, evidence.kind_of_task)
    if found is None or found.sets < FEWEST_SETS:
        return []
    share = share_above(found.gained, evidence.margin)
    mean = " in the mean" if found.kind.tasks > 1 else ""
    return [
        Reason(
            "measured-elsewhere",
            f"Of {found.sets} adapter sets for {found.kind} on {found.bases} {found.base} bases, "
            f"{share:.0%} had a composition that gained more than "
            f"{fmt.number(evidence.margin)}{mean}.",
            share,
            evidence.margin,
            "the sets that loraprobe lab calibrate measured (examples/calibration)",
        )
    ]
