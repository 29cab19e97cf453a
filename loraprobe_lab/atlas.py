"""The atlas: many small worlds with separately trained bases, from which the verdict is calibrated.

`ATLAS` is the plan, fixed before anything was trained: which kinds of worlds, seeds, architectures
and sizes. `build_atlas` trains it in parallel processes, one world a process, resumable.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loraprobe.errors import UsageError
from loraprobe.records import Progress
from loraprobe_lab.processes import in_processes
from loraprobe_lab.world import MANIFEST

if TYPE_CHECKING:
    from loraprobe_lab.worlds.spec import WorldSpec


@dataclass(frozen=True)
class WorldPlan:
    """One world of the atlas. `hidden` is the width of its base.

    `worked` is the share of worked steps in what a facts base reads, which is an axis of the
    atlas: where it is not 0 the base knows the template itself. A facts world has `wide` wide
    and `favourable` sets of each of its classes.
    """

    kind: str
    seed: int
    architecture: str
    hidden: int = 128
    wide: int = 3
    favourable: int = 0
    worked: float = 0.0

    @property
    def name(self) -> str:
        return f"{self.kind}-{self.architecture}-{self.seed:02d}"


def _plans(
    kind: str, architectures: Sequence[str], widths: tuple[int, int], first: int = 1, **fixed: Any
) -> tuple[WorldPlan, ...]:
    """Seeds from `first` on; every third base has the other width, every fourth one knows steps."""
    return tuple(
        WorldPlan(
            kind,
            seed,
            architecture,
            hidden=widths[seed % 3 == 0],
            worked=0.1 if kind == "facts" and seed % 4 == 0 else 0.0,
            **fixed,
        )
        for seed, architecture in enumerate(architectures, start=first)
    )


LLAMA, GPT2 = "llama", "gpt2"
# The ranges of the recipes of the last two kinds were found on worlds of smaller seeds.
ORDER = (LLAMA, GPT2, LLAMA, LLAMA, GPT2, LLAMA, LLAMA, GPT2)
ATLAS: tuple[WorldPlan, ...] = (
    *_plans("facts", ORDER, (128, 96), wide=2, favourable=1),
    *_plans("cross-lingual", ORDER[:6], (96, 112), first=31),
    *_plans("math", ORDER[:6], (96, 112), first=31),
)
KINDS = ("facts", "math", "cross-lingual")


def spec_of(plan: WorldPlan) -> WorldSpec:
    """The specification of a plan. Raises UsageError for an unknown kind."""
    from loraprobe_lab.training.pretrain import BaseRecipe
    from loraprobe_lab.worlds import cross_lingual, varied
    from loraprobe_lab.worlds.math import world as math

    def shaped(base: BaseRecipe) -> BaseRecipe:
        return dataclasses.replace(base, hidden=plan.hidden, architecture=plan.architecture)

    if plan.kind == "facts":
        return varied.facts_world(
            plan.seed,
            base=shaped(BaseRecipe(intermediate=5 * plan.hidden // 2)),
            wide=plan.wide,
            favourable=plan.favourable,
            worked=plan.worked,
        )
    if plan.kind == "math":
        return math.math_world(plan.seed, base=shaped(math.BASE), count=plan.wide)
    if plan.kind == "cross-lingual":
        base = shaped(cross_lingual.BASE)
        return cross_lingual.cross_lingual_world(plan.seed, base=base, count=plan.wide)
    raise UsageError(f"There is no kind of world {plan.kind!r}; there are {', '.join(KINDS)}.")


def build_atlas(
    output: str | Path,
    plans: Sequence[WorldPlan] = ATLAS,
    *,
    processes: int | None = None,
    progress: Progress | None = None,
) -> list[Path]:
    """Builds every world of `plans` below `output`; returns their directories in that order.

    processes: worlds at a time, one thread each; the number of cores unless given. What is finished
    is not trained again. `progress` gets ("worlds", worlds done, worlds).
    """
    output = Path(output)
    output.mkdir(parents=True, exist_ok=True)
    places = [output / plan.name for plan in plans]

    def tick() -> None:
        if progress is not None:
            done = sum((place / MANIFEST).is_file() for place in places)
            progress("worlds", done, len(places))

    workers = min(len(plans), processes or os.cpu_count() or 1)
    in_processes(_build_one, zip(plans, places, strict=True), workers, tick)
    return places


def _build_one(plan: WorldPlan, output: Path) -> None:
    from loraprobe.base.quiet import quiet
    from loraprobe_lab.worlds.spec import build_world

    with quiet():
        build_world(spec_of(plan), output)
