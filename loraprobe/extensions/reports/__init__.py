"""Reports beside the terminal's: `--html` a page, `--markdown` for a pull request, `--save-samples`
every question with every answer.

page      sections, with what only a page shows, as one HTML page; its beginning in a notebook
figures   what the figures show, and how matplotlib draws them
markdown  the answer, two tables and where it comes from
samples   the file of --save-samples
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from loraprobe.defaults import LOSS
from loraprobe.errors import UsageError
from loraprobe.extension import PRINTED, Extension, ResultLog
from loraprobe.options import AddedOptions, Options, option

if TYPE_CHECKING:
    from loraprobe.records import Audit, Sample

AUDITS = "demo", "inspect", "merge-and-eval", "merge", "route", "report", "screen", "convert"


@dataclass(frozen=True)
class ReportOptions(AddedOptions):
    """In which forms a result is written beside that of the terminal."""

    title: ClassVar[str] = "Reports"

    html: Path | None = option(
        None, "FILE", "Also write the report to this HTML file.", typed=True, commands=AUDITS
    )
    markdown: bool = option(
        False, "", "Print the result as Markdown, for a pull request.", commands=AUDITS
    )
    save_samples: Path | None = option(
        None,
        "FILE",
        "Write every question with what each system answered to this file (JSONL).",
        typed=True,
        commands=("demo", "merge-and-eval"),
    )

    def implied(self) -> Mapping[str, Any]:
        """A page maps layers and modules."""
        return {} if self.html is None else {"per_module": True}

    def check(self, options: Options) -> None:
        """Raises OutputError for existing files that are others, UsageError for samples of a metric
        that asks for no answer."""
        for log in LOGS:
            if (place := log.place(options)) not in (None, PRINTED):
                log.module().check(place)
        if self.save_samples is not None and options.metric == LOSS:
            raise UsageError(
                "--save-samples keeps answers, and --metric=answer_loss asks for none; leave one "
                "out."
            )


@dataclass(frozen=True)
class Log(ResultLog):
    """What a module of this folder writes, where its option asks for it."""

    name: str
    option: str
    flag: str = ""

    def module(self) -> Any:
        return importlib.import_module(f"{__name__}.{self.name}")

    def place(self, options: Options) -> Path | None:
        given = getattr(options.of_extension(ReportOptions), self.option)
        return PRINTED if given is True else given or None

    def write(self, audit: Audit, samples: Iterable[Sample], place: Path) -> None:
        self.module().write(audit, samples, place)


LOGS = (
    Log("page", "html"),
    Log("samples", "save_samples"),
    Log("markdown", "markdown", "--markdown"),
)


class Reports(Extension):
    """Writes and prints results in other forms."""

    options = ReportOptions
    logs = LOGS

    def notebook(self, audit: Audit) -> str:
        from loraprobe.extensions.reports.page import fragment

        return fragment(audit)


EXTENSION = Reports()
