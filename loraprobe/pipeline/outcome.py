"""The end of a command: what it made, and its audit as it may be published.

Reports, pages and cards are made from the audit. What they show holds no private paths and no
tokens: references are public names already (`Source.public`, `public_name`), and `audit_of`
replaces paths in sentences and in the arguments of the call.
"""

from __future__ import annotations

import collections
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loraprobe.adapters import (
    Adapter,
    Artifact,
    Composed,
    agreed_base,
    hub_id,
    is_path,
    local_name,
    public_name,
)
from loraprobe.base import Base
from loraprobe.extension import Remarks, Result, output_formats_of, remarks_of
from loraprobe.hub import reference_of
from loraprobe.lora.threads import in_order
from loraprobe.options import Options, flag_of, table
from loraprobe.pipeline.conclusion import decided, evaluation_of_made, next_step
from loraprobe.pipeline.inputs import Inputs
from loraprobe.pipeline.measured_before import measured_before
from loraprobe.pipeline.preflight import PreflightReport, with_issues, with_licences
from loraprobe.pipeline.transforms import PreparedAdapters
from loraprobe.records import NOTHING, Audit, Command, Reason, Sample, Verdict, display_name
from loraprobe.report.cards import with_card
from loraprobe.report.sections import ShownAudit
from loraprobe.secrets import map_texts, public_text
from loraprobe.session import Session
from loraprobe.verdict.next_command import NOTHING_MEASURED

if TYPE_CHECKING:
    from loraprobe.evaluation import System
    from loraprobe.pipeline.plan import SystemBuilder


@dataclass(frozen=True)
class Outcome:
    """What a command ends with: its audit, and the adapter or composition with its card, if any.

    `why_nothing` says why merge-and-eval recommends nothing that can be saved, or not in another
    format; `samples` are the answers of all evaluated systems.
    """

    audit: Audit
    made: Artifact | None = None
    why_nothing: str = ""
    samples: Sequence[Sample] = ()


def with_remarks(
    preflight: PreflightReport, session: Session, result: Result
) -> tuple[PreflightReport, Remarks]:
    """The findings with those of extensions, and all that these tell of a result."""
    remarks = remarks_of(session, result)
    compatibility = with_issues(preflight.compatibility, remarks.issues)
    return replace(preflight, compatibility=compatibility), remarks


def finish(
    session: Session,
    inputs: Inputs,
    preflight: PreflightReport,
    notes: Iterable[str],
    made: Composed | None,
    prepared: PreparedAdapters,
    verdict: Verdict | None = None,
    beside: Sequence[Reason] = (),
    content: str = "",
    added: Sequence[Any] = (),
    **fields: Any,
) -> Outcome:
    """The outcome of a command that composes: what licences ask of somebody who publishes what it
    made, what extensions tell of it, the audit, and the card.

    made: what is saved if a directory was given, None if there is nothing. verdict: on what was
    asked; None where nothing was. beside: reasons that stand behind those of the verdict. content:
    what was made (`PreparedAdapters.content`), where nothing was asked. added: records of parts of
    the audit, beside those of the remarks. fields: of the audit.
    """
    options = session.options
    measured = measured_before(inputs, content) if content else None
    if verdict is None and len(inputs.adapters) > 1:
        verdict = measured or decided(options, inputs, "weights", preflight=preflight)
    preflight, licences = with_licences(preflight, inputs)
    formats = [one for one in output_formats_of(options) if one[1].takes(made)]
    place = session.target or next((place for place, _ in formats), None)
    result = Result(
        inputs.given,
        inputs.base,
        made,
        verdict,
        fields.get("evaluation"),
        subtrahends=prepared.subtrahends,
        place=place,
    )
    preflight, remarks = with_remarks(preflight, session, result)
    beside, step = [*beside, *remarks.reasons], None
    if measured is not None:
        beside = []  # what was measured is all that is told
        step = remarks.check or NOTHING
    elif place is not None and made is not None and result.measured is not None:  # it is written
        loading = made.load if session.target else formats[0][1].load
        step = Command("python", (local_name(str(place)),), text=loading)
    elif content and verdict is not None and verdict.action.kind == "gather-evidence":
        step = evaluation_of_made(session.command, options, inputs)
    audit = audit_of(
        session,
        inputs,
        preflight,
        notes,
        verdict=verdict,
        beside=beside,
        step=step,
        **{"transformations": prepared.steps, "added": (*added, *remarks.added), **fields},
    )
    if made is None:
        return Outcome(audit)
    told = replace(audit, compatibility=with_issues(audit.compatibility, licences))
    made = with_card(made, told, options, prepared.subtrahends)
    return Outcome(audit if place is None else told, made)


def recommend(
    verdict: Verdict, systems: Sequence[System], builder: SystemBuilder
) -> tuple[Composed | None, str]:
    """What is written of the system that the verdict advises, or None, and why there is none, or no
    other format of it. systems: the compositions, and what extensions added."""
    name = verdict.used
    built = next((system for system in systems if system.name == name), None)
    if built is not None and built.artifact is not None:
        return built.artifact, ""
    if not verdict.composes or name is None:
        return None, f"the advice is {verdict.action}, and not a composition that was evaluated."
    if built is not None and built.kind == "merge":
        return builder.merge(built.method), ""
    if built is None or built.composition is None:
        return None, f"{display_name(name)} is neither a merge nor a router."
    from loraprobe.routing import Routed

    learned = builder.fitted.record if built.composition.router.state() else None
    steps = builder.prepared.steps
    routed = Routed(built.composition, builder.base, steps, learned=learned)
    return routed, f"{display_name(name)} weighs the adapters by the text, which no weights do."


# ---- the audit -----------------------------------------------------------------------------------


def audit_of(
    session: Session,
    inputs: Inputs,
    preflight: PreflightReport,
    notes: Iterable[str] = (),
    *,
    verdict: Verdict | None = None,
    beside: Sequence[Reason] = (),
    step: Command | None = None,
    **fields: Any,
) -> Audit:
    """The audit of a run, as it may be published.

    verdict: as it was decided. beside: reasons that stand behind its own. step: the command to run
    next, None for what follows from the verdict. `fields` are those of Audit; empty notes are left
    out.
    """
    norms = {
        row.adapters[0]: row.value
        for row in preflight.diagnostics
        if row.name == "norm" and row.module is None
    }
    hashes = in_order(lambda adapter: adapter.sha256, inputs.adapters)  # which adapters keep
    collections.deque(hashes, maxlen=0)
    names = private_texts(inputs.adapters, inputs.base, session)
    public, run = partial(public_text, names=names), session.provenance()
    arguments = public_arguments(run.arguments, public)
    typed = dict(typed_references(inputs, session.options))
    formats = (place for place, _ in output_formats_of(session.options))
    for place in filter(None, (*formats, session.target)):
        typed[local_name(str(place))] = [str(place)]
    for name, argument in zip(arguments, run.arguments, strict=True):
        if name != argument:
            typed.setdefault(name, [argument])
    shown = {name: [below_here(one) or name for one in places] for name, places in typed.items()}
    for name, places in [*typed.items()]:  # by what now stands in commands
        typed |= {short: [place] for short, place in zip(shown[name], places, strict=True)}
    if verdict is not None:
        if step is None:
            measured = fields.get("evaluation", NOTHING_MEASURED)
            given = session.options, inputs, measured, preflight.compatibility
            step, why = next_step(verdict, *given)
            beside = [*why, *beside]
        reasons = map_texts((*verdict.reasons, *beside), public)
        step = map_texts(step, public).placed(shown)
        fields["verdict"] = replace(map_texts(verdict, public), reasons=reasons, next=step)
    added = map_texts(fields.get("added", ()), lambda command: command.placed(shown), Command)
    return ShownAudit(
        command=session.command,
        provenance=replace(
            run,
            arguments=arguments,
            tasks=tuple(task.summary() for task in inputs.tasks),
            guards=tuple(guard.summary() for guard in inputs.guards),
        ),
        adapters=tuple(
            replace(a.summary(norms.get(a.name)), license=preflight.licences.get(a.name))
            for a in inputs.adapters
        ),
        base=inputs.base.summary() if inputs.base is not None else None,
        compatibility=map_texts(preflight.compatibility, public),
        diagnostics=preflight.diagnostics,
        layers=preflight.layers,
        notes=map_texts(tuple(filter(None, notes)), public),
        **{"places": typed, **fields, "added": tuple(added)},
    )


# ---- what may be published -----------------------------------------------------------------------


def typed_references(inputs: Inputs, options: Options) -> Mapping[str, list[str]]:
    """A name in a command -> the references of the user that have it."""
    places = collections.defaultdict[str, list[str]](list)
    for adapter in inputs.given:
        typed = reference_of(adapter, lambda source: source.reference)
        places[reference_of(adapter)].append(typed)
        for parent in adapter.parents:
            places[parent.public].append(parent.reference)
    for task in (*inputs.tasks, *inputs.guards):
        places[task.reference].append(task.path or task.name)
    bases = [adapter.base_model or "" for adapter in inputs.given]
    declared = agreed_base(bases) or next(iter(bases), "")
    if inputs.base is not None:
        places[inputs.base.summary().reference].append(inputs.base.reference)
    elif hub_id(declared) is None and (public := public_name(declared)):
        places[public].append(declared)
    for name, file in options.router_prompts:
        places[f"{name}={Path(file).name}"].append(f"{name}={file}")
    return places


def public_arguments(typed: Sequence[str], public: Callable[[str], str]) -> tuple[str, ...]:
    """The words of a command line as they may be published. public: makes a text public."""
    plain = [flag_of(name) for name, one in table().items() if one.metadata.get("plain")]
    return tuple(
        public(text)  # no path: a data set of the Hub, or a text behind its option
        if before in plain or text.startswith("hf://")
        else public_text(public_argument(text))
        for before, text in zip(("", *typed), typed, strict=False)
    )


def private_texts(
    adapters: Sequence[Adapter], base: Base | None, session: Session
) -> dict[str, str]:
    """Private paths of the run, each with the public text that replaces it."""
    texts = dict(_private(adapters, base, session))
    return {path: name for path, name in texts.items() if len(path) > 2 and _has_folder(path)}


def _private(
    adapters: Sequence[Adapter], base: Base | None, session: Session
) -> Iterator[tuple[str, str]]:
    options = session.options
    for adapter in adapters:
        for parent in adapter.parents:
            yield parent.reference, parent.public
        source = adapter.source
        yield source.reference, source.public
        if source.path is not None:
            yield str(source.path), local_name(str(source.path))
        if adapter.base_model:
            yield adapter.base_model, public_name(adapter.base_model) or "a path"
    if base is not None:
        yield base.reference, base.reference if base.commit else local_name(base.reference)
        yield str(base.path), local_name(str(base.path))
    for file in (session.state, *(file for _, file in options.router_prompts)):
        if file is not None:
            yield str(file), Path(file).name


def public_argument(text: str) -> str:
    """A command-line argument, also one such as NAME=REF or --output=DIR, with a place below the
    working directory relative to that, and of any other place the last part."""
    if text.startswith("@"):  # a file of references
        return "@" + public_argument(text[1:])
    head, equals, value = text.rpartition("=")
    if not _has_folder(value):
        return text
    # A relative path of two parts looks like an id of the Hub; the folder tells.
    here = os.path.isdir(os.path.dirname(os.path.expanduser(value)))
    if not here and not is_path(value):
        return text
    return head + equals + (_below(value) or local_name(value))


def below_here(typed: str) -> str:
    """A reference as it was typed, its place relative to the working directory; "" where it names
    no place below that."""
    head, equals, value = typed.rpartition("=")
    below = _below(value) if os.path.exists(os.path.expanduser(value)) else ""
    return head + equals + below if below else ""


def _below(place: str) -> str:
    """A place relative to the working directory; "" for one that does not lie below that, and for
    an address."""
    below = os.path.relpath(os.path.expanduser(place))
    outside = "://" in place or below.split(os.sep)[0] in (os.pardir, os.curdir)
    return "" if outside else below


def _has_folder(path: str) -> bool:
    return "/" in path or "\\" in path
