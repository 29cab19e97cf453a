"""How far a run is: the line of progress.

The line of progress says what is done, how far, and the time left of that. On a
terminal it stands below everything else and is gone at the end. Elsewhere it is printed every half
minute.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from rich.console import Console
from rich.live import Live
from rich.text import Text

from loraprobe.formatting import clean

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
    "cover": "measure what the base knows",
    "hash": "hash the base",
    "write": "write the model",
    "learn": "learn weights",
    "learn weights": "learn weights",
}


@dataclass
class ProgressLine:
    """What is known of the progress of a run.

    It is called with (stage, done, total). `total` 0 is the start of a stage of unknown length. The
    time left follows from the time that was taken since nothing of the stage was done.
    """

    clock: Callable[[], float] = time.monotonic
    stage: str = "read the adapters"
    done: int = 0
    total: int = 0
    begun: dict[str, float] = field(default_factory=dict)  # first word of a stage -> when it began

    def __call__(self, stage: str, done: int, total: int) -> None:
        verb = stage.partition(" ")[0]  # one for all systems that are asked
        if done == 0 or verb not in self.begun:
            self.begun[verb] = self.clock()
        self.stage, self.done, self.total = stage, done, total

    def text(self) -> str:
        """The line, such as "evaluate sum, system 5 of 9, 48 of 90, about 20 s left"."""
        passed = self.clock() - self.begun.get(self.stage.partition(" ")[0], self.clock())
        told = [clean(WORDS.get(self.stage, self.stage))]
        if self.total > 1:
            told.append(f"{self.done} of {self.total}")
        if 0 < self.done < self.total:
            told.append(f"about {spoken(passed / self.done * (self.total - self.done))} left")
        if self.stage == "template" and passed > LONG:
            told.append("--chat-template off skips it")
        return ", ".join(told)


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
