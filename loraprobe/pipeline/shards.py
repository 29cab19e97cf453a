"""`--shard I/N`: one share of the parts of a run, and what `combine` needs to join all shares.

A shard writes three kinds of files into its directory: `shard.json` says of which run it is a share
and whether it is complete, `modules-*.pt` hold statistics of weights, `results.jsonl` answers. The
same call goes on with what is there, so a shard may run again. It asks all items of its share,
since it cannot know when the decision will hold; `combine` goes through the rounds.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Unpack

from loraprobe import evaluation
from loraprobe.evaluation import Ledger, System
from loraprobe.evaluation.questions import questions
from loraprobe.evaluation.running import QuestionBatch, Run, open_batches
from loraprobe.execution import share_of
from loraprobe.pipeline.evaluating import open_builder, open_composition
from loraprobe.pipeline.evaluator import Evaluator, open_evaluator, template_answers
from loraprobe.pipeline.examination import check, planned
from loraprobe.pipeline.inputs import Adapters, Given, Inputs, open_inputs
from loraprobe.pipeline.results import weights_identity
from loraprobe.pipeline.session import Session
from loraprobe.pipeline.shard_files import Shard
from loraprobe.pipeline.systems import SystemBuilder, baseline_systems
from loraprobe.pipeline.transforms import prepare_inputs
from loraprobe.pipeline.units import KeptStatistics
from loraprobe.pipeline.workers import open_units


def run_shard(command: str, adapters: Adapters, place: Path, **given: Unpack[Given]) -> Shard:
    """Computes the share options.shard of "inspect" or "merge-and-eval" into the directory `place`.

    The questions of inspect, which are few, are left to `combine`. Raises LoraprobeError as the
    whole run does, and UsageError where `place` holds a shard of another run.
    """
    asks = command == "merge-and-eval"
    opening = open_composition if asks else open_inputs
    session, inputs = Session.of(command, **given), opening(adapters, **given)
    options = session.options
    with open_units(adapters, inputs, **given) as session.units:
        identity = weights_identity(inputs.adapters, inputs.base, options)
        made = Shard.begun(options, identity, place)
        found = check(inputs.adapters, inputs.base, "route" if asks else "inspect", session)
        modules = _modules(inputs, session, place, identity, found.compatible)
        if asks and found.compatible:
            session.options = replace(options, state=place, resume=True)
            made = _answers(inputs, session, made)
        return made.completed(place, modules=modules)


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
            session.tell("diagnose", done, len(open_))
    return len(own)


def _answers(inputs: Inputs, session: Session, made: Shard) -> Shard:
    """Asks the share's batches of questions; the answers go into the ledger of the shard."""
    options, prepared = session.options, prepare_inputs(inputs, "route", session)
    with open_evaluator(inputs, prepared.general, session, composes=True) as evaluator:
        builder, _, _ = open_builder(evaluator, prepared)
        evaluator = evaluator.with_setup(builder.searched, builder.routers)
        batches = list(_all_batches(evaluator, builder))
        own = share_of([len(batch.questions) for batch in batches], made.share)
        run = Run(
            evaluator.scorer,
            evaluator.ledger,
            options.max_new_tokens,
            options.metric,
            session.progress,
        )
        with session.stage("evaluate"):
            open_ = list(_built([batches[i] for i in own], evaluator.ledger, builder))
            run.ask(open_, evaluator.workers())
        template = evaluator.scorer.chat_template
        return made.model_copy(update={"questions": len(own), "chat_template": template})


def _all_batches(evaluator: Evaluator, builder: SystemBuilder) -> Iterator[QuestionBatch]:
    """The batches that an undivided run would ask of every system if no round were the last.

    Only names of systems: chains and controls are left out, which follow from other answers.
    """
    options, tasks = evaluator.session.options, evaluator.inputs.tasks
    known = Ledger()
    known.append(
        template_answers(evaluator.ledger, builder.trained, evaluator.scorer.chat_template)
    )
    rounds = evaluation.rounds(evaluator.tasks, options.seed, all_items=options.all_items)
    names = [system.name for system in baseline_systems(builder.trained)]
    names += [spec for spec in builder.specs(tasks) if spec != "chain"]
    for name in dict.fromkeys(names):
        before: set[tuple[str, str, str]] = set()
        for this in rounds:
            asked = [q for q in questions(this.tasks, options.metric) if q.key not in before]
            before |= {q.key for q in asked}
            yield from open_batches(System(name, "base"), asked, known)


def _built(
    batches: Sequence[QuestionBatch], ledger: Ledger, builder: SystemBuilder
) -> Iterator[QuestionBatch]:
    """The batches that are not answered yet, with the systems that answer them."""
    built: dict[str, System] = {}
    for system, asked in batches:
        if any(ledger.get(system.name, *q.key) is None for q in asked):
            if system.name not in built:
                built = {system.name: builder.named(system.name)}
            yield QuestionBatch(built[system.name], asked)
