"""Limits time and memory of code that comes from an untrusted file, such as a chat template."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from typing import Any

from loraprobe.errors import LoraprobeError


@contextlib.contextmanager
def deadline(seconds: float, error: LoraprobeError) -> Iterator[None]:
    """Raises `error` inside the block when it has run for `seconds`.

    It uses the system's timer. In other threads than the main one, on Windows, or while another
    timer runs, the block has no limit.
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
    """Lets the block allocate `size` more bytes; more raises MemoryError.

    It uses the kernel's limit on the address space, which applies to all threads. On macOS and
    Windows the block has no limit.
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
