"""The command after a run: what the verdict needs of options and inputs to name it."""

from __future__ import annotations

import collections
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from loraprobe.adapters import Adapter, agreed_base, hub_id, public_name
from loraprobe.compatibility import UNLIKE
from loraprobe.defaults import FEWEST_ITEMS, PLAIN_TOKENS
from loraprobe.hub import reference_of
from loraprobe.options import Decides, Options, deciding, flag_of, repeats
from loraprobe.pipeline.inputs import Inputs
from loraprobe.records import Compatibility, EvaluationRecords, Verdict
from loraprobe.verdict import Request, next_command
from loraprobe.verdict.next_command import BASE, Flag


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
    open_ = {row.task for row in measured.guards if row.outcome == "inconclusive"}
    request = replace(
        requested(options, inputs, kind),
        library=tuple(library),
        chain=measured.chain,
        fitting=_fitting(inputs.given, compatibility),
        unlike=any(issue.code in UNLIKE for issue in errors),
        open_guards=tuple(one.reference for one in inputs.guards if one.name in open_),
    )
    if kind == "merge" and verdict.composes and options.weights is not None:
        from loraprobe.merging import METHODS

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
