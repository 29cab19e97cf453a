"""Hands the parts of a run to workers, in any order, and takes those of a lost worker back.

This process computes parts too, between two messages. So a run ends even if every worker is lost,
and a worker that is still starting holds nothing up.

A local worker is another process of this machine. It reads parts from its standard input and writes
results to its standard output, both pickled; what it prints itself goes to standard error. It ends
when its input ends, so it never outlives the process that started it.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import subprocess
import sys
import threading
import traceback
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import IO, Any, Protocol

from loraprobe.errors import Defect, LoraprobeError

RESTARTS = 2  # of one worker


class WorkerLost(Exception):
    """A worker ended in the middle of a part."""


class Worker(Protocol):
    """One process that computes parts, one after the other."""

    def start(self) -> None:
        """Start, or start again; returns when it can take a part. Raises WorkerLost."""

    def do(self, part: Any) -> Any:
        """The result of a part. Raises WorkerLost, or what the computation raises."""

    def close(self) -> None:
        """End the process; another thread may be waiting for it in `do`."""


@dataclass
class Pool(contextlib.AbstractContextManager["Pool"]):
    """Workers that stay open for several lists of parts. As a context it closes them.

    after: what is closed after them. lost: how many times a worker was lost.
    """

    workers: Sequence[Worker]
    after: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)
    lost: int = 0
    closed: bool = False
    _started: dict[int, bool] = field(default_factory=dict)
    _restarts: dict[int, int] = field(default_factory=dict)
    _locks: dict[int, threading.Lock] = field(default_factory=lambda: defaultdict(threading.Lock))

    def __exit__(self, *_: object) -> None:
        self.closed = True
        for worker in self.workers:
            worker.close()
        self.after.close()

    def map(self, parts: Sequence[Any], here: Callable[[int], Any]) -> Iterator[tuple[int, Any]]:
        """(index of a part, its result), as they come.

        here: computes the part of an index in this process.

        A part whose worker was lost is given to another worker or computed here. An exception of a
        computation is raised here, and no further part is started.
        """
        waiting = deque(enumerate(parts))
        found: SimpleQueue[tuple[int, Any, BaseException | None] | None] = SimpleQueue()
        for number in range(min(len(self.workers), len(parts))):
            threading.Thread(target=self._serve, args=(number, waiting, found), daemon=True).start()
        try:
            left = len(parts)
            while left:
                if found.empty() and (taken := _next(waiting)) is not None:
                    yield taken[0], here(taken[0])
                    left -= 1
                    continue
                came = found.get()
                if came is None:  # a part was given back
                    continue
                index, result, error = came
                if error is not None:
                    raise error
                yield index, result
                left -= 1
        finally:
            waiting.clear()

    def _serve(self, number: int, waiting: deque[tuple[int, Any]], found: SimpleQueue[Any]) -> None:
        """Has one worker compute parts until none is left or it was lost too often."""
        while self._open(number) and (waiting or not self._started.get(number)):
            taken = None
            try:
                with self._locks[number]:  # it may be started for an earlier list
                    if not self._started.get(number):
                        self.workers[number].start()
                        self._started[number] = True
                    if (taken := _next(waiting)) is None:
                        return
                    found.put((taken[0], self.workers[number].do(taken[1]), None))
            except WorkerLost:
                self._started[number] = False
                self._restarts[number] = self._restarts.get(number, 0) + 1
                self.lost += not self.closed
                if taken is not None:
                    waiting.append(taken)
                    found.put(None)
            except BaseException as error:
                found.put((-1 if taken is None else taken[0], None, error))
                return

    def _open(self, number: int) -> bool:
        return not self.closed and self._restarts.get(number, 0) <= RESTARTS


def _next(waiting: deque[tuple[int, Any]]) -> tuple[int, Any] | None:
    try:
        return waiting.popleft()
    except IndexError:
        return None


SERVE = "from loraprobe.execution.pool import serve; serve()"


@dataclass
class LocalWorker:
    """A process with an environment of its own, in which `job` is opened."""

    job: Any
    environment: dict[str, str] = field(default_factory=dict)
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self.close()
        self.process = subprocess.Popen(
            [sys.executable, "-c", SERVE],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, **self.environment},
            start_new_session=True,  # Ctrl-C ends this process, and with it the worker
        )
        self.do(self.job)

    def do(self, part: Any) -> Any:
        assert self.process is not None and self.process.stdin and self.process.stdout
        try:
            pickle.dump(part, self.process.stdin)
            self.process.stdin.flush()
            result, error = pickle.load(self.process.stdout)
        except (OSError, EOFError, pickle.UnpicklingError, ValueError):
            raise WorkerLost from None
        if error is not None:
            raise error
        return result

    def close(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None


def local_workers(job: Any, processes: int | None, threads: int | None) -> list[LocalWorker]:
    """The workers beside this process, which computes parts too.

    processes: all together; None for one a GPU, or one a core where there is no GPU. threads: of
    each; None divides the cores. This process has the first GPU, every other worker a further one;
    more processes than GPUs share them in turn.
    """
    import torch

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    seen = os.environ.get("CUDA_VISIBLE_DEVICES")
    gpus = seen.split(",") if seen else [str(i) for i in range(torch.cuda.device_count())]
    gpus = gpus[: torch.cuda.device_count()]
    count = processes or len(gpus) or cores or 1
    own = threads or max(1, (cores or 1) // count)
    if threads is None and count > 1:
        torch.set_num_threads(own)
    made = []
    for number in range(1, count):
        environment = {"OMP_NUM_THREADS": str(own)}
        if gpus:
            environment["CUDA_VISIBLE_DEVICES"] = gpus[number % len(gpus)]
        made.append(LocalWorker(job, environment))
    return made


def serve() -> None:
    """The loop of a worker: the job first, then parts, until the input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parts, results = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    with contextlib.suppress(EOFError, BrokenPipeError):
        job = pickle.load(parts)
        work, error = None, None
        try:
            work = job.open()
        except Exception as problem:
            error = sendable(problem)
        _send(results, None, error)
        while work is not None:
            part = pickle.load(parts)
            result, error = None, None
            try:
                result = work(part)
            except Exception as problem:
                error = sendable(problem)
            _send(results, result, error)


def sendable(problem: Exception) -> Exception:
    """The error as this process's caller should raise it: errors with a cure as they are."""
    if isinstance(problem, LoraprobeError):
        return problem
    traceback.print_exception(problem)
    return Defect(f"A worker failed: {type(problem).__name__}: {problem}")


def _send(results: IO[bytes], result: Any, error: Exception | None) -> None:
    pickle.dump((result, error), results)
    results.flush()


def share_of(weights: Sequence[float], shard: tuple[int, int]) -> list[int]:
    """The indices of the parts of shard (number, of how many), numbers from 1.

    weights: of each part. A share is a run of parts, so that a system is put into the model by as
    few shards as possible. Every part belongs to exactly one shard; a shard may be empty.
    """
    number, of = shard
    total, before, found = sum(weights), 0.0, []
    for index, weight in enumerate(weights):
        middle = (before + weight / 2) / total if total else 0.0
        before += weight
        if min(int(middle * of), of - 1) == number - 1:
            found.append(index)
    return found
