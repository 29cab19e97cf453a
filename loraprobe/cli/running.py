"""Runs a command from its options to its exit code.

Outputs are checked before anything is read. What a command returns is printed on standard output,
everything else on standard error. The line of progress says which step of a run is done, how much
of it, and the time left. On a terminal it stands below everything else and is gone at the end.
Elsewhere it is printed every half minute.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import itertools
import shlex
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from loraprobe.errors import LoraprobeError, UsageError
from loraprobe.extension import PRINTED, logs_of, output_formats_of, summaries
from loraprobe.formatting import clean, size
from loraprobe.options import Options, hints, option
from loraprobe.secrets import scrub

if TYPE_CHECKING:
    from loraprobe.pipeline.estimate import CostEstimate
    from loraprobe.pipeline.outcome import Outcome
    from loraprobe.records import Audit, Progress, Sample
    from loraprobe.report.parts import View

INTERVAL = 30.0  # seconds between two lines without a terminal
WORDS = {
    "read": "read the adapters",
    "compare": "compare the adapters",
    "check": "check the adapters",
    "diagnose": "compare the adapters",
    "load": "load the base",
    "estimate": "estimate the time",
    "template": "ask with and without the chat template",
    "cover": "measure what the base knows",
    "hash": "hash the base",
    "write": "write the model",
    "learn": "learn weights",
    "learn weights": "learn weights",
}


@dataclass
class Call:
    """What is known of a call of the command line.

    `words` are those that were typed, with those of --config; `started` is when it began, by
    time.perf_counter, None if only a command of it is run; `interrupted` is the number of the
    signal that ended it, 0 for none.
    """

    words: list[str] = field(default_factory=list)
    started: float | None = None
    interrupted: int = 0


CALL = Call()


def imports_done() -> None:
    """Turns on the garbage collection that `loraprobe.__main__` turned off until work begins.

    What was imported stays until the end, so it is left out of all collections.
    """
    if not gc.isenabled():
        gc.freeze()
        gc.enable()


@dataclass
class ProgressLine:
    """What is known of the progress of a run.

    It is called with (stage, done, total). `total` 0 is the start of a stage of unknown length. The
    time left follows from the time that was taken since nothing of the stage was done.
    """

    clock: Callable[[], float] = time.monotonic
    stage: str = "read the adapters"
    done: int = 0
    total: int = 0
    begun: dict[str, float] = field(default_factory=dict)  # first word of a stage -> when it began

    def __call__(self, stage: str, done: int, total: int) -> None:
        verb = stage.partition(" ")[0]  # one for all systems that are asked
        if done == 0 or verb not in self.begun:
            self.begun[verb] = self.clock()
        self.stage, self.done, self.total = stage, done, total

    def text(self) -> str:
        """The line, such as "evaluate sum, system 5 of 9, 48 of 90, about 20 s left"."""
        passed = self.clock() - self.begun.get(self.stage.partition(" ")[0], self.clock())
        told = [clean(WORDS.get(self.stage, self.stage))]
        if self.total > 1:
            told.append(f"{self.done} of {self.total}")
        if 0 < self.done < self.total:
            told.append(f"about {spoken(passed / self.done * (self.total - self.done))} left")
        return ", ".join(told)


def spoken(seconds: float) -> str:
    """A duration in the unit that suits it."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes / 60:.1f} h"


def _live(line: ProgressLine) -> AbstractContextManager[Any]:
    """Shows the line of progress on a terminal while the context lasts."""
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    return Live(
        get_renderable=lambda: Text(line.text(), no_wrap=True, overflow="ellipsis"),
        console=Console(stderr=True),
        transient=True,
        refresh_per_second=4,
    )


@contextmanager
def _spoken_now_and_then(line: ProgressLine) -> Iterator[None]:
    """Prints the line of progress every half minute while the context lasts."""
    stop = threading.Event()

    def speak() -> None:
        while not stop.wait(INTERVAL):
            print(line.text(), file=sys.stderr, flush=True)

    speaker = threading.Thread(target=speak, daemon=True)
    speaker.start()
    try:
        yield
    finally:
        stop.set()
        speaker.join()


@dataclass(frozen=True)
class Output:
    """How a command prints and where it writes; no decision depends on it."""

    target: Path | None = option(None, "DIR", "Directory to write.", "--output", "-o", typed=True)
    overwrite: bool = option(False, "", "Replace an existing output.", typed=True)
    json: bool = option(False, "", "Print one JSON document on standard output.")
    explain: bool = option(False, "", "Print every reason, probe and figure; all probes run.")
    dry_run: bool = option(
        False, "", "Print what the run would take (systems, time, memory), and stop."
    )
    quiet: bool = option(False, "", "No progress or warnings; one line of result.", "--quiet", "-q")
    exit_zero: bool = option(False, "", "Exit 0 whatever the verdict says.")
    resume: bool = option(False, "", "Ask only what no earlier run asked; use kept answers.")

    def say(self, message: str, style: str = "") -> None:
        """A remark on standard error."""
        if not self.quiet:
            from rich.console import Console

            console, text = Console(stderr=True, highlight=False), clean(message)
            if console.is_terminal:  # which would break within words; a path stays whole
                fill = textwrap.TextWrapper(
                    console.width, break_long_words=False, break_on_hyphens=False
                ).fill
                text = "\n".join(map(fill, text.split("\n")))
            console.print(text, style=style, markup=False, soft_wrap=True)

    @contextmanager
    def progress(self) -> Iterator[Progress | None]:
        """Yields what the pipeline tells its progress to; None with --quiet."""
        imports_done()
        if self.quiet:
            yield None
            return
        line = ProgressLine()
        with _live(line) if sys.stderr.isatty() else _spoken_now_and_then(line):
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

            print(document(command, {"estimate": cost}, SCHEMA_VERSION), flush=True)
        else:
            print("\n".join(_estimate_lines(cost, self.quiet)), flush=True)

    def result(
        self,
        audit: Audit,
        options: Options,
        after: str = "",
        line: str = "",
        samples: Iterable[Sample] = (),
    ) -> None:
        """The audit, then the exit that its verdict asks for.

        `after` stands between the tables and the answer; `line` is what --quiet says if not the
        verdict; `samples` are the answers, for what extensions write.
        """
        if self.json:  # the table of findings is not seen then
            for issue in audit.compatibility.issues:
                if issue.severity != "note":
                    self.say(f"warning: {issue.code}: {issue.message}", style="yellow")
        logs = logs_of(options)
        for place, log in logs:
            log.write(audit, samples, place)
            if place is not PRINTED:
                self.say(f"Wrote {place}.")
        if not any(place is PRINTED for place, _ in logs):
            self._print(audit, after, line)
        sys.stdout.flush()
        raise typer.Exit(0 if self.exit_zero else exit_code(audit))

    def _print(self, audit: Audit, after: str, line: str) -> None:
        """The result on standard output, in the form that was asked for."""
        from loraprobe.report.sections import footer, heading, one_line, sections

        if self.json:
            print(scrub(audit.to_json()))
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

    Where only weights were asked, nothing could be decided, and compatible adapters are 0 unless an
    extension says otherwise. Where no merge and no router was asked, what was asked is decided
    unless it takes more evidence.
    """
    if audit.verdict is not None and audit.verdict.compositions_not_asked:
        return 0
    if audit.verdict is not None and audit.verdict.evidence != "weights":
        return {"likely": 0, "unlikely": 1, "incompatible": 1, "inconclusive": 3}[
            audit.verdict.decision
        ]
    failed = any(one.fails for one in summaries(audit))
    return 0 if audit.compatibility.compatible and not failed else 1


def _estimate_lines(cost: CostEstimate, quiet: bool) -> list[str]:
    """Systems x items, time and memory, at most 60 columns wide; quiet: in one line."""
    memory = size(cost.memory_bytes)
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
        *cost.hints,
    ]


def options_from(parameters: Mapping[str, Any]) -> tuple[Options, Output]:
    """The options that decide a result, and those of printing.

    parameters: of a command, by name; None is what was not given. Raises UsageError for two forms
    of one result.
    """
    given = {name: value for name, value in parameters.items() if value is not None}
    output = Output(**{one.name: given[one.name] for one in fields(Output) if one.name in given})
    options = Options.of({name: given[name] for name in hints() if name in given})
    forms = [log.flag for place, log in logs_of(options) if place is PRINTED]
    if forms and output.json:
        raise UsageError(f"--json and {forms[0]} both print the result; give one of them.")
    return options, output


def run(
    output: Output,
    options: Options,
    command: str,
    refs: Iterable[str],
    base: Any,
    tasks: Sequence[Any] | None,
    *,
    read: Iterable[str] = (),
    module: str = "loraprobe.pipeline.commands",
    **more: Any,
) -> Any:
    """What this function of a module returns.

    For --dry-run its estimate is printed, and typer.Exit raised: what the module's function returns
    that has `estimate_` before its name. refs: of the adapters; they are taken once the options are
    checked. tasks: None for a function that takes none. read: files that are read beside the tasks.
    more: what else the function takes.
    """
    from loraprobe.session import Session

    commands = importlib.import_module(module)

    given = {"base": base, **more} if tasks is None else {"base": base, "tasks": tasks, **more}
    adapters = list(refs)
    with output.progress() as progress:
        written = _checked_outputs(output, options, [*adapters, base], [*(tasks or ()), *read])
        begun = time.perf_counter() if CALL.started is None else CALL.started
        session = Session(
            options,
            progress,
            written,
            tuple(CALL.words),
            begun,
            output.resume,
            output.explain,
            target=output.target,
        )
        if not output.dry_run:
            return getattr(commands, command)(adapters, session, **given)
        expected = getattr(commands, f"estimate_{command}")(adapters, session, **given)
    output.estimate(session.command, expected)
    raise typer.Exit()


def _checked_outputs(
    output: Output, options: Options, refs: Iterable[Any], files: Iterable[Any]
) -> list[Path]:
    """Where a command will write, checked before anything is read.

    Raises OutputError for an output that cannot be written, or that is, contains or lies inside
    something that the arguments name: an adapter, the base, a task, a prompt file.
    """
    from loraprobe.adapters import check_apart, check_output
    from loraprobe.hub import Reference

    read = [Path(file) for file in files if file]
    read += [file for _, file in options.router_prompts]
    read += [Path(guard) for guard in options.guards if isinstance(guard, (str, Path))]
    for reference in (*refs, *options.subtract):
        with contextlib.suppress(LoraprobeError):  # reading it raises the error
            if isinstance(reference, str):
                read += filter(None, [Reference.parse(reference, bare=True).path])
    formats = output_formats_of(options)
    own = [] if output.target is None else [("--output", output.target)]
    named = [*own, *((format_.flag, place) for place, format_ in formats)]
    directories = [place for _, place in named]
    written = [*directories, *(place for place, _ in logs_of(options) if place is not PRINTED)]
    for target in written:
        check_apart(target, read)
    for target in directories:
        check_output(target, output.overwrite)
    for _, format_ in formats:
        format_.check()
    for (flag, one), (other_flag, other) in itertools.combinations(named, 2):
        real = one.resolve(), other.resolve()
        if real[0].is_relative_to(real[1]) or real[1].is_relative_to(real[0]):
            raise UsageError(f"{flag} and {other_flag} need two directories, none in the other.")
    return written


def write(outcome: Outcome, output: Output, options: Options) -> None:
    """Saves what a command made, as adapter or composition and in the other formats asked for.

    What cannot be saved is told.
    """
    from loraprobe.records import display_name

    made, formats = outcome.made, output_formats_of(options)
    if output.target is not None and made is not None:
        made.save(output.target, overwrite=output.overwrite)
        upload = f"hf upload OWNER/NAME {shlex.quote(str(output.target))}"
        output.say(f"Wrote {display_name(made.name)} to {output.target}. To publish it: {upload}")
    elif output.target is not None:
        output.say(f"Nothing was written to {output.target}: {outcome.why_nothing}")
    for place, format_ in formats:
        if not format_.takes(made):
            output.say(f"Nothing was written to {place}: {outcome.why_nothing}")
            continue
        with output.progress() as progress:
            sentences = format_.write(made, place, output.overwrite, progress)
        for sentence in sentences:
            output.say(sentence)
