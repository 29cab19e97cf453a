"""The atlas: many small worlds with separately trained bases, from which the verdict is calibrated.

`ATLAS` is the plan, fixed before anything was trained: which kinds of worlds, seeds, architectures
and sizes. `build_atlas` trains it in parallel processes, one world a process, resumable.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loraprobe.errors import UsageError
from loraprobe_lab.train import ProgressCallback

if TYPE_CHECKING:
    from loraprobe_lab.kit import Kit
    from loraprobe_lab.pretrain import BaseRecipe


@dataclass(frozen=True)
class WorldPlan:
    """One world of the atlas. `hidden` is the width of its base.

    `worked` is the share of worked steps in what a facts base reads, which is an axis of the
    atlas: where it is not 0 the base knows the template itself. A facts world has `trials` wide
    and `favourable` trials of each of its classes.
    """

    kind: str
    seed: int
    architecture: str
    hidden: int = 128
    trials: int = 3
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
    *_plans("facts", ORDER, (128, 96), trials=2, favourable=1),
    *_plans("cross-lingual", ORDER[:6], (96, 112), first=31),
    *_plans("math", ORDER[:6], (96, 112), first=31),
)


def kit_of(plan: WorldPlan) -> Kit:
    """The kit of a plan. Raises UsageError for an unknown kind."""
    makers = {"facts": _facts, "math": _math, "cross-lingual": _lingual}
    if plan.kind not in makers:
        raise UsageError(f"There is no kind of world {plan.kind!r}; there are {', '.join(makers)}.")
    return makers[plan.kind](plan)


def _facts(plan: WorldPlan) -> Kit:
    from loraprobe_lab.pretrain import BaseRecipe
    from loraprobe_lab.varied import facts_kit

    base = BaseRecipe(hidden=plan.hidden, intermediate=5 * plan.hidden // 2)
    return facts_kit(
        plan.seed,
        base=_shaped(base, plan),
        trials=plan.trials,
        favourable=plan.favourable,
        worked=plan.worked,
    )


def _math(plan: WorldPlan) -> Kit:
    from loraprobe_lab.math.kit import BASE, math_kit

    return math_kit(plan.seed, base=_shaped(BASE, plan), trials=plan.trials)


def _lingual(plan: WorldPlan) -> Kit:
    from loraprobe_lab.lingual.kit import BASE, lingual_kit

    return lingual_kit(plan.seed, base=_shaped(BASE, plan), trials=plan.trials)


def _shaped(base: BaseRecipe, plan: WorldPlan) -> BaseRecipe:
    """A kind's own recipe at the width and architecture of the plan."""
    return dataclasses.replace(base, hidden=plan.hidden, architecture=plan.architecture)


def build_atlas(
    output: str | Path,
    plans: Sequence[WorldPlan] = ATLAS,
    *,
    processes: int | None = None,
    progress: ProgressCallback | None = None,
    ready: Callable[[Path], None] | None = None,
) -> list[Path]:
    """Builds every world of `plans` below `output`; returns their directories in that order.

    processes: worlds at a time, one thread each; the number of cores unless given. ready(path) is
    called for each world as it is finished. What is finished is not trained again. `progress` gets
    (stage, permille done, permille in all) over all worlds.
    """
    output = Path(output)
    output.mkdir(parents=True, exist_ok=True)
    workers = min(len(plans), processes or os.cpu_count() or 1)
    context = get_context("spawn")
    with context.Manager() as manager:
        shares = manager.dict()
        with ProcessPoolExecutor(workers, mp_context=context, initializer=_settle) as pool:
            todo = {pool.submit(_build_one, plan, output / plan.name, shares) for plan in plans}
            try:
                while todo:
                    done, todo = wait(todo, timeout=1.0, return_when=FIRST_COMPLETED)
                    for future in done:
                        path = future.result()
                        if ready is not None:
                            ready(path)
                    if progress is not None:
                        _tell(progress, dict(shares), len(plans))
            except BaseException:
                for future in todo:
                    future.cancel()
                pool.shutdown(wait=False, cancel_futures=True)
                raise
    return [output / plan.name for plan in plans]


def _tell(progress: ProgressCallback, shares: dict[str, float], worlds: int) -> None:
    running = [name for name, share in shares.items() if share < 1]
    progress(", ".join(running) or "worlds", round(1000 * sum(shares.values())), 1000 * worlds)


def _settle() -> None:
    """One thread a process: small matrices gain nothing from more."""
    import torch

    torch.set_num_threads(1)


def _build_one(plan: WorldPlan, output: Path, shares: Any) -> Path:
    from loraprobe.base.quiet import quiet
    from loraprobe_lab.kit import build_kit

    last = [0.0]

    def tick(stage: str, done: int, total: int) -> None:
        if done / total - last[0] > 0.01:
            last[0] = done / total
            shares[plan.name] = min(0.99, last[0])

    with quiet():
        build_kit(kit_of(plan), output, progress=tick)
    shares[plan.name] = 1.0
    return output
