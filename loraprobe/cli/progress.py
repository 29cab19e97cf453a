"""How far a run is: the line of progress.

The line of progress says which step of how many runs, the share done, and the time left. On a
terminal it stands below everything else and is gone at the end. Elsewhere it is printed every half
minute.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

from rich.console import Console
from rich.live import Live
from rich.text import Text

from loraprobe.formatting import clean
from loraprobe.records import ROUND

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
        step = self._step(self.stage)
        passed = self.clock() - self.begun.get(step or self.stage, self.clock())
        told = [clean(WORDS.get(self.stage, self.stage)), *self._place(step)]
        if step is None:
            left = passed / self.done * (self.total - self.done) if self.done else 0.0
        else:
            share, left = self._of_plan(step, passed)
            told.append(f"{share:.0%} done")
        told += [f"about {spoken(left)} left"] if left else []
        if self.stage == "template" and passed > LONG:
            told.append("--chat-template off skips it")
        return ", ".join(told)

    def _place(self, step: str | None) -> list[str]:
        """Which system of this round is asked, or which part of a stage is done."""
        if step is not None and step.startswith(ASK):
            round_ = step.partition(ROUND)[2]
            asked = [name for name in self.plan if name.startswith(ASK)]
            systems = [name for name in asked if name.partition(ROUND)[2] == round_]
            return [f"system {systems.index(step) + 1} of {len(systems)}"]
        return [f"{self.done} of {self.total}"] if self.total > 1 else []

    def _of_plan(self, step: str, passed: float) -> tuple[float, float]:
        """The share of the plan that is done, which never falls, and the seconds that are left."""
        names = list(self.plan)
        before, size = sum(self.plan[n] for n in names[: names.index(step)]), self.plan[step]
        whole, pace = sum(self.plan.values()), self._pace(step)
        at_most = min(0.9 * size, passed / pace) if pace else 0.0
        current = size * self.done / self.total if self.done else at_most
        self.furthest = max(self.furthest, (before + current) / whole)
        return self.furthest, (whole - before - current) * pace

    def _step(self, stage: str) -> str | None:
        """The step of the plan that a stage belongs to, without what follows a colon if need be."""
        return next((s for s in (stage, stage.partition(":")[0]) if s in self.plan), None)

    def _pace(self, step: str) -> float:
        """Seconds for a unit of size, from the steps that this run took; 0 if none is known."""
        taken = [name for name in self.plan if name in self.begun]
        units = sum(self.plan[name] for name in taken if name != step)
        units += self.plan[step] * self.done / self.total if self.total else 0.0
        return (self.clock() - self.begun[taken[0]]) / units if units else 0.0


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
