"""What a user can set about an audit, with the defaults of the command line."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from loraprobe.defaults import MARGIN, RETENTION
from loraprobe.errors import UsageError

Progress = Callable[[str, int, int], None]

CHOICES: Mapping[str, tuple[str, ...]] = {
    "balance": ("none", "norm"),
    "quantize": ("none", "4bit", "8bit"),
    "device_map": ("none", "auto"),
}

SEARCH_BUDGET = 120  # weight vectors that a search may try


@dataclass(frozen=True)
class Settings:
    """Options of `inspect` and `merge_and_eval`; see the command line's help for each.

    `state` is the directory in which results are kept as they come, None for the user's cache;
    `calibration` a file that `loraprobe lab calibrate` wrote, None for the one that ships with the
    package; `prior` the share of successes expected, None for the calibration's own; `subtract`
    holds adapters or references; `router_prompts` pairs of an adapter's name and a file with a
    prompt a line; `search_items` None for a quarter of the task's items, at most 64. Raises
    UsageError for what cannot be meant: see `_check`.
    """

    methods: tuple[str, ...] = ("uniform", "sum")
    routers: tuple[str, ...] = ("arrow",)
    systems: tuple[str, ...] = ()
    router_prompts: tuple[tuple[str, Path], ...] = ()
    # What is merged or routed, and how much of each
    weights: tuple[float, ...] | Literal["search"] | None = None
    search_budget: int = SEARCH_BUDGET
    search_items: int | None = None
    balance: Literal["none", "norm"] = "none"
    subtract: tuple[Any, ...] = ()
    space: str | None = None
    rank: int | Literal["auto"] = "auto"
    # The machine, and the base on it
    device: str = "auto"
    dtype: str = "auto"
    quantize: Literal["none", "4bit", "8bit"] = "none"
    device_map: Literal["none", "auto"] = "none"
    trust_remote_code: bool = False
    batch_size: int | Literal["auto"] = "auto"
    threads: int | None = None
    # What is asked, and what counts
    limit: int | None = None
    max_new_tokens: int | None = None
    metric: str | None = None
    margin: float | None = None
    retention: float = RETENTION
    prior: float | None = None
    calibration: Path | None = None
    chat_template: Literal["auto", "on", "off"] = "auto"
    seed: int = 0
    # What is looked at, accepted and kept
    per_module: bool = False
    diagnostics: tuple[str, ...] = ()
    exact: bool = False
    allow: tuple[str, ...] = ()
    resume: bool = False
    state: Path | None = None
    arguments: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        # A single reference is a sequence of characters, which nobody means.
        one = isinstance(self.subtract, (str, Path)) or not isinstance(self.subtract, Sequence)
        object.__setattr__(self, "subtract", (self.subtract,) if one else tuple(self.subtract))
        self._check()

    def _check(self) -> None:
        """Options that only a typing error explains, and those that need another one."""
        for name, allowed in CHOICES.items():
            if getattr(self, name) not in allowed:
                raise UsageError(
                    f"--{name.replace('_', '-')} must be one of {', '.join(allowed)}, "
                    f"not {getattr(self, name)!r}."
                )
        if isinstance(self.weights, str) and self.weights != "search":
            raise UsageError(f"--weights takes one number an adapter or search, not "
                             f"{self.weights!r}.")  # fmt: skip
        for name in ("search_budget", "search_items"):
            number = getattr(self, name)
            if number is not None and number < 1:
                raise UsageError(f"--{name.replace('_', '-')} must be at least 1, not {number}.")
        if self.weights != "search":
            if self.search_items is not None:
                raise UsageError("--search-items goes with --weights search.")
            if self.search_budget != SEARCH_BUDGET:
                raise UsageError("--search-budget goes with --weights search.")
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
        """The margin as given, else the default."""
        return MARGIN if self.margin is None else self.margin

    @property
    def given_weights(self) -> tuple[float, ...] | None:
        """The weights as numbers; None where there are none or they are to be searched."""
        return None if isinstance(self.weights, str) else self.weights

    def fingerprint(self) -> Mapping[str, Any]:
        """What of the settings decides a single item's result; equal means results may be kept."""
        kept = (
            "methods", "routers", "systems", "weights", "space", "rank", "allow", "max_new_tokens",
            "metric", "chat_template", "seed", "balance", "quantize",
        )  # fmt: skip
        decides = {key: getattr(self, key) for key in kept}
        decides["subtracted"] = len(self.subtract)  # the last of the adapters, which are hashed
        if self.weights == "search":
            names = ("search_budget", "search_items", "limit")
            decides |= {name: getattr(self, name) for name in names}
        if self.router_prompts:
            texts = {name: Path(file).read_bytes() for name, file in self.router_prompts}
            decides["router_prompts"] = {
                name: hashlib.sha256(text).hexdigest() for name, text in texts.items()
            }
        return decides
