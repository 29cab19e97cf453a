"""Runs an experiment over several worlds: builds and evaluates each, and writes the pages.

Worlds, results and pages lie in one directory. Finished parts are not made again, so an
interruption costs at most one world, and the same call continues.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from loraprobe.base import load_base, open_base, pick_device
from loraprobe.errors import UsageError
from loraprobe.evaluation import Asker, ResponseCache, System
from loraprobe.records import ItemResult, Progress
from loraprobe.tasks import Task, load_task
from loraprobe_lab.experiments.pages import Pages
from loraprobe_lab.training import BaseRecipe
from loraprobe_lab.world import Scenario, World, silent
from loraprobe_lab.worlds.spec import WorldSpec, build_world

NEW_TOKENS, AT_ONCE = 48, 16  # the longest answer, and one that is asked at once only
Say = Callable[[str], None]
Shape = Callable[[str, int], BaseRecipe]  # architecture, hidden width -> the base's recipe
Found = TypeVar("Found")


@dataclass(frozen=True)
class BaseInfo:
    """The base of one world. `size` is the same for all worlds that are pooled."""

    name: str
    size: str
    seed: int
    parameters: int = 0


@dataclass(frozen=True)
class WorldResults:
    """The scenarios of a world, the results of all systems, and its adapters' norms."""

    base: BaseInfo
    scenarios: tuple[Scenario, ...]
    results: tuple[ItemResult, ...] = field(repr=False)
    norms: dict[str, float] = field(default_factory=dict)


def small_base(architecture: str, hidden: int) -> BaseRecipe:
    """A small base of that width, trained as long as two-hop worlds need."""
    return BaseRecipe(
        architecture=architecture,
        hidden=hidden,
        layers=3,
        heads=4,
        intermediate=5 * hidden // 2,
        steps=700,
    )


@dataclass(frozen=True)
class Bases:
    """Small bases: every architecture in every width and seed.

    Raises UsageError for a width that does not divide into heads.
    """

    architectures: tuple[str, ...] = ("llama",)
    hidden: tuple[int, ...] = (48, 64, 96)
    seeds: tuple[int, ...] = (0, 1)

    def __post_init__(self) -> None:
        for width in self.hidden:
            if width < 16 or width % 8:
                raise UsageError(f"A hidden width must be a multiple of 8 from 16 on, not {width}.")

    def chosen(self, **given: Sequence[Any] | None) -> Bases:
        """These bases with the given fields replaced; None or nothing leaves a field as it is."""
        return replace(self, **{name: tuple(values) for name, values in given.items() if values})

    def each(self, shape: Shape = small_base) -> Iterator[tuple[BaseInfo, BaseRecipe]]:
        """All sizes with the first seed, then with the next one, each with its base's recipe."""
        for seed, architecture, width in itertools.product(
            dict.fromkeys(self.seeds), dict.fromkeys(self.architectures), dict.fromkeys(self.hidden)
        ):
            name = f"{architecture}-{width}-seed{seed}"
            yield BaseInfo(name, f"{architecture} {width}", seed), shape(architecture, width)


class WorldEvaluator:
    """Evaluates systems on the tasks of one world, on one copy of its base.

    Results are cached in `directory` as they come and are not computed again. The name of a
    response cache contains a digest of the world's files, its base, and `limit`, the number of
    items of each task.
    """

    def __init__(
        self,
        world: World,
        directory: Path,
        *,
        limit: int | None = None,
        progress: Progress = silent,
    ) -> None:
        import torch

        from loraprobe.scoring import ModelScorer

        base = open_base(world.base or world.base_name)
        device = pick_device("auto" if world.base is None else "cpu")
        loaded = load_base(base, device=device, dtype=torch.float32)
        self.scorer = ModelScorer(loaded.model, loaded.tokenizer)
        self.parameters = sum(p.numel() for p in loaded.model.parameters())
        self.world, self.limit, self._directory = world, limit, directory
        self.progress = progress
        identity = {"files": world.manifest["files"], "limit": limit, "base": world.base_name}
        text = json.dumps(identity, sort_keys=True)
        self._digest = hashlib.sha256(text.encode()).hexdigest()[:12]

    def adapters(self, names: Iterable[str] | None = None) -> dict[str, Any]:
        """The loaded adapters of the world, all unless names are given."""
        from loraprobe.hub import load_all

        places = self.world.adapters
        wanted = places if names is None else dict.fromkeys(names)
        return {a.name: a for a in load_all([f"{name}={places[name]}" for name in wanted])}

    def tasks(self, paths: Iterable[Path]) -> list[Task]:
        """The task files, each once. Raises TaskError for a bad line."""
        return [load_task(path, self.limit) for path in dict.fromkeys(paths)]

    def responses(self, name: str) -> ResponseCache:
        path = self._directory / f"{name}-{self._digest}.jsonl"
        return ResponseCache(path, resume=True, fingerprint={"world": self._digest, "name": name})

    def asker(self, responses: ResponseCache, parts: Collection[str] | None) -> Asker:
        """What asks these parts, with as many tokens as they need, and finds what is kept."""
        most = NEW_TOKENS if parts is None or "steps" in parts else min(NEW_TOKENS, AT_ONCE)
        return Asker(self.scorer, responses, most)

    def evaluate_all(
        self, name: str, asked: Sequence[tuple[System, Sequence[Task], Collection[str] | None]]
    ) -> list[ItemResult]:
        """The results of every system on these parts of these tasks, from the cache `name`."""
        responses, results = self.responses(name), list[ItemResult]()
        for done, (system, tasks, parts) in enumerate(asked, 1):
            results += self.evaluate(responses, system, tasks, parts)
            self.progress(f"ask {name}", done, len(asked))
        return results

    def evaluate(
        self,
        responses: ResponseCache,
        system: System,
        tasks: Sequence[Task],
        parts: Collection[str] | None = None,
    ) -> list[ItemResult]:
        """The results of a system on these parts (None: all); of a chain always on all of them."""
        wanted = None if system.kind == "chain" else parts
        return self.asker(responses, parts).run([system], tasks, wanted)


Worlds = Sequence[tuple[BaseInfo, Callable[[], World]]]  # a base, and a function that opens a world


@dataclass(frozen=True)
class ExperimentRun:
    """The output, options and reporting of one run of an experiment.

    limit: items of each task, None for all. command: what the pages name as their maker.
    """

    output: Path
    limit: int | None = None
    command: str = "python"
    progress: Progress = silent
    say: Say = lambda text: None

    def build(
        self, base: BaseInfo, spec: Callable[[], WorldSpec], given: Path | None = None
    ) -> World:
        """Builds the world of this base below the output. given: the directory of a base."""

        def report(_: str, done: int, total: int) -> None:
            self.progress(f"train {base.name}", done, total)

        place = self.output / "worlds" / base.name
        return build_world(spec(), place, base=given, progress=report)

    def small_worlds(
        self, bases: Bases, spec: Callable[[int, BaseRecipe], WorldSpec], shape: Shape
    ) -> Worlds:
        """Worlds on small bases of their own."""
        return [
            (base, partial(self.build, base, partial(spec, base.seed, recipe)))
            for base, recipe in bases.each(shape)
        ]

    def run_worlds(
        self,
        worlds: Worlds,
        answer: Callable[[WorldEvaluator, BaseInfo], Found],
        pages: Callable[[Sequence[Found]], Pages],
    ) -> Pages:
        """Evaluates each world, and writes the pages of all; a line a world gives the time left."""
        from loraprobe.base.quiet import quiet

        found, start = list[Found](), time.monotonic()
        for number, (base, build) in enumerate(worlds, 1):
            with quiet():
                evaluator = WorldEvaluator(
                    build(), self.output / "results", limit=self.limit, progress=self.progress
                )
                found.append(answer(evaluator, replace(base, parameters=evaluator.parameters)))
            left = (time.monotonic() - start) / number * (len(worlds) - number) / 60
            self.say(f"{base.name}: {number} of {len(worlds)} worlds, about {left:.0f} min left")
        return pages(found).write(self.output)
