"""lm-evaluation-harness: `--log-to` writes results as it does."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from loraprobe.extension import Extension
from loraprobe.options import AddedOptions, Options, option

if TYPE_CHECKING:
    from loraprobe.records import Audit, Sample


@dataclass(frozen=True)
class HarnessOptions(AddedOptions):
    """What is written as the harness writes it."""

    title: ClassVar[str] = "lm-evaluation-harness"

    log_to: Path | None = option(
        None,
        "DIR",
        "Also write results and samples as lm-eval does, a folder a system.",
        typed=True,
        commands=("merge-and-eval", "demo"),
        shows=True,
    )

    def check(self, options: Options) -> None:
        """Raises OutputError for a --log-to that is a file or lies in one."""
        if self.log_to is not None:
            from loraprobe.adapters import check_folder

            check_folder(self.log_to)


class Harness(Extension):
    """Writes logs."""

    options = HarnessOptions

    def writes(self, options: Options) -> Sequence[Path]:
        place = options.of_extension(HarnessOptions).log_to
        return [] if place is None else [place]

    def finished(self, audit: Audit, samples: Iterable[Sample], options: Options) -> Sequence[Path]:
        places = self.writes(options)
        for place in places:
            from loraprobe.extensions.harness.logs import write_logs

            write_logs(audit, samples, place)
        return places


EXTENSION = Harness()
