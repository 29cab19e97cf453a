"""What a user can set about an audit, with the defaults of the command line."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from loraprobe.errors import UsageError

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Settings:
    """Options of `inspect` and `merge_and_eval`; see the command line's help for each.

    `state` is the directory in which results are kept as they come, None for the user's cache;
    `calibration` a file that `loraprobe lab calibrate` wrote, None for the one that ships with the
    package; `prior` the share of successes expected, None for the calibration's own. Raises
    UsageError for the metric answer_loss without a margin, for a prior that is no probability and
    for a file that is no calibration.
    """

    methods: tuple[str, ...] = ("uniform", "sum")
    routers: tuple[str, ...] = ("arrow",)
    systems: tuple[str, ...] = ()
    weights: tuple[float, ...] | None = None
    space: str | None = None
    rank: int | Literal["auto"] = "auto"
    device: str = "auto"
    dtype: str = "auto"
    batch_size: int | Literal["auto"] = "auto"
    threads: int | None = None
    limit: int | None = None
    max_new_tokens: int | None = None
    metric: str | None = None
    margin: float | None = None
    retention: float = 0.8
    prior: float | None = None
    calibration: Path | None = None
    chat_template: Literal["auto", "on", "off"] = "auto"
    trust_remote_code: bool = False
    seed: int = 0
    per_module: bool = False
    diagnostics: tuple[str, ...] = ()
    exact: bool = False
    allow: tuple[str, ...] = ()
    resume: bool = False
    state: Path | None = None
    arguments: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.metric == "answer_loss" and self.margin is None:
            raise UsageError(
                "--metric answer_loss needs --margin, the loss difference that matters."
            )
        if self.prior is not None and not 0 < self.prior < 1:
            raise UsageError(
                f"--prior is the share of compositions expected to gain, above 0 and below 1, "
                f"not {self.prior}."
            )
        if self.calibration is not None:
            from loraprobe.verdict import read_calibration

            read_calibration(self.calibration)

    @property
    def needed_gain(self) -> float:
        """The margin as given, else 0.05."""
        return 0.05 if self.margin is None else self.margin

    def fingerprint(self) -> Mapping[str, Any]:
        """What of the settings decides a single item's result; equal means results may be kept."""
        kept = (
            "methods", "routers", "systems", "weights", "space", "rank", "allow", "max_new_tokens",
            "metric", "chat_template", "seed",
        )  # fmt: skip
        return {key: value for key, value in asdict(self).items() if key in kept}
