"""Independent pieces of work on all cores, each on one of them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch

Work = TypeVar("Work")
Result = TypeVar("Result")

# Pieces that are in memory together; a machine with more cores gives each piece several.
MOST_WORKERS = 8


def workers() -> int:
    """How many pieces are worked on at a time."""
    return min(torch.get_num_threads(), MOST_WORKERS)


def in_order(work: Callable[[Work], Result], items: Iterable[Work]) -> Iterator[Result]:
    """The results of all items in their order; items are taken only a few ahead of the results.

    Small matrices on one thread each are faster than all threads on one small matrix after the
    other, above all where other programs use the cores too, since threads that share a small
    product wait for each other.
    """
    threads, together = torch.get_num_threads(), workers()
    if together == 1:
        yield from map(work, items)
        return
    running: deque[Future[Result]] = deque()
    pool = ThreadPoolExecutor(
        together, initializer=torch.set_num_threads, initargs=(threads // together,)
    )
    try:
        with pool:
            for item in items:
                running.append(pool.submit(work, item))
                if len(running) > together:
                    yield running.popleft().result()
            while running:
                yield running.popleft().result()
    finally:
        torch.set_num_threads(threads)  # what a worker sets is the default of later threads
