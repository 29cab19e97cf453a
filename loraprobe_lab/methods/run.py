"""`loraprobe lab methods`: builds the worlds, asks everyone, writes page, numbers and figure.

Worlds, answers and pages lie in one directory; what is finished is not made again, and the pages
are written anew after a world, at most once a minute, and at the end.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from loraprobe_lab.kit import build_kit
from loraprobe_lab.methods.asking import Answers, answer
from loraprobe_lab.methods.cases import cases_of, open_worlds
from loraprobe_lab.methods.entrants import Entrant, entrants
from loraprobe_lab.methods.kit import MethodsPlan, methods_kit
from loraprobe_lab.methods.page import as_document, as_markdown
from loraprobe_lab.methods.table import tabulated
from loraprobe_lab.reproduce.bases import Bases, small_base
from loraprobe_lab.reproduce.page import Pages, as_json
from loraprobe_lab.train import ProgressCallback
from loraprobe_lab.world import World, write_text

BASES = Bases(architectures=("llama", "gpt2"), hidden=(96,), seeds=(0, 1, 2, 3))
NAME = "methods"
LIMIT = 80
PAUSE = 60.0  # seconds between two times that the pages are written


@dataclass(frozen=True)
class Plan:
    """What is run.

    Worlds that exist already lie in the directories `worlds`; without any, small ones are trained
    on `bases` as `kit` says. Only these methods and routers take part where some are named.
    `limit` cuts the tasks, and what it leaves unasked shows routers that learn from prompts what
    each adapter is for; `arguments` are those of the command, for the page.
    """

    worlds: tuple[Path, ...] = ()
    bases: Bases = BASES
    kit: MethodsPlan = field(default_factory=MethodsPlan)
    methods: tuple[str, ...] = ()
    routers: tuple[str, ...] = ()
    strengths: tuple[float | None, ...] = (None, 1.0)
    limit: int | None = LIMIT
    arguments: tuple[str, ...] = ()

    def everyone(self) -> list[Entrant]:
        """Who takes part. Raises UsageError for a method or router that is not there."""
        return entrants(self.methods, self.routers, self.strengths)


class Tried(Pages):
    """What a run left: the document (plain data), the page, and the files they stand in."""


def try_methods(
    output: str | Path,
    plan: Plan | None = None,
    *,
    progress: ProgressCallback | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> Tried:
    """Makes the table in the directory `output`: methods.md, methods.json, methods.svg.

    `say` gets a line after each world, with an estimate of the time left. Raises UsageError for a
    method, router or world that is not there, or a missing matplotlib, before anything is trained.
    """
    from loraprobe.base.quiet import quiet
    from loraprobe_lab.reproduce.figure import drawing

    plan, output = plan or Plan(), Path(output)
    everyone = plan.everyone()
    with drawing():  # said before anything is trained, if it cannot be drawn
        pass
    makers = list(_makers(plan, output, progress))
    worlds, answered = list[World](), list[Answers]()
    start = time.monotonic()
    written, found = -math.inf, None
    for number, (name, make) in enumerate(makers, 1):
        with quiet():
            worlds.append(make())
            answered += answer(
                worlds[-1], cases_of(worlds[-1]), everyone, output / "results",
                limit=plan.limit, progress=progress,
            )  # fmt: skip
        missing = [name for name, _ in makers[number:]]
        if not missing or time.monotonic() - written > PAUSE:
            found = write_pages(plan, everyone, worlds, answered, output, missing)
            written = time.monotonic()
        left = (time.monotonic() - start) / number * len(missing) / 60
        say(f"{name}: {number} of {len(makers)} worlds, about {left:.0f} min left")
    assert found is not None  # there is at least one world
    return found


def _makers(
    plan: Plan, output: Path, progress: ProgressCallback | None
) -> Iterator[tuple[str, Callable[[], World]]]:
    """The worlds by name, each with the function that opens or builds it."""
    if plan.worlds:
        for world in open_worlds(list(plan.worlds)):
            yield world.path.resolve().name, partial(World.load, world.path)
        return
    for place, recipe in plan.bases.places(small_base):

        def build(place: Any = place, recipe: Any = recipe) -> World:
            def report(stage: str, done: int, total: int) -> None:
                if progress is not None:
                    progress(f"train {place.name}", done, total)

            kit = methods_kit(place.seed, recipe, plan.kit)
            return build_kit(kit, output / "worlds" / place.name, progress=report)

        yield place.name, build


def write_pages(
    plan: Plan,
    everyone: Sequence[Entrant],
    worlds: Sequence[World],
    answered: Sequence[Answers],
    output: Path,
    missing: Sequence[str] = (),
) -> Tried:
    """Writes the three files of these worlds, each complete or not at all."""
    from loraprobe_lab.methods.figure import methods_figure

    table = tabulated(answered, everyone)
    command = " ".join(("loraprobe", *plan.arguments)) if plan.arguments else "try_methods()"
    document = as_document(table, answered, worlds, command=command, missing=list(missing))
    markdown = as_markdown(table, worlds, command=command, missing=missing)
    files = tuple(output / f"{NAME}.{ending}" for ending in ("md", "json", "svg"))
    texts = (markdown, as_json(document), methods_figure(table))
    for path, text in zip(files, texts, strict=True):
        write_text(path, text)
    return Tried(document, markdown, files)
