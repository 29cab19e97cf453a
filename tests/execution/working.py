"""A job for workers that needs no model: what a test asks a worker process to do."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loraprobe.errors import UsageError


@dataclass(frozen=True)
class Squares:
    """Squares of numbers with the process's number. A text names what happens instead.

    place: where "die once" leaves a mark, so that it kills one process only.
    """

    place: Path
    seconds: float = 0.0

    def open(self) -> Callable[[Any], Any]:
        return self._square

    def _square(self, part: Any) -> Any:
        time.sleep(self.seconds)
        if part == "fail":
            raise UsageError("This part cannot be computed; give another.")
        if part == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if part == "die once":
            mark = self.place / "died"
            if not mark.exists():
                mark.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            return 0, os.getpid()
        return part**2, os.getpid()
