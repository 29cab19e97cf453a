"""A varied world in the making: its lessons, tasks and trials as they are drawn, and who is married
to whom and lives where in each trial.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from loraprobe_lab.facts import Facts, Link
from loraprobe_lab.kit import Lesson, Trial
from loraprobe_lab.train import Example, Recipe
from loraprobe_lab.varied_axes import WIDE, Stratum


@dataclass
class Draft:
    """A kit in the making: what the trials so far have asked for."""

    facts: Facts
    seed: int
    rng: random.Random
    lessons: list[Lesson] = field(default_factory=list)
    tasks: dict[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict)
    trials: list[Trial] = field(default_factory=list)
    stratum: Stratum = WIDE
    first: int = 0  # of the numbers of trials: those before are of another stratum
    each: int = 2  # trials of a class, by which seeds go on through the kinds

    def turn(self, kinds: Sequence[Any], i: int) -> Any:
        """The kind whose turn it is for the trial of this number."""
        return kinds[(self.seed * self.each + i - self.first) % len(kinds)]

    def lesson(self, name: str, text: str, examples: Sequence[Example], axes: dict) -> str:
        """Adds an adapter with its recipe; `axes` gets what the recipe is."""
        recipe = axes.pop("recipe")
        recipe = Recipe(
            **recipe,
            batch_size=32,
            dtype="bfloat16",
            seed=zlib.crc32(f"{name}:{self.seed}".encode()),
        )
        self.lessons.append(Lesson(name, text, tuple(examples), recipe))
        axes[name.rpartition(".")[2]] = {
            "steps": recipe.steps,
            "learning_rate": recipe.learning_rate,
            "rank": recipe.rank,
            "alpha": recipe.alpha,
            "target_modules": recipe.target_modules,
        }
        return name


def married(draft: Draft, familiar: float) -> tuple[Link, ...]:
    """The newcomers, married anew: this share of them to spouses whose home the base knows."""
    rng, facts = draft.rng, draft.facts
    people = [link.person for link in facts.newcomers]
    known = rng.sample(facts.familiar, len(people))
    unknown = rng.sample(facts.strangers, len(people))
    count = round(familiar * len(people))
    homes = [*known[:count], *unknown[count:]]
    rng.shuffle(homes)
    return tuple(
        Link(person, home.spouse, home.city) for person, home in zip(people, homes, strict=True)
    )


def strangers(draft: Draft) -> tuple[Link, ...]:
    """The strangers, married and settled anew."""
    rng, links = draft.rng, draft.facts.strangers
    spouses, cities = [x.spouse for x in links], [x.city for x in links]
    rng.shuffle(spouses)
    rng.shuffle(cities)
    people = [link.person for link in links]
    return tuple(map(Link, people, spouses, cities))


def with_recipe(axes: dict[str, Any], recipe: dict[str, Any]) -> dict[str, Any]:
    """The axes of a trial, with the recipe that its next lesson takes out of them."""
    axes["recipe"] = recipe
    return axes
