"""From what a screen found to its audit: the library's scores, the short list, the verdict."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from loraprobe import evaluation
from loraprobe.evaluation.plan import BASE
from loraprobe.formatting import count
from loraprobe.pipeline.conclusion import argument_without_folders, audit_of, verdict_on, with_next
from loraprobe.pipeline.evaluate import best_system
from loraprobe.pipeline.examination import Examination, examine
from loraprobe.pipeline.inputs import Inputs
from loraprobe.pipeline.screen import Finalist, Proved
from loraprobe.probes import forecast_gains
from loraprobe.records import (
    BASELINES,
    Audit,
    Compatibility,
    EvaluationRecords,
    Forecast,
    Gain,
    ItemResult,
    Library,
    LibraryItems,
    LibraryScore,
    Shortlisted,
    ShortlistOutcome,
    Verdict,
)
from loraprobe.tasks import Task
from loraprobe.verdict import LibraryChoice
from loraprobe.verdict.next_command import library_words


def audit_of_screen(library: Library, tasks: Sequence[Task], proved: Proved) -> Audit:
    """The audit. library: before it was asked. tasks: with all their items."""
    asked, evaluator = proved.asked, proved.asked.evaluator
    session = evaluator.session
    with session.stage("statistics"):
        measured = asked.records()
    given = tuple(proved.adapters)
    inputs = Inputs(given, given, evaluator.inputs.base, tasks)
    verdict, examined = _verdict(library, inputs, proved, measured)
    notes = [*evaluator.notes, *_notes(proved), *asked.notes()]
    notes += [note for one in proved.finalists for note in one.notes]
    return audit_of(
        session,
        inputs,
        examined,
        [*dict.fromkeys(notes), evaluator.scorer.batcher.note()],
        evaluation=measured,
        library=_library(library, proved),
        shortlist=_shortlist(proved, measured, verdict, session.options.seed),
        verdict=verdict,
    )


def _verdict(
    library: Library, inputs: Inputs, proved: Proved, measured: EvaluationRecords
) -> tuple[Verdict, Examination]:
    """The verdict, and what was found about the adapters that it is about."""
    screen, session = proved.screen, proved.asked.evaluator.session
    asked = {row.system for row in screen.results} - {BASE}
    left = sum(len(task.items) for task in proved.asked.evaluator.tasks)
    passes = tuple((systems, items) for (_, items), systems in screen.counts.items())
    choice = LibraryChoice(len(asked), screen.looked_at, len(proved.finalists), passes, left)
    options = session.options
    empty = examined = Examination(Compatibility())
    verdict = verdict_on(options, inputs, empty, "evaluation", measured, choice)
    owner = {name: one for one in proved.finalists for name in one.systems}
    own, spec = owner.get(verdict.system or ""), None
    if own is not None:
        examined = examine(own.builder.trained, inputs.base, "route", session)
        verdict = verdict_on(options, inputs, examined, "evaluation", measured, choice)
        spec = own.systems[verdict.system or ""].spec
    about = _about(verdict, own, inputs, measured)
    words: list[str] = []
    if own is None and not about.adapters:
        arguments = list(map(argument_without_folders, session.arguments))
        words = library_words(library.adapters, arguments)
    found = empty.compatibility
    return with_next(verdict, options, about, measured, found, spec, words), examined


def _about(
    verdict: Verdict, own: Finalist | None, inputs: Inputs, measured: EvaluationRecords
) -> Inputs:
    """The inputs with the adapters that the next command is about.

    These are the one to use alone, those of a chain, the members of the verdict's composition, or,
    where no composition is advised for several tasks, the best adapter on each if these differ;
    none where it is about the whole library.
    """
    wanted = [] if own is None else [*own.names]
    if verdict.action.startswith("use-single:"):
        wanted = [verdict.action.partition(":")[2]]
    elif verdict.action == "chain":
        wanted = [row.adapter for row in measured.chain]
    elif len(inputs.tasks) > 1 and not verdict.composes and own is not None:
        each = list[str]()
        for task in inputs.tasks:
            rows = [row for row in measured.scores if row.task == task.name]
            each += filter(None, [best_system(rows, ("adapter",))])
        wanted = each if len(set(each)) > 1 else wanted
    named = [a for a in inputs.given if a.name in wanted]
    return replace(inputs, adapters=named, given=named)


def _notes(proved: Proved) -> list[str]:
    """Which adapters were not asked, and why."""
    screen, ranking = proved.screen, proved.ranking
    notes = [f"{name} was not asked: {error}" for name, error in screen.failed.items()]
    answered = {row.system for row in screen.results}
    left = {True: "without the second pass over the items that choose", False: "unasked"}
    for some, how in left.items():
        if names := [name for name in screen.unasked if (name in answered) is some]:
            notes.append(
                f"--budget left {count(len(names), 'adapter')} {how}, such as {names[0]}; the same "
                "call with --resume and more minutes asks them."
            )
    if ranking is None:
        return notes
    linear = ranking.forecast.linear if ranking.forecast is not None else ()
    names = [name for name, adds in zip(ranking.names, linear, strict=False) if not adds]
    if names:
        notes.append(
            f"The effects of {count(len(names), 'adapter')} on the next token cannot be added, "
            f"because they change the head of the model ({names[0]}): their sets are ranked by "
            "what their members answer alone."
        )
    if ranking.forecast is None:
        notes.append(
            "Effects on the next token could not be added (no given text, or a head that is not "
            "one matrix), so sets are ranked by what their members answer alone."
        )
    return notes


def _library(library: Library, proved: Proved) -> Library:
    """The library's record with the scores of its adapters alone."""
    rows: dict[tuple[str, str, str], list[float]] = {}
    for result in proved.screen.results:
        rows.setdefault((result.system, result.task, result.part), []).append(result.value)
    scores: dict[str, list[LibraryScore]] = {}
    for (system, task, part), values in rows.items():
        mean = sum(values) / len(values)
        scores.setdefault(system, []).append(LibraryScore(task, part, mean, len(values)))
    return replace(
        library,
        adapters=tuple(
            replace(one, scores=tuple(scores.get(one.name, ()))) for one in library.adapters
        ),
        items=tuple(
            LibraryItems(apart.name, len(apart.items), len(left.items))
            for apart, left in zip(
                proved.screen.evaluator.tasks, proved.asked.evaluator.tasks, strict=True
            )
        ),
    )


def _shortlist(
    proved: Proved, measured: EvaluationRecords, verdict: Verdict, seed: int
) -> tuple[Shortlisted, ...]:
    """The sets that were proved, the best first, and the best single adapter."""
    forecasts = _forecasts(proved, seed)
    gains = _gains(proved, measured)
    rows = [_row(one, forecasts[one.label], gains, proved, verdict) for one in proved.finalists]
    rows.sort(key=lambda row: -(row.gain.difference if row.gain is not None else -2.0))
    looked_at = proved.screen.looked_at
    if verdict.action.startswith("use-single:"):
        name = verdict.action.partition(":")[2]
        rows.insert(0, Shortlisted((name,), "single", 1, looked_at, outcome="single"))
    if measured.chain:
        names = tuple(dict.fromkeys(r.adapter for r in measured.chain if r.adapter != BASE))
        gain = gains.get("chain")
        outcome = "chain" if verdict.action == "chain" else _outcome(gain, verdict)
        rows.append(Shortlisted(names, "chain", 1, looked_at, None, "chain", gain, outcome))
    return tuple(rows)


def _outcome(gain: Gain | None, verdict: Verdict) -> ShortlistOutcome:
    """Whether a gain that is not used is shown to be too small."""
    return "none" if gain is not None and gain.adjusted_ci95[1] < verdict.margin else "open"


def _gains(proved: Proved, measured: EvaluationRecords) -> dict[str, Gain]:
    """The gain of each composition in its better form, of dropped ones on what they were asked."""
    rows, asked = list(measured.gains), proved.asked
    baselines = [system for system in asked.systems if system.kind in BASELINES]
    for one in proved.finalists:
        if not {row.system for row in rows} & one.systems.keys():
            rows += evaluation.gains(asked.results, [*baselines, *one.systems.values()])
    best: dict[str, Gain] = {}
    for row in sorted(rows, key=lambda row: row.difference):
        best[row.system] = row
    return best


def _row(
    one: Finalist,
    forecasts: Mapping[str, Forecast],
    gains: Mapping[str, Gain],
    proved: Proved,
    verdict: Verdict,
) -> Shortlisted:
    """A finalist with its best composition."""
    best = max(
        (name for name in one.systems if name in gains),
        key=lambda name: gains[name].difference,
        default=None,
    )
    gain = gains.get(best or "")
    advised = verdict.composes and verdict.system in one.systems
    if advised:
        best, gain = verdict.system, gains.get(verdict.system or "", gain)
    forecast = forecasts.get("question" if gain is None else gain.part)
    fails = all(name in proved.asked.dropped for name in one.systems)
    outcome: ShortlistOutcome = "none" if fails else _outcome(gain, verdict)
    return Shortlisted(
        one.names,
        "pair" if len(one.names) == 2 else "subset",
        one.place,
        proved.screen.looked_at,
        forecast,
        best,
        gain,
        "compose" if advised else outcome,
    )


def _forecasts(proved: Proved, seed: int) -> dict[str, dict[str, Forecast]]:
    """The forecast gain of each finalist over base and best singles, by form of the question."""
    found: dict[str, dict[str, Forecast]] = {one.label: {} for one in proved.finalists}
    if proved.ranking is None:
        return found
    singles = [adapter.name for adapter in proved.adapters]
    own = [row for row in proved.screen.results if row.system in {BASE, *singles}]
    of_part = {"question": proved.ranking.forecast, "steps": proved.ranking.worked}
    for part, forecast in of_part.items():
        answers: list[ItemResult] = []
        for one in proved.finalists:
            members = one.subset
            if forecast is not None and all(forecast.linear[m] for m in members):
                rows = forecast.results(members, one.label)
                answers += [replace(row, part=part) for row in rows]
        for row in forecast_gains(answers, own, singles, list(found), seed):
            found[row.system][part] = row
    return found
