"""`--baseline train`: what an adapter would give that is trained on some of the task's questions.

recipe    what `--baseline` may say
training  the loop: a LoRA of peft on questions and their gold answers, with early stopping
source    sets the questions apart, trains, and gives the system that is evaluated
artifact  the adapter that was trained, as it is written with a card
part      what is told of it: figures in the audit, reasons beside the verdict, lines of the answer
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from loraprobe.errors import UsageError
from loraprobe.extension import AuditPart, Extension, SystemSource
from loraprobe.options import AddedOptions, Options, option

if TYPE_CHECKING:
    from loraprobe.records import Kind
    from loraprobe.verdict import Annotator


@dataclass(frozen=True)
class TrainOptions(AddedOptions):
    """What is trained on questions of the task, to be compared with all that is evaluated."""

    title: ClassVar[str] = "Training"

    baseline: str | None = option(
        None,
        "SPEC",
        "train: also train a LoRA on some questions of each task, on which nothing is scored "
        "then, and compare it with everything else; behind a colon items=64 (auto: half of them, "
        "64 at most), rank=16, steps=auto, lr=auto, from=base or best, curve=true, minutes=X, "
        "with commas.",
        affects={"questions"},
        commands=("merge-and-eval", "screen", "demo"),
    )

    def check(self, options: Options) -> None:
        """Raises UsageError for a baseline that is none, and for one of a quantised base."""
        if self.baseline is None:
            return
        from loraprobe.extensions.train.recipe import recipe_of

        recipe_of(self.baseline)
        if options.quantize != "none":
            raise UsageError(
                "--baseline trains on the base as it is stored, and not on one that --quantize "
                "makes smaller; leave --quantize out, or give --dtype=bfloat16 in its place."
            )


class Train(Extension):
    """Trains an adapter on questions of the task and evaluates it beside all others."""

    options = TrainOptions
    codes = Path(__file__).with_name("codes.toml")

    def system_sources(self, options: Options) -> Sequence[SystemSource]:
        baseline = options.of_extension(TrainOptions).baseline
        if baseline is None:
            return []
        from loraprobe.extensions.train.recipe import recipe_of
        from loraprobe.extensions.train.source import TrainedSource

        return [TrainedSource(recipe_of(baseline))]

    def kinds(self) -> Mapping[str, Kind]:
        from loraprobe.records import Kind

        words = "an adapter trained on your questions"
        return {"trained": Kind("reference", "train-target-adapter", "trained", words)}

    def annotators(self, options: Options) -> Sequence[Annotator]:
        if options.of_extension(TrainOptions).baseline is None:
            return []
        from loraprobe.extensions.train.part import AboutTraining

        return [AboutTraining()]

    def audit_parts(self) -> Sequence[AuditPart]:
        from loraprobe.extensions.train.part import TrainPart

        return [TrainPart()]


EXTENSION = Train()
