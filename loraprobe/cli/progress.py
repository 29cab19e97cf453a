"""How far a run is, and what it would take.

The line of progress says which step of how many runs, the share done, and the time left. On a
terminal it stands below everything else and is gone at the end. Elsewhere it is printed every half
minute. `--dry-run` prints the expected time of all steps.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from rich.console import Console
from rich.live import Live
from rich.text import Text

from loraprobe.formatting import clean
from loraprobe.memory import gib
from loraprobe.records import ROUND, SCHEMA_VERSION, document

if TYPE_CHECKING:
    from loraprobe.pipeline.estimate import CostEstimate

INTERVAL = 30.0  # seconds between two lines without a terminal
LONG = 10.0  # seconds from which the line says how a stage is left out
WORDS = {
    "read": "read the adapters",
    "compare": "compare the adapters",
    "check": "check the adapters",
    "diagnose": "compare the adapters",
    "load": "load the base",
    "screen": "ask the adapters alone",
    "forecast": "forecast every set",
    "estimate": "estimate the time",
    "template": "ask with and without the chat template",
    "guard": "ask what must not get worse",
    "cover": "measure what the base knows",
    "hash": "hash the base",
    "write": "write the model",
    "learn": "learn weights",
    "learn weights": "learn weights",
}
ASK = "evaluate "  # how a step starts that asks one system


@dataclass
class ProgressLine:
    """What is known of the progress of a run.

    It is called with (stage, done, total) and told by `expect` which steps will come, and their
    size in any unit. `total` 0 is the start of a stage of unknown length. The time left follows
    from the time that was taken so far.
    """

    clock: Callable[[], float] = time.monotonic
    stage: str = "read the adapters"
    done: int = 0
    total: int = 0
    plan: dict[str, float] = field(default_factory=dict)
    furthest: float = 0.0  # the largest share that was told
    begun: dict[str, float] = field(default_factory=dict)  # stage or step -> when it began

    def expect(self, steps: Mapping[str, float]) -> None:
        """steps: name of a step -> its size, in their order. Steps that have begun stay."""
        self.plan = {name: size for name, size in self.plan.items() if name in self.begun}
        self.plan |= steps

    def __call__(self, stage: str, done: int, total: int) -> None:
        step = self._step(stage)
        if step is None and any(name in self.begun for name in self.plan):
            return  # a part of a step, or a short stage between two
        if step is None and (stage != self.stage or done < self.done):
            self.begun.pop(stage, None)  # it begins again
        self.begun.setdefault(step or stage, self.clock())
        self.stage, self.done, self.total = stage, done, total

    def text(self) -> str:
        """The line, such as "evaluate sum, system 5 of 9, 48% done, about 20 s left"."""
        told, step, names = [clean(described(self.stage))], self._step(self.stage), list(self.plan)
        passed = self.clock() - self.begun.get(step or self.stage, self.clock())
        if step is not None and step.startswith(ASK):
            round_ = step.partition(ROUND)[2]
            systems = [n for n in names if n.startswith(ASK) and n.partition(ROUND)[2] == round_]
            told.append(f"system {systems.index(step) + 1} of {len(systems)}")
        elif self.total > 1:
            told.append(f"{self.done} of {self.total}")
        if step is None:
            left = passed / self.done * (self.total - self.done) if self.done else 0.0
        else:
            before, size = sum(self.plan[n] for n in names[: names.index(step)]), self.plan[step]
            whole, pace = sum(self.plan.values()), self._pace(step)
            at_most = min(0.9 * size, passed / pace) if pace else 0.0
            current = size * self.done / self.total if self.done else at_most
            self.furthest = max(self.furthest, (before + current) / whole)
            told.append(f"{self.furthest:.0%} done")
            left = (whole - before - current) * pace
        told += [f"about {spoken(left)} left"] if left else []
        if self.stage == "template" and passed > LONG:
            told.append("--chat-template off skips it")
        return ", ".join(told)

    def _step(self, stage: str) -> str | None:
        """The step of the plan that a stage belongs to, without what follows a colon if need be."""
        return next((s for s in (stage, stage.partition(":")[0]) if s in self.plan), None)

    def _pace(self, step: str) -> float:
        """Seconds for a unit of size, from the steps that this run took; 0 if none is known."""
        taken = [name for name in self.plan if name in self.begun]
        units = sum(self.plan[name] for name in taken if name != step)
        units += self.plan[step] * self.done / self.total if self.total else 0.0
        return (self.clock() - self.begun[taken[0]]) / units if units else 0.0


def described(stage: str) -> str:
    """A stage in words."""
    return WORDS.get(stage, stage)


def spoken(seconds: float) -> str:
    """A duration in the unit that suits it."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes / 60:.1f} h"


@contextmanager
def shown() -> Iterator[ProgressLine]:
    """A line of progress on standard error while the context lasts."""
    line = ProgressLine()
    with _live(line) if sys.stderr.isatty() else _spoken_now_and_then(line):
        yield line


@contextmanager
def _live(line: ProgressLine) -> Iterator[None]:
    def drawn() -> Text:
        return Text(line.text(), no_wrap=True, overflow="ellipsis")

    console = Console(stderr=True)
    with Live(get_renderable=drawn, console=console, transient=True, refresh_per_second=4):
        yield


@contextmanager
def _spoken_now_and_then(line: ProgressLine) -> Iterator[None]:
    stop = threading.Event()

    def speak() -> None:
        while not stop.wait(INTERVAL):
            print(line.text(), file=sys.stderr, flush=True)

    speaker = threading.Thread(target=speak, daemon=True)
    speaker.start()
    try:
        yield
    finally:
        stop.set()
        speaker.join()


def estimate_lines(cost: CostEstimate, quiet: bool) -> list[str]:
    """Systems x items, time by step, and memory, at most 60 columns wide; quiet: in one line."""
    memory = gib(cost.memory_bytes)
    if quiet:
        return [f"{spoken(cost.seconds)}, {memory}"]
    asking = {name: seconds for name, seconds in cost.steps.items() if name.startswith(ASK)}
    others = {name: s for name, s in cost.steps.items() if name not in asking and s >= 0.5}
    vllm = ["vLLM is installed: --engine vllm may take less.", "It answers many questions at once."]
    return [
        f"{len(cost.systems)} systems x {cost.items} items",
        "",
        *(f"  {described(name):<44}{spoken(s):>8}" for name, s in (others | asking).items()),
        "",
        f"about {spoken(cost.seconds)}, and {memory} of memory",
        "Timed on a few of your questions on this machine. It takes",
        "less where the decision holds before all items are asked",
        "(without --all-items). Merges that need new weights, and",
        "the statistics, come on top.",
        *(vllm if cost.vllm else ()),
    ]


def estimate_as_json(cost: CostEstimate) -> str:
    """The estimate as one JSON document."""
    estimate = {
        "systems": cost.systems,
        "items": cost.items,
        "questions": cost.questions,
        "seconds": round(cost.seconds, 3),
        "memory_bytes": cost.memory_bytes,
        "steps": {name: round(seconds, 3) for name, seconds in cost.steps.items()},
        "measured": cost.measured,
    }
    return document(cost.command, {"estimate": estimate}, SCHEMA_VERSION)
