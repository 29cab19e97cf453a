"""Workers of a Ray cluster: one actor a GPU, or a group of cores, that holds base and adapters.

Ray restarts nothing by itself: `max_restarts` and `max_task_retries` are 0 unless they are set.
Parts that any process can compute (statistics of weights) are tasks without a state.
"""

from __future__ import annotations

import functools
import os
from dataclasses import dataclass
from typing import Any

from loraprobe.errors import UsageError
from loraprobe.execution.local import sendable
from loraprobe.execution.pool import RESTARTS, WorkerLost


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
    import pickle

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

    def start(self) -> None:
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
        if self.actor is not None:
            self.ray.kill(self.actor)
            self.actor = None

    def _get(self, made: Any) -> Any:
        try:
            return self.ray.get(made)
        except self.ray.exceptions.RayError:
            raise WorkerLost from None


def ray_workers(
    address: str | None, job: Any, threads: int | None, *, stateless: bool
) -> list[RayWorker]:
    """A worker for each free GPU of the cluster, or for each group of `threads` (else 1) cores.

    address: "ray://HOST:PORT" of a cluster; None for that of RAY_ADDRESS, or a new one on this
    machine. Raises UsageError where Ray is not installed or the cluster does not answer.
    """
    try:
        import ray
    except ImportError:
        raise UsageError(
            "--executor ray needs Ray, which is not installed: pip install 'loraprobe[ray]'."
        ) from None
    if not ray.is_initialized():
        try:
            ray.init(address=address, log_to_driver=False, logging_level="ERROR")
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise UsageError(
                f"--executor: the Ray cluster {address or ''} does not answer ({error}); "
                "check the address and that the cluster runs."
            ) from None
    free = ray.available_resources()
    gpus, cores = int(free.get("GPU", 0)), int(free.get("CPU", 1))
    resources = {"num_gpus": 1, "num_cpus": 1} if gpus else {"num_cpus": threads or 1}
    if stateless:
        made = ray.remote(compute).options(num_cpus=threads or 1, max_retries=RESTARTS)
        import pickle

        slots = max(1, cores // (threads or 1))
        return [RayWorker(ray, made, pickle.dumps(job), True) for _ in range(slots)]
    actor = ray.remote(Holder).options(
        **resources, max_restarts=RESTARTS, max_task_retries=RESTARTS
    )
    count = gpus or max(1, cores // (threads or 1))
    return [RayWorker(ray, actor, job, False) for _ in range(count)]
