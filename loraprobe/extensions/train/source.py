"""The systems of `--baseline`: sets questions apart, trains an adapter on them, reads it back."""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from pydantic import TypeAdapter

from loraprobe.adapters import public_value, read_adapter
from loraprobe.adapters.staging import staged_directory
from loraprobe.composition import Composition
from loraprobe.defaults import FEWEST_ITEMS
from loraprobe.errors import OutputError, TaskError, UsageError
from loraprobe.evaluation import System
from loraprobe.extension import PASSES, AddedSystems, SourceInputs, SystemSource
from loraprobe.extensions.train.artifact import TrainedAdapter
from loraprobe.extensions.train.part import (
    KIND,
    LeftOut,
    TrainedRecord,
    TrainedSystems,
    gains_more,
    not_trained,
)
from loraprobe.extensions.train.recipe import ITEMS_LEAST, ITEMS_MOST, TrainRecipe, sizes
from loraprobe.extensions.train.training import (
    BATCH,
    encoded,
    epoch_of,
    mean_loss,
    memory_of,
    most_steps,
    trained,
)
from loraprobe.formatting import count, listing, size
from loraprobe.merging import METHODS, MergeConfig, merge
from loraprobe.options import Options
from loraprobe.results import digest
from loraprobe.routing.constant import ConstantGates, single
from loraprobe.scoring import ModelScorer
from loraprobe.tasks import Item, Task
from loraprobe.tasks.splits import TaskSplit, drawn, groups_of
from loraprobe.untrusted import error_line
from loraprobe.verdict import Evidence
from loraprobe.verdict.evidence import ScoredSystem, ranked

HELD_OUT = 0.25  # the share of the questions that says when training ends
_Made = tuple[System, TrainedRecord]
RECORD = "trained.json"  # how an adapter was trained, beside its files


@dataclass(frozen=True)
class TrainedSource(SystemSource):
    """An adapter that is trained by a recipe."""

    recipe: TrainRecipe

    flag: ClassVar[str] = "--baseline"

    def set_apart(self, tasks: Sequence[Task], options: Options) -> TaskSplit:
        """Whole groups of questions of each task, drawn by the seed."""
        for task in tasks:
            _check_gold(task)
        parts = drawn(tasks, [_wanted(task, self.recipe) for task in tasks], options.seed)
        for task, apart, left in zip(tasks, parts.apart, parts.left, strict=True):
            if len(left.items) < FEWEST_ITEMS or min(groups_of(apart), groups_of(left)) < 2:
                raise TaskError(
                    f"Task {task.name} has {count(len(task.items), 'item')} in "
                    f"{count(groups_of(task), 'group')}, which are not parted: "
                    f"{len(apart.items)} to train on leave {len(left.items)} to judge by, of "
                    f"{FEWEST_ITEMS} that it takes in 2 groups or more; give more groups."
                )
        return parts

    def expected(self, parts: TaskSplit) -> Mapping[str, int]:
        found, tasks = dict[str, int](), len(parts.apart)
        for items in sizes(self.recipe, _items_each(parts.apart)):
            held_out = math.ceil(HELD_OUT * items) * tasks
            learned = items * tasks - held_out
            steps = most_steps(self.recipe, learned)
            measured = held_out * (1 + steps / epoch_of(learned))
            read = PASSES * steps * min(BATCH, learned) + measured
            found[self._name(items, parts)] = round(read)
        return found

    def memory(self, scorer: ModelScorer, parts: TaskSplit) -> tuple[int, str]:
        """That of the adapter on all that is set apart."""
        factors, kept, least = memory_of(scorer, encoded(scorer, _items(parts.apart)), self.recipe)
        told = (
            f"Training takes {size(factors)} for the adapter, its gradients and the optimiser, and "
            f"{size(kept)} for activations ({size(least)} where layers are computed twice)."
        )
        return factors + kept, told

    def make(self, given: SourceInputs) -> AddedSystems:
        """The adapter on all that was set apart first, since that is advised; then the curve."""
        session, begun = given.session, time.perf_counter()
        ends = min(given.ends, begun + 60 * (self.recipe.minutes or math.inf))
        *fewer, whole = sizes(self.recipe, _items_each(given.parts.apart))
        if begun >= ends:
            out = tuple(LeftOut(items, "time") for items in (*fewer, whole))
            note = f"Nothing was trained for {KIND}: the time was over."
            return AddedSystems(notes=[note], records=[TrainedSystems((), out)])
        left_out, made = self._without_room(given, fewer), dict[int, _Made]()
        start = self._start(given)
        made[whole] = self._trained(given, start, whole, ends)
        pace = made[whole][1].seconds / whole
        for at, items in enumerate(() if left_out else fewer):
            if time.perf_counter() + pace * items > ends:
                left_out = [LeftOut(one, "time") for one in fewer[at:]]
                break
            made[items] = self._trained(given, start, items, ends)
            if at == 0 and (rest := fewer[1:]):
                left_out = self._gains_already(given, made[items][0], rest)
                if left_out:
                    break
        systems, records = zip(*(made[items] for items in sorted(made)), strict=True)
        record = records[-1]
        note = (
            f"The adapter {KIND} learned from {count(record.items, 'item')} on which no system is "
            f"scored ({record.held_out} of them said when to stop); {record.left} are left."
        )
        told = [note, *filter(None, [not_trained(left_out, session.options.needed_gain)])]
        return AddedSystems(systems, told, [TrainedSystems(records, tuple(left_out))])

    def _without_room(self, given: SourceInputs, fewer: Sequence[int]) -> list[LeftOut]:
        """The whole curve, where something else leaves no room for a gain of the margin.

        The measured score counts as it is: the adapter on all items is trained anyway.
        """
        if not fewer:
            return []
        evidence = given.ask(given.composed)
        best = _best_other(evidence)
        if evidence.losses or best is None or best.score.value <= 1 - evidence.margin:
            return []
        return [LeftOut(items, "no-room", best.system, best.shown) for items in fewer]

    def _gains_already(
        self, given: SourceInputs, first: System, fewer: Sequence[int]
    ) -> list[LeftOut]:
        """What is left of the curve, where its first point is shown to be the best of all."""
        evidence = given.ask([*given.composed, first])
        own, best = ranked(evidence.scored([first.name])), _best_other(evidence)
        if not own or (best is not None and not gains_more(evidence, own[0], best)):
            return []
        return [LeftOut(items, "gains-already", first.name, own[0].shown) for items in fewer]

    def _trained(self, given: SourceInputs, start: System | None, items: int, ends: float) -> _Made:
        """The adapter on so many items of each task."""
        parts, seed = given.parts, given.session.options.seed
        taken = drawn(parts.apart, [items] * len(parts.apart), seed)
        part, name = TaskSplit(taken.apart, parts.left), self._name(items, parts)
        with given.session.stage("train"):
            return self._system(given, name, part, start, ends)

    def _name(self, items: int, parts: TaskSplit) -> str:
        return KIND if items == _items_each(parts.apart) else f"{KIND}:{items}"

    def _start(self, given: SourceInputs) -> System | None:
        """The merge under which the gold answers of what was set apart are likeliest; None for the
        base. Raises UsageError where there is no merge."""
        if self.recipe.from_ == "base":
            return None
        merges = [one for one in given.composed if one.kind == "merge"]
        if not merges:
            raise UsageError(
                "--baseline=train:from=best starts from a merge, and none is evaluated; give a "
                "--method, or leave from=best out."
            )
        scorer = given.scorer
        with given.session.stage("train"):
            rows = encoded(scorer, _items(given.parts.apart))

            def loss(merge: System) -> float:
                with scorer.with_composition(merge.composition):
                    return mean_loss(scorer, rows)

            return min(merges, key=loss)

    def _system(
        self,
        given: SourceInputs,
        name: str,
        parts: TaskSplit,
        start: System | None,
        ends: float,
    ) -> _Made:
        """An adapter that was trained, or that an earlier run trained, as a system."""
        scorer, base, session, recipe = given.scorer, given.base, given.session, self.recipe
        items = [item.content for item in _items(parts.apart)]
        told: list[Any] = [recipe.rank, recipe.steps, recipe.lr, recipe.minutes]
        told += [session.options.seed, scorer.chat_template, items]
        told.append("" if start is None else [start.name, start.content])
        told += [session.device, session.dtype, public_value(dict(base.identity))]
        directory = given.place / f"{KIND}-{digest(told)}"
        kept = _record_in(directory, parts) if session.resume else None
        if kept is None or (kept.ended == "time" and ends == math.inf):
            shutil.rmtree(directory, ignore_errors=True)
            into = nullcontext() if start is None else scorer.with_composition(start.composition)
            with into:
                self._train(given, name, parts, start, ends, directory)
        record = _record_in(directory, parts)
        assert record is not None
        record = replace(record, system=name)
        own = read_adapter(directory, name)
        composition, adapter, content = single(own), own, own.content
        if start is not None and start.composition is not None:
            experts = (*start.composition.experts, own)
            router = start.composition.router
            assert isinstance(router, ConstantGates)  # as every merge has
            gates = (*router.weights_of(len(experts) - 1), 1.0)
            composition = Composition(name, experts, ConstantGates(gates))
            allow = session.options.allow
            config = MergeConfig(METHODS.make("task_arithmetic"), gates, allow=allow)
            adapter = merge(experts, config, base=base, name=name).adapter
            content = digest([start.content, own.content]) if start.content else ""
        apart = {task.name: task.sha256 for task in parts.apart}
        artifact = TrainedAdapter(adapter, record, base.summary(), apart)
        return System(name, KIND, composition, content=content, artifact=artifact), record

    def _train(
        self,
        given: SourceInputs,
        name: str,
        parts: TaskSplit,
        start: System | None,
        ends: float,
        directory: Path,
    ) -> None:
        """Trains and writes the adapter, with its record, all or nothing."""
        scorer, session, begun = given.scorer, given.session, time.perf_counter()
        seed = session.options.seed
        learned, held_out = (
            encoded(scorer, _items(tasks)) for tasks in held_out_of(parts.apart, seed)
        )

        def tell(step: int, steps: int) -> None:
            session.tell(f"train {name}", step, steps)

        from_these = scorer, learned, held_out, self.recipe, seed, tell, ends
        try:
            with trained(*from_these) as (model, training):
                record = TrainedRecord(
                    system=name,
                    items=parts.items[0],
                    held_out=len(held_out),
                    left=parts.items[1],
                    rank=self.recipe.rank,
                    seed=seed,
                    chat_template=scorer.chat_template,
                    seconds=round(time.perf_counter() - begun, 1),
                    start="base" if start is None else start.name,
                    **asdict(training),
                )
                with staged_directory(directory) as part:
                    _save(model, part, given.base.reference, record)
        except ValueError as error:  # of peft, which knows no layer of this model
            raise UsageError(
                f"peft cannot train this base ({error_line(error)}); leave --baseline out."
            ) from None


def _best_other(evidence: Evidence) -> ScoredSystem | None:
    """The best of what can be used and was not trained here."""
    usable = evidence.usable
    rows = usable.measured.scores
    others = dict.fromkeys(row.system for row in rows if row.kind != KIND)
    return next(iter(ranked(usable.scored(others))), None)


def _record_in(directory: Path, parts: TaskSplit) -> TrainedRecord | None:
    """How the adapter in a directory was trained; None where there is none. Raises OutputError."""
    try:
        row = json.loads((directory / RECORD).read_text(encoding="utf-8"))
        return replace(TypeAdapter(TrainedRecord).validate_python(row), left=parts.items[1])
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise OutputError(
            f"What an earlier run trained cannot be read from {directory} "
            f"({error_line(error)}); delete that directory, or leave --resume out."
        ) from None


def _items_each(tasks: Sequence[Task]) -> int:
    """How many items were set apart of the task that gave most."""
    return max(len(task.items) for task in tasks)


def _save(model: Any, directory: Path, base: str, record: TrainedRecord) -> None:
    """Writes the files of peft, in an order that no run changes, and the record."""
    config = model.peft_config["default"]
    config.base_model_name_or_path, config.inference_mode = base, True
    config.target_modules = sorted(config.target_modules)
    model.save_pretrained(str(directory), save_embedding_layers=False)
    (directory / "README.md").unlink(missing_ok=True)  # an empty template
    text = json.dumps(asdict(record), indent=2) + "\n"
    (directory / RECORD).write_text(text, encoding="utf-8")


def _check_gold(task: Task) -> None:
    """Raises TaskError for a task that has items without a question or a gold answer."""
    if task.examiner is not None:
        raise TaskError(
            f"Task {task.name} is asked and judged elsewhere, so it has no gold answers to train "
            "on; write its questions and answers to a file, or leave --baseline out."
        )
    if any(not item.answers or not item.prompt for item in task.items):
        raise TaskError(
            f"Task {task.name} holds texts and no questions with gold answers, so there is nothing "
            "to train on; give questions with answers, or leave --baseline out."
        )


def _wanted(task: Task, recipe: TrainRecipe) -> int:
    """How many questions of a task are set apart. Raises TaskError where it has too few."""
    total = len(task.items)
    spare, given = total - FEWEST_ITEMS, recipe.items
    most = max(ITEMS_LEAST, min(ITEMS_MOST, total // 2, spare))
    wanted = most if given == "auto" else given
    if wanted > spare:
        fewer = f", or --baseline=train:items={spare}" if spare >= ITEMS_LEAST else ""
        raise TaskError(
            f"Task {task.name} has {count(total, 'item')}; to train on {wanted} and judge by "
            f"{FEWEST_ITEMS} others takes {wanted + FEWEST_ITEMS}: give so many{fewer}."
        )
    return wanted


def held_out_of(tasks: Sequence[Task], seed: int) -> tuple[Sequence[Task], Sequence[Task]]:
    """The questions from which is learned, and a quarter, in whole groups, that is held out."""
    wanted = [math.ceil(HELD_OUT * len(task.items)) for task in tasks]
    parts = drawn(tasks, wanted, seed)
    if not all(task.items for task in parts.left):
        names = listing(task.name for task in tasks)
        raise TaskError(
            f"The items of {names} that were set apart are in too few groups to hold some out; "
            "give more groups."
        )
    return parts.left, parts.apart


def _items(tasks: Sequence[Task]) -> list[Item]:
    return [item for task in tasks for item in task.items]
