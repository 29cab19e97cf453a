"""`loraprobe lab calibrate`: asks the adapter sets of worlds, makes a calibration of the answers.

Every set is asked with base, single adapters and the default compositions.
answers/WORLD/SET.jsonl.gz of the output directory holds what it answered; a set whose adapters,
base, tasks and sizes have not changed is not asked again.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import random
import shlex
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from loraprobe import compatibility, hub
from loraprobe.base import Base
from loraprobe.defaults import PILOT_ITEMS
from loraprobe.errors import LoraprobeError, UsageError
from loraprobe.evaluation import Asker, ResponseCache
from loraprobe.options import Options
from loraprobe.pipeline import inputs
from loraprobe.pipeline.evaluator import open_scorer
from loraprobe.pipeline.fitting import fit_routers
from loraprobe.pipeline.plan import SystemBuilder, baseline_systems, plan_of
from loraprobe.pipeline.transforms import PreparedAdapters
from loraprobe.records import ItemResult, Progress
from loraprobe.session import Session
from loraprobe.tasks import Task, load_task
from loraprobe_lab.build import build_atlas
from loraprobe_lab.calibration.cases import (
    METHODS,
    NATURAL,
    AnsweredSet,
    Case,
    CaseError,
    merged,
    read_cases,
    read_sets,
    write_cases,
    write_sets,
)
from loraprobe_lab.calibration.fit import (
    SETS,
    document_of,
    fit,
    measure,
    measure_sets,
    report,
    set_errors,
)
from loraprobe_lab.experiments.pages import number, percent
from loraprobe_lab.world import Scenario, World, file_hash, silent, write_text

ANSWERS = "answers"
# A small base's step costs the same for one prompt or hundreds: wider than --batch-size auto,
# which plans for the longest answers that are allowed.
SMALL_BATCH = 256


@dataclass(frozen=True)
class SampleSizes:
    """`limit`: items per task. dtype: in which the model computes, as in `--dtype`."""

    limit: int = 200
    max_new_tokens: int = 40
    dtype: str = "auto"


def collect(
    worlds: Sequence[Path],
    output: Path,
    sizes: SampleSizes = SampleSizes(),
    *,
    across: bool = False,
    progress: Progress = silent,
) -> None:
    """Asks every adapter set of these worlds that is not stored in `output` yet.

    across: also sets across those of a world, see `sets_in`. Raises UsageError for two worlds of
    one name, the errors of `World.load`, and LoraprobeError for a set that cannot be asked.
    """
    opened = joined([World.load(path) for path in worlds])
    names = [_name(world) for world in opened]
    for name in names:
        if names.count(name) > 1:
            raise UsageError(f"Two worlds are called {name}: rename a directory.")
    sets = [sets_in(world, across) for world in opened]
    done, total = itertools.count(1), sum(map(len, sets))
    for world, scenarios in zip(opened, sets, strict=True):
        for _ in answer_world(world, scenarios, output, sizes):
            progress("adapter sets", next(done), total)


def joined(worlds: Sequence[World]) -> list[World]:
    """Worlds with bases of their own, and one world for all that lie on one given base.

    There the adapters are called SET.NAME, and the sets keep their names.
    """
    found = [world for world in worlds if world.base is not None]
    for base in dict.fromkeys(world.base_name for world in worlds if world.base is None):
        own = [world for world in worlds if world.base is None and world.base_name == base]
        scenarios = {
            s.name: replace(s, adapters={f"{s.name}.{n}": path for n, path in s.adapters.items()})
            for world in own
            for s in world.scenarios.values()
        }
        adapters = {n: path for s in scenarios.values() for n, path in s.adapters.items()}
        found.append(replace(own[0], path=Path(base), adapters=adapters, scenarios=scenarios))
    return found


def _name(world: World) -> str:
    return world.path.resolve().name


def sets_in(world: World, across: bool = False) -> list[Scenario]:
    """The sets of a world; with `across` also those of two tasks that their adapters form.

    Two adapters of different sets, each with a task of its own, are a set too where they answer
    different kinds of questions (the last part of their names); it is named by both. Such sets cost
    no training, but they share adapters, so they count for less than as many separately trained
    ones. On a given base, where an answer is dear, they come in an order that is drawn from the
    names alone.
    """
    found = list(world.scenarios.values())
    if not across:
        return found
    owners = {
        name: (s, task)
        for s in found
        if len(s.tasks) == 2
        for task in s.tasks
        for name in s.adapters
        if task.stem.rpartition(".")[2] == name.rpartition(".")[2]
    }
    more = []
    for one, two in itertools.combinations(owners, 2):
        (own, first), (other, second) = owners[one], owners[two]
        if own is not other and one.rpartition(".")[2] != two.rpartition(".")[2]:
            both = {n: world.adapters[n] for n in (one, two)}
            name = f"{one}+{two}"
            more.append(replace(own, name=name, adapters=both, tasks=(first, second)))
    if world.base is None:
        more.sort(key=lambda s: random.Random(s.name).random())
    return found + more


def place_of(output: Path, world: World, name: str) -> Path:
    """The file of an adapter set's answers."""
    return output / ANSWERS / _name(world) / f"{name}.jsonl.gz"


def answer_world(
    world: World, scenarios: Sequence[Scenario], output: Path, sizes: SampleSizes
) -> Iterator[Path]:
    """Asks adapter sets of one world one after the other; yields the file of each.

    Prompts carry no chat template, as in the training of the lab's adapters.
    """
    base, name = inputs.base_of(world.base or world.base_name, ()), _name(world)
    own = world.base is not None
    options = Options(
        max_new_tokens=sizes.max_new_tokens,
        batch_size=SMALL_BATCH if own else "auto",
        chat_template="off",
        dtype=sizes.dtype,
    )
    asker = WorldAnswers(base, options)
    named = world.manifest["base"].get("architecture")
    for scenario in scenarios:
        place, mark = place_of(output, world, scenario.name), fingerprint(world, scenario, sizes)
        if not (place.is_file() and read_sets(place)[0].fingerprint == mark):
            kinds, results = asker.of(scenario, sizes.limit)
            asked = [load_task(path).items for path in scenario.tasks]
            one = AnsweredSet(
                base=name if own else Path(world.base_name).name,
                architecture=named or (base.model_type if own else NATURAL),
                scenario=scenario.world,
                world=name,
                adapter_set=scenario.name,
                kinds=kinds,
                results=tuple(results),
                hops=max(len(item.hops) for items in asked for item in items),
                model_type=base.model_type,
                base_digest="" if world.base is None else _digest([world.base]),
                fingerprint=mark,
            )
            write_sets(place, [one])
        yield place


@dataclass
class WorldAnswers:
    """Asks the adapter sets of one world on one copy of its base.

    The response cache holds what base and single adapters answered, so that sets share it.
    """

    base: Base
    options: Options
    responses: ResponseCache = field(default_factory=ResponseCache)

    @cached_property
    def scorer(self) -> Any:
        return open_scorer(self.base, self.options.dtype, Session(self.options))[0]

    def of(self, scenario: Scenario, limit: int) -> tuple[dict[str, str], list[ItemResult]]:
        """The kind of every system, and all results, without the items that routers learn from.

        Only the composed question is asked, in both forms, because no case needs the hops. Raises
        LoraprobeError if adapters and base do not fit.
        """
        name, options = scenario.name, self.options
        adapters = hub.load_all([f"{name}={path}" for name, path in scenario.adapters.items()])
        if not compatibility.check(adapters, self.base, purpose="route").compatible:
            raise LoraprobeError(f"The adapters of {name} do not fit together or to the base.")
        adapters = compatibility.aligned(adapters, self.base)
        tasks = [_question_alone(path, limit) for path in scenario.tasks]
        prepared = PreparedAdapters(tuple(adapters))
        plan = plan_of(options, adapters, tasks)
        fitted = fit_routers(adapters, prepared, options, self.scorer, plan)
        builder = SystemBuilder(adapters, prepared, options, self.base, fitted)
        built = [builder.build(spec) for spec in fitted.specs(plan)]
        systems = [*baseline_systems(adapters), *built]
        left = plan.tasks if fitted.routers else tasks
        most = options.max_new_tokens
        results = Asker(self.scorer, self.responses, most).run(systems, left)
        return {s.name: s.kind for s in systems}, results


def _question_alone(path: Path, limit: int) -> Task:
    """A task without its hops, under a name that no task of another world has."""
    task = load_task(path, limit)
    items = tuple(replace(item, hops=()) for item in task.items)
    return replace(task, name=f"{path.resolve().parents[1].name}.{task.name}", items=items)


def fingerprint(world: World, scenario: Scenario, sizes: SampleSizes) -> str:
    """A digest of everything on which a set's results depend."""
    places = [*scenario.adapters.values(), *scenario.tasks]
    places += [] if world.base is None else [world.base]
    return _digest(places, world.base_name, dataclasses.asdict(sizes), METHODS)


def _digest(places: Sequence[Path], *others: Any) -> str:
    """One digest of all files in these places, and of other plain values."""
    files = [
        (path.relative_to(place).as_posix(), file_hash(path))
        for place in places
        for path in ([place] if place.is_file() else sorted(place.rglob("*")))
        if path.is_file()
    ]
    return hashlib.sha256(json.dumps([files, others]).encode()).hexdigest()[:24]


def kept_sets(output: Path) -> list[AnsweredSet]:
    """All stored sets. Worlds whose bases are the same files count as one base."""
    owner: dict[str, str] = {}
    return [
        replace(one, base=owner.setdefault(one.base_digest or one.base, one.base))
        for path in sorted((output / ANSWERS).glob("*/*.jsonl.gz"))
        for one in read_sets(path)
    ]


CASES = "cases.jsonl.gz"


def calibrate(
    worlds: Sequence[Path],
    output: Path,
    *,
    stored: Path | None = None,
    say: Callable[[str], None] = lambda line: None,
    **asking: Any,
) -> Path:
    """Gathers cases, fits, validates, and writes everything to the directory `output`.

    asking: options of `gather`. Writes cases.jsonl.gz, SETS, calibration.json, report.md and
    figure.svg, and returns the calibration's path. Raises LoraprobeError.
    """
    cases, sets = gather(worlds, output, stored=stored, say=say, **asking)
    command = command_of(worlds, output, stored)
    results, kept = measure(cases), measure_sets(sets, cases)
    document = document_of(fit(cases), cases, command, results.accuracy(), sets)
    document["several"] = set_errors(kept)
    write_text(output / "figure.svg", results.figure())
    write_text(output / "report.md", report(results, document, command, kept))
    text = json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False)
    write_text(output / "calibration.json", text + "\n")
    for what, row in results.figures[PILOT_ITEMS].items():
        say(
            f"Left-out {what}: AUROC within a kind {number(row.auroc)}, Brier score "
            f"{number(row.brier)}, {row.likely:.0f} called likely, {percent(row.wrong)} of them "
            "wrong."
        )
    return output / "calibration.json"


def gather(
    worlds: Sequence[Path],
    output: Path,
    *,
    stored: Path | None = None,
    sizes: SampleSizes = SampleSizes(),
    across: bool = False,
    progress: Progress = silent,
    say: Callable[[str], None] = lambda line: None,
) -> tuple[list[Case], list[AnsweredSet]]:
    """Cases, and sets with several tasks.

    stored: a case file; sets with several tasks are read from the file SETS beside it. Worlds that
    are named too replace its cases and sets of the same names and add theirs. Without both, the
    answers in `output` are used; if there are none either, the worlds of the atlas are built
    first. across: also sets across those of a world. Cases and sets are written to `output`.
    """
    cases, sets = list[Case](), list[AnsweredSet]()
    if stored is not None:
        beside = stored.with_name(SETS)
        cases, sets = read_cases(stored), read_sets(beside) if beside.is_file() else []
    if stored is None or worlds:
        if not worlds and not (output / ANSWERS).is_dir():
            say("No worlds are named: the atlas is built first, which takes hours.")
            worlds = build_atlas(output / "worlds", progress)
        collect(worlds, output, sizes, across=across, progress=progress)
        found = kept_sets(output)
        cases = merged(
            cases, [case for one in found if "+" not in one.adapter_set for case in one.cases()]
        )
        sets = merged(sets, [one for one in found if one.tasks > 1])
    if not cases:
        raise CaseError(f"{stored or output} holds no case:", "name worlds with --world DIR.")
    write_cases(output / CASES, cases)
    if sets:
        write_sets(output / SETS, sets)
    say(f"{len(cases)} cases in {output / CASES}.")
    return cases, sets


def command_of(worlds: Sequence[Path], output: Path, stored: Path | None = None) -> str:
    """The command line with the last parts of paths, so that no private path is published."""
    named = [part for world in worlds for part in ("--world", world.name)]
    cases = [] if stored is None else ["--cases", stored.name]
    return shlex.join(["loraprobe", "lab", "calibrate", *named, *cases, "--output", output.name])
