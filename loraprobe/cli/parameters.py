"""How the arguments and options of a command are written on a command line, and their help.

The signature of a command lists them. One with the name of a field in `loraprobe.options` is
written as that field says; any other says it in its own annotation. Every command also takes
`--config FILE.yaml` and `--debug`.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from loraprobe.registry import Registry

PANELS = "Adapters", "Tasks", "Composition", "Evaluation", "Machine", "Output"  # in their order
ADAPTERS, TASKS, COMPOSITION, EVALUATION, MACHINE, OUTPUT = PANELS
REFERENCE = "a directory, or owner/name with @revision and :sub/folder where needed, or NAME=REF"
Texts = list[str] | None  # the values of an option that may be repeated


def argument(metavar: str, help: str, **more: Any) -> Any:
    """An argument, which has no default to show."""
    return typer.Argument(metavar=metavar, help=help, show_default=False, **more)


def setting(metavar: str, help: str, panel: str | None = None, *flags: str, **more: Any) -> Any:
    """An option, named after its parameter unless flags are given, as a flag without a value is.

    panel: where the help shows it. metavar: " " for a flag.
    """
    return typer.Option(*flags, metavar=metavar, help=help, rich_help_panel=panel, **more)


def _names(*places: str) -> Callable[[str], list[str]]:
    """Completes the names in registries and other collections: the words that a beginning may be.

    places: MODULE.NAME of each, which is imported when a shell asks.
    """

    def complete(incomplete: str) -> list[str]:
        from loraprobe.registry import Registry

        words = []
        for module, _, name in (place.rpartition(".") for place in places):
            known = getattr(importlib.import_module(f"loraprobe.{module}"), name)
            complete_one = _specs if isinstance(known, Registry) else _starting
            words += complete_one(known, incomplete)
        return words

    return complete


def _specs(registry: Registry[Any], incomplete: str) -> list[str]:
    """Names that go on from a text; behind a colon the options of the named member."""
    name, colon, rest = incomplete.partition(":")
    if not colon or name not in registry:
        return _starting(registry.names(), incomplete.replace("-", "_"))
    fields = dataclasses.fields(registry.get(name.replace("-", "_")))
    done, comma, last = rest.rpartition(",")
    head = f"{name}:{done}{comma}"
    return [head + option for option in _starting((f"{f.name.rstrip('_')}=" for f in fields), last)]


def _starting(names: Iterable[str], incomplete: str) -> list[str]:
    return [name for name in names if name.startswith(incomplete)]


complete_methods = _names("merging.METHODS")
complete_routers = _names("routing.ROUTERS")
_systems = _names("merging.METHODS", "routing.ROUTERS", "records.FIXED")
# Types of options whose values are completed.
MethodSpecs = Annotated[Texts, typer.Option(autocompletion=complete_methods)]
RouterSpecs = Annotated[Texts, typer.Option(autocompletion=complete_routers)]
SystemSpecs = Annotated[Texts, typer.Option(autocompletion=_systems)]
DiagnosticSpecs = Annotated[Texts, typer.Option(autocompletion=_names("diagnostics.DIAGNOSTICS"))]
IssueCodes = Annotated[Texts, typer.Option(autocompletion=_names("findings.CODES"))]


def scenarios(incomplete: str) -> list[str]:
    """Scenarios of the demo."""
    from loraprobe.demo import shipped_world

    return _starting(shipped_world().scenarios, incomplete)


RefsArgument = Annotated[list[str], argument("REF", f"Adapters: {REFERENCE}.")]
TasksArgument = Annotated[list[str], argument("FILE", "Task files, or hf://datasets/owner/name.")]
BaseOption = Annotated[
    str | None,
    setting(
        "REF", "Base model: a directory, a Hub id, or auto (what the adapters agree on).", ADAPTERS
    ),
]
TaskOption = Annotated[
    Texts,
    setting(
        "FILE",
        "Questions: JSONL, JSON, CSV, TSV, Parquet, hf:// for a data set of the Hub, or "
        "lm_eval:TASK[,TASK], also with @DIR; may be repeated.",
        TASKS,
    ),
]
ProbeOption = Annotated[
    str | None,
    setting(
        "auto|FILE",
        "auto, or a file with a question or entity a line (an answer after a tab).",
        EVALUATION,
    ),
]


DebugOption = Annotated[
    bool, setting(" ", "On an error also print the traceback.", OUTPUT, "--debug")
]


@functools.cache
def settings() -> Mapping[str, Mapping[str, Any]]:
    """Name of a field -> panel, flags, metavar and help of its option."""
    from loraprobe.options import Options, OutputOptions

    groups = zip(PANELS, (*Options.__bases__, OutputOptions), strict=True)
    return {
        one.name: {"panel": panel, **one.metadata}
        for panel, group in groups
        for one in dataclasses.fields(group)
    }
