"""The verdict on the evidence of all stages, and the composition that it recommends."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from loraprobe.adapters import Adapter, local_name, public_name
from loraprobe.base import Base
from loraprobe.compatibility import UNLIKE
from loraprobe.defaults import FEWEST_ITEMS, PLAIN_TOKENS
from loraprobe.merging import METHODS, Merged
from loraprobe.options import TASK_FIELDS, Options, flag_of
from loraprobe.pipeline.examination import Examination
from loraprobe.pipeline.inputs import Inputs, given_calibration
from loraprobe.records import Compatibility, EvaluationRecords, EvidenceLevel, Verdict
from loraprobe.verdict import (
    Evidence,
    LibraryChoice,
    Request,
    decide,
    next_command,
)
from loraprobe.verdict.next_command import Flag

if TYPE_CHECKING:
    from loraprobe.evaluation import System
    from loraprobe.pipeline.saved import Routed
    from loraprobe.pipeline.systems import SystemBuilder
NOTHING_MEASURED = EvaluationRecords()
COMPOSING = ("balance", "space", "rank", "weights")  # options that `_composing` names


def verdict_with_next(
    options: Options,
    inputs: Inputs,
    examined: Examination,
    level: EvidenceLevel,
    measured: EvaluationRecords = NOTHING_MEASURED,
) -> Verdict:
    """The verdict on all evidence, with the command to run next."""
    verdict = verdict_on(options, inputs, examined, level, measured)
    return with_next(verdict, options, inputs, measured, examined.compatibility)


def verdict_on(
    options: Options,
    inputs: Inputs,
    examined: Examination,
    level: EvidenceLevel,
    measured: EvaluationRecords,
    choice: LibraryChoice | None = None,
) -> Verdict:
    """The verdict on all evidence. choice: out of what library the adapters were chosen."""
    return decide(
        Evidence(
            measured,
            compatibility=examined.compatibility,
            diagnostics=examined.diagnostics,
            tasks=len(inputs.tasks),
            level=level,
            margin=options.needed_gain,
            retention=options.retention,
            prior=options.prior,
            balanced=options.balance == "norm",
            hidden_size=None if inputs.base is None else _hidden_size(inputs.base),
            max_new_tokens=options.max_new_tokens,
            choice=choice,
        ),
        given_calibration(),
    )


def with_next(
    verdict: Verdict,
    options: Options,
    inputs: Inputs,
    measured: EvaluationRecords,
    found: Compatibility,
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
    request = requested(options, inputs, kind)
    request = replace(request, library=tuple(library), chain=measured.chain)
    if inputs.given:
        errors = [i for i in found.issues if i.severity == "error" and len(i.adapters) > 1]
        unlike = any(issue.code in UNLIKE for issue in errors)
        request = replace(request, fitting=_fitting(inputs.given, found), unlike=unlike)
    if kind == "router":
        from loraprobe.routing import ROUTERS  # a merge needs none of them

        if ROUTERS.make(spec or "").needs_prompts:
            files = [f"{name}={Path(file).name}" for name, file in options.router_prompts]
            words = (*request.options, *(("--router-prompts", file) for file in files))
            request = replace(request, learned=True, options=words)
    told = next_command(replace(verdict, system=spec), request, options.limit is not None)
    return replace(verdict, next=told)


def _hidden_size(base: Base) -> float:
    """That of a base, infinite where it is unknown; models of several parts have a text model."""
    text = base.config.get("text_config")
    config = {**base.config, **(text if isinstance(text, dict) else {})}
    sizes = (config.get(key) for key in ("hidden_size", "n_embd", "d_model"))
    return next((size for size in sizes if isinstance(size, int)), math.inf)


def requested(options: Options, inputs: Inputs, kind: str) -> Request:
    """The request as a command line spells it. kind: that of the verdict's system."""
    # How questions are read, asked and judged.
    asked = [*TASK_FIELDS, "metric", "margin", "retention", "chat_template", "run_unsafe_code"]
    # What a run with --resume needs beside it to use the same answers.
    enough = [] if (options.limit or 0) < FEWEST_ITEMS else ["limit"]  # fewer decide nothing
    kept = [*options.fingerprint(), *enough, "dtype"]
    named = list(dict.fromkeys(public_name(adapter.base_model) for adapter in inputs.given))
    declared = named[0] if len(named) == 1 else None
    base = "auto" if declared else ""
    if inputs.base is not None and inputs.base.reference != declared:
        base = inputs.base.reference
    return Request(
        adapters=tuple(map(reference_of, inputs.given)),
        base=base,
        bases=tuple(filter(None, named)),
        tasks=tuple(task.reference for task in inputs.tasks),
        asked=tuple(_words(options, asked)),
        kind=kind,
        options=_composing(options),
        most_tokens=options.max_new_tokens or PLAIN_TOKENS,
        kept=tuple(_words(options, [name for name in kept if name not in (*COMPOSING, *asked)])),
    )


def _fitting(adapters: Sequence[Adapter], found: Compatibility) -> tuple[str, ...]:
    """The references of adapters that no error stands between: those of the commonest base.

    The later one of two that do not fit together is left out.
    """
    errors = [set(issue.adapters) for issue in found.issues if issue.severity == "error"]
    kept = [adapter for adapter in adapters if {adapter.name} not in errors]
    common = Counter(adapter.base_model for adapter in kept).most_common(1)
    kept = [adapter for adapter in kept if adapter.base_model == common[0][0]]
    for at in reversed(range(len(kept))):
        names = {adapter.name for adapter in kept}
        if any(kept[at].name in error <= names for error in errors):
            del kept[at]
    return tuple(map(reference_of, kept))


def reference_of(adapter: Adapter) -> str:
    """A reference as on a command line, with NAME= unless the reference implies the name."""
    public = adapter.source.public
    return public if local_name(public) == adapter.name else f"{adapter.name}={public}"


def _composing(options: Options) -> tuple[Flag, ...]:
    """The options that change what a composition is, where they are not at their default."""
    found = _words(options, ("balance", "space", "rank"))
    if options.given_weights:
        found.append(("--weights", ",".join(f"{weight:g}" for weight in options.given_weights)))
    for subtracted in options.subtract:
        given = subtracted.source.public if isinstance(subtracted, Adapter) else str(subtracted)
        found.append(("--subtract", given))
    return tuple(found)


def _words(options: Options, names: Iterable[str]) -> list[Flag]:
    """Options as on a command line, where they are not at their default."""
    default, words = Options(), list[Flag]()
    if options.methods not in (default.methods, ()):  # which stand alone on a command line
        default = replace(default, routers=())
    for name in names:
        value = getattr(options, name, None)
        if value != getattr(default, name, None):
            flag = flag_of(name)
            several = value if isinstance(value, tuple | list) else (value,)
            words += [(flag,) if one is True else (flag, str(one)) for one in several or ("none",)]
    return words


def recommend(
    verdict: Verdict, compositions: Sequence[System], builder: SystemBuilder
) -> tuple[Merged | Routed | None, str]:
    """The merge or composition that the verdict advises, or None and why there is none."""
    name = verdict.system
    if verdict.action.startswith("use-single:"):
        return None, f"the advice is to use {verdict.action.partition(':')[2]} as it is."
    if not verdict.composes or name is None:
        return None, f"the advice is {verdict.action}, and not a composition that was evaluated."
    built = next((one for one in compositions if one.name == name), None)
    if built is not None and built.merged is not None:
        return built.merged, ""
    if name in METHODS:
        return builder.merge(name), ""
    if built is None or built.composition is None:
        return None, f"{name} is neither a merge nor a router."
    from loraprobe.pipeline.saved import Routed

    return Routed(built.composition, builder.base, builder.transformed.steps), ""
