"""The audit of a screen: the library with its scores, the short list, and the verdict."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial

from loraprobe import evaluation
from loraprobe.adapters import Adapter
from loraprobe.evaluation import System
from loraprobe.evaluation.questions import BASE
from loraprobe.extension import Remarks, Result, remarks_of
from loraprobe.extensions.screen.forecasting import forecast_gains
from loraprobe.extensions.screen.records import (
    Forecast,
    Library,
    LibraryScore,
    Screened,
    Shortlisted,
    ShortlistOutcome,
)
from loraprobe.extensions.screen.report import library_words
from loraprobe.extensions.screen.screening import Finalist, Proved, own, without_budget
from loraprobe.extensions.screen.verdict import Chosen, LibraryChoice
from loraprobe.formatting import count
from loraprobe.pipeline.conclusion import NOT_EXAMINED, decided, exclusions, next_step
from loraprobe.pipeline.evaluate import unanswered_samples
from loraprobe.pipeline.inputs import Inputs
from loraprobe.pipeline.outcome import audit_of, public_argument
from loraprobe.pipeline.preflight import PreflightReport, examine
from loraprobe.records import (
    BASELINES,
    FORMS,
    QUESTION,
    Audit,
    Command,
    Compatibility,
    EvaluationRecords,
    Gain,
    ItemPart,
    ItemResult,
    Sample,
    Verdict,
    references,
)
from loraprobe.tasks import Task
from loraprobe.verdict import Evidence
from loraprobe.verdict.next_command import MERGE_AND_EVAL, may_stop


def audit_of_screen(library: Library, tasks: Sequence[Task], proved: Proved) -> Audit:
    """The audit of a screen. library: before it was asked. tasks: with all their items."""
    asked, evaluator = proved.asked, proved.asked.evaluator
    session = evaluator.session
    with session.stage("statistics"):
        measured = asked.records()
    given = tuple(proved.adapters)
    inputs = replace(evaluator.inputs, adapters=given, given=given, tasks=tasks)
    verdict, preflight, step, remarks = _verdict(library, inputs, proved, measured)
    screened = Screened(_library(library, proved), _shortlist(proved, measured, verdict))
    notes = [*evaluator.told(), *_notes(proved), *proved.added.notes, *asked.notes()]
    notes += [note for finalist in proved.finalists for note in finalist.notes]
    return audit_of(
        session,
        inputs,
        preflight,
        [*dict.fromkeys(notes), evaluator.scorer.note()],
        evaluation=measured,
        added=(screened, *proved.added.records, *remarks.added),
        samples=_samples(proved, measured) if verdict.missing == "answers" else (),
        verdict=verdict,
        beside=remarks.reasons,
        step=step,
    )


def _samples(proved: Proved, measured: EvaluationRecords) -> tuple[Sample, ...]:
    """A few questions that show why nothing answers."""
    asked = proved.asked
    samples = evaluation.samples_of(asked.results, asked.systems, asked.round.tasks)
    return unanswered_samples(samples, measured)


def _verdict(
    library: Library, inputs: Inputs, proved: Proved, measured: EvaluationRecords
) -> tuple[Verdict, PreflightReport, Command, Remarks]:
    """The verdict, what was found about its adapters, the command to run next, and remarks."""
    screen, session = proved.screen, proved.asked.evaluator.session
    asked = {row.system for row in screen.results} - {BASE}
    left = sum(len(task.items) for task in proved.asked.evaluator.tasks)
    unasked, sets = len({*screen.unasked} - asked), len(proved.finalists)
    choice = LibraryChoice(len(asked), screen.looked_at, sets, screen.passes, left, unasked)
    chosen = Chosen(choice, own(session.options).budget is not None)
    options, preflight = session.options, NOT_EXAMINED
    excluded = exclusions(options, inputs.base, partial(_made, inputs, proved))

    def judged() -> Verdict:
        return decided(
            options, inputs, "evaluation", measured, preflight, excluded, annotators=[chosen]
        )

    verdict = judged()
    finalist = next((f for f in proved.finalists if verdict.system in f.systems), None)
    system = None if finalist is None else finalist.systems[verdict.system or ""]
    if finalist is not None:  # the findings about its members limit the verdict
        preflight = examine(finalist.builder.trained, inputs.base, "route", session)
        verdict = judged()
    about = _about(verdict, finalist, inputs, measured, proved.finalists)
    evaluation = MERGE_AND_EVAL
    if not about.adapters:
        arguments = list(map(public_argument, session.arguments))
        evaluation = Command("screen", tuple(library_words(library.adapters, arguments)))
    spec = "" if system is None else system.spec
    given = without_budget(options) if verdict.missing == "time" else options
    step, why = next_step(verdict, given, about, measured, Compatibility(), spec, evaluation)
    merged = None
    if finalist is not None and system is not None and verdict.composes and system.kind == "merge":
        merged = finalist.builder.merge(system.method)
    files = replace(about, given=[screen.members[a.name].open() for a in about.given])
    result = Result(files.given, files.base, merged, verdict, measured)
    remarks = remarks_of(session, result)
    return verdict, preflight, step, replace(remarks, reasons=(*why, *remarks.reasons))


def _made(inputs: Inputs, proved: Proved) -> tuple[list[Adapter], list[System]]:
    """The adapters as their files are, and the compositions that were asked to the end, the merges
    with their files."""
    files = [proved.screen.members[adapter.name].open() for adapter in inputs.given]
    compositions, dropped = list[System](), proved.asked.dropped
    for finalist in proved.finalists:
        left = [s for name, s in finalist.systems.items() if name not in dropped]
        compositions += finalist.builder.with_files(left)
    return files, compositions


def _about(
    verdict: Verdict,
    finalist: Finalist | None,
    inputs: Inputs,
    measured: EvaluationRecords,
    finalists: Sequence[Finalist],
) -> Inputs:
    """The inputs with the adapters that the next command is about.

    These are the one to use alone, those of a chain, the members of the verdict's composition, or,
    where no composition is advised for several tasks, the best adapter on each if these differ;
    none where it is about the whole library. Whether one adapter or a chain is better than what was
    composed stays open without the others.
    """
    wanted = [] if finalist is None else [*finalist.names]
    used = {row.kind for row in measured.scores if row.system == verdict.used}
    settled = verdict.decision != "inconclusive" or may_stop(verdict)
    if settled and not used.isdisjoint(references()):  # made again beside these, and written
        wanted = wanted or [*finalists[0].names]
    elif verdict.missing == "time" or (verdict.decision == "inconclusive" and not verdict.composes):
        wanted = []
    elif verdict.action.adapter:
        wanted = [verdict.action.adapter]
    elif verdict.action.kind == "chain":
        wanted = [row.adapter for row in measured.chain]
    elif len(inputs.tasks) > 1 and not verdict.composes and finalist is not None:
        evidence = Evidence(measured, tasks=len(inputs.tasks), margin=verdict.margin)
        alone = [evidence.on(task.name).leading("adapter") for task in inputs.tasks]
        best_on = [name for name in alone if name is not None]
        wanted = best_on if len(set(best_on)) > 1 else wanted
    adapters = [a for a in inputs.given if a.name in wanted]
    return replace(inputs, adapters=adapters, given=adapters)


def _notes(proved: Proved) -> list[str]:
    """What was not asked, and why."""
    screen, ranking = proved.screen, proved.ranking
    notes = [f"{name} was not asked: {error}" for name, error in screen.failed.items()]
    if screen.unasked:
        left = count(len(screen.unasked), "adapter")
        notes.append(
            f"--budget left {left} unasked, such as {screen.unasked[0]}; the same call with "
            "--resume and more minutes asks them."
        )
    if ranking is None:
        return notes
    if ranking.forecast is None:
        notes.append(
            "Effects on the next token could not be added (no question has a given text), so sets "
            "are ranked by what their members answer alone."
        )
    return notes


def _library(library: Library, proved: Proved) -> Library:
    """The library's record with the scores of its adapters alone."""
    rows: dict[tuple[str, str, ItemPart], list[float]] = {}
    for result in proved.screen.results:
        rows.setdefault((result.system, result.task, result.part), []).append(result.value)
    scores: dict[str, list[LibraryScore]] = {}
    for (system, task, part), values in rows.items():
        mean = sum(values) / len(values)
        scores.setdefault(system, []).append(LibraryScore(task, part, mean, len(values)))
    rows_with_scores = (
        replace(row, scores=tuple(scores.get(row.name, ()))) for row in library.adapters
    )
    return replace(library, adapters=tuple(rows_with_scores))


def _shortlist(
    proved: Proved, measured: EvaluationRecords, verdict: Verdict
) -> tuple[Shortlisted, ...]:
    """The sets that were proved, the best first, and the best single adapter."""
    forecasts = _forecasts(proved)
    gains = _gains(proved, measured)
    rows = [_row(f, forecasts[f.label], gains, proved, verdict) for f in proved.finalists]
    rows.sort(key=lambda row: -(row.gain.difference if row.gain is not None else -2.0))
    looked_at = proved.screen.looked_at
    if name := verdict.action.adapter:
        rows.insert(0, Shortlisted((name,), "single", 1, looked_at, outcome="single"))
    if measured.chain:
        names = tuple(dict.fromkeys(r.adapter for r in measured.chain if r.adapter != BASE))
        gain = gains.get("chain")
        outcome = "chain" if verdict.action.kind == "chain" else _outcome(gain, verdict)
        rows.append(Shortlisted(names, "chain", 1, looked_at, None, "chain", gain, outcome))
    return tuple(rows)


def _outcome(gain: Gain | None, verdict: Verdict) -> ShortlistOutcome:
    """Whether a gain that is not used is shown to be too small."""
    return "none" if gain is not None and gain.adjusted_ci95[1] < verdict.margin else "open"


def _gains(proved: Proved, measured: EvaluationRecords) -> dict[str, Gain]:
    """The gain of each composition in its better form, of dropped ones on what they were asked."""
    rows, asked = list(measured.gains), proved.asked
    baselines = [system for system in asked.systems if system.kind in BASELINES]
    for finalist in proved.finalists:
        if not {row.system for row in rows} & finalist.systems.keys():
            rows += evaluation.measure_gains(
                asked.results, [*baselines, *finalist.systems.values()]
            )
    best: dict[str, Gain] = {}
    for row in sorted(rows, key=lambda row: row.difference):
        best[row.system] = row
    return best


def _row(
    finalist: Finalist,
    forecasts: Mapping[str, Forecast],
    gains: Mapping[str, Gain],
    proved: Proved,
    verdict: Verdict,
) -> Shortlisted:
    """A finalist with its best composition."""
    best = max(
        (name for name in finalist.systems if name in gains),
        key=lambda name: gains[name].difference,
        default=None,
    )
    gain = gains.get(best or "")
    advised = verdict.composes and verdict.system in finalist.systems
    if advised:
        best, gain = verdict.system, gains.get(verdict.system or "", gain)
    forecast = forecasts.get(QUESTION if gain is None else gain.part)
    fails = all(name in proved.asked.dropped for name in finalist.systems)
    outcome: ShortlistOutcome = "none" if fails else _outcome(gain, verdict)
    return Shortlisted(
        finalist.names,
        "pair" if len(finalist.names) == 2 else "subset",
        finalist.place,
        proved.screen.looked_at,
        forecast,
        best,
        gain,
        "compose" if advised else outcome,
    )


def _forecasts(proved: Proved) -> dict[str, dict[str, Forecast]]:
    """The forecast gain of each finalist over base and best singles, by form of the question."""
    forecasts: dict[str, dict[str, Forecast]] = {f.label: {} for f in proved.finalists}
    if proved.ranking is None:
        return forecasts
    singles = [adapter.name for adapter in proved.adapters]
    options = proved.asked.evaluator.session.options
    alone = [row for row in proved.screen.results if row.system in {BASE, *singles}]
    expected = list[ItemResult]()
    for finalist in proved.finalists:
        expected += proved.ranking.results(finalist.subset, finalist.label)
    for part in FORMS:
        of_part = [row for row in expected if row.part == part]
        for forecast in forecast_gains(of_part, alone, singles, [*forecasts], options.seed):
            forecasts[forecast.system][part] = forecast
    return forecasts
