"""Builds the small worlds from a seed: base, adapters, tasks, manifest. Resumable."""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from loraprobe_lab import facts as wording
from loraprobe_lab.facts import Facts, FactSizes, make_facts
from loraprobe_lab.kit import BASE_NAME as BASE_NAME
from loraprobe_lab.kit import Kit, Lesson, Trial, build_kit
from loraprobe_lab.kit import load_base as load_base
from loraprobe_lab.plans import (
    SCENARIOS,
    WORLDS,
    YARDSTICKS,
    AdapterPlan,
    ScenarioPlan,
    adapters_of,
    task_items,
)
from loraprobe_lab.pretrain import MEETING, BaseRecipe, Corpus
from loraprobe_lab.skills import SKILLS
from loraprobe_lab.train import ProgressCallback, Recipe
from loraprobe_lab.world import World, WorldError


@dataclass(frozen=True)
class SmallPlan:
    """How big a small world is. The defaults give the world that ships with the package.

    `base_dtype` is that in which the base is written; adapters are trained on it as written.
    `effort` scales the steps of every adapter, for trials and tests.
    """

    sizes: FactSizes = field(default_factory=FactSizes)
    base: BaseRecipe = field(default_factory=BaseRecipe)
    base_dtype: str = "bfloat16"
    effort: float = 1.0

    def recipe(self, adapter: AdapterPlan, seed: int) -> Recipe:
        """The adapter's recipe, with a seed of its own: no two share their initial A."""
        return dataclasses.replace(
            adapter.recipe,
            steps=max(1, round(adapter.recipe.steps * self.effort)),
            seed=zlib.crc32(f"{adapter.name}:{seed}".encode()),
        )


def build_small_world(
    output: str | Path,
    worlds: Sequence[str] = WORLDS,
    *,
    seed: int = 0,
    plan: SmallPlan | None = None,
    only: Sequence[str] | None = None,
    progress: ProgressCallback | None = None,
    resume: bool = True,
) -> World:
    """Builds a small world in the directory `output` and returns it.

    `worlds` are some of ``two-hop``, ``skill-and-facts``, ``keep-both``; they share one base.
    `only` keeps some of their scenarios. What is finished in `output` is not trained again unless
    `resume` is false. The same seed gives the same bytes on the same machine, library versions
    and number of threads. `progress` gets (stage, texts seen, texts in all), where every text
    takes about as long, so that the time left can be told from it.

    Raises:
        WorldError: an unknown world or scenario, or `output` holds a world of another seed.
    """
    kit = small_kit(worlds, seed=seed, plan=plan or SmallPlan(), only=only)
    return build_kit(kit, output, progress=progress, resume=resume)


def small_kit(
    worlds: Sequence[str], *, seed: int, plan: SmallPlan, only: Sequence[str] | None = None
) -> Kit:
    """The kit of some of the small worlds, which share one base."""
    scenarios = _chosen(worlds, only)
    adapters = adapters_of(scenarios, [] if only else [y for w in worlds for y in YARDSTICKS[w]])
    facts = make_facts(plan.sizes, seed)
    return Kit(
        kind="small",
        seed=seed,
        words=tuple(world_texts(facts)),
        corpus=lambda draw_seed: Corpus(facts, draw_seed).draw,
        base=plan.base,
        base_dtype=plan.base_dtype,
        lessons=tuple(
            Lesson(a.name, a.description, tuple(a.examples(facts, seed)), plan.recipe(a, seed))
            for a in adapters
        ),
        tasks={
            task: task_items(task, facts, seed)
            for task in dict.fromkeys(task for plan_ in scenarios for task in plan_.tasks)
        },
        trials=tuple(Trial(s.name, s.world, s.adapters, s.tasks, s.description) for s in scenarios),
        reserve=facts.reserve,
        made_from={"sizes": dataclasses.asdict(plan.sizes)},
        recipe=dataclasses.asdict(plan),
    )


def world_texts(facts: Facts) -> list[str]:
    """Texts that hold every word of the small world."""
    asked = [SKILLS[name].question for name in ("last", "count")]
    templates = [wording.THINK, MEETING, *asked, "Count:"]
    for group in (
        wording.SPOUSE_SENTENCES,
        wording.SPOUSE_QUESTIONS,
        wording.CITY_SENTENCES,
        wording.CITY_QUESTIONS,
        wording.TARGET_QUESTIONS,
    ):
        templates.extend(group)
    bare = [text.format(a="", b="", c="", list="", first="", second="") for text in templates]
    return [*facts.names(), *facts.cities, *wording.NUMBERS, *(" ".join(t.split()) for t in bare)]


def _chosen(worlds: Sequence[str], only: Sequence[str] | None) -> list[ScenarioPlan]:
    unknown = [world for world in worlds if world not in WORLDS]
    if unknown:
        raise WorldError(f"There is no world {unknown[0]!r}; there are {', '.join(WORLDS)}.")
    found = [plan for plan in SCENARIOS if plan.world in worlds]
    if only is None:
        return found
    names = [plan.name for plan in found]
    for name in only:
        if name not in names:
            raise WorldError(f"There is no scenario {name!r} here; there are {', '.join(names)}.")
    return [plan for plan in found if plan.name in only]
