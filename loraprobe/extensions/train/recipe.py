"""What `--baseline` may say: how an adapter is trained, and on how many questions."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import ClassVar, Literal

from loraprobe.errors import UsageError
from loraprobe.registry import Registry

Auto = Literal["auto"]
ITEMS_LEAST, ITEMS_MOST = 8, 64  # of each task, from which is learned; the most by default
RANK_MOST, STEPS_MOST = 1024, 100_000


@dataclass(frozen=True)
class TrainRecipe:
    """A LoRA of all linear layers.

    items: of each task; auto: half of them, ITEMS_MOST at most. steps: of the optimiser; auto:
    until questions that are held out are answered no better. lr: the learning rate; auto: by the
    width of the model. from: the base, or the merge under which the gold answers are likeliest
    (best), which stays in the base and becomes a part of what is written. curve: also trained on
    8, 16, 32 ... of the items, each a part of the next, as far as that can change what is advised.
    minutes: that all of this may take; None for no limit.
    """

    items: int | Auto = "auto"
    rank: int = 16
    steps: int | Auto = "auto"
    lr: float | Auto = "auto"
    from_: Literal["base", "best"] = "base"
    curve: bool = False
    minutes: float | None = None

    registry_name: ClassVar[str] = "train"

    def __post_init__(self) -> None:
        """Raises UsageError for a value out of its limits."""
        limits = {
            "items": (ITEMS_LEAST, 100_000),
            "rank": (1, RANK_MOST),
            "steps": (1, STEPS_MOST),
            "lr": (1e-8, 1.0),
            "minutes": (0.01, 1e6),
        }
        for name, (least, most) in limits.items():
            value = getattr(self, name)
            if value not in ("auto", None) and not least <= value <= most:
                raise UsageError(
                    f"--baseline=train:{name}={value:g}: {name} must lie between {least:g} and "
                    f"{most:g}."
                )


def sizes(recipe: TrainRecipe, items: int) -> list[int]:
    """On how many of the items of a task is trained, the fewest first."""
    doubled = itertools.takewhile(lambda n: n < items, (ITEMS_LEAST << k for k in range(32)))
    return [*(doubled if recipe.curve else ()), items]


RECIPES = Registry(__name__, TrainRecipe, "baseline")


def recipe_of(spec: str) -> TrainRecipe:
    """The recipe of a spec such as "train:items=32". Raises UsageError."""
    if not isinstance(spec, str):
        raise UsageError(f"--baseline is a text such as train:items=32, not {spec!r}.")
    return RECIPES.make(spec)
