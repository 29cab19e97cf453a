"""lm-evaluation-harness: its tasks, `lm_eval:TASK`; `--log-to` writes results as it does; and
`lm_eval --model loraprobe`, which an entry point in pyproject.toml gives it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from loraprobe.extension import Extension, ResultLog, TaskSource
from loraprobe.options import AddedOptions, Options, option

if TYPE_CHECKING:
    from loraprobe.records import Audit, Sample
    from loraprobe.tasks import Task

PREFIX = "lm_eval:"  # before the names of tasks and of their metrics


@dataclass(frozen=True)
class HarnessOptions(AddedOptions):
    """What of tasks may run, and what is written as the harness writes it."""

    title: ClassVar[str] = "lm-evaluation-harness"

    run_unsafe_code: bool = option(
        False,
        "",
        "Let lm_eval: run the code in a folder of YAML, or what a model writes.",
        affects={"questions"},
        typed=True,
        commands=("inspect", "merge-and-eval", "screen", "task check", "task sample"),
    )
    log_to: Path | None = option(
        None,
        "DIR",
        "Also write results and samples as lm-eval does, a folder a system.",
        typed=True,
        commands=("merge-and-eval", "demo"),
    )

    def check(self, options: Options) -> None:
        """Raises OutputError for a --log-to that is a file or lies in one."""
        if self.log_to is not None:
            from loraprobe.extensions.harness.logs import check_folder

            check_folder(self.log_to)


class HarnessTasks(TaskSource):
    """Tasks that the harness loads, asks and judges."""

    help = f"{PREFIX}TASK[,TASK], also with @DIR"
    asks = True

    def claims(self, reference: str) -> bool:
        return reference.startswith(PREFIX)

    def open(self, reference: str, options: Options) -> Sequence[Task]:
        from loraprobe.extensions.harness.tasks import load_harness

        return load_harness(
            reference,
            options.limit,
            metric=options.metric,
            max_new_tokens=options.max_new_tokens,
            run_unsafe_code=options.of_extension(HarnessOptions).run_unsafe_code,
        )


class HarnessLogs(ResultLog):
    """Results and samples, a folder a system."""

    def place(self, options: Options) -> Path | None:
        return options.of_extension(HarnessOptions).log_to

    def write(self, audit: Audit, samples: Iterable[Sample], place: Path) -> None:
        from loraprobe.extensions.harness.logs import write_logs

        write_logs(audit, samples, place)


class Harness(Extension):
    """Asks tasks of the harness, and writes logs."""

    options = HarnessOptions
    task_sources = (HarnessTasks(),)
    logs = (HarnessLogs(),)


EXTENSION = Harness()
