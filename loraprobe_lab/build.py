"""`loraprobe lab build`: which builder makes which world, and how to judge what it made."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from loraprobe.errors import UsageError
from loraprobe_lab.train import ProgressCallback
from loraprobe_lab.world import Scenario, World

MANY = ("facts", "math", "cross-lingual")  # worlds of many trials on one small base


def build_world(
    kind: str,
    output: Path,
    *,
    base: Path | None = None,
    seed: int = 0,
    only: Sequence[str] | None = None,
    progress: ProgressCallback | None = None,
) -> World:
    """Builds a world of this kind in `output`; finished parts are kept.

    Without `base` a small base is trained from scratch ("two-hop", "skill-and-facts", "keep-both",
    or a world of many trials: "facts", "math", "cross-lingual"); with it the adapters are trained
    in natural language on that causal model. Raises UsageError for a world that has no such form.
    """
    from loraprobe.base.quiet import quiet

    if base is None and kind in MANY:
        from loraprobe_lab.atlas import WorldPlan, kit_of
        from loraprobe_lab.kit import build_kit

        if only:
            raise UsageError(f"The trials of a {kind} world are built together; leave out --only.")
        with quiet():
            return build_kit(kit_of(WorldPlan(kind, seed, "llama")), output, progress=progress)
    if base is None:
        from loraprobe_lab.small import build_small_world

        with quiet():
            return build_small_world(output, [kind], seed=seed, only=only, progress=progress)
    from loraprobe_lab import natural

    builders = {
        "two-hop": natural.build_two_hop,
        "skill-and-facts": natural.build_skill_and_facts,
    }
    if kind not in builders:
        raise UsageError(
            f"The world {kind} is built on its own small base only; leave out --base, or build "
            f"{' or '.join(builders)}."
        )
    with quiet():
        return builders[kind](base, output, seed=seed, only=only, progress=progress)


def build_worlds(
    kind: str,
    output: Path,
    *,
    base: Path | None = None,
    seed: int = 0,
    only: Sequence[str] | None = None,
    relations: Path | None = None,
    progress: ProgressCallback | None = None,
) -> list[World]:
    """What `build_world` builds; or many sets, each in a directory of its own below `output`.

    Many sets are built on `base` for "keep-both", "domain" and "sets" (all four kinds); `only`
    names sets, and `relations` is a directory of relations for those about products.
    """
    if base is None and kind in ("domain", "sets"):
        raise UsageError(
            f"{kind} is built on a causal model of yours: name its directory as --base."
        )
    if base is None or kind not in ("keep-both", "domain", "sets"):
        return [build_world(kind, output, base=base, seed=seed, only=only, progress=progress)]
    from loraprobe.base.quiet import quiet
    from loraprobe_lab.natural_fleet import KINDS, build_fleet

    kinds = KINDS if kind == "sets" else (kind,)
    with quiet():
        return build_fleet(base, output, kinds=kinds, seed=seed, only=only,
                           relations=relations, progress=progress)  # fmt: skip


def command_for(world: World, scenario: Scenario) -> str:
    """The merge-and-eval command that judges a scenario."""
    adapters = [f"{name}={path}" for name, path in scenario.adapters.items()]
    tasks = [part for path in scenario.tasks for part in ("--task", str(path))]
    base = str(world.base or world.base_name)
    return shlex.join(["loraprobe", "merge-and-eval", *adapters, *tasks, "--base", base])
