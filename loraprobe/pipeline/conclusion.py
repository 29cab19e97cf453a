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
from loraprobe.defaults import FEWEST_ITEMS, PLAIN_TOKENS
from loraprobe.extension import installed
from loraprobe.hub import reference_of
from loraprobe.merging import METHODS
from loraprobe.options import Options, flag_of, named_options, repeats
from loraprobe.pipeline.inputs import Inputs
from loraprobe.pipeline.preflight import PreflightReport
from loraprobe.pipeline.repeated import added_in_vain
from loraprobe.records import (
    FORMS,
    NOTHING,
    Command,
    Compatibility,
    EvaluationRecords,
    EvidenceLevel,
    Reason,
    Verdict,
)
from loraprobe.verdict import Annotator, Evidence, Exclusion, Request, decide, next_command
from loraprobe.verdict.next_command import BASE, NEW, UNTARGETED, Flag, questions_shown
from loraprobe.verdict.reasons import limit_of_tokens, most_cut, reason_of

if TYPE_CHECKING:  # a merge needs none of it
    from loraprobe.evaluation import System

NOTHING_MEASURED, NOT_EXAMINED = EvaluationRecords(), PreflightReport(Compatibility())


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
        guarded=tuple(guard.name for guard in inputs.guards),
        level=level,
        margin=options.needed_gain,
        retention=options.retention,
        balanced=options.balance == "norm",
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
    again: Command = NOTHING,
) -> tuple[Command, Sequence[Reason]]:
    """The command to run after a verdict, and the reasons for it that the verdict does not have.

    spec: the merge method or router of the verdict's system, where that is not its name. again: the
    command that evaluates in place of merge-and-eval, with its adapters.
    """
    rows = measured.scores
    worst = most_cut([row for row in rows if row.part in FORMS and row.kind != "control"])
    kind = next((score.kind for score in rows if score.system == verdict.system), "merge")
    errors = [issue for issue in compatibility.errors if len(issue.adapters) > 1]
    codes = {issue.code for issue in compatibility.errors}
    request = replace(
        request_of(options, inputs, kind),
        spec=spec,
        again=again,
        chain=measured.chain,
        longer=limit_of_tokens(worst, rows, options.max_new_tokens)[1] if worst else PLAIN_TOKENS,
        fitting=_fitting(inputs.given, compatibility),
        unlike=any(issue.code in UNLIKE for issue in errors),
        wrong_base=inputs.base is not None and not codes.isdisjoint(OF_BASE),
        untargeted=codes == {UNTARGETED},
        parents=_base_of_parents(inputs.given, compatibility),
    )
    if verdict.composes and verdict.system:
        weighted, learned = _weighted(kind, spec or verdict.system)
        learned = learned or (weighted and options.learns)
        request = replace(request, weighted=weighted, learned=learned)
    command = next_command(verdict, request, options.limit is not None)
    if NEW in command.adapters and (tried := added_in_vain(inputs, verdict)):
        return questions_shown(request), [reason_of("tried", added=tried)]
    return command, ()


def request_of(options: Options, inputs: Inputs, kind: str) -> Request:
    """The request as a command line spells it. kind: that of the verdict's system."""
    named = {public_name(a.base_model): a.base_model for a in inputs.given if a.base_model}
    agreed = agreed_base(adapter.base_model or "" for adapter in inputs.given)
    on_hub = [hub_id(one) or BASE for one in named.values()]
    declared = public_name(agreed)
    base = "auto" if declared else ""
    if inputs.base is not None and inputs.base.reference != agreed:
        base = inputs.base.reference
    return Request(
        adapters=tuple(map(reference_of, inputs.given)),
        base=base,
        bases=tuple(sorted(on_hub, key=lambda one: one == BASE)),
        tasks=tuple(task.reference for task in inputs.tasks),
        given=given_flags(options, inputs),
        kind=kind,
        most_tokens=options.max_new_tokens or PLAIN_TOKENS,
    )


def _base_of_parents(adapters: Sequence[Adapter], compatibility: Compatibility) -> Command:
    """The command that writes the base on which the first adapter was trained that lacks it."""
    lacking = {name for i in compatibility.errors if i.code == PARENT for name in i.adapters}
    found = (base_with(one.parents) for one in adapters if one.name in lacking and one.parents)
    return next(found, NOTHING)


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


def _weighted(kind: str, spec: str) -> tuple[bool, bool]:
    """Whether a composition uses weights, and whether it is fitted to prompts."""
    if kind == "merge":
        return METHODS.make(spec).takes_weights, False
    from loraprobe.routing import ROUTERS  # a merge needs none of them

    router = ROUTERS.make(spec)
    return router.constant, router.needs_prompts


def given_flags(options: Options, inputs: Inputs) -> tuple[Flag, ...]:
    """The options that are not at their default, as on a command line and as may be published.

    A limit that leaves too few items to decide anything is left out.
    """
    default, flags = Options(), list[Flag]()
    if options.methods not in (default.methods, ()):  # which stand alone on a command line
        default = replace(default, routers=())
    for name in named_options():
        flag, value = flag_of(name), options.value(name)
        few = name == "limit" and value is not None and value < FEWEST_ITEMS
        if value == default.value(name) or few:
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
