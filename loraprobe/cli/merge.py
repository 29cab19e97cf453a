"""`loraprobe merge`: one adapter from several, without the base model."""

from __future__ import annotations

from loraprobe.cli.options import REQUIRED, BaseOrNone, Refs, Tasks, with_options
from loraprobe.cli.output import Output
from loraprobe.cli.saving import save
from loraprobe.command_options import MERGE
from loraprobe.errors import UsageError
from loraprobe.options import Options

OUTPUT = "target overwrite push public json html markdown explain quiet"


@with_options(
    *MERGE,
    *OUTPUT.split(),
    target={"default": REQUIRED},
    methods={"default": "uniform", "repeats": False, "help": "Merge method, as ties:density=0.3."},
    dtype={"help": "Of the file: auto (the sources' widest), float32, bfloat16 or float16."},
)
def merge(
    refs: Refs,
    options: Options,
    output: Output,
    base: BaseOrNone = None,
    task: Tasks = None,
) -> None:
    """Merge adapters into one and write a PEFT directory with a model card.

    Needs no base model, except for DoRA, for modules that only some adapters hold whole, and to
    search weights on a task; what cannot be merged exactly as it stands is refused by name.
    """
    from loraprobe.pipeline import commands

    default = Options()
    changes = ("weights", "subtract", "rank", "dtype")
    if len(refs) < 2 and all(getattr(options, n) == getattr(default, n) for n in changes):
        raise UsageError(
            f"merge makes one adapter of several, and only {refs[0]} was given; give another, or "
            "change this one by --weights, --subtract, --rank or --dtype."
        )
    save(commands.merge, refs, base, task, options, output)
