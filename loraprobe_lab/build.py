"""`loraprobe lab build`: which builder makes which world, and how to judge what it made."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from loraprobe.errors import UsageError
from loraprobe.records import Progress
from loraprobe_lab.atlas import KINDS as MANY  # worlds of many adapter sets on one small base
from loraprobe_lab.atlas import WorldPlan, spec_of
from loraprobe_lab.world import Scenario, World

ON_BASE = ("two-hop", "skill-and-facts")


def build_worlds(
    kind: str,
    output: Path,
    *,
    base: Path | None = None,
    seed: int = 0,
    only: Sequence[str] | None = None,
    progress: Progress | None = None,
) -> list[World]:
    """Builds the world of this kind in `output`; finished parts are kept.

    Without `base` a small base is trained from scratch ("two-hop", "skill-and-facts", "keep-both",
    or a world of many adapter sets: "facts", "math", "cross-lingual"); with it the adapters are
    trained in English on that causal model. "keep-both", "domain" and "sets" (all four kinds) are
    then many worlds, each in a directory of its own below `output`. `only` names scenarios,
    with `base` adapters or sets. Raises UsageError for a kind that has no such form.
    """
    from loraprobe.base.quiet import quiet

    with quiet():
        if base is None:
            return [_on_own_base(kind, output, seed, only, progress)]
        if kind in ("keep-both", "domain", "sets"):
            from loraprobe_lab.worlds.english_sets import KINDS, build_sets

            kinds = KINDS if kind == "sets" else (kind,)
            return build_sets(base, output, kinds=kinds, seed=seed, only=only, progress=progress)
        return [_on_given_base(kind, base, output, seed, only, progress)]


def _on_own_base(
    kind: str,
    output: Path,
    seed: int,
    only: Sequence[str] | None,
    progress: Progress | None,
) -> World:
    from loraprobe_lab.worlds.small import small_world
    from loraprobe_lab.worlds.spec import build_world

    if kind in ("domain", "sets"):
        raise UsageError(
            f"{kind} is built on a causal model of yours: name its directory as --base."
        )
    if kind in MANY and only:
        raise UsageError(
            f"The adapter sets of a {kind} world are built together; leave out --only."
        )
    many = kind in MANY
    spec = spec_of(WorldPlan(kind, seed, "llama")) if many else small_world([kind], seed, only=only)
    return build_world(spec, output, progress=progress)


def _on_given_base(
    kind: str,
    base: Path,
    output: Path,
    seed: int,
    only: Sequence[str] | None,
    progress: Progress | None,
) -> World:
    from loraprobe_lab.worlds.english import familiar_countries, skill_world, two_hop_world
    from loraprobe_lab.worlds.spec import build_world, load_given_base

    if kind not in ON_BASE:
        raise UsageError(
            f"The world {kind} is built on its own small base only; leave out --base, or build "
            f"{' or '.join(ON_BASE)}."
        )
    if kind == "two-hop":
        spec, model = two_hop_world(seed), None
    else:  # the facts are about the countries whose capitals this base knows best
        model = load_given_base(base)
        spec = skill_world(familiar_countries(*model), seed)
    return build_world(spec, output, base=base, model=model, only=only, progress=progress)


def command_for(world: World, scenario: Scenario) -> str:
    """The merge-and-eval command that judges a scenario."""
    adapters = [f"{name}={path}" for name, path in scenario.adapters.items()]
    tasks = [part for path in scenario.tasks for part in ("--task", str(path))]
    base = str(world.base or world.base_name)
    return shlex.join(["loraprobe", "merge-and-eval", *adapters, *tasks, "--base", base])
