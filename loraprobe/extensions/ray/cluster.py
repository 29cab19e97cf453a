"""Tasks of a Ray cluster ask the base, on one machine or many.

A task gets one system and a batch of questions, or one adapter of a library and the items that
choose. It loads the base once in its process. Files are opened again by their paths, and their
sha256 is compared, so every machine must see the same files. The answers are those of a run
without Ray, and Ray itself tries the task of a lost process again.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
import pickle
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from loraprobe.errors import BaseError, LoraprobeError, Refused, UsageError
from loraprobe.evaluation import ResponseCache
from loraprobe.pipeline.evaluator import Evaluator, open_scorer
from loraprobe.pipeline.inputs import Inputs
from loraprobe.session import Session

RETRIES = 2  # of a task whose process was lost


@dataclass(frozen=True)
class Cluster:
    """A Ray cluster to which this process is connected. ray: the module."""

    ray: Any

    def map(
        self, work: Callable[..., Any], evaluator: Evaluator, parts: Iterable[Sequence[Any]]
    ) -> Iterator[tuple[int, Any]]:
        """That of `Executor`, with an evaluator that keeps nothing.

        A value that several parts share is sent once.
        """
        base, session, values = evaluator.inputs.base, evaluator.session, dict[int, Any]()
        parts = list(parts)
        assert base is not None
        device, cores = session.device.partition(":")[0], session.options.threads or 1
        alike = {"device": device, "dtype": session.dtype, "threads": cores, "subtract": ()}
        setup = self._sent((base, base.identity, replace(session.options, **alike)))  # type: ignore[arg-type]
        shared = self._sent((evaluator.tasks, evaluator.scorer.chat_template))
        task = self.ray.remote(_computed).options(
            num_cpus=cores, num_gpus=int(device == "cuda"), max_retries=RETRIES
        )
        for value in itertools.chain(*parts):
            if id(value) not in values:
                values[id(value)] = self._sent(value)
        waiting = {
            task.remote(work, setup, shared, *(values[id(value)] for value in part)): at
            for at, part in enumerate(parts)
        }
        while waiting:
            (done, *_), _ = self.ray.wait(list(waiting))
            try:
                yield waiting.pop(done), self.ray.get(done)
            except self.ray.exceptions.RayTaskError:  # an error of loraprobe itself
                raise
            except self.ray.exceptions.RayError as error:
                raise Refused(
                    f"The Ray cluster lost a task {RETRIES + 1} times ({type(error).__name__}); "
                    "see its log, or give each task more cores and so more memory by --threads."
                ) from None

    def _sent(self, value: Any) -> Any:
        """The value in the memory of the cluster, from which each machine takes it once."""
        # cloudpickle also pickles the functions that read a tensor when it is needed.
        return self.ray.put(self.ray.cloudpickle.dumps(value))


@contextlib.contextmanager
def open_cluster(where: str) -> Iterator[Cluster]:
    """Connects to the cluster of --executor, "ray" or an address, while the context lasts.

    "ray" is the cluster of RAY_ADDRESS, or a new one on this machine. A connection of the caller is
    used and stays. What Ray prints goes to standard error: standard output holds the result. Raises
    UsageError where Ray is not installed or the cluster does not answer.
    """
    os.environ.setdefault("RAY_ENABLE_AUTO_CONNECT", "0")  # no call starts a cluster by itself
    address = None if where == "ray" else where
    try:
        import ray

        if getattr(ray, "__file__", "") is None:  # a directory of this name, not the package
            raise ImportError
    except ImportError:
        raise UsageError(
            "--executor=ray needs Ray, which is not installed:", "pip install 'loraprobe[ray]'."
        ) from None
    with contextlib.ExitStack() as stack:
        stack.enter_context(contextlib.redirect_stdout(sys.stderr))
        if not ray.is_initialized():
            quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
            try:
                ray.init(address=address, include_dashboard=False, **quiet)
            except (ConnectionError, RuntimeError, ValueError) as error:
                asked = address or os.environ.get("RAY_ADDRESS", "of this machine")
                raise UsageError(
                    f"--executor: the Ray cluster {asked} does not answer ({error}); check the "
                    "address and that the cluster runs."
                ) from None
            stack.callback(ray.shutdown)
        yield Cluster(ray)


def _computed(work: Callable[..., Any], setup: bytes, shared: bytes, *part: bytes) -> Any:
    """Runs in a process of the cluster: the result of a part, or its LoraprobeError."""
    try:
        session, scorer = _opened(setup)
        tasks, chat = pickle.loads(shared)
        scorer = scorer.with_template(chat)
        here = Evaluator(Inputs((), ()), session, scorer, scorer, ResponseCache(), tasks)
        return work(here, *map(pickle.loads, part))
    except LoraprobeError as error:
        return error


@functools.lru_cache(maxsize=1)
def _opened(setup: bytes) -> tuple[Session, Any]:
    """The session and the scorer of this process."""
    base, identity, options = pickle.loads(setup)
    if base.identity != identity:
        raise BaseError(
            f"{base.reference} has other files on a machine of the cluster than here; give paths "
            "that every machine shares, or a reference with a commit."
        )
    session = Session(options)
    return session, open_scorer(base, options.dtype, session)[0]
