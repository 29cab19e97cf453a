"""The call that this process runs: its words, when it began, and whether it was interrupted."""

from __future__ import annotations

import signal
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Call:
    """What is known of a call of the command line.

    `words` are those that were typed, with those of --config; `started` is when it began, by
    time.perf_counter, None if only a command of it is run.
    """

    words: list[str] = field(default_factory=list)
    started: float | None = None
    interrupted: bool = False

    @property
    def as_json(self) -> bool:
        """Whether the result is one JSON document, also that of an error."""
        return "--json" in self.words

    @property
    def debug(self) -> bool:
        """Whether an error is printed with its traceback."""
        return "--debug" in self.words


CALL = Call()


def interrupt(number: int, frame: Any) -> None:
    """Raises KeyboardInterrupt; the first time not before a running import is done.

    An exception in the middle of an import of torch can abort the whole process.
    """
    first = not (CALL.interrupted and number in (signal.SIGINT, signal.SIGTERM))
    CALL.interrupted = True
    if first and hasattr(signal, "setitimer") and _imports(frame):
        signal.signal(signal.SIGALRM, interrupt)
        signal.setitimer(signal.ITIMER_REAL, 0.02)  # look again then
        return
    raise KeyboardInterrupt


def _imports(frame: Any) -> bool:
    """Whether an import is under way somewhere below this frame."""
    while frame is not None:
        if frame.f_code.co_filename == "<frozen importlib._bootstrap>":
            return True
        frame = frame.f_back
    return False
