"""`--shard I/N`: one share of the parts of a run, and what `combine` needs to join all shares.

A shard writes three kinds of files into its directory: `shard.json` says of which run it is a share
and whether it is complete, `modules-*.pt` hold statistics of weights, `results.jsonl` answers. The
same call goes on with what is there, so a shard may run again. It asks all items of its share,
since it cannot know when the decision will hold; the rounds are played when all answers are known.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from loraprobe import evaluation
from loraprobe.adapters import check_place, staged_file
from loraprobe.errors import OutputError, UsageError
from loraprobe.evaluation import Ledger, System
from loraprobe.evaluation.ledger import as_plain, changes
from loraprobe.evaluation.questions import TokenLimits, questions
from loraprobe.evaluation.running import Batch, Run, open_batches
from loraprobe.execution import share_of
from loraprobe.limits import limits
from loraprobe.options import Options
from loraprobe.pipeline.evaluating import open_composition
from loraprobe.pipeline.evaluator import Evaluator, open_evaluator, template_answers
from loraprobe.pipeline.examination import check, planned
from loraprobe.pipeline.inputs import Inputs, open_inputs
from loraprobe.pipeline.kept_statistics import KeptStatistics
from loraprobe.pipeline.results import weights_identity
from loraprobe.pipeline.session import Session
from loraprobe.pipeline.systems import SystemBuilder, baseline_systems
from loraprobe.pipeline.transforms import prepare_inputs
from loraprobe.pipeline.workers import open_units
from loraprobe.records import SCHEMA_VERSION, Progress, document

FILE, FORMAT = "shard.json", "loraprobe-shard-1"
OWN = ("--shard", "--output", "-o", "--executor")  # options of a shard, not of the run


@dataclass(frozen=True)
class Shard:
    """What `shard.json` says.

    arguments: the words of the run's command line. modules, questions: how many batches of them
    are the share's, None before they were counted. chat_template: whether questions were put into
    it.
    """

    arguments: tuple[str, ...]
    share: tuple[int, int]
    fingerprint: Any
    complete: bool = False
    modules: int | None = None
    questions: int | None = None
    chat_template: bool | None = None

    def write(self, place: Path) -> None:
        """Raises OutputError where the directory cannot be written."""
        try:
            with staged_file(place / FILE) as file:
                file.write_text(json.dumps({"format": FORMAT, **vars(self)}, indent=1))
        except OSError as error:
            raise OutputError(f"{place} cannot be written ({error.strerror}).") from None

    @classmethod
    def read(cls, place: Path) -> Shard:
        """Raises UsageError for a directory that no shard wrote."""
        try:
            text = (place / FILE).read_text(encoding="utf-8")
            made = json.loads(text) if len(text) <= limits().items else {}
            known = made.pop("format", None) == FORMAT
            made |= {name: tuple(made[name]) for name in ("arguments", "share")}
            found = cls(**made)
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            known = False
        if not known:
            raise UsageError(f"{place} is no directory of a shard: give the --output of --shard.")
        return found


def run_shard(
    command: str,
    adapters: Sequence[Any],
    place: Path,
    *,
    base: Any = None,
    tasks: Any = (),
    options: Options = Options(),
    progress: Progress | None = None,
    written: Sequence[Path] = (),
) -> Shard:
    """Computes the share options.shard of "inspect" or "merge-and-eval" into the directory `place`.

    The questions of inspect, which are few, are left to `combine`. Raises LoraprobeError as the
    whole run does, and UsageError where `place` holds a shard of another run.
    """
    asks = command == "merge-and-eval"
    opening = open_composition if asks else open_inputs
    inputs = opening(adapters, base, tasks, options, written)
    session = Session(command, options, progress)
    with open_units(adapters, base, tasks, inputs, options) as session.units:
        return _computed(inputs, session, place, asks)


def _computed(inputs: Inputs, session: Session, place: Path, asks: bool) -> Shard:
    options = session.options
    assert options.shard is not None
    check_place(place)
    place.mkdir(parents=True, exist_ok=True)
    identity = as_plain(weights_identity(inputs.adapters, inputs.base, options))
    made = Shard(run_of(options.arguments), options.shard, identity)
    if (place / FILE).exists():
        _same_run(Shard.read(place), made, place)
    made.write(place)
    found = check(inputs.adapters, inputs.base, "route" if asks else "inspect", session)
    made = replace(made, modules=_modules(inputs, session, place, identity, found.compatible))
    if asks and found.compatible:
        session.options = replace(options, state=place, resume=True)
        made = _answers(inputs, session, made)
    made = replace(made, complete=True)
    made.write(place)
    return made


def _modules(inputs: Inputs, session: Session, place: Path, identity: Any, compatible: bool) -> int:
    """Writes the statistics of the share's batches of modules; their number."""
    kept = KeptStatistics([place], identity)
    base = inputs.base if compatible else None
    plan = planned(inputs.adapters, base, session.options, compatible)
    assert session.options.shard is not None
    own = share_of([1.0] * len(plan.batches), session.options.shard)
    open_ = [index for index in own if kept.read(plan.batches[index]) is None]
    with session.stage("diagnose"):
        for done, (_, batch) in enumerate(session.units.statistics(plan, compatible, open_), 1):
            kept.write(batch)
            if session.progress is not None:
                session.progress("diagnose", done, len(open_))
    return len(own)


def _answers(inputs: Inputs, session: Session, made: Shard) -> Shard:
    """Asks the share's batches of questions; the answers go into the ledger of the shard."""
    options, prepared = session.options, prepare_inputs(inputs, "route", session)
    with open_evaluator(inputs, prepared.general, session, composes=True) as evaluator:
        routers, _ = evaluator.fit_routers(prepared)
        search, _ = evaluator.search_weights(prepared)
        searched = tuple(search.weights.values()) if search else None
        builder = SystemBuilder(inputs.adapters, prepared, options, inputs.base, searched, routers)
        evaluator = replace(evaluator, builder=builder)
        batches = list(_all_batches(evaluator, builder))
        own = share_of([len(batch.questions) for batch in batches], made.share)
        run = Run(
            evaluator.scorer,
            evaluator.ledger,
            TokenLimits.of(options.max_new_tokens),
            options.metric,
            session.progress,
        )
        with session.stage("evaluate"):
            open_ = list(_built([batches[i] for i in own], evaluator.ledger, builder))
            run.ask(open_, evaluator.workers())
        template = evaluator.chat_template
        return replace(made, questions=len(own), chat_template=template)


def _all_batches(evaluator: Evaluator, builder: SystemBuilder) -> Iterator[Batch]:
    """The batches that an undivided run would ask of every system if no round were the last.

    Only names of systems: chains and controls are left out, which follow from other answers.
    """
    options, tasks = evaluator.session.options, evaluator.inputs.tasks
    known = Ledger()
    known.append(template_answers(evaluator.ledger, builder.trained, evaluator.chat_template))
    rounds = evaluation.rounds(evaluator.tasks, options.seed, all_items=options.all_items)
    names = [system.name for system in baseline_systems(builder.trained)]
    names += [spec for spec in builder.specs(tasks) if spec != "chain"]
    for name in dict.fromkeys(names):
        before: set[tuple[str, str, str]] = set()
        for this in rounds:
            asked = [q for q in questions(this.tasks, options.metric) if q.key not in before]
            before |= {q.key for q in asked}
            yield from open_batches(System(name, "base"), asked, known)


def _built(batches: Sequence[Batch], ledger: Ledger, builder: SystemBuilder) -> Iterator[Batch]:
    """The batches that are not answered yet, with the systems that answer them."""
    built: dict[str, System] = {}
    for system, asked in batches:
        if any(ledger.get(system.name, *q.key) is None for q in asked):
            if system.name not in built:
                built = {system.name: builder.named(system.name)}
            yield Batch(built[system.name], asked)


def run_of(arguments: Sequence[str]) -> tuple[str, ...]:
    """The words of a shard's command line without what makes it a shard."""
    words, found = iter(arguments), list[str]()
    for word in words:
        if word in OWN:
            next(words, None)
        elif not word.startswith(tuple(f"{option}=" for option in OWN)):
            found.append(word)
    return tuple(found)


def joined_run(places: Sequence[Path]) -> tuple[list[Path], tuple[str, ...]]:
    """The directories of shards in the order of their numbers, and the command line of the run.

    Raises UsageError where shards are of several runs, or one is missing or not complete; the
    message has the command that computes it.
    """
    shards = [(Shard.read(place), place) for place in dict.fromkeys(places)]
    if not shards:
        raise UsageError("combine joins directories of shards; give them.")
    first, at = shards[0]
    by_number: dict[int, tuple[Shard, Path]] = {}
    for shard, place in shards:
        _same_run(first, shard, at, place)
        if shard.complete or shard.share[0] not in by_number:
            by_number[shard.share[0]] = shard, place
    of = first.share[1]
    for number in range(1, of + 1):
        found = by_number.get(number)
        if found is None or not found[0].complete:
            place = found[1] if found else at.with_name(f"shard-{number}-of-{of}")
            share = ["--shard", f"{number}/{of}", "--output", str(place)]
            raise UsageError(
                f"Shard {number} of {of} is {'not complete' if found else 'missing'}: give the "
                f"directory of {shlex.join(['loraprobe', *first.arguments, *share])}"
            )
    templates = {shard.chat_template for shard, _ in by_number.values()}
    if len(templates) > 1:
        raise UsageError(
            "Some shards asked with the chat template and some without it, since they run on "
            "unlike machines: give --chat-template on or off to all of them."
        )
    return [by_number[number][1] for number in sorted(by_number)], first.arguments


def _same_run(one: Shard, other: Shard, at: Path, place: Path | None = None) -> None:
    """Raises UsageError where two shards are no shares of the same run."""
    if place is None and one.share != other.share:
        number, of = one.share
        raise UsageError(f"{at} holds shard {number}/{of}: give this one another --output.")
    where = f"{at} and {place}" if place else f"{at} and this call"
    if one.share[1] != other.share[1]:
        raise UsageError(
            f"{where} are shards of {one.share[1]} and of {other.share[1]}: give shards of one N."
        )
    differs = sorted(set(one.arguments) ^ set(other.arguments))
    differs = differs or changes(one.fingerprint, other.fingerprint)
    if differs:
        raise UsageError(
            f"{where} are shards of different runs ({'; '.join(differs[:3])}): give shards of "
            "the same inputs and options."
        )


def told(made: Shard, place: Path) -> str:
    """What a shard says at its end, in a sentence."""
    number, of = made.share
    modules = "no" if not made.modules else str(made.modules)
    asked = f" and {made.questions} of questions" if made.questions is not None else ""
    return (
        f"Shard {number} of {of} is complete in {place.name}: {modules} batches of modules{asked}. "
        "When all shards are there: loraprobe combine DIR..."
    )


def as_json(made: Shard, command: str) -> str:
    """The same as a document."""
    names = ("share", "complete", "modules", "questions")
    shard = {name: getattr(made, name) for name in names}
    return document(command, {"shard": shard}, SCHEMA_VERSION)
