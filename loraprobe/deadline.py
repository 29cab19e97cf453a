"""A time limit on code that a stranger's file decides, such as a chat template."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from typing import Any

from loraprobe.errors import LoraprobeError


@contextlib.contextmanager
def deadline(seconds: float, error: LoraprobeError) -> Iterator[None]:
    """Raises `error` inside the block once it has run for so long.

    By the system's timer, which only the main thread can use, and which Windows lacks; elsewhere
    the block runs without a limit. Another timer that is running is left alone.
    """
    usable = hasattr(signal, "setitimer") and threading.current_thread() is threading.main_thread()
    if not usable or signal.getitimer(signal.ITIMER_REAL)[0] > 0:
        yield
        return

    def stop(number: int, frame: Any) -> None:
        raise error

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
