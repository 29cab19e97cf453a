"""Limits on what a stranger's file may use: bytes, levels, time, memory.

A file beyond one is refused by name. The safetensors library itself limits headers to 100 MB.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator, Mapping
from typing import Any

from loraprobe.errors import LoraprobeError

DEEPEST = 50  # levels of lists and objects in a config
CONFIG = 10_000_000  # bytes of an adapter's or a base's config, and of an index of shards
TOKENIZER = 200_000_000  # bytes of a tokenizer.json
CARD = 5_000_000  # bytes of a model card
TENSORS = 2_000_000  # tensors in one weight file
MODULES = 500_000  # modules of one adapter
LINE = 1_000_000  # bytes of one line of a task or probe file
ITEMS = 2_000_000_000  # bytes of a task or probe file
ROWS = 500_000  # rows of a task
CHOICES = 1_000  # of one item
INFLATION = 4  # the largest factor by which unpacking may enlarge a weight file


def nested_values(document: Mapping[str, Any]) -> Iterator[tuple[str, Any, int]]:
    """(dotted path of keys, value, depth) of every value in a JSON object, without recursion.

    Values deeper than DEEPEST + 1 levels are left out.
    """
    waiting: list[tuple[str, Any, int]] = [("", document, 0)]
    while waiting:
        key, value, depth = waiting.pop()
        if depth:
            yield key, value, depth
        if depth > DEEPEST:
            continue
        if isinstance(value, Mapping):
            waiting += [(f"{key}.{k}".lstrip("."), v, depth + 1) for k, v in value.items()]
        elif isinstance(value, list):
            waiting += [(key, v, depth + 1) for v in value]


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
