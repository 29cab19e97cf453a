"""The front door: parse, call one core function, hand the result to the report."""

from __future__ import annotations

import inspect as inspect_
import signal
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from loraprobe._version import __version__
from loraprobe.errors import LoraprobeError, OutOfMemory
from loraprobe.memory import is_out_of_memory

# What an interrupted command leaves for its next call.
KEPT = {
    "inspect": "; what was finished is kept. The same call with --resume goes on.",
    "merge-and-eval": "; what was finished is kept. The same call with --resume goes on.",
    "merge": "; the output is there whole or not at all.",
    "route": "; the output is there whole or not at all.",
    "lab": "; what was finished is kept. The same call goes on.",
}


MEMORY_GONE = (
    "Memory ran out; close what else uses it, take --dtype bfloat16, fewer adapters or a smaller "
    "base model, or another --device."
)

INTERRUPTIONS: list[int] = []  # the signals that came


class Guarded(TyperGroup):
    """Turns loraprobe's errors into one sentence on standard error and an exit code."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            raise typer.Exit(141) from None
        except (Exception, KeyboardInterrupt) as error:
            # A library interrupted while it is imported may raise anything in the end.
            if INTERRUPTIONS or isinstance(error, KeyboardInterrupt):
                fail(f"Interrupted{KEPT.get(ctx.invoked_subcommand or '', '.')}")
                raise typer.Exit(130) from None
            if is_out_of_memory(error):
                error = OutOfMemory(MEMORY_GONE)
            if not isinstance(error, LoraprobeError):
                raise _without_secrets(error) from None
            fail(str(error))
            raise typer.Exit(error.exit_code) from None


class Unexpected(Exception):
    """A mistake of loraprobe's own: its traceback, with no secret in it."""


def _without_secrets(error: BaseException) -> BaseException:
    """The error as it is, unless its traceback would show a token or a password."""
    import traceback

    from loraprobe.secrets import scrub

    told = "".join(traceback.format_exception(error))
    return error if scrub(told) == told else Unexpected(scrub(told))


def fail(message: str) -> None:
    """One sentence on standard error, free of control characters."""
    from loraprobe.report.wording import clean

    typer.echo(f"error: {clean(message)}", err=True)


app = typer.Typer(
    name="loraprobe",
    cls=Guarded,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Tells whether composing LoRA adapters will work for your task, why, and what to do "
    "instead. Start with: loraprobe demo",
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"loraprobe {__version__}")
        raise typer.Exit()


def _schema(wanted: bool) -> None:
    if wanted:
        import json

        from loraprobe.report.schema import json_schema

        typer.echo(json.dumps(json_schema(), indent=1))
        raise typer.Exit()


def _limits(text: str | None) -> None:
    if text is not None:
        from loraprobe.limits import use

        use(text)


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
    json_schema: Annotated[
        bool,
        typer.Option(
            "--json-schema", callback=_schema, is_eager=True, help="Print the schema of --json."
        ),
    ] = False,
    limits: Annotated[
        str | None,
        typer.Option(
            metavar="NAME=N,...",
            help="Raise bounds on strangers' files and on memory, such as modules=1000000,line=5MB "
            "(also LORAPROBE_LIMITS).",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Exit codes: 0 likely works (or the command did its job), 1 unlikely or incompatible,
    2 wrong usage or unusable input, 3 inconclusive, 130 interrupted."""
    _limits(limits)


def _flowing(docstring: str) -> str:
    """A docstring whose paragraphs fill whatever width the terminal has."""
    paragraphs = inspect_.cleandoc(docstring).split("\n\n")
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)


def _register() -> None:
    from loraprobe.cli import demo, evaluate, find, inspect, lab, merge, methods, route, verify

    commands = (
        ("demo", demo.demo),
        ("find", find.find),
        ("inspect", inspect.inspect),
        ("merge", merge.merge),
        ("route", route.route),
        ("merge-and-eval", evaluate.merge_and_eval),
        ("verify", verify.verify),
        ("methods", methods.methods),
    )
    for name, function in commands:
        app.command(name, help=_flowing(function.__doc__ or ""))(function)
    app.command(
        "lab",
        help=_flowing(lab.lab.__doc__ or ""),
        add_help_option=False,
        context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
    )(lab.lab)


_register()


def main() -> None:
    """The `loraprobe` command."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _interrupted)
    app()


def _interrupted(number: int, frame: Any) -> None:
    """Raises KeyboardInterrupt; the first time not before a running import is done.

    An exception in the middle of an import of torch can abort the whole process.
    """
    if number == signal.SIGINT:
        INTERRUPTIONS.append(number)
    if len(INTERRUPTIONS) == 1 and hasattr(signal, "setitimer") and _imports(frame):
        signal.signal(signal.SIGALRM, _interrupted)
        signal.setitimer(signal.ITIMER_REAL, 0.02)  # look again then
        return
    raise KeyboardInterrupt


def _imports(frame: Any) -> bool:
    """Whether an import is under way somewhere below this frame."""
    while frame is not None:
        if frame.f_code.co_filename == "<frozen importlib._bootstrap>":
            return True
        frame = frame.f_back
    return False
