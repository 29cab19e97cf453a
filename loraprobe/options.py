"""The options of all commands as values: five groups, and `Options`, which holds all of them.

How each is written on a command line, and its help, stands in `loraprobe.cli.parameters`; the
signature of a command lists those that it takes. The Python functions take the same as keywords.
"""

from __future__ import annotations

import functools
import math
import re
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from loraprobe.defaults import KEEP, MARGIN, RETENTION, SCREENING_ITEMS
from loraprobe.errors import UsageError
from loraprobe.formatting import count

LEARNED = "learn", "learn:per=layer"  # how --weights are found
FLAGS = {  # of options that several values make a plural; the others are called as their fields
    "methods": "--method",
    "routers": "--router",
    "systems": "--system",
    "diagnostics": "--diagnostic",
}
BOUNDS = {  # of numbers, both included
    "batch_size": (1, math.inf),
    "threads": (1, 4096),
    "limit": (1, math.inf),
    "items": (10, math.inf),
    "keep": (1, 64),
    "budget": (0, math.inf),
    "max_new_tokens": (1, math.inf),
    "margin": (0, 1),
    "retention": (0, 1),
    "seed": (0, math.inf),
}


@dataclass(frozen=True)
class AdapterOptions:
    """What of the adapters is accepted, and what is done to them first.

    `subtract` holds adapters or references.
    """

    allow: tuple[str, ...] = ()
    serve: tuple[str, ...] = ()
    balance: Literal["none", "norm"] = "none"
    subtract: tuple[Any, ...] = ()


@dataclass(frozen=True)
class TaskOptions:
    """How the file of a task is read: one text for all tasks or one for each, "" for none."""

    fields: tuple[Any, ...] = ()
    prompt_template: tuple[str, ...] = ()
    answer_after: tuple[str, ...] = ()
    answer_pattern: tuple[str, ...] = ()


@dataclass(frozen=True)
class CompositionOptions:
    """Which merges and routers are made, and how.

    `router_prompts` holds pairs of an adapter's name and a file with one prompt a line. `layers`,
    which only a card gives, has weights of single layers: layer -> one for each adapter.
    """

    methods: tuple[str, ...] = ("uniform", "sum")
    routers: tuple[str, ...] = ("arrow",)
    systems: tuple[str, ...] = ()
    router_prompts: tuple[tuple[str, Path], ...] = ()
    weights: tuple[float, ...] | Literal["learn", "learn:per=layer"] | None = None
    space: str | None = None
    rank: int | Literal["auto"] = "auto"
    layers: Mapping[str, tuple[float, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class EvaluationOptions:
    """What is asked and measured, and when a composition is worth it."""

    limit: int | None = None
    all_items: bool = False
    items: int = SCREENING_ITEMS
    keep: int = KEEP
    budget: float | None = None
    max_new_tokens: int | None = None
    metric: str = "auto"
    margin: float | None = None
    retention: float = RETENTION
    prior: float | None = None
    calibration: Path | None = None
    chat_template: Literal["auto", "on", "off"] = "auto"
    diagnostics: tuple[str, ...] = ()
    per_module: bool = False
    seed: int = 0


@dataclass(frozen=True)
class MachineOptions:
    """Where the base runs, in which form, and what code may run beside it."""

    device: str = "auto"
    dtype: str = "auto"
    quantize: Literal["none", "4bit", "8bit"] = "none"
    device_map: Literal["none", "auto"] = "none"
    trust_remote_code: bool = False
    run_unsafe_code: bool = False
    batch_size: int | Literal["auto"] = "auto"
    threads: int | None = None
    executor: str | None = None


@dataclass(frozen=True)
class Options(AdapterOptions, TaskOptions, CompositionOptions, EvaluationOptions, MachineOptions):
    """All options that decide a result.

    Raises UsageError for values that are out of range or contradict each other.
    """

    def __post_init__(self) -> None:
        # A single reference is a string and so a sequence: it counts as one adapter.
        one = isinstance(self.subtract, (str, Path)) or not isinstance(self.subtract, Sequence)
        object.__setattr__(self, "subtract", (self.subtract,) if one else tuple(self.subtract))
        if any(isinstance(one, tuple) for one in self.fields):  # a mapping, as Python has them
            pairs = ((key, [at] if isinstance(at, str) else at) for key, at in self.fields)
            one_text = ",".join(f"{key}={','.join(names)}" for key, names in pairs)
            object.__setattr__(self, "fields", (one_text,))
        for name in ("methods", "routers"):
            if "none" in (held := getattr(self, name)):
                if len(held) > 1:
                    raise UsageError(f"--{name[:-1]} none leaves out all {name}; give it alone.")
                object.__setattr__(self, name, ())
        if not isinstance(self.metric, str):
            object.__setattr__(self, "metric", ",".join(self.metric or ()) or "auto")
        for name, hint in hints().items():
            _check(name, getattr(self, name), hint)
        self._check_combinations()

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> Options:
        """The options of a Python call or a command line; None there is what was not given."""
        return cls(**{name: _read(name, value) for name, value in given.items()})

    def _check_combinations(self) -> None:
        """Raises UsageError for options that do not go together, or that need another option."""
        if self.device_map == "auto" and self.device != "auto":
            raise UsageError("--device-map auto places the base by itself; leave --device out.")
        if self.learns and self.weights not in LEARNED:
            raise UsageError(
                f"--weights takes one number an adapter or {' or '.join(LEARNED)}, not "
                f"{self.weights!r}."
            )
        if not all(map(math.isfinite, self.given_weights or ())):
            raise UsageError(f"--weights must be finite numbers, not {self.weights!r}.")
        if self.metric == "answer_loss" and self.margin is None:
            raise UsageError(
                "--metric answer_loss needs --margin; give the loss difference that matters."
            )
        if self.prior is not None and not 0 < self.prior < 1:
            raise UsageError(
                "--prior, the share of compositions expected to gain, must be above 0 and below 1, "
                f"not {self.prior}."
            )
        if self.executor is not None and not re.fullmatch(r"ray(://[^\s/]+)?", self.executor):
            raise UsageError(f"--executor takes ray or ray://HOST:PORT, not {self.executor!r}.")
        named = [name for name, _ in self.router_prompts]
        for name, file in self.router_prompts:
            if named.count(name) > 1:
                raise UsageError(
                    f"--router-prompts names {name} twice; put all its lines into one file."
                )
            if not Path(file).is_file():
                raise UsageError(f"--router-prompts: {file} is no file; check the path.")

    def check_count(self, adapters: int) -> None:
        """Raises UsageError where the weights are not one for each adapter."""
        given = self.given_weights
        if given is not None and len(given) != adapters:
            numbers = count(len(given), "number")
            raise UsageError(
                f"--weights gives {numbers} for {adapters} adapters; give one for each."
            )

    @property
    def needed_gain(self) -> float:
        """The margin as given, else the default."""
        return MARGIN if self.margin is None else self.margin

    @property
    def given_weights(self) -> tuple[float, ...] | None:
        """The weights as numbers; None where there are none or they are to be learned."""
        return None if isinstance(self.weights, str) else self.weights

    @property
    def learns(self) -> bool:
        """Whether the weights are to be learned."""
        return isinstance(self.weights, str)

    @property
    def learns_layers(self) -> bool:
        """Whether each layer is to get weights of its own."""
        return self.weights == "learn:per=layer"

    def fingerprint(self) -> Mapping[str, Any]:
        """The options on which an item's result depends, as plain data.

        `--limit` counts through the items of the tasks, `--router-prompts` through their lines.
        """
        decides = (
            "methods routers systems weights space rank allow max_new_tokens metric seed balance "
            "quantize device_map trust_remote_code"
        ).split()
        subtracted = len(self.subtract)  # the last of the adapters, whose content is known
        return {name: getattr(self, name) for name in decides} | {"subtracted": subtracted}


TASK_FIELDS = tuple(one.name for one in fields(TaskOptions))


@functools.cache
def hints() -> Mapping[str, Any]:
    """Name of an option -> its type."""
    return typing.get_type_hints(Options)


def flag_of(name: str) -> str:
    """How the command line calls an option, by the name of its field."""
    return FLAGS.get(name) or "--" + name.replace("_", "-")


def repeats(name: str) -> bool:
    """Whether an option may be given several times."""
    return name == "metric" or (name != "weights" and typing.get_origin(hints()[name]) is tuple)


def _read(name: str, value: Any) -> Any:
    """The value of an option as its field holds it; a single value of a repeatable one is one."""
    if name not in hints():
        return value
    if isinstance(value, Mapping) and name != "layers":
        return tuple(value.items())
    one = isinstance(value, (str, Path)) or not isinstance(value, Iterable)
    held = (value,) if one else tuple(value)
    if read := READERS.get(name):
        held = tuple(read(v, flag_of(name)) if isinstance(v, str) else v for v in held)
    return held[0] if one and not repeats(name) else held


def read_weights(text: str, flag: str) -> tuple[float, ...] | str:
    """ "0.7,0.3" as numbers, or one of LEARNED."""
    if text.strip() in LEARNED:
        return text.strip()
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise UsageError(
            f"{flag} takes numbers with commas, such as 0.7,0.3, or {' or '.join(LEARNED)}, not "
            f"{text!r}."
        ) from None


def read_auto_or_count(text: str, flag: str) -> int | Literal["auto"]:
    """ "auto" or a positive whole number."""
    if text == "auto":
        return "auto"
    if not text.isdecimal() or len(text) > 9 or int(text) < 1:
        raise UsageError(f"{flag} takes auto or a positive whole number, not {text!r}.")
    return int(text)


def read_named_file(text: str, flag: str) -> tuple[str, Path]:
    """ "NAME=FILE" as a pair."""
    name, equals, file = text.partition("=")
    if not (name and equals and file):
        raise UsageError(f"{flag} takes NAME=FILE, not {text!r}.")
    return name, Path(file)


READERS: Mapping[str, Callable[[str, str], Any]] = {  # of texts, by option
    "weights": read_weights,
    "rank": read_auto_or_count,
    "batch_size": read_auto_or_count,
    "router_prompts": read_named_file,
}


def _check(name: str, value: Any, hint: Any) -> None:
    """Raises UsageError for a value of another type than the option's, or out of its bounds."""
    kinds, flag = typing.get_args(hint) or (hint,), flag_of(name)
    if typing.get_origin(hint) is Literal and value not in kinds:
        raise UsageError(f"{flag} must be one of {', '.join(kinds)}, not {value!r}.")
    if value is None or not {int, float, bool}.intersection(kinds):
        return
    words = [t for kind in kinds for t in typing.get_args(kind) if isinstance(t, str)]
    number = isinstance(value, (int, float) if float in kinds else int)
    is_number = number and not isinstance(value, bool)
    if not (isinstance(value, bool) if bool in kinds else is_number or value in words):
        what = "a number" if float in kinds else "a whole number"
        told = "True or False" if bool in kinds else " or ".join([what, *words])
        raise UsageError(f"{flag} takes {told}, not {value!r}.")
    least, most = BOUNDS.get(name, (-math.inf, math.inf))
    if is_number and not least <= value <= most:
        if most < math.inf:
            raise UsageError(f"{flag} must lie between {least:g} and {most:g}, not {value}.")
        raise UsageError(f"{flag} must be at least {least:g}, not {value}.")
