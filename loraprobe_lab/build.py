"""`loraprobe lab build` and the atlas: builds each kind of world.

The atlas holds many small worlds with separately trained bases, on which the verdict is calibrated.
Its plan, `data/atlas.json`, was fixed before training: kinds of worlds, seeds, architectures and
sizes.
"""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from loraprobe.base.quiet import quiet
from loraprobe.errors import UsageError
from loraprobe.records import Progress
from loraprobe_lab.training import BaseRecipe
from loraprobe_lab.world import Scenario, World, silent
from loraprobe_lab.worlds import english, math, varied
from loraprobe_lab.worlds.couples import small_world
from loraprobe_lab.worlds.facts import table
from loraprobe_lab.worlds.library import library_world
from loraprobe_lab.worlds.spec import WorldSpec, build_world, load_given_base

KINDS = ("facts", "math")  # worlds of many adapter sets on one small base


@dataclass(frozen=True)
class WorldPlan:
    """One world of many adapter sets. `hidden` is the width of its base.

    `worked` is the share of worked steps in the pretraining texts of a facts base; if it is not 0,
    the base knows the template itself. A facts world has `wide` wide and `favourable` favourable
    sets of each of `classes`, all of them if there are none.
    """

    kind: str
    seed: int
    architecture: str = "llama"
    hidden: int = 128
    wide: int = 3
    favourable: int = 0
    worked: float = 0.0
    classes: Sequence[str] = ()

    @property
    def name(self) -> str:
        return f"{self.kind}-{self.architecture}-{self.seed:02d}"


# Every third base has the other width, every fourth one of facts knows worked steps. The ranges of
# the recipes of the last two kinds were found on worlds of smaller seeds.
ATLAS = tuple(WorldPlan(**row) for row in table("atlas"))


def spec_of(plan: WorldPlan) -> WorldSpec:
    """The specification of a plan."""

    def shaped(base: BaseRecipe) -> BaseRecipe:
        return dataclasses.replace(base, hidden=plan.hidden, architecture=plan.architecture)

    if plan.kind == "facts":
        return varied.facts_world(
            plan.seed,
            base=shaped(BaseRecipe(intermediate=5 * plan.hidden // 2)),
            wide=plan.wide,
            favourable=plan.favourable,
            worked=plan.worked,
            classes=plan.classes or varied.CLASSES,
        )
    return math.math_world(plan.seed, base=shaped(math.BASE), count=plan.wide)


def build_atlas(output: Path, progress: Progress = silent) -> list[Path]:
    """Builds every world of the atlas below `output`; returns their directories in its order.

    Finished worlds are not trained again. `progress` gets ("worlds", worlds done, worlds).
    """
    with quiet():
        for done, plan in enumerate(ATLAS):
            progress("worlds", done, len(ATLAS))
            build_world(spec_of(plan), output / plan.name)
    return [output / plan.name for plan in ATLAS]


def build_worlds(
    kind: str,
    output: Path,
    *,
    base: Path | None = None,
    seed: int = 0,
    only: Sequence[str] | None = None,
    progress: Progress = silent,
) -> list[World]:
    """Builds the world of this kind in `output`; finished parts are kept.

    Without `base` a small base is trained from scratch ("two-hop", "skill-and-facts", "keep-both",
    a world of many adapter sets: "facts", "math", or "library", of many adapters); with it the
    adapters are trained in English on that causal model. "keep-both", "domain", the kinds of
    `MIXED` and "sets" (all kinds) are then many worlds, each in a directory of its own
    below `output`. `only` names scenarios, with `base` adapters or sets. Raises UsageError for a
    kind that has no such form.
    """
    with quiet():
        if base is None:
            return [build_world(_on_own_base(kind, seed, only), output, progress=progress)]
        if kind in ("keep-both", "domain", "sets", *english.MIXED):
            kinds = english.KINDS if kind == "sets" else (kind,)
            return english.build_sets(
                base, output, kinds=kinds, seed=seed, only=only, progress=progress
            )
        if kind not in ("two-hop", "skill-and-facts"):
            raise UsageError(
                f"The world {kind} is built on its own small base only; leave out --base, or build "
                "two-hop or skill-and-facts."
            )
        model = load_given_base(base)
        if kind == "two-hop":
            spec = english.two_hop_world(seed)
        else:  # about the countries whose capitals this base knows best
            spec = english.skill_world(english.familiar_countries(*model), seed)
        return [build_world(spec, output, base=base, model=model, only=only, progress=progress)]


def _on_own_base(kind: str, seed: int, only: Sequence[str] | None) -> WorldSpec:
    if kind in ("domain", "sets", *english.MIXED):
        raise UsageError(
            f"{kind} is built on a causal model of yours:", "name its directory as --base."
        )
    if kind not in (*KINDS, "library"):
        return small_world([kind], seed, only=only)
    if only:
        raise UsageError(
            f"The adapter sets of a {kind} world are built together; leave out --only."
        )
    if kind == "library":
        return library_world(seed)
    return spec_of(WorldPlan(kind, seed))


def command_for(world: World, scenario: Scenario) -> str:
    """The merge-and-eval command for a scenario; of a library, the command that screens it."""
    adapters = [f"{name}={path}" for name, path in scenario.adapters.items()]
    tasks = [part for path in scenario.tasks for part in ("--task", str(path))]
    base = str(world.base or world.base_name)
    if scenario.world == "library":
        return f"loraprobe screen {world.path}/adapters/* {shlex.join([*tasks, '--base', base])}"
    return shlex.join(["loraprobe", "merge-and-eval", *adapters, *tasks, "--base", base])
