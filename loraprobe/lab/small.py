"""Builds the small worlds from a seed: base, adapters, tasks, manifest. Resumable."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from loraprobe.lab import facts as wording
from loraprobe.lab.facts import Facts, FactSizes, make_facts
from loraprobe.lab.plans import (
    SCENARIOS,
    WORLDS,
    YARDSTICKS,
    AdapterPlan,
    ScenarioPlan,
    adapters_of,
    task_items,
)
from loraprobe.lab.pretrain import MEETING, BaseRecipe, build_base, save_base
from loraprobe.lab.skills import COUNT, LAST
from loraprobe.lab.train import ProgressCallback, Recipe, train_adapter
from loraprobe.lab.vocabulary import build_tokenizer
from loraprobe.lab.world import MANIFEST, World, WorldError, write_manifest, write_tasks, write_text

BASE_NAME = "loraprobe/small-world-base"


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
    output, plan = Path(output), plan or SmallPlan()
    scenarios = _chosen(worlds, only)
    adapters = adapters_of(scenarios, [] if only else [y for w in worlds for y in YARDSTICKS[w]])
    _same_seed(output, seed)
    facts = make_facts(plan.sizes, seed)
    meter = _Meter(plan, adapters, progress)
    _make_base(output, facts, plan, seed, meter, resume)
    model, tokenizer = load_base(output / "base")
    for adapter in adapters:
        recipe = plan.recipe(adapter, seed)
        train_adapter(
            model,
            tokenizer,
            adapter.examples(facts, seed),
            recipe,
            output / "adapters" / adapter.name,
            base_name=BASE_NAME,
            progress=meter.stage(adapter.name, recipe),
            resume=resume,
        )
    return _finish(output, seed, plan, adapters, scenarios, facts)


def load_base(directory: Path) -> tuple[Any, Any]:
    """Model in float32 and tokenizer of a base directory, from local files only."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(directory), local_files_only=True)
    model = AutoModelForCausalLM.from_pretrained(
        str(directory), dtype=torch.float32, local_files_only=True
    )
    return model.eval(), tokenizer


def world_texts(facts: Facts) -> list[str]:
    """Texts that hold every word of the small world."""
    templates = [wording.THINK, MEETING, LAST, COUNT, "Count:"]
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


def _same_seed(output: Path, seed: int) -> None:
    if (output / MANIFEST).is_file() and World.load(output).seed != seed:
        raise WorldError(
            f"{output} holds a world of seed {World.load(output).seed}, not {seed}: "
            "choose another directory or that seed."
        )


def _make_base(
    output: Path, facts: Facts, plan: SmallPlan, seed: int, meter: _Meter, resume: bool
) -> None:
    """Trains and writes the base unless it is there; adapters of an older base are removed."""
    base, recipe = output / "base", dataclasses.replace(plan.base, seed=seed)
    made_by = json.dumps(
        {"recipe": recipe.as_dict(), "sizes": dataclasses.asdict(plan.sizes),
         "dtype": plan.base_dtype}, indent=2) + "\n"  # fmt: skip
    record = base / "training.json"
    if resume and record.is_file() and record.read_text(encoding="utf-8") == made_by:
        return
    for stale in (base, output / "adapters"):
        shutil.rmtree(stale, ignore_errors=True)
    tokenizer = build_tokenizer(world_texts(facts))
    model = build_base(facts, tokenizer, recipe, meter.stage("base", recipe))
    part = output / ".base.part"
    shutil.rmtree(part, ignore_errors=True)
    save_base(model, tokenizer, part, plan.base_dtype)
    write_text(part / "training.json", made_by)
    os.replace(part, base)


def _finish(
    output: Path,
    seed: int,
    plan: SmallPlan,
    adapters: Sequence[AdapterPlan],
    scenarios: Sequence[ScenarioPlan],
    facts: Facts,
) -> World:
    for task in dict.fromkeys(task for scenario in scenarios for task in scenario.tasks):
        write_tasks(output / "tasks" / f"{task}.jsonl", task_items(task, facts, seed))
    return write_manifest(
        output,
        kind="small",
        seed=seed,
        recipe=dataclasses.asdict(plan),
        base={"path": "base", "name": BASE_NAME},
        adapters={
            adapter.name: {
                "path": f"adapters/{adapter.name}",
                "description": adapter.description,
                "recipe": plan.recipe(adapter, seed).as_dict(),
            }
            for adapter in adapters
        },
        scenarios={
            scenario.name: {
                "adapters": list(scenario.adapters),
                "tasks": [f"tasks/{task}.jsonl" for task in scenario.tasks],
                "description": scenario.description,
            }
            for scenario in scenarios
        },
        reserve=facts.reserve,
    )


class _Meter:
    """Turns the steps of each training into texts seen of all texts of the build."""

    def __init__(
        self, plan: SmallPlan, adapters: Sequence[AdapterPlan], report: ProgressCallback | None
    ) -> None:
        recipes: list[tuple[str, Any]] = [("base", plan.base)]
        recipes += [(adapter.name, plan.recipe(adapter, 0)) for adapter in adapters]
        self._report, self._before, self._total = report, {}, 0
        for name, recipe in recipes:
            self._before[name] = self._total
            self._total += recipe.steps * recipe.batch_size

    def stage(self, name: str, recipe: Any) -> ProgressCallback | None:
        report = self._report
        if report is None:
            return None
        start, size, total = self._before[name], recipe.batch_size, self._total

        def tick(what: str, step: int, steps: int) -> None:
            report(what, start + step * size, total)

        return tick
