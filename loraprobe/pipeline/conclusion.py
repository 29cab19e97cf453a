"""The verdict on the evidence of all stages, what it recommends, and the audit of a run."""

from __future__ import annotations

import collections
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from loraprobe.adapters import (
    local_name,
)
from loraprobe.base import Base
from loraprobe.lora.workers import in_order
from loraprobe.merging import METHODS, Merged
from loraprobe.options import Options
from loraprobe.pipeline.examination import Examination, licensed, with_issues
from loraprobe.pipeline.inputs import Inputs, given_calibration
from loraprobe.pipeline.published import (
    places_of,
    private_texts,
    public_arguments,
)
from loraprobe.pipeline.request import with_next
from loraprobe.pipeline.transforms import Transformed
from loraprobe.records import (
    AdapterSummary,
    Audit,
    Command,
    Compatibility,
    EvaluationRecords,
    EvidenceLevel,
    Sample,
    Verdict,
)
from loraprobe.report.cards import with_card
from loraprobe.report.sections import ShownAudit
from loraprobe.secrets import map_texts, public_text
from loraprobe.servers.serving import Serving
from loraprobe.session import Session
from loraprobe.verdict import (
    Evidence,
    LibraryChoice,
    decide,
)
from loraprobe.verdict.evidence import Unserved

if TYPE_CHECKING:
    from loraprobe.evaluation import System
    from loraprobe.pipeline.converting import Converted
    from loraprobe.pipeline.systems import SystemBuilder
    from loraprobe.routing._saved import Routed
NOTHING_MEASURED, NOT_EXAMINED = EvaluationRecords(), Examination(Compatibility())


def verdict_with_next(
    options: Options,
    inputs: Inputs,
    examined: Examination,
    level: EvidenceLevel,
    measured: EvaluationRecords = NOTHING_MEASURED,
    unserved: Mapping[str, Unserved] = {},
) -> Verdict:
    """The verdict on all evidence, with the command to run next."""
    verdict = verdict_on(options, inputs, examined, level, measured, unserved=unserved)
    return with_next(verdict, options, inputs, measured, examined.compatibility)


def verdict_on(
    options: Options,
    inputs: Inputs,
    examined: Examination,
    level: EvidenceLevel,
    measured: EvaluationRecords,
    choice: LibraryChoice | None = None,
    unserved: Mapping[str, Unserved] = {},
) -> Verdict:
    """The verdict on all evidence.

    choice: out of what library the adapters were chosen. unserved: what the servers of --serve
    cannot run.
    """
    evidence = evidence_of(options, inputs, level, measured, examined, choice, unserved)
    return decide(evidence, given_calibration())


def evidence_of(
    options: Options,
    inputs: Inputs,
    level: EvidenceLevel,
    measured: EvaluationRecords,
    examined: Examination = NOT_EXAMINED,
    choice: LibraryChoice | None = None,
    unserved: Mapping[str, Unserved] = {},
) -> Evidence:
    """What a verdict may look at, after a round of an evaluation and at the end of a run."""
    return Evidence(
        measured,
        compatibility=examined.compatibility,
        diagnostics=examined.diagnostics,
        tasks=len(inputs.tasks),
        guarded=tuple(guard.name for guard in inputs.guards),
        level=level,
        margin=options.needed_gain,
        retention=options.retention,
        prior=options.prior,
        balanced=options.balance == "norm",
        hidden_size=None if inputs.base is None else _hidden_size(inputs.base),
        max_new_tokens=options.max_new_tokens,
        stacked=tuple(adapter.name for adapter in inputs.adapters if adapter.below),
        choice=choice,
        unserved=unserved,
    )


def _hidden_size(base: Base) -> float:
    """That of a base, infinite where it is unknown; models of several parts have a text model."""
    text = base.config.get("text_config")
    config = {**base.config, **(text if isinstance(text, dict) else {})}
    sizes = (config.get(key) for key in ("hidden_size", "n_embd", "d_model"))
    return next((size for size in sizes if isinstance(size, int)), math.inf)


def recommend(
    verdict: Verdict, compositions: Sequence[System], builder: SystemBuilder
) -> tuple[Merged | Routed | None, str]:
    """The merge or composition that the verdict advises, or None, and why there is none, or no
    full model of it."""
    name = verdict.system
    if verdict.action.startswith("use-single:"):
        return None, f"the advice is to use {verdict.action.partition(':')[2]} as it is."
    if not verdict.composes or name is None:
        return None, f"the advice is {verdict.action}, and not a composition that was evaluated."
    built = next((system for system in compositions if system.name == name), None)
    if built is not None and built.merged is not None:
        return built.merged, ""
    if name in METHODS:
        return builder.merge(name), ""
    if built is None or built.composition is None:
        return None, f"{name} is neither a merge nor a router."
    from loraprobe.routing._saved import Routed

    routed = Routed(built.composition, builder.base, builder.transformed.steps)
    return routed, f"{name} weighs the adapters by the text, which no weights do."


# ---- the end of a command ------------------------------------------------------------------------


@dataclass(frozen=True)
class Outcome:
    """What a command ends with: its audit, and the adapter or composition with its card, if any.

    `why_nothing` says why merge-and-eval recommends nothing that can be saved, or no full model;
    `samples` are the
    answers of all evaluated systems.
    """

    audit: Audit
    made: Merged | Routed | Converted | None = None
    why_nothing: str = ""
    samples: Sequence[Sample] = ()


def serving_of(session: Session, inputs: Inputs) -> Serving:
    """The servers of a run."""
    places = session.target, session.only_full
    return Serving(session.options.serve, inputs.given, inputs.base, *places)


def finish(
    session: Session,
    inputs: Inputs,
    examined: Examination,
    notes: Iterable[str],
    made: Merged | Routed | None,
    transformed: Transformed,
    verdict: Verdict | None = None,
    **fields: Any,
) -> Outcome:
    """The outcome of a command that composes: what licences ask of somebody who publishes what it
    made, what servers do not read in that, the commands that serve it or what is advised, the
    audit, and the card.

    made: what is saved if a directory was given, None if there is nothing. verdict: on what was
    asked; None where nothing was. fields: of the audit.
    """
    if verdict is None and len(inputs.adapters) > 1:
        verdict = verdict_with_next(session.options, inputs, examined, "weights")
    examined, licences = licensed(examined, inputs)
    serving, merged = serving_of(session, inputs), made if isinstance(made, Merged) else None
    measured, serve = fields.get("evaluation", NOTHING_MEASURED), tuple[Command, ...]()
    evaluated = verdict is not None and verdict.composes
    if merged is not None and not evaluated:
        serve = serving.of_merge(merged)[1]
    elif verdict is not None:
        verdict, serve = serving.advised(verdict, measured.chain, merged)
    if merged is not None:  # it is made where a server cannot read it: that is no failure here
        unread = with_issues(examined.compatibility, serving.warnings(merged))
        examined = replace(examined, compatibility=unread)
    steps = transformed.steps
    audit = audit_of(
        session,
        inputs,
        examined,
        notes,
        **{"transformations": steps, "verdict": verdict, "serve": serve, **fields},
    )
    if made is None:
        return Outcome(audit)
    told = replace(audit, compatibility=with_issues(audit.compatibility, licences))
    if merged is not None and verdict is not None and evaluated:
        from loraprobe.report.logs import benchmark_results

        results = benchmark_results(audit, inputs.tasks, verdict.system or merged.name)
        made = replace(merged, results=results)
    made = with_card(made, told, session.options, transformed.general)
    place = session.target or (session.full_model if merged is not None else None)
    if place is None:
        return Outcome(audit, made)
    if verdict is not None and evaluated:  # whose own step would write it a second time
        verb = "restore" if merged is None else "load" if session.target else "load-model"
        step = Command(verb, (local_name(str(place)),))
        told = replace(told, verdict=replace(audit.verdict or verdict, next=step))
    return Outcome(told, made)


# ---- the audit -----------------------------------------------------------------------------------


def audit_of(
    session: Session,
    inputs: Inputs,
    examined: Examination,
    notes: Iterable[str] = (),
    **fields: Any,
) -> Audit:
    """The audit of a run, as it may be published.

    `fields` are those of Audit; empty notes are left out.
    """
    norms = {
        row.adapters[0]: row.value
        for row in examined.diagnostics
        if row.name == "norm" and row.module is None
    }
    hashes = in_order(lambda adapter: adapter.sha256, inputs.adapters)  # which adapters keep
    collections.deque(hashes, maxlen=0)
    names = private_texts(inputs.adapters, inputs.base, session)
    public, run = partial(public_text, names=names), session.provenance()
    arguments = public_arguments(run.arguments, public)
    typed = dict(places_of(inputs, session.options))
    for place in filter(None, (session.target, session.full_model)):
        typed[local_name(str(place))] = [str(place)]
    for name, argument in zip(arguments, run.arguments, strict=True):
        if name != argument:
            typed.setdefault(name, [argument])
    return ShownAudit(
        command=session.command,
        provenance=replace(
            run,
            arguments=arguments,
            tasks=tuple(task.summary() for task in inputs.tasks),
            guards=tuple(guard.summary() for guard in inputs.guards),
        ),
        adapters=tuple(
            _licensed(a.summary(norms.get(a.name)), examined.licences) for a in inputs.adapters
        ),
        base=inputs.base.summary() if inputs.base is not None else None,
        compatibility=map_texts(examined.compatibility, public),
        diagnostics=examined.diagnostics,
        layers=examined.layers,
        notes=map_texts(tuple(filter(None, notes)), public),
        **{"places": typed, **fields, "verdict": map_texts(fields.get("verdict"), public)},
    )


def _licensed(row: AdapterSummary, licences: Mapping[str, str | None]) -> AdapterSummary:
    """The row of an adapter with the licences of it and of those below it."""
    lower = tuple(replace(one, license=licences.get(one.name)) for one in row.below)
    return replace(row, license=licences.get(row.name), below=lower)
