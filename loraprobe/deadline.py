"""Limits of time and memory on code that a stranger's file decides, such as a chat template."""

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


@contextlib.contextmanager
def memory_limit(size: int) -> Iterator[None]:
    """Lets the block take `size` bytes beside what the process has; more raises MemoryError.

    By the kernel's limit on the address space, which holds for all threads meanwhile; where there
    is no such limit (macOS, Windows) the block runs without one.
    """
    try:
        import resource

        with open("/proc/self/statm", encoding="ascii") as stream:
            taken = int(stream.read().split()[0]) * resource.getpagesize()
    except (ImportError, OSError):
        yield
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    allowed = taken + size
    known = [bound for bound in (allowed, soft, hard) if bound != resource.RLIM_INFINITY]
    resource.setrlimit(resource.RLIMIT_AS, (min(known), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
