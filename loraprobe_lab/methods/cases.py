"""Which scenarios of a world ask one of the three questions that the table of methods is about."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from loraprobe.errors import UsageError
from loraprobe.tasks import Task, load_task
from loraprobe_lab.world import Scenario, World

Question = Literal["two-hop", "keep-both", "step-by-step"]
QUESTIONS: tuple[Question, ...] = ("two-hop", "keep-both", "step-by-step")
SHOWN = 20  # prompts of each adapter that a router may learn from
FORM: Mapping[Question, str] = {"two-hop": "target", "keep-both": "target", "step-by-step": "cot"}


@dataclass(frozen=True)
class Case:
    """One question in one world: two adapters and the tasks that they are asked.

    `roles` names the adapters by what they do in the question, the same in every world: for
    two-hop the adapters of the first and of the second hop, for keep-both those of the two skills,
    for step-by-step the one with the facts and the one with the worked steps.
    """

    question: Question
    world: World = field(repr=False)
    scenario: Scenario = field(repr=False)
    roles: Mapping[str, str]

    @property
    def name(self) -> str:
        """A name that is unique among the worlds of a run, and fit for a file."""
        return f"{self.world.path.resolve().name}.{self.scenario.name}"

    @property
    def architecture(self) -> str:
        return str(self.world.manifest["base"].get("architecture") or "unknown")

    def tasks(self, limit: int | None) -> list[Task]:
        """The task files, in the order of the scenario. Raises TaskError for a bad line."""
        return [load_task(path, limit) for path in self.scenario.tasks]

    def prompts(self, limit: int | None) -> dict[str, list[str]]:
        """By adapter, prompts such as it was made for, of items that `limit` leaves unasked.

        At most `SHOWN` each; {} where there are none. They carry no answer: a hop's prompt holds
        those of the hops before it, as another adapter would have given them.
        """
        if limit is None:
            return {}
        left = [load_task(path).items[limit : limit + SHOWN] for path in self.scenario.tasks]
        if not all(left):
            return {}
        of: dict[str, list[str]] = {
            "skill 1": [item.prompt for item in left[0]],
            "skill 2": [item.prompt for item in left[-1]],
            "hop 1": [item.hop_prompt(0) for item in left[0] if item.hops],
            "hop 2": [item.hop_prompt(1) for item in left[0] if item.hops],
            "facts": [item.hop_prompt(0) for item in left[0] if item.hops],
            "steps": [item.cot_prompt for item in left[0] if item.cot_prompt],
        }
        return {name: of[role] for name, role in self.roles.items()}


def cases_of(world: World) -> list[Case]:
    """The scenarios of a world that ask one of the questions, told by what their tasks hold.

    keep-both: two adapters and two tasks without hops. two-hop: two adapters and one task, whose
    hops the task gives to one adapter each. step-by-step: two adapters and one task that is also
    asked in worked steps, whose first hop is one adapter's and whose second is nobody's, where
    the scenario does not say that the second hop is unknown to the base or the steps' couples
    invented (then the literature promises no success, and the border is another page's matter).
    """
    return [case for scenario in world.scenarios.values() for case in _case(world, scenario)]


def _case(world: World, scenario: Scenario) -> Iterator[Case]:
    names = list(scenario.adapters)
    if len(names) != 2 or not all(path.is_file() for path in scenario.tasks):
        return
    tasks = [load_task(path, 1) for path in scenario.tasks]
    if len(tasks) == 2 and not any(task.has_hops for task in tasks):
        yield Case("keep-both", world, scenario, {names[0]: "skill 1", names[1]: "skill 2"})
        return
    if len(tasks) != 1 or len(tasks[0].items[0].hops) != 2:
        return
    item = tasks[0].items[0]
    first, second = (hop.adapter for hop in item.hops)
    if {first, second} == set(names):
        yield Case("two-hop", world, scenario, {str(first): "hop 1", str(second): "hop 2"})
    elif first in names and second is None and item.cot_prompt and _favourable(scenario):
        other = next(name for name in names if name != first)
        yield Case("step-by-step", world, scenario, {str(first): "facts", other: "steps"})


def _favourable(scenario: Scenario) -> bool:
    return scenario.axes.get("familiar", 1) == 1 and scenario.axes.get("invented", 0) == 0


def open_worlds(directories: list[Path]) -> list[World]:
    """The worlds in these directories, or right below them.

    Raises UsageError for two worlds of one name, and for one that asks none of the questions;
    WorldError where there is no world.
    """
    found: list[World] = []
    for directory in directories:
        below = sorted(path.parent for path in directory.glob("*/manifest.json"))
        places = [directory] if (directory / "manifest.json").is_file() or not below else below
        found += [World.load(place) for place in places]
    names = [world.path.resolve().name for world in found]
    for world, name in zip(found, names, strict=True):
        if names.count(name) > 1:
            raise UsageError(f"Two worlds are called {name}: give their directories other names.")
        if not cases_of(world):
            raise UsageError(
                f"{world.path} holds no scenario of two adapters that asks for two hops, for two "
                "skills or for new facts in worked steps; leave it out."
            )
    return found
