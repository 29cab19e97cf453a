"""The stages of each command in order.

The command line and the Python functions call these. Python's `route` puts a composition into a
loaded model by itself.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from loraprobe import compatibility, diagnostics, merging
from loraprobe.adapters import Adapter, local_name
from loraprobe.base import Base, pick_dtype
from loraprobe.compatibility.identity import Purpose
from loraprobe.errors import UsageError
from loraprobe.extension import Pool, Result, backend_of, output_formats_of
from loraprobe.formatting import count, listing
from loraprobe.options import Options
from loraprobe.pipeline.conclusion import decided, exclusions
from loraprobe.pipeline.inputs import Inputs, check_engine, check_state, check_task_use, open_inputs
from loraprobe.pipeline.measured_before import keep_verdict
from loraprobe.pipeline.outcome import Outcome, audit_of, finish, recommend, with_remarks
from loraprobe.pipeline.preflight import (
    WARNED,
    PreflightReport,
    check,
    examine,
    merge_figures,
    warning_figures,
    with_issues,
    with_licences,
)
from loraprobe.pipeline.transforms import PreparedAdapters, transform_inputs, with_layers
from loraprobe.records import (
    Compatibility,
    Reason,
    display_name,
)
from loraprobe.report.cards import made_text
from loraprobe.session import Adapters, Ref, Session, Tasks
from loraprobe.verdict.reasons import reason_of

if TYPE_CHECKING:
    from loraprobe.pipeline.estimate import CostEstimate
    from loraprobe.pipeline.plan import Fitted, Plan
    from loraprobe.tasks import ProbePrompts


def inspect(
    adapters: Adapters,
    session: Session,
    *,
    base: Base | Ref | None = None,
    tasks: Tasks = (),
    probe: ProbePrompts | Ref | None = None,
) -> Outcome:
    """Describes adapters. Several, tasks or a probe give a verdict; several are also compared.

    probe: prompts, a file, or "auto" for prompts from the adapters' cards and from the adapters
    themselves. Raises LoraprobeError for input that cannot be read.
    """
    session.command, options = "inspect", session.options
    asks_base = bool(tasks) or bool(probe)
    if asks_base and base is None:
        raise UsageError("--task and --probe ask the base model; add --base=DIR or --base=auto.")
    if tasks:
        check_state(session)
    check_engine(options, tasks)
    inputs, opened = open_inputs(adapters, session, base, tasks), None
    if probe:
        from loraprobe.pipeline.task_files import open_probe

        opened = open_probe(probe, inputs.given)
    purpose: Purpose = "inspect" if base is None else "route" if asks_base else "measure"
    preflight = examine(inputs.adapters, inputs.base, purpose, session)
    preflight, _ = with_licences(preflight, inputs)
    result = Result(inputs.given, inputs.base, asked=asks_base)
    preflight, remarks = with_remarks(preflight, session, result)
    fields: dict[str, Any] = {"added": remarks.added}
    if not (asks_base and preflight.compatibility.compatible):
        if asks_base or len(inputs.adapters) > 1:
            fields["verdict"] = decided(options, inputs, "weights", preflight=preflight)
        return Outcome(audit_of(session, inputs, preflight, **fields))
    from loraprobe.pipeline.evaluate import run_pilot, unanswered_samples
    from loraprobe.pipeline.plan import plan_of

    plan = plan_of(options, inputs.adapters, inputs.tasks)
    with asking(session):
        pilot = run_pilot(inputs, plan, opened, session)
    verdict = decided(options, inputs, pilot.level, pilot.records, preflight, pilot.excluded)
    if verdict.missing == "answers":
        fields["samples"] = unanswered_samples(pilot.samples, pilot.records)
    fields |= {"verdict": verdict, "evaluation": pilot.records}
    audit = audit_of(session, inputs, preflight, pilot.notes, **fields)
    keep_verdict(inputs, audit, pilot.compositions)
    return Outcome(audit)


def merge(
    adapters: Adapters,
    session: Session,
    *,
    base: Base | Ref | None = None,
    tasks: Tasks = (),
) -> Outcome:
    """Merges by the first of options.methods; the merge carries a model card.

    tasks: needed to learn weights; nothing is evaluated. The merge itself reads the tensors and
    finds NaN, adapters without effect and duplicates. Raises CompatibilityError if the adapters
    cannot be merged exactly.
    """
    options = session.options
    method = merging.METHODS.make(options.methods[0]) if options.methods else None
    inputs, checked, prepared = _opened("merge", adapters, session, base, tasks, method)
    assert method is not None
    weights, learned, notes = options.given_weights, None, list[str]()
    if options.learns:  # what asks a model takes as long to import as a small merge
        from loraprobe.pipeline.fitting import fit_for_merge

        fitted = fit_for_merge(inputs, prepared, session)
        weights, learned, notes = fitted.factors(options), fitted.weights, [*fitted.notes]
    prepared = with_layers(prepared, options, learned)
    dtype = prepared.dtype if options.dtype == "auto" else pick_dtype(options.dtype)
    as_given = prepared.adapters == tuple(inputs.adapters)
    seen = diagnostics.Diagnosis(inputs.adapters, only=WARNED, seed=options.seed)
    with session.stage("merge"):
        merged = merging.merge(
            prepared.adapters,
            merging.MergeConfig.of(method, options, weights, dtype),
            base=inputs.base,
            progress=session.progress,
            visitor=seen.visit if as_given else None,
        )
    alone = session.target is None and bool(output_formats_of(options))
    full_rank = alone and merged.config.rank is None
    if full_rank:
        merged = merged.at_full_rank
    with session.stage("diagnose"):
        norm = merged.norm if full_rank else merged.adapter.norm()
        figures = merge_figures(merged, norm, prepared)
        figures += seen.measurements() if as_given else warning_figures(inputs.adapters, options)
    preflight = PreflightReport(with_issues(checked, merged.issues), figures)
    notes += [*prepared.notes, made_text(merged, norm, options, full_rank)]
    content = prepared.content(options.methods[0], inputs.adapters, options, learned)
    return finish(
        session, inputs, preflight, notes, merged, prepared, content=content, search=learned
    )


def compose(
    adapters: Adapters,
    session: Session,
    *,
    base: Base | Ref | None = None,
    tasks: Tasks = (),
    again: Fitted | None = None,
) -> Outcome:
    """The command `route`, in Python `compose`: combines adapters by the first of options.routers.

    Nothing is evaluated.

    base: needed by a router that is fitted to prompts and by weights learned on `tasks`; with
    it the adapters are checked against it, and whether peft's Arrow can express the composition.
    again: the prompts to which such a router was fitted before.
    Raises CompatibilityError if the adapters do not fit together, UsageError for weights with a
    router that computes its gates.
    """
    from loraprobe.composition import Composition
    from loraprobe.pipeline.fitting import fit_for_route
    from loraprobe.routing import Routed

    inputs, checked, prepared = _opened("route", adapters, session, base, tasks)
    options, spec = session.options, session.options.routers[0]
    router, fitted = fit_for_route(spec, inputs, prepared, session, again)
    prepared = with_layers(prepared, options, fitted.weights)
    composition = Composition(spec, prepared.adapters, router)
    made = Routed(composition, inputs.base, prepared.steps, learned=fitted.record)
    with session.stage("peft"):
        notes = [*fitted.notes, *prepared.notes, made.peft_note]
    with session.stage("diagnose"):
        figures = warning_figures(inputs.adapters, options, "norm")
    notes.append(
        f"Composed {count(len(inputs.adapters), 'adapter')} with the router {display_name(spec)}."
    )
    preflight = PreflightReport(checked, figures)
    learned = fitted.prompts or fitted.weights
    content = prepared.content(spec, inputs.adapters, options, learned)
    return finish(
        session, inputs, preflight, notes, made, prepared, content=content, search=fitted.weights
    )


def _opened(
    command: Literal["merge", "route"],
    adapters: Adapters,
    session: Session,
    base: Base | Ref | None,
    tasks: Tasks,
    method: merging.MergeMethod | None = None,
) -> tuple[Inputs, Compatibility, PreparedAdapters]:
    """What is opened, checked and transformed before adapters are merged, by `method`, or routed.

    Raises UsageError where the options name no method or router.
    """
    session.command = command
    kind = {"merge": "methods", "route": "routers"}[command]
    if not getattr(session.options, kind):
        raise UsageError(f"--{kind[:-1]} none leaves nothing to {command} by; give one.")
    check_task_use(bool(tasks), session.options, command, method)
    formats = output_formats_of(session.options)
    inputs = open_inputs(adapters, session, base or ("auto" if formats else None), tasks)
    if formats and inputs.base is not None:
        with session.stage("hash"):
            _ = inputs.base.sha256  # which the card of such a format has, also of a large base
    elif method is not None:
        _check_change(inputs.given, session.options, method)
    checked = compatibility.require(check(inputs.adapters, inputs.base, command, session))
    return inputs, checked, transform_inputs(inputs, command, session)


def _check_change(
    adapters: Sequence[Adapter], options: Options, method: merging.MergeMethod
) -> None:
    """Raises UsageError for a merge of one adapter that neither method nor options change."""
    if len(adapters) > 1:
        return
    default = Options()
    changes = ["subtract", "rank", "dtype", *(["weights"] if method.takes_weights else [])]
    given = any(getattr(options, name) != getattr(default, name) for name in changes)
    if "identity" in method.laws and not given:
        raise UsageError(
            f"merge makes one adapter of several, and only {adapters[0].name} was given; give "
            "another, or change this one by --subtract, --rank, --dtype, or --weights with "
            "--method task_arithmetic."
        )


def merge_and_eval(
    adapters: Adapters,
    session: Session,
    *,
    base: Base | Ref = "auto",
    tasks: Tasks = (),
) -> Outcome:
    """The whole audit: compatibility, diagnostics, probes, every system on every task, verdict.

    Adapters that do not fit together end the run early with the verdict `incompatible`. Raises
    LoraprobeError if base, adapters or tasks cannot be read.
    """
    from loraprobe.pipeline.evaluate import evaluate

    inputs, plan = _planned(adapters, session, base, tasks)
    options = session.options
    preflight = examine(inputs.adapters, inputs.base, "route", session)
    if not preflight.compatibility.compatible:
        verdict = decided(options, inputs, "weights", preflight=preflight)
        audit = audit_of(session, inputs, preflight, verdict=verdict)
        return Outcome(audit, why_nothing="the adapters do not fit together.")
    prepared = transform_inputs(inputs, "route", session)
    with asking(session):
        evaluated = evaluate(inputs, plan, prepared, session)
    records, compositions = evaluated.records, evaluated.compositions
    with session.stage("save"):
        with_files = partial(evaluated.builder.with_files, compositions)
        excluded = exclusions(options, inputs.base, lambda: (inputs.given, with_files()))
        verdict = decided(options, inputs, "evaluation", records, preflight, excluded)
        systems = [*compositions, *evaluated.added.systems]
        made, why = recommend(verdict, systems, evaluated.builder)
        beside = list[Reason]()
        unwritten = [session.target] if made is None else []
        unwritten += [at for at, format_ in output_formats_of(options) if not format_.takes(made)]
        if places := [local_name(str(place)) for place in unwritten if place is not None]:
            beside.append(reason_of("nothing-written", where=listing(places), why=why))
    outcome = finish(
        session,
        inputs,
        preflight,
        evaluated.notes,
        made,
        prepared,
        verdict,
        beside,
        search=evaluated.builder.fitted.weights,
        samples=evaluated.wrong(verdict),
        added=evaluated.added.records,
        evaluation=records,
    )
    keep_verdict(inputs, outcome.audit, compositions)
    return replace(outcome, why_nothing=why, samples=evaluated.samples)


def _planned(
    adapters: Adapters, session: Session, base: Base | Ref, tasks: Tasks
) -> tuple[Inputs, Plan]:
    """The inputs of merge-and-eval, and what it evaluates; no model is loaded.

    Raises LoraprobeError.
    """
    from loraprobe.pipeline.fitting import check_learnable
    from loraprobe.pipeline.plan import check_systems, plan_of

    session.command, options = "merge-and-eval", session.options
    if not tasks:
        raise UsageError(
            "merge-and-eval needs --task=FILE; without one, try loraprobe inspect --base=auto "
            "--probe=auto."
        )
    if isinstance(adapters, (str, Path, Adapter)) or len(adapters) < 2:
        raise UsageError("merge-and-eval composes adapters; give at least two.")
    check_state(session)
    inputs = open_inputs(adapters, session, base, tasks)
    check_systems(inputs.adapters, options)
    if options.learns:
        check_learnable(inputs.adapters, options)
    plan = plan_of(options, inputs.adapters, inputs.tasks)
    if not options.systems and not plan.specs:
        why = " ".join(plan.left_out) or "--method=none and --router=none leave none."
        raise UsageError(f"There is no composition to evaluate: {why}", "Give a --method.")
    return inputs, plan


@contextmanager
def asking(session: Session) -> Iterator[None]:
    """Opens the processes that the options ask for while the context lasts."""
    pool = backend_of(session.options)
    if not isinstance(pool, Pool):
        yield
        return
    with pool.open(session) as session.executor:
        yield


def estimate_merge_and_eval(
    adapters: Adapters,
    session: Session,
    *,
    base: Base | Ref = "auto",
    tasks: Tasks = (),
) -> CostEstimate:
    """What merge_and_eval of the same inputs would take; nothing is evaluated or written."""
    from loraprobe.pipeline.estimate import estimate_of_plan
    from loraprobe.pipeline.evaluator import open_evaluator

    inputs, plan = _planned(adapters, session, base, tasks)
    preflight = examine(inputs.adapters, inputs.base, "route", session)
    compatibility.require(preflight.compatibility)
    transform_inputs(inputs, "route", session)  # raises what the run would raise
    with nothing_kept(session), open_evaluator(inputs, plan, session) as evaluator:
        return estimate_of_plan(evaluator)


@contextmanager
def nothing_kept(session: Session) -> Iterator[None]:
    """Keeps results in a directory that is gone afterwards, and uses none of earlier runs."""
    with tempfile.TemporaryDirectory() as place:
        session.state, session.resume = Path(place), False
        yield
