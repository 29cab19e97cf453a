"""Runs work in several processes of one thread each; small matrices need no more threads."""

from __future__ import annotations

import concurrent.futures
import multiprocessing
from collections.abc import Callable, Iterable
from typing import Any

POLL = 2.0  # seconds between two checks for finished work


def in_processes(
    work: Callable[..., Any],
    calls: Iterable[tuple[Any, ...]],
    processes: int,
    tick: Callable[[], None],
) -> None:
    """Calls work(*arguments) for every tuple of arguments, and `tick` at least every POLL seconds.

    The first error ends the work and is raised.
    """
    context = multiprocessing.get_context("spawn")  # a forked torch may hang
    with concurrent.futures.ProcessPoolExecutor(
        processes, mp_context=context, initializer=_one_thread
    ) as pool:
        running = {pool.submit(work, *arguments) for arguments in calls}
        try:
            while running:
                done, running = concurrent.futures.wait(
                    running, POLL, concurrent.futures.FIRST_COMPLETED
                )
                for future in done:
                    future.result()
                tick()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)
