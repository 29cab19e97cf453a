"""What an audit's verdict says to take home: a merged adapter, a composition, or nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

from loraprobe.audit.saved import Routed
from loraprobe.audit.systems import name_in
from loraprobe.records import Verdict

if TYPE_CHECKING:
    from loraprobe.audit.evaluate import Bench
    from loraprobe.merging import Merged

SAVABLE = ("merge", "route", "step-by-step")


def recommend(bench: Bench, verdict: Verdict) -> tuple[Merged | Routed | None, str]:
    """What to save, or None and why."""
    from loraprobe.merging import METHODS

    name = verdict.system
    if verdict.action.startswith("use-single:"):
        return None, f"the advice is to use {verdict.action.partition(':')[2]} as it is."
    if verdict.action not in SAVABLE or name is None:
        return None, f"the advice is {verdict.action}, which is no merge and no router."
    workshop = bench.workshop
    if name in workshop.merged:
        return workshop.merged[name], ""
    if name_in(name) in METHODS.names():
        return _merged(bench, name), ""
    system = next((s for s in bench.systems if s.name == name), None)
    if system is None or system.composition is None:
        return None, f"{name} is neither a merge nor a router."
    return Routed(system.composition, bench.base, workshop.prepared.steps), ""


def _merged(bench: Bench, name: str) -> Merged:
    """The new weights of a linear method, which was evaluated as gates."""
    from loraprobe.merging import merge

    settings, workshop = bench.settings, bench.workshop
    with bench.story.stage("save"):
        return merge(
            workshop.prepared.adapters, name, weights=workshop.weights, space=settings.space,
            rank=settings.rank, seed=settings.seed, allow=settings.allow,
            dtype=workshop.prepared.dtype, base_weight=bench.base.weight,
            base_parameter=bench.base.parameter,
        )  # fmt: skip
