"""Workers of a Ray cluster: one actor a GPU, or a group of cores, that holds base and adapters.

Ray restarts nothing by itself: `max_restarts` and `max_task_retries` are 0 unless they are set.
Parts that any process can compute (statistics of weights) are tasks without a state.
"""

from __future__ import annotations

import contextlib
import functools
import os
import pickle
import sys
from dataclasses import dataclass
from typing import Any

from loraprobe.errors import UsageError
from loraprobe.execution.pool import RESTARTS, WorkerLost, sendable


class Holder:
    """The state of an actor: the function of an opened job."""

    def __init__(self, job: Any) -> None:
        self.job = job

    def ready(self) -> int:
        """Opens the job; the process's number."""
        self.work = self.job.open()
        return os.getpid()

    def do(self, part: Any) -> tuple[Any, Exception | None]:
        try:
            if not hasattr(self, "work"):  # the actor was restarted
                self.ready()
            return self.work(part), None
        except Exception as problem:
            return None, sendable(problem)


@functools.lru_cache(maxsize=1)
def _opened(job: bytes) -> Any:
    return pickle.loads(job).open()


def compute(job: bytes, part: Any) -> tuple[Any, Exception | None]:
    """One part in any process, which opens the job once. job: pickled."""
    try:
        return _opened(job)(part), None
    except Exception as problem:
        return None, sendable(problem)


@dataclass
class RayWorker:
    """One actor, or one slot for tasks without a state."""

    ray: Any
    remote: Any  # the actor's class or the function, with its resources
    job: Any
    stateless: bool
    actor: Any = None
    pid: int | None = None
    closed: bool = False

    def start(self) -> None:
        if self.closed:
            raise WorkerLost
        if not self.stateless:
            self.actor = self.remote.remote(self.job)
            self.pid = self._get(self.actor.ready.remote())

    def do(self, part: Any) -> Any:
        made = self.remote.remote(self.job, part) if self.stateless else self.actor.do.remote(part)
        result, error = self._get(made)
        if error is not None:
            raise error
        return result

    def close(self) -> None:
        self.closed = True
        if self.actor is not None:
            self.ray.kill(self.actor)
            self.actor = None

    def _get(self, made: Any) -> Any:
        try:
            return self.ray.get(made)
        except self.ray.exceptions.RayError:
            raise WorkerLost from None


def cluster(address: str | None) -> contextlib.ExitStack:
    """Connects to a Ray cluster; closing the result disconnects, unless the caller had connected.

    address: "ray://HOST:PORT"; None for the cluster of RAY_ADDRESS, or a new one on this machine.
    Until it is closed, what Ray prints goes to standard error: it tells of lost workers on standard
    output, where the result belongs. Raises UsageError where Ray is not installed or the cluster
    does not answer.
    """
    os.environ.setdefault("RAY_ENABLE_AUTO_CONNECT", "0")  # no call starts a cluster by itself
    try:
        import ray
    except ImportError:
        raise UsageError(
            "--executor ray needs Ray, which is not installed: pip install 'loraprobe[ray]'."
        ) from None
    with contextlib.ExitStack() as stack:
        stack.enter_context(contextlib.redirect_stdout(sys.stderr))
        if not ray.is_initialized():
            try:
                ray.init(address=address, log_to_driver=False, logging_level="ERROR")
            except (ConnectionError, RuntimeError, ValueError) as error:
                where = address or os.environ.get("RAY_ADDRESS", "of this machine")
                raise UsageError(
                    f"--executor: the Ray cluster {where} does not answer ({error}); check the "
                    "address and that the cluster runs."
                ) from None
            stack.callback(ray.shutdown)
        return stack.pop_all()


def ray_workers(job: Any, threads: int | None, *, stateless: bool) -> list[RayWorker]:
    """A worker for each free GPU of the cluster, or for each group of `threads` (else 1) cores."""
    import ray

    free, group = ray.available_resources(), threads or 1
    gpus, cores = int(free.get("GPU", 0)), int(free.get("CPU", 1))
    groups = max(1, cores // group)
    if stateless:
        task = ray.remote(compute).options(num_cpus=group, max_retries=RESTARTS)
        sent = pickle.dumps(job)
        return [RayWorker(ray, task, sent, True) for _ in range(groups)]
    resources = {"num_gpus": 1, "num_cpus": 1} if gpus else {"num_cpus": group}
    tries = {"max_restarts": RESTARTS, "max_task_retries": RESTARTS}
    actor = ray.remote(Holder).options(**resources, **tries)
    return [RayWorker(ray, actor, job, False) for _ in range(gpus or groups)]
