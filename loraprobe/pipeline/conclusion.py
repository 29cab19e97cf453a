"""The verdict on the evidence of all stages, and the composition that it recommends."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from loraprobe.merging import METHODS, Merged
from loraprobe.options import Options
from loraprobe.pipeline.examination import Examination
from loraprobe.pipeline.inputs import Inputs
from loraprobe.pipeline.saved import Routed
from loraprobe.records import EvidenceLevel, Verdict
from loraprobe.verdict import Evidence, judge, read_calibration

if TYPE_CHECKING:
    from loraprobe.pipeline.systems import Built, SystemBuilder

SAVABLE = ("merge", "route", "step-by-step")


def conclude(
    options: Options,
    inputs: Inputs,
    examined: Examination,
    *,
    level: EvidenceLevel,
    **evidence: Any,
) -> Verdict:
    """The verdict on everything that was found.

    evidence: coverage, forecasts, evaluation, comparisons, gains, attribution, as far as they were
    measured.
    """
    return judge(
        Evidence(
            compatibility=examined.compatibility,
            diagnostics=examined.diagnostics,
            tasks=len(inputs.tasks),
            level=level,
            margin=options.needed_gain,
            retention=options.retention,
            prior=options.prior,
            balanced=options.balance == "norm",
            **evidence,
        ),
        read_calibration(options.calibration) if options.calibration else None,
    )


def recommend(
    verdict: Verdict, compositions: Sequence[Built], builder: SystemBuilder
) -> tuple[Merged | Routed | None, str]:
    """The merge or composition that the verdict advises, or None and why there is none."""
    name = verdict.system
    if verdict.action.startswith("use-single:"):
        return None, f"the advice is to use {verdict.action.partition(':')[2]} as it is."
    if verdict.action not in SAVABLE or name is None:
        return None, f"the advice is {verdict.action}, which is no merge and no router."
    built = next((one for one in compositions if one.system.name == name), None)
    if built is not None and built.merged is not None:
        return built.merged, ""
    if name in METHODS:
        return builder.merge(name), ""
    if built is None or built.system.composition is None:
        return None, f"{name} is neither a merge nor a router."
    return Routed(built.system.composition, builder.base, builder.prepared.steps), ""
