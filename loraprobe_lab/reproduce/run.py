"""`loraprobe lab reproduce`: trains the worlds, asks every system, writes table and figure.

Worlds, answers and pages lie in one directory; what is finished is not made again, and the pages
are written anew after every world, so an interruption costs the world that was in the making.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from loraprobe.errors import UsageError
from loraprobe_lab.kit import Kit, build_kit
from loraprobe_lab.pretrain import BaseRecipe
from loraprobe_lab.reproduce.bases import Bases, Place, Shape, small_base
from loraprobe_lab.reproduce.cells import Matrix
from loraprobe_lab.reproduce.claims import MATH, TWO_HOP, Paper, claims
from loraprobe_lab.reproduce.measure import Answered, answer_world
from loraprobe_lab.reproduce.onbase import Library, build_on_base
from loraprobe_lab.reproduce.page import Pages, as_document, as_json, as_markdown
from loraprobe_lab.train import ProgressCallback
from loraprobe_lab.world import World, write_text

Say = Callable[[str], None]


@dataclass(frozen=True)
class Experiment:
    """One of the paper's experiments: its claims, its kit on a small base, its form on any base.

    `shape` makes the recipe of a small base from its architecture and width.
    """

    paper: Paper
    kit: Callable[[int, BaseRecipe], Kit]
    on_base: Callable[[int], Library]
    shape: Shape = small_base


@dataclass(frozen=True)
class Plan:
    """What is run: an experiment on small bases, or on the causal model in the directory `base`.

    `limit` cuts the tasks; `arguments` are those of the command, for the page.
    """

    kind: str
    base: Path | None = None
    bases: Bases = field(default_factory=Bases)
    limit: int | None = None
    device: str = "auto"
    arguments: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.base is not None and not self.base.is_dir():
            raise UsageError(f"--base {self.base} is no directory; give a downloaded model.")

    def places(self, shape: Shape = small_base) -> list[tuple[Place, BaseRecipe | None]]:
        """The worlds in the order in which they are made; no recipe where the base is given."""
        if self.base is None:
            return list(self.bases.places(shape))
        name = self.base.resolve().name
        seeds = dict.fromkeys(self.bases.seeds)
        return [(Place(f"{name}-seed{s}", name, s), None) for s in seeds]


class Reproduction(Pages):
    """What a run left: the document (plain data), and the files it stands in."""


def experiment(kind: str) -> Experiment:
    """The experiment of that name. Raises UsageError naming those there are."""
    if kind == "two-hop":
        from loraprobe_lab.reproduce.natural import natural_matrix
        from loraprobe_lab.reproduce.twohop import two_hop_matrix_kit

        return Experiment(TWO_HOP, two_hop_matrix_kit, natural_matrix)
    if kind == "math":
        return Experiment(MATH, math_kit, lambda seed: Library.of(math_kit(seed)), math_base)
    raise UsageError(f"There is no experiment {kind!r}; there are two-hop and math.")


MATH_ITEMS = 300
MATH_TEMPLATES = {"at-once": "plain", "worked": "cot", "program": "shared"}


def math_kit(seed: int, base: BaseRecipe | None = None) -> Kit:
    """The math matrix, its trials named as this matrix names them."""
    from loraprobe_lab.math import math_matrix_kit

    kit = math_matrix_kit(seed, base, items=MATH_ITEMS)
    renamed = []
    for trial in kit.trials:
        template = MATH_TEMPLATES[str(trial.axes["template"])]
        axes = {
            **trial.axes,
            "template": template,
            "library": len(trial.adapters),
            "form": "target" if template == "plain" else "cot",
            "group": "both types",
        }
        renamed.append(dataclasses.replace(trial, axes=axes))
    return dataclasses.replace(kit, trials=tuple(renamed))


def math_base(architecture: str, hidden: int) -> BaseRecipe:
    """The base of the math worlds in another width."""
    from loraprobe_lab.math.kit import BASE

    return dataclasses.replace(
        BASE, architecture=architecture, hidden=hidden, intermediate=5 * hidden // 2
    )


def reproduce(
    plan: Plan,
    output: str | Path,
    *,
    made: Experiment | None = None,
    progress: ProgressCallback | None = None,
    say: Say = lambda text: None,
) -> Reproduction:
    """Runs the matrix of an experiment in the directory `output`; see the module.

    `say` gets a line after each world, with an estimate of the time left. Raises UsageError for an
    unknown experiment or a missing matplotlib, before anything is trained.
    """
    from loraprobe.base.quiet import quiet
    from loraprobe_lab.reproduce.figure import drawing

    chosen, output = made or experiment(plan.kind), Path(output)
    with drawing():  # said before anything is trained, if it cannot be drawn
        pass
    places, finished = plan.places(chosen.shape), list[Answered]()
    start, found = time.monotonic(), None
    for number, (place, recipe) in enumerate(places, 1):
        with quiet():
            world = _build(chosen, plan, place, recipe, output, progress)
            finished.append(
                answer_world(
                    world,
                    place,
                    output / "results",
                    limit=plan.limit,
                    device="cpu" if recipe else plan.device,
                    progress=progress,
                )
            )
        missing = [p.name for p, _ in places[number:]]
        found = write_pages(plan, chosen.paper, finished, output, missing)
        left = (time.monotonic() - start) / number * len(missing) / 60
        say(f"{place.name}: {number} of {len(places)} worlds, about {left:.0f} min left")
    assert found is not None  # there is at least one place
    return found


def _build(
    chosen: Experiment,
    plan: Plan,
    place: Place,
    recipe: BaseRecipe | None,
    output: Path,
    progress: ProgressCallback | None,
) -> World:
    directory = output / "worlds" / place.name
    report: ProgressCallback | None = None
    if progress is not None:

        def report(stage: str, done: int, total: int) -> None:
            progress(f"train {place.name}", done, total)

    if recipe is None:
        assert plan.base is not None
        library = chosen.on_base(place.seed)
        return build_on_base(library, plan.base, directory, device=plan.device, progress=report)
    return build_kit(chosen.kit(place.seed, recipe), directory, progress=report)


def write_pages(
    plan: Plan, paper: Paper, worlds: Sequence[Answered], output: Path, missing: Sequence[str] = ()
) -> Reproduction:
    """Writes KIND.md, KIND.json and KIND.svg of these worlds, each complete or not at all."""
    from loraprobe_lab.reproduce.figure import matrix_figure

    matrix = Matrix(tuple(worlds))
    cells, findings = matrix.cells(), claims(matrix, paper)
    command = " ".join(("loraprobe", *plan.arguments)) if plan.arguments else f"reproduce({plan!r})"
    document = as_document(
        matrix, cells, findings, experiment=plan.kind, command=command, missing=list(missing)
    )
    files = tuple(output / f"{plan.kind}.{ending}" for ending in ("md", "json", "svg"))
    markdown = as_markdown(
        matrix,
        cells,
        findings,
        paper,
        command=command,
        figure=files[2].name,
        missing=missing,
    )
    texts = (markdown, as_json(document), matrix_figure(matrix, cells, paper))
    for path, text in zip(files, texts, strict=True):
        write_text(path, text)
    return Reproduction(document, markdown, files)
