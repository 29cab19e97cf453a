"""`loraprobe route`: adapters and a router as a composition that can be loaded again."""

from __future__ import annotations

from loraprobe.cli.options import REQUIRED, BaseOrNone, Refs, Tasks, with_options
from loraprobe.cli.output import Output
from loraprobe.cli.saving import save
from loraprobe.command_options import ROUTE
from loraprobe.options import Options

OUTPUT = "target overwrite push public json html markdown explain quiet"


@with_options(
    *ROUTE,
    *OUTPUT.split(),
    target={"default": REQUIRED},
    routers={"default": "arrow", "repeats": False, "help": "Router, such as arrow:top_k=1."},
)
def route(
    refs: Refs,
    options: Options,
    output: Output,
    base: BaseOrNone = None,
    task: Tasks = None,
) -> None:
    """Save adapters and a router as a composition: a directory that loraprobe.load_composition
    restores, and, where it computes the same, peft's own Arrow.

    Needs no base model, except for a router that learns from prompts, for searched weights, and to
    tell whether peft can express it. Nothing is evaluated: merge-and-eval does that.
    """
    from loraprobe.pipeline import commands

    save(commands.compose, refs, base, task, options, output)
