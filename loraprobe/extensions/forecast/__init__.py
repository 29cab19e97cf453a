"""The probability of a gain, from compositions whose gain was measured; it changes no decision.

`calibration.json` ships with the package; LORAPROBE_CALIBRATION may name another, which `loraprobe
lab calibrate` writes.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from loraprobe.errors import UsageError
from loraprobe.extension import Extension
from loraprobe.options import AddedOptions, Options, option

if TYPE_CHECKING:
    from loraprobe.verdict import Annotator

FILE = "LORAPROBE_CALIBRATION"


@dataclass(frozen=True)
class ForecastOptions(AddedOptions):
    """For which share of gains a probability is told."""

    title: ClassVar[str] = "Forecast"

    prior: float | None = option(
        None,
        "X",
        "Share of such compositions that you expect to gain; the probability is for it (without "
        "it the calibration's own).",
        affects={"verdict"},
        commands=("inspect", "merge-and-eval", "screen", "demo"),
    )

    def check(self, options: Options) -> None:
        """Raises UsageError for a prior that is no share, and for a calibration that is none."""
        if self.prior is not None and not 0 < self.prior < 1:
            raise UsageError(
                "--prior, the share of compositions expected to gain, must be above 0 and below 1, "
                f"not {self.prior}."
            )
        if file := os.environ.get(FILE):
            from loraprobe.extensions.forecast.probability import read_calibration

            read_calibration(file)


class Forecast(Extension):
    """Tells how probable the gain of a verdict is."""

    options = ForecastOptions
    codes = Path(__file__).with_name("codes.toml")

    def annotators(self, options: Options) -> Sequence[Annotator]:
        from loraprobe.extensions.forecast import probability

        file = os.environ.get(FILE)
        known = probability.read_calibration(file) if file else probability.shipped_calibration()
        return [probability.Probabilities(known, options.of_extension(ForecastOptions).prior)]


EXTENSION = Forecast()
