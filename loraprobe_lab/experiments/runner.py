"""Runs an experiment over several worlds: each is built and asked, and the pages are written anew.

Worlds, answers and pages lie in one directory; what is finished is not made again, so an
interruption costs the world that was in the making, and the same call goes on.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from loraprobe.base import open_base, pick_device
from loraprobe.evaluation import Ledger, System, run_systems
from loraprobe.evaluation.questions import Limits, Question, ask, questions
from loraprobe.tasks import Task, load_task
from loraprobe_lab.experiments.bases import BaseInfo
from loraprobe_lab.experiments.drawing import check_drawing
from loraprobe_lab.experiments.pages import Pages
from loraprobe_lab.training.pretrain import BaseRecipe
from loraprobe_lab.training.train import ProgressCallback
from loraprobe_lab.world import World
from loraprobe_lab.worlds.spec import WorldSpec, build_world

NEW_TOKENS = 48
BATCH = 256  # questions whose answers are kept at once
Say = Callable[[str], None]
Found = TypeVar("Found")


class Asker:
    """Asks systems the tasks of one world on one copy of its base.

    Answers are kept in ledgers in `directory` as they come, and what is there is not asked again.
    The name of a ledger holds the digest of what the answers depend on: the world's files, its
    base, and `limit`, the number of items of each task.
    """

    def __init__(
        self, world: World, directory: Path, *, limit: int | None = None, device: str = "cpu"
    ) -> None:
        import torch

        from loraprobe.scoring import Scorer

        base = open_base(world.base or world.base_name)
        loaded = base.load(device=pick_device(device), dtype=torch.float32)
        self.scorer = Scorer(loaded.model, loaded.tokenizer, max_new_tokens=NEW_TOKENS)
        self.parameters = sum(p.numel() for p in loaded.model.parameters())
        self.limit, self._directory = limit, directory
        identity = {"files": world.manifest["files"], "limit": limit, "base": world.base_name}
        text = json.dumps(identity, sort_keys=True)
        self._digest = hashlib.sha256(text.encode()).hexdigest()[:12]

    def tasks(self, paths: Iterable[Path]) -> list[Task]:
        """The task files, each once. Raises TaskError for a bad line."""
        return [load_task(path, self.limit) for path in dict.fromkeys(paths)]

    def ledger(self, name: str) -> Ledger:
        path = self._directory / f"{name}-{self._digest}.jsonl"
        return Ledger(path, resume=True, fingerprint={"world": self._digest, "name": name})

    def ask(
        self, ledger: Ledger, system: System, tasks: Sequence[Task], parts: Iterable[str] | None
    ) -> None:
        """Asks a system these parts of all items, None for all of them and for chains."""
        if parts is None or system.kind == "chain":
            run_systems(self.scorer, [system], tasks, ledger, max_new_tokens=NEW_TOKENS)
            return
        open_ = self.missing(ledger, system.name, tasks, parts)
        open_.sort(key=lambda q: (q.part == "steps", len(q.prompt), q.prompt))
        limits = Limits.of(NEW_TOKENS)
        with self.scorer.with_composition(system.composition):
            for start in range(0, len(open_), BATCH):
                chosen = open_[start : start + BATCH]
                ledger.append(ask(self.scorer, chosen, system.name, limits))

    def missing(
        self, ledger: Ledger, system: str, tasks: Sequence[Task], parts: Iterable[str]
    ) -> list[Question]:
        """The questions of these parts that the ledger has no answer to."""
        wanted = set(parts)
        return [
            q
            for q in questions(tasks)
            if q.part in wanted and ledger.get(system, q.task, q.part, q.item.id) is None
        ]


def run_worlds(
    worlds: Sequence[tuple[str, Callable[[], Found]]],
    write: Callable[[Sequence[Found], Sequence[str]], Pages],
    *,
    say: Say = lambda text: None,
    pause: float = 0.0,
) -> Pages:
    """Makes what there is to know of each world, and writes the pages of those that are finished.

    worlds: name -> what builds and asks it. write(found, missing) writes the pages, where `missing`
    names the worlds to come: after each world, but no sooner than `pause` seconds after the last
    time, and at the end. `say` gets a line after each world, with an estimate of the time left.
    Raises UsageError if matplotlib is missing, before anything is trained.
    """
    from loraprobe.base.quiet import quiet

    check_drawing()
    found, pages, start, written = list[Found](), None, time.monotonic(), -math.inf
    for number, (name, make) in enumerate(worlds, 1):
        with quiet():
            found.append(make())
        missing = [later for later, _ in worlds[number:]]
        if not missing or time.monotonic() - written > pause:
            pages, written = write(found, missing), time.monotonic()
        left = (time.monotonic() - start) / number * len(missing) / 60
        say(f"{name}: {number} of {len(worlds)} worlds, about {left:.0f} min left")
    assert pages is not None  # there is at least one world
    return pages


def small_worlds(
    bases: Iterable[tuple[BaseInfo, BaseRecipe]],
    spec: Callable[[int, BaseRecipe], WorldSpec],
    output: Path,
    answer: Callable[[World, BaseInfo], Found],
    progress: ProgressCallback | None,
) -> list[tuple[str, Callable[[], Found]]]:
    """For each base, by name, what builds its world and answers in it; for `run_worlds`."""

    def make(base: BaseInfo, recipe: BaseRecipe) -> Found:
        report = renamed(progress, f"train {base.name}")
        place = output / "worlds" / base.name
        return answer(build_world(spec(base.seed, recipe), place, progress=report), base)

    return [(base.name, partial(make, base, recipe)) for base, recipe in bases]


def renamed(report: ProgressCallback | None, stage: str) -> ProgressCallback | None:
    """The same report under one name for all its stages."""
    return None if report is None else lambda _, done, total: report(stage, done, total)


def command_line(arguments: Sequence[str], call: str) -> str:
    """The command that made a page, or the Python call where there was none."""
    return " ".join(("loraprobe", *arguments)) if arguments else call


def adapters_by_name(world: World, names: Iterable[str] | None = None) -> dict[str, Any]:
    """The loaded adapters of a world, all unless names are given."""
    from loraprobe.hub import load_all

    wanted = world.adapters if names is None else dict.fromkeys(names)
    return {a.name: a for a in load_all([f"{n}={world.adapters[n]}" for n in wanted])}
