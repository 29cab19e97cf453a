"""Where the trials of the fact worlds lie on their axes: two strata, both drawn from the seed.

*wide* goes through all kinds of trials and recipes; most of them fail. *favourable* holds what the
literature and the map of success say should work (familiar second hops, no invented facts, adapters
trained long enough and gently, facts in the MLPs and skills in the attention), so that successes
are not rare in the data. Nothing is chosen by how it turns out.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Stratum:
    """Kinds of trials to go through by seed, and recipes to draw from.

    familiar: shares of second hops that the base knows; invented: shares of made-up couples in the
    skill adapter's data; libraries and pairs: see `lab.varied`. Of recipes the steps, learning
    rates, ranks, alphas as multiples of the rank, and target modules.
    """

    name: str
    familiar: Sequence[float]
    invented: Sequence[float]
    libraries: Sequence[str]
    pairs: Sequence[tuple[str, str]]
    facts: tuple[Sequence[Any], ...]
    skill: tuple[Sequence[Any], ...]

    def facts_recipe(self, rng: random.Random) -> dict[str, Any]:
        """Of an adapter that learns facts."""
        return _draw(rng, *self.facts)

    def skill_recipe(self, rng: random.Random) -> dict[str, Any]:
        """Of an adapter that learns worked steps or a skill on lists."""
        return _draw(rng, *self.skill)


def _draw(rng: random.Random, ranks: Any, steps: Any, rates: Any, alphas: Any, targets: Any) -> Any:
    rank = rng.choice(ranks)
    recipe = {"steps": rng.choice(steps), "learning_rate": rng.choice(rates), "rank": rank}
    recipe["alpha"] = rank * rng.choice(alphas)
    return {**recipe, "target_modules": targets[0] if len(targets) == 1 else rng.choice(targets)}


WIDE = Stratum(
    "wide",
    familiar=(1.0, 1.0, 0.5, 1.0, 1.0, 1.0, 0.0),
    invented=(0.0, 0.0, 0.5, 0.0, 1.0),
    libraries=(
        "plain", "both-steps", "parts", "own-steps", "both-steps", "one-steps", "unrelated",
        "parts", "target",
    ),
    pairs=(
        ("spouses", "last"), ("last", "first"), ("homes", "spouses"), ("count", "last"),
        ("first", "homes"), ("second", "first"), ("spouses", "count"), ("second", "last"),
        ("homes", "second"),
    ),
    facts=((8, 16, 16), (300, 400, 500), (1e-3, 2e-3, 2e-3, 3e-3), (1, 1, 2),
           ("mlp", "mlp", "all-linear")),
    skill=((8, 16), (150, 300, 400), (1e-3, 2e-3, 2e-3), (1, 1, 2), ("all-linear",)),
)  # fmt: skip
FAVOURABLE = Stratum(
    "favourable",
    familiar=(1.0,),
    invented=(0.0,),
    libraries=("parts",),
    pairs=(
        ("spouses", "last"), ("homes", "spouses"), ("homes", "first"), ("spouses", "first"),
        ("homes", "last"),
    ),
    facts=((16,), (450, 550), (1.5e-3, 2e-3), (1,), ("mlp",)),
    skill=((8, 16), (250, 350), (1e-3, 2e-3), (1,), ("all-linear", "attention")),
)  # fmt: skip
