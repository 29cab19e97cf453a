"""A worker that is another process of this machine.

It reads parts from its standard input and writes results to its standard output, both pickled;
what it prints itself goes to standard error. It ends when its input ends, so it never outlives the
process that started it.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import subprocess
import sys
import traceback
from dataclasses import dataclass, field
from typing import IO, Any

from loraprobe.errors import Defect, LoraprobeError
from loraprobe.execution.pool import WorkerLost

SERVE = "from loraprobe.execution.local import serve; serve()"


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
