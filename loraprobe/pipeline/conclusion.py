"""The verdict on the evidence of all stages, the command to run next, and the audit of a run."""

from __future__ import annotations

import collections
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loraprobe.adapters import (
    Adapter,
    agreed_base,
    hub_id,
    local_name,
    public_name,
)
from loraprobe.base import Base
from loraprobe.compatibility import UNLIKE
from loraprobe.defaults import FEWEST_ITEMS, PLAIN_TOKENS
from loraprobe.hub import reference_of
from loraprobe.lora.threads import in_order
from loraprobe.merging import METHODS, Merged
from loraprobe.options import Decides, Options, deciding, flag_of, repeats
from loraprobe.pipeline.examination import Examination, with_issues, with_licences
from loraprobe.pipeline.inputs import Inputs, given_calibration
from loraprobe.pipeline.published import (
    private_texts,
    public_arguments,
    typed_references,
)
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
    Request,
    decide,
    next_command,
)
from loraprobe.verdict.evidence import Unserved
from loraprobe.verdict.next_command import BASE, LOAD_ADAPTER, LOAD_COMPOSITION, LOAD_MODEL, Flag

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
    evidence = evidence_of(options, inputs, level, measured, examined, unserved=unserved)
    verdict = decide(evidence, given_calibration())
    return with_next(verdict, options, inputs, measured, examined.compatibility)


def evidence_of(
    options: Options,
    inputs: Inputs,
    level: EvidenceLevel,
    measured: EvaluationRecords,
    examined: Examination = NOT_EXAMINED,
    choice: LibraryChoice | None = None,
    unserved: Mapping[str, Unserved] = {},
) -> Evidence:
    """What a verdict may look at, after a round of an evaluation and at the end of a run.

    choice: out of what library the adapters were chosen. unserved: what the servers of --serve
    cannot run.
    """
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


def _hidden_size(base: Base) -> int | None:
    """That of a base, None where it is unknown; models of several parts have a text model."""
    text = base.config.get("text_config")
    config = {**base.config, **(text if isinstance(text, dict) else {})}
    sizes = (config.get(key) for key in ("hidden_size", "n_embd", "d_model"))
    return next((size for size in sizes if isinstance(size, int)), None)


# ---- the next command ----------------------------------------------------------------------------


def with_next(
    verdict: Verdict,
    options: Options,
    inputs: Inputs,
    measured: EvaluationRecords,
    compatibility: Compatibility,
    spec: str | None = None,
    library: Sequence[str] = (),
) -> Verdict:
    """The verdict with the command to run next.

    spec: the merge method or router of the verdict's system, where that is not its name. library:
    the words for a whole library, where the command is about it.
    """
    rows = measured.scores
    kind = next((score.kind for score in rows if score.system == verdict.system), "merge")
    spec = spec or verdict.system
    errors = [issue for issue in compatibility.errors if len(issue.adapters) > 1]
    request = replace(
        requested(options, inputs, kind),
        library=tuple(library),
        chain=measured.chain,
        fitting=_fitting(inputs.given, compatibility),
        unlike=any(issue.code in UNLIKE for issue in errors),
    )
    if kind == "merge" and verdict.composes and options.weights is not None:
        request = replace(request, weighted=METHODS.make(spec or "").takes_weights)
    if kind == "router":
        from loraprobe.routing import ROUTERS  # a merge needs none of them

        if ROUTERS.make(spec or "").needs_prompts:
            files = [f"{name}={Path(file).name}" for name, file in options.router_prompts]
            words = (*request.options, *(("--router-prompts", file) for file in files))
            request = replace(request, learned=True, options=words)
    command = next_command(replace(verdict, system=spec), request, options.limit is not None)
    return replace(verdict, next=command)


def requested(options: Options, inputs: Inputs, kind: str) -> Request:
    """The request as a command line spells it. kind: that of the verdict's system."""
    enough = (options.limit or 0) >= FEWEST_ITEMS  # fewer decide nothing
    limit = [("--limit", str(options.limit))] if enough else []
    named = {public_name(a.base_model): a.base_model for a in inputs.given if a.base_model}
    agreed = agreed_base(adapter.base_model or "" for adapter in inputs.given)
    on_hub = [hub_id(one) or BASE for one in named.values()]
    declared = public_name(agreed)
    base = "auto" if declared else ""
    if inputs.base is not None and inputs.base.reference != agreed:
        base = inputs.base.reference
    return Request(
        adapters=tuple(map(reference_of, inputs.given)),
        stacked=tuple(reference_of(adapter) for adapter in inputs.given if adapter.below),
        base=base,
        bases=tuple(sorted(on_hub, key=lambda one: one == BASE)),
        tasks=tuple(task.reference for task in inputs.tasks),
        asked=(
            *_flags(options, "question"),
            *(("--guard", one.reference) for one in inputs.guards),
        ),
        kind=kind,
        options=_flags(options, "composition"),
        most_tokens=options.max_new_tokens or PLAIN_TOKENS,
        kept=(*_flags(options, "answers"), *limit),
    )


def _fitting(adapters: Sequence[Adapter], compatibility: Compatibility) -> tuple[str, ...]:
    """The references of adapters that no error stands between: those of the commonest base.

    The later one of two that do not fit together is left out.
    """
    errors = [set(issue.adapters) for issue in compatibility.errors]
    fitting = [adapter for adapter in adapters if {adapter.name} not in errors]
    common = collections.Counter(adapter.base_model for adapter in fitting).most_common(1)
    fitting = [adapter for adapter in fitting if adapter.base_model == common[0][0]]
    for at in reversed(range(len(fitting))):
        names = {adapter.name for adapter in fitting}
        if any(fitting[at].name in error <= names for error in errors):
            del fitting[at]
    return tuple(map(reference_of, fitting))


def _flags(options: Options, what: Decides) -> tuple[Flag, ...]:
    """The options that decide this, as on a command line, where they are not at their default."""
    default, flags = Options(), list[Flag]()
    if options.methods not in (default.methods, ()):  # which stand alone on a command line
        default = replace(default, routers=())
    for name in deciding(what):
        flag, value = flag_of(name), getattr(options, name)
        if value == getattr(default, name):
            continue
        if value is True:
            flags.append((flag,))
        elif isinstance(value, tuple) and repeats(name):
            flags += [(flag, _spelled(one)) for one in value or ("none",)]
        else:
            several = value if isinstance(value, tuple) else (value,)
            flags.append((flag, ",".join(map(_spelled, several))))
    return tuple(flags)


def _spelled(value: Any) -> str:
    """One value of an option as on a command line."""
    if isinstance(value, Adapter):
        return value.source.public
    return f"{value:g}" if isinstance(value, float) else str(value)


def recommend(
    verdict: Verdict, compositions: Sequence[System], builder: SystemBuilder
) -> tuple[Merged | Routed | None, str]:
    """The merge or composition that the verdict advises, or None, and why there is none, or no
    full model of it."""
    name = verdict.system
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
    examined, licences = with_licences(examined, inputs)
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
        loading = LOAD_ADAPTER if session.target else LOAD_MODEL
        loading = LOAD_COMPOSITION if merged is None else loading
        step = Command("python", (local_name(str(place)),), text=loading)
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
    typed = dict(typed_references(inputs, session.options))
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
            _with_licences(a.summary(norms.get(a.name)), examined.licences) for a in inputs.adapters
        ),
        base=inputs.base.summary() if inputs.base is not None else None,
        compatibility=map_texts(examined.compatibility, public),
        diagnostics=examined.diagnostics,
        layers=examined.layers,
        notes=map_texts(tuple(filter(None, notes)), public),
        **{"places": typed, **fields, "verdict": map_texts(fields.get("verdict"), public)},
    )


def _with_licences(row: AdapterSummary, licences: Mapping[str, str | None]) -> AdapterSummary:
    """The row of an adapter with the licences of it and of those below it."""
    lower = tuple(replace(one, license=licences.get(one.name)) for one in row.below)
    return replace(row, license=licences.get(row.name), below=lower)
