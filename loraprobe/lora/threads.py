"""Independent pieces of work on threads of their own, and the buffers that each thread has."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

Work = TypeVar("Work")
Result = TypeVar("Result")

# Pieces that are in memory together; a machine with more cores gives each piece several.
MOST_THREADS = 8


class Buffers(threading.local):
    """Memory of one thread for a module's factors, which it uses again for the next module.

    Fresh memory costs a tenth of the time of the products in it.
    """

    def __init__(self) -> None:
        self.held: dict[tuple[str, torch.dtype], Tensor] = {}

    def empty(
        self, name: str, rows: int, columns: int, dtype: torch.dtype
    ) -> Float[Tensor, "rows columns"]:
        """A matrix of any numbers, valid until the thread asks for this name again."""
        size, key = rows * columns, (name, dtype)
        if key not in self.held or len(self.held[key]) < size:
            self.held[key] = torch.empty(size, dtype=dtype)
        return self.held[key][:size].view(rows, columns)


def threads_at_once() -> int:
    """How many pieces are worked on at a time."""
    return min(torch.get_num_threads(), MOST_THREADS)


def in_order(work: Callable[[Work], Result], items: Iterable[Work]) -> Iterator[Result]:
    """The results of all items in their order; items are taken only a few ahead of the results.

    Small matrices on one thread each are faster than all threads on one small matrix after the
    other, above all where other programs use the cores too, since threads that share a small
    product wait for each other.
    """
    threads, together = torch.get_num_threads(), threads_at_once()
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
        torch.set_num_threads(threads)  # those of the pool set the default of later ones
