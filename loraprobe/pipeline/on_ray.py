"""`--executor ray`: tasks of a Ray cluster ask the base, one machine or many.

A task gets one system and a batch of questions, or one adapter of a library and the items that
choose. It loads the base once in its process. Files are opened again by their paths, and their
sha256 is compared, so every machine must see the same files. The answers are those of a run
without Ray, and Ray itself tries the task of a lost process again.
"""

from __future__ import annotations

import contextlib
import functools
import os
import pickle
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from loraprobe.errors import BaseError, LoraprobeError, Refused, UsageError
from loraprobe.evaluation import Ledger, System
from loraprobe.evaluation.asking import BatchAnswers, QuestionBatch, ask
from loraprobe.evaluation.plan import Question
from loraprobe.options import Options
from loraprobe.pipeline.evaluator import Evaluator, open_scorer
from loraprobe.pipeline.inputs import Inputs
from loraprobe.pipeline.session import Session
from loraprobe.probes import ScreenedTexts
from loraprobe.records import ItemResult
from loraprobe.scoring.states import States
from loraprobe.tasks import Task

RETRIES = 2  # of a task whose process was lost

Alone = tuple[list[ItemResult], States | None]  # answers and hidden states of one adapter


@dataclass(frozen=True)
class Cluster:
    """A Ray cluster to which this process is connected. ray: the module."""

    ray: Any

    def answers(self, evaluator: Evaluator, batches: Sequence[QuestionBatch]) -> BatchAnswers:
        """The answers to batches of questions, as they come. Raises LoraprobeError."""
        options, chat = evaluator.session.options, evaluator.scorer.chat_template
        systems = {batch.system.key: batch.system for batch in batches}
        sent = {key: self._sent(replace(s, merged=None)) for key, s in systems.items()}
        parts = [
            (sent[system.key], self._sent((asked, chat, options.max_new_tokens)))
            for system, asked in batches
        ]
        for at, rows in self._map(_answers, evaluator, parts):
            if isinstance(rows, LoraprobeError):
                raise rows
            yield batches[at], rows

    def alone(
        self,
        evaluator: Evaluator,
        systems: Mapping[str, System],
        tasks: Sequence[Task],
        reading: ScreenedTexts | None,
    ) -> Iterator[tuple[str, Alone | LoraprobeError]]:
        """What each adapter of a library says, as it comes, or why it cannot be asked.

        reading: the texts of which its hidden states are read.
        """
        names, shared = list(systems), self._sent((tasks, reading, evaluator.scorer.chat_template))
        parts = [(self._sent(system), shared) for system in systems.values()]
        for at, found in self._map(_alone, evaluator, parts):
            yield names[at], found

    def _sent(self, value: Any) -> Any:
        """The value in the memory of the cluster, from which each machine takes it once."""
        # cloudpickle also pickles the functions that read a tensor when it is needed.
        return self.ray.put(self.ray.cloudpickle.dumps(value))

    def _map(
        self, work: Callable[..., Any], evaluator: Evaluator, parts: Sequence[Sequence[Any]]
    ) -> Iterator[tuple[int, Any]]:
        """(index of a part, its result or its LoraprobeError) of all parts, as they come."""
        base, session = evaluator.inputs.base, evaluator.session
        assert base is not None
        device, cores = session.device.partition(":")[0], session.options.threads or 1
        alike: dict[str, Any] = {
            "device": device,
            "dtype": session.dtype,
            "threads": cores,
            "subtract": (),
        }
        setup = self._sent((base, base.identity, replace(session.options, **alike)))
        task = self.ray.remote(_computed).options(
            num_cpus=cores, num_gpus=int(device == "cuda"), max_retries=RETRIES
        )
        waiting = {task.remote(work, setup, *part): at for at, part in enumerate(parts)}
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


@contextlib.contextmanager
def open_cluster(options: Options) -> Iterator[Cluster | None]:
    """Connects to the cluster of --executor while the context lasts; None without one.

    "ray" is the cluster of RAY_ADDRESS, or a new one on this machine. A connection of the caller is
    used and stays. What Ray prints goes to standard error: standard output holds the result. Raises
    UsageError where Ray is not installed or the cluster does not answer.
    """
    if options.executor is None:
        yield None
        return
    os.environ.setdefault("RAY_ENABLE_AUTO_CONNECT", "0")  # no call starts a cluster by itself
    address = None if options.executor == "ray" else options.executor
    try:
        import ray
    except ImportError:
        raise UsageError(
            "--executor=ray needs Ray, which is not installed: pip install 'loraprobe[ray]'."
        ) from None
    with contextlib.ExitStack() as stack:
        stack.enter_context(contextlib.redirect_stdout(sys.stderr))
        if not ray.is_initialized():
            quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
            try:
                ray.init(address=address, include_dashboard=False, **quiet)
            except (ConnectionError, RuntimeError, ValueError) as error:
                where = address or os.environ.get("RAY_ADDRESS", "of this machine")
                raise UsageError(
                    f"--executor: the Ray cluster {where} does not answer ({error}); check the "
                    "address and that the cluster runs."
                ) from None
            stack.callback(ray.shutdown)
        yield Cluster(ray)


def _computed(work: Callable[..., Any], setup: bytes, *part: bytes) -> Any:
    """Runs in a process of the cluster: the result of a part, or its LoraprobeError."""
    try:
        return work(*_opened(setup), *map(pickle.loads, part))
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


def _answers(
    session: Session,
    scorer: Any,
    system: System,
    asked: tuple[Sequence[Question], bool, int | None],
) -> list[ItemResult]:
    questions, chat, most = asked
    with scorer.with_template(chat).with_composition(system.composition) as opened:
        return ask(opened, questions, system.key, most)


def _alone(
    session: Session,
    scorer: Any,
    system: System,
    shared: tuple[Sequence[Task], ScreenedTexts | None, bool],
) -> Alone:
    (tasks, reading, chat), states = shared, None
    evaluator = Evaluator(Inputs((), ()), session, scorer.with_template(chat), Ledger(), tasks)
    if reading is not None:
        with evaluator.scorer.with_composition(system.composition) as opened:
            states, answers = reading.read(opened, system.name)
        evaluator.ledger.append(answers)
    evaluator.run([system])
    return list(evaluator.ledger), states
