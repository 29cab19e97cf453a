"""The evidence of all stages, the verdict on it, and the command to run next."""

from __future__ import annotations

import collections
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loraprobe.adapters import Adapter, agreed_base, hub_id, public_name
from loraprobe.base import Base
from loraprobe.compatibility import OF_BASE, UNLIKE
from loraprobe.compatibility.identity import PARENT, base_with
from loraprobe.extension import installed
from loraprobe.hub import reference_of
from loraprobe.merging import METHODS
from loraprobe.options import Options, flag_of, named_options, repeats
from loraprobe.pipeline.inputs import Inputs
from loraprobe.pipeline.measured_before import added_in_vain
from loraprobe.pipeline.preflight import PreflightReport
from loraprobe.records import (
    NOTHING,
    Command,
    Compatibility,
    EvaluationRecords,
    EvidenceLevel,
    Issue,
    Reason,
    Verdict,
)
from loraprobe.verdict import Annotator, Evidence, Exclusion, Request, decide, next_command
from loraprobe.verdict.next_command import (
    FILL_BASE,
    MERGE_AND_EVAL,
    NEW,
    NOTHING_MEASURED,
    UNTARGETED,
    CompositionSpec,
    Conflict,
    Flag,
    on_questions,
    show_questions,
)
from loraprobe.verdict.reasons import reason_of

if TYPE_CHECKING:  # a merge needs none of it
    from loraprobe.evaluation import System

NOT_EXAMINED = PreflightReport(Compatibility())


def decided(
    options: Options,
    inputs: Inputs,
    level: EvidenceLevel,
    measured: EvaluationRecords = NOTHING_MEASURED,
    preflight: PreflightReport = NOT_EXAMINED,
    excluded: Mapping[str, Exclusion] = {},
    annotators: Sequence[Annotator] = (),
) -> Verdict:
    """The verdict on all evidence, with what `annotators` and then extensions tell beside it."""
    evidence = evidence_of(options, inputs, level, measured, preflight, excluded)
    added = [one for extension in installed() for one in extension.annotators(options)]
    return decide(evidence, [*annotators, *added])


def exclusions(
    options: Options,
    base: Base | None,
    made: Callable[[], tuple[Sequence[Adapter], Sequence[System]]],
) -> Mapping[str, Exclusion]:
    """What cannot be used, as extensions say.

    made: gives the adapters and their compositions, with files; it is called where any may say so.
    """
    constraints = [limit for one in installed() for limit in one.constraints(options)]
    if not constraints or base is None:
        return {}
    given = *made(), base
    return {name: why for one in constraints for name, why in one.exclude(*given).items()}


def evidence_of(
    options: Options,
    inputs: Inputs,
    level: EvidenceLevel,
    measured: EvaluationRecords,
    preflight: PreflightReport = NOT_EXAMINED,
    excluded: Mapping[str, Exclusion] = {},
) -> Evidence:
    """What a verdict may look at, after a round of an evaluation and at the end of a run.

    excluded: what cannot be used.
    """
    return Evidence(
        measured,
        compatibility=preflight.compatibility,
        diagnostics=preflight.diagnostics,
        tasks=len(inputs.tasks),
        guard_names=tuple(guard.name for guard in inputs.guards),
        level=level,
        margin=options.needed_gain,
        retention=options.retention,
        balanced=options.balance == "norm",
        space=options.space or "",
        hidden_size=None if inputs.base is None else _hidden_size(inputs.base),
        max_new_tokens=options.max_new_tokens,
        excluded=excluded,
        rank_given=options.rank != "auto",
        items=sum(len(task.items) for task in inputs.tasks),
        repeated=sum(task.repeated for task in inputs.tasks),
    )


def _hidden_size(base: Base) -> int | None:
    """That of a base, None where it is unknown; models of several parts have a text model."""
    text = base.config.get("text_config")
    config = {**base.config, **(text if isinstance(text, dict) else {})}
    sizes = (config.get(key) for key in ("hidden_size", "n_embd", "d_model"))
    return next((size for size in sizes if isinstance(size, int)), None)


# ---- the next command ----------------------------------------------------------------------------


def next_step(
    verdict: Verdict,
    options: Options,
    inputs: Inputs,
    measured: EvaluationRecords,
    compatibility: Compatibility,
    spec: str = "",
    evaluation: Command = MERGE_AND_EVAL,
) -> tuple[Command, Sequence[Reason]]:
    """The command to run after a verdict, and the reasons for it that the verdict does not have.

    spec: the merge method or router of the verdict's system, where that is not its name.
    evaluation: the command that evaluates, with its adapters where these are others.
    """
    request = replace(
        request_of(options, inputs),
        evaluation=evaluation,
        conflict=_conflict(inputs, compatibility.errors),
    )
    if verdict.composes and verdict.system:
        kinds = (score.kind for score in measured.scores if score.system == verdict.system)
        is_router = next(kinds, "merge") == "router"
        composition = _composition(is_router, spec or verdict.system, options.learns)
        request = replace(request, composition=composition)
    command = next_command(verdict, request, measured)
    if NEW in command.adapters and (tried := added_in_vain(inputs, verdict)):
        return show_questions(request), [reason_of("tried", added=tried)]
    return command, ()


def evaluation_of_made(command: str, options: Options, inputs: Inputs) -> Command:
    """The command that evaluates what `merge` or `route` makes by these options, and nothing else.

    The --dtype of `merge` is that of its file.
    """
    if command == "merge":
        only = replace(options, methods=options.methods[:1], routers=(), dtype="auto")
    else:
        only = replace(options, methods=(), routers=options.routers[:1])
    return on_questions(request_of(only, inputs))


def request_of(options: Options, inputs: Inputs) -> Request:
    """The request as a command line spells it."""
    named = {public_name(a.base_model): a.base_model for a in inputs.given if a.base_model}
    agreed = agreed_base(adapter.base_model or "" for adapter in inputs.given)
    on_hub = [hub_id(one) or FILL_BASE for one in named.values()]
    declared = public_name(agreed)
    base = "auto" if declared else ""
    if inputs.base is not None and inputs.base.reference != agreed:
        base = inputs.base.reference
    return Request(
        adapters=tuple(map(reference_of, inputs.given)),
        base=base,
        bases=tuple(sorted(on_hub, key=lambda one: one == FILL_BASE)),
        tasks=tuple(task.reference for task in inputs.tasks),
        given=given_flags(options, inputs),
    )


def _conflict(inputs: Inputs, errors: Sequence[Issue]) -> Conflict:
    """What the errors of compatibility say of the adapters."""
    codes = {issue.code for issue in errors}
    of_several = {issue.code for issue in errors if len(issue.adapters) > 1}
    fitting, parents = _fitting(inputs.given, errors), _base_of_parents(inputs.given, errors)
    if inputs.base is not None and not codes.isdisjoint(OF_BASE):
        return Conflict("base", fitting, parents)
    if codes == {UNTARGETED}:
        return Conflict("untargeted", fitting, parents)
    return Conflict("other" if of_several.isdisjoint(UNLIKE) else "unlike", fitting, parents)


def _base_of_parents(adapters: Sequence[Adapter], errors: Sequence[Issue]) -> Command:
    """The command that writes the base on which the first adapter was trained that lacks it."""
    lacking = {name for issue in errors if issue.code == PARENT for name in issue.adapters}
    bases = (base_with(one.parents) for one in adapters if one.name in lacking and one.parents)
    return next(bases, NOTHING)


def _fitting(adapters: Sequence[Adapter], errors: Sequence[Issue]) -> tuple[str, ...]:
    """The references of adapters that no error stands between: those of the commonest base.

    The later one of two that do not fit together is left out.
    """
    apart = [set(issue.adapters) for issue in errors]
    fitting = [adapter for adapter in adapters if {adapter.name} not in apart]
    common = collections.Counter(adapter.base_model for adapter in fitting).most_common(1)
    fitting = [adapter for adapter in fitting if adapter.base_model == common[0][0]]
    for at in reversed(range(len(fitting))):
        names = {adapter.name for adapter in fitting}
        if any(fitting[at].name in pair <= names for pair in apart):
            del fitting[at]
    return tuple(map(reference_of, fitting))


def _composition(is_router: bool, spec: str, learns: bool) -> CompositionSpec:
    """How a system is made. learns: whether weights are learned where it uses them."""
    if not is_router:
        weighted = METHODS.make(spec).takes_weights
        return CompositionSpec("merge", spec, fitted=weighted and learns, weighted=weighted)
    from loraprobe.routing import ROUTERS  # a merge needs none of them

    router = ROUTERS.make(spec)
    fitted = router.needs_prompts or (router.constant and learns)
    return CompositionSpec("router", spec, fitted, router.constant)


def given_flags(options: Options, inputs: Inputs) -> tuple[Flag, ...]:
    """The options that are not at their default, as on a command line and as may be published."""
    default, flags = Options(), list[Flag]()
    if options.methods not in (default.methods, ()):  # which stand alone on a command line
        default = replace(default, routers=())
    for name in named_options():
        flag, value = flag_of(name), options.value(name)
        if value == default.value(name):
            continue
        if name == "guards":
            flags += [(flag, guard.reference) for guard in inputs.guards]
        elif value is True:
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
    if isinstance(value, tuple):  # a name with a file, which is published without its folder
        return f"{value[0]}={Path(value[1]).name}"
    short = f"{value:g}" if isinstance(value, float) else str(value)
    return short if short == str(value) or float(short) == value else repr(value)
