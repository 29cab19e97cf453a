"""One run of a command: its options, its progress, and how long each stage took."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import torch

from loraprobe._version import __version__
from loraprobe.errors import LoraprobeError
from loraprobe.memory import peak_memory
from loraprobe.options import Options
from loraprobe.records import Progress, Provenance

if TYPE_CHECKING:
    from loraprobe.adapters import Adapter
    from loraprobe.tasks import Task

Ref = str | Path  # a directory, a file, or a reference to the Hub
Adapters: TypeAlias = "Sequence[Adapter | Ref]"
Tasks: TypeAlias = "Sequence[Task | Ref] | Task | Ref"
Cards = Mapping[str, str | None]  # adapter -> the text of its card


class Executor(Protocol):
    """Processes that ask the base."""

    def map(
        self, work: Callable[..., Any], evaluator: Any, parts: Iterable[Sequence[Any]]
    ) -> Iterator[tuple[int, Any]]:
        """(index of a part, its result or its LoraprobeError) of all parts, as they come.

        Parts are taken one by one, where this process works.

        work(evaluator, *part) gives a result, with an `Evaluator` of the same tasks.
        """


class LocalExecutor:
    """This process, which takes the parts in order when they are asked for."""

    def map(
        self, work: Callable[..., Any], evaluator: Any, parts: Iterable[Sequence[Any]]
    ) -> Iterator[tuple[int, Any]]:
        """That of `Executor`."""
        for at, part in enumerate(parts):
            try:
                yield at, work(evaluator, *part)
            except LoraprobeError as error:
                yield at, error


@dataclass
class Session:
    """Options, progress and timings of a run. Results are not kept here: stages return them.

    written: files and directories that the command will write, so that an output never lands on an
    input. arguments: the command line, for the provenance. begun: when the command started, by
    time.perf_counter. resume: whether to use what an earlier run kept, in the directory `state`
    (None: the user's cache). explain: whether probes run that no verdict reads. target: the
    directory of --output. Each function of `commands` sets `command`, as it is typed ("route").

    `device` and `dtype` are those of the base model, once it is loaded; `engine` answers the
    questions. `executor` asks the base: this process, or what an extension opens.
    """

    options: Options = field(default_factory=Options)
    progress: Progress | None = None
    written: Sequence[Path] = ()
    arguments: tuple[str, ...] = ()
    begun: float = field(default_factory=time.perf_counter)
    resume: bool = False
    explain: bool = False
    state: Path | None = None
    target: Path | None = None
    command: str = ""
    device: str = "cpu"
    dtype: str = "float32"
    engine: str = "transformers"
    seconds: dict[str, float] = field(default_factory=dict)
    executor: Executor = field(default_factory=lambda: LocalExecutor())

    def __post_init__(self) -> None:
        if self.options.threads is not None:
            torch.set_num_threads(self.options.threads)

    @classmethod
    def of_call(cls, options: Mapping[str, Any]) -> Session:
        """That of a Python call. options: as its keywords give them."""
        kept = {name: options[name] for name in ("resume", "state") if name in options}
        given = {name: value for name, value in options.items() if name not in kept}
        return cls(Options.of(given), **kept)

    def tell(self, step: str, done: int, total: int) -> None:
        """Tells a listener to progress, if there is one."""
        if self.progress is not None:
            self.progress(step, done, total)

    @contextmanager
    def stage(self, name: str, words: str = "") -> Iterator[None]:
        """Reports and times a stage; the times of a stage that runs twice add up.

        words: what the line of progress says of a stage that the command line does not know.
        """
        self.tell(words or name, 0, 0)
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start

    def provenance(self) -> Provenance:
        """Versions, arguments, machine, time and memory of the run.

        The seconds add up to the time since the command started: "other" is the start-up and the
        time between the stages.
        """
        other = max(0.0, time.perf_counter() - self.begun - sum(self.seconds.values()))
        seconds = {"other": other, **self.seconds}
        return Provenance(
            loraprobe=__version__,
            torch=torch.__version__,
            arguments=self.arguments,
            seed=self.options.seed,
            device=self.device,
            dtype=self.dtype,
            engine=self.engine,
            seconds={name: round(value, 3) for name, value in seconds.items()},
            peak_memory_bytes=peak_memory(),
        )
