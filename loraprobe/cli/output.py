"""Prints what a command returns: results on standard output, everything else on standard error."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import typer

from loraprobe.errors import UsageError
from loraprobe.formatting import clean
from loraprobe.memory import gib
from loraprobe.options import OutputOptions
from loraprobe.secrets import scrub

if TYPE_CHECKING:
    from loraprobe.pipeline.estimate import CostEstimate
    from loraprobe.records import Audit, Progress, Sample
    from loraprobe.report.parts import View


def imports_done() -> None:
    """Turns on the garbage collection that `loraprobe.__main__` turned off until work begins.

    What was imported stays until the end, so it is left out of all collections.
    """
    if not gc.isenabled():
        gc.freeze()
        gc.enable()


@dataclass(frozen=True)
class Output(OutputOptions):
    """The options of printing, by which its methods print."""

    def __post_init__(self) -> None:
        if self.html is not None:
            from loraprobe.report.page import check_page

            check_page(self.html)
        if self.save_samples is not None:
            from loraprobe.report.documents import check_samples

            check_samples(self.save_samples)
        if self.log_to is not None:
            from loraprobe.adapters import check_folder

            check_folder(self.log_to)
        if self.json and self.markdown:
            raise UsageError("--json and --markdown both print the result; give one of them.")

    def say(self, message: str, style: str = "") -> None:
        """A remark on standard error."""
        if not self.quiet:
            from rich.console import Console

            console = Console(stderr=True, highlight=False)
            console.print(clean(message), style=style, markup=False, soft_wrap=True)

    @contextmanager
    def progress(self) -> Iterator[Progress | None]:
        """Yields what the pipeline tells its progress to; None with --quiet."""
        imports_done()
        if self.quiet:
            yield None
            return
        from loraprobe.cli.progress import shown

        with shown() as line:
            yield line

    def document(self, command: str, fields: Mapping[str, Any]) -> bool:
        """Prints a result that is no audit as JSON, if that was asked for, and tells whether."""
        if self.json:
            from loraprobe.records import document

            print(document(command, fields), flush=True)
        return self.json

    def tell(
        self, command: str, fields: Mapping[str, Any], short: str, show: Callable[[], None]
    ) -> None:
        """A result that is no audit: as a document, in one line, or as `show` prints it."""
        if self.document(command, fields):
            return
        if self.quiet:
            print(short, flush=True)
        else:
            show()

    def estimate(self, command: str, cost: CostEstimate) -> None:
        """What a run would take. command: as it is typed."""
        if self.json:
            from loraprobe.records import SCHEMA_VERSION, document

            told = {"estimate": cost.plain}
            print(document(command, told, SCHEMA_VERSION), flush=True)
        else:
            print("\n".join(_estimate_lines(cost, self.quiet)), flush=True)

    def result(
        self,
        audit: Audit,
        after: str = "",
        line: str = "",
        samples: Iterable[Sample] = (),
    ) -> None:
        """The audit, then the exit that its verdict asks for.

        `after` stands between the tables and the answer; `line` is what --quiet says if not the
        verdict; `samples` are the answers for --save-samples.
        """
        from loraprobe.report.sections import heading, sections

        if self.json:  # the table of findings is not seen then
            for issue in audit.compatibility.issues:
                if issue.severity != "note":
                    self.say(f"warning: {issue.code}: {issue.message}", style="yellow")
        if self.html is not None:
            from loraprobe.report.page import write_page

            write_page(self.html, heading(audit), sections(audit))
            self.say(f"Wrote {self.html}.")
        if self.save_samples is not None:
            from loraprobe.report.documents import write_samples

            write_samples(samples, self.save_samples)
            self.say(f"Wrote {self.save_samples}.")
        if self.log_to is not None:
            from loraprobe.report.logs import write_logs

            write_logs(audit, samples, self.log_to)
            self.say(f"Wrote {self.log_to}.")
        self._print(audit, after, line)
        sys.stdout.flush()
        raise typer.Exit(0 if self.exit_zero else exit_code(audit))

    def _print(self, audit: Audit, after: str, line: str) -> None:
        """The result on standard output, in the form that was asked for."""
        from loraprobe.report.sections import footer, heading, one_line, sections

        if self.json:
            print(scrub(audit.to_json()))
        elif self.markdown:
            from loraprobe.report.markdown import markdown

            print(markdown(heading(audit), sections(audit)))
        elif self.quiet:
            print(clean(line) or one_line(audit))
        else:
            from rich.console import Console

            from loraprobe.report.terminal import render

            shown = sections(audit, getattr(audit, "places", {}))  # which a saved one lacks
            told = footer(audit) if self.explain else f"{footer(audit)}; all: --explain"
            view: View = "explained" if self.explain else "short"
            render(Console(highlight=False), heading(audit), shown, view, [after, told])


def exit_code(audit: Audit) -> int:
    """0 likely or compatible, 1 unlikely or incompatible, 3 inconclusive.

    Where only weights were asked, nothing could be decided, and compatible adapters are 0; so is a
    library of which something can be used. Where no merge and no router was asked, what was asked
    is decided unless it takes more evidence.
    """
    if audit.verdict is not None and audit.verdict.answers_without_composing:
        return 0
    if audit.verdict is not None and audit.verdict.evidence != "weights":
        return {"likely": 0, "unlikely": 1, "incompatible": 1, "inconclusive": 3}[
            audit.verdict.decision
        ]
    usable = any(row.state == "usable" for row in audit.members)
    nothing = audit.library is not None and not usable
    return 0 if audit.compatibility.compatible and not nothing else 1


def _estimate_lines(cost: CostEstimate, quiet: bool) -> list[str]:
    """Systems x items, time and memory, at most 60 columns wide; quiet: in one line."""
    from loraprobe.cli.progress import spoken

    memory = gib(cost.memory_bytes)
    if quiet:
        return [f"{spoken(cost.seconds)}, {memory}"]
    return [
        f"{len(cost.systems)} systems x {cost.items} items",
        "",
        f"about {spoken(cost.seconds)}, and {memory} of memory",
        "Timed on a few of your questions on this machine. It takes",
        "less where the decision holds before all items are asked",
        "(without --all-items). Merges that need new weights, and",
        "the statistics, come on top.",
    ]
