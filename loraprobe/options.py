"""The options of all commands that decide a result, as values: five groups, which `Options` joins.

A field says all of its option: type, default, help, limits. The signature of a command lists the
options that it takes by these names; the Python functions take the same as keywords.
"""

from __future__ import annotations

import functools
import inspect
import math
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import Field, dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar, cast

from loraprobe.defaults import LOSS, MARGIN, RETENTION
from loraprobe.errors import LoraprobeError, UsageError
from loraprobe.formatting import count, listing, nearest, wrapped
from loraprobe.wiring import extensions

LEARNED = "learn", "learn:per=layer"  # how --weights are found
Function = TypeVar("Function", bound=Callable[..., Any])
# What the answer of one system to one question depends on, beside the question itself: how the
# system is composed, or how it is asked.
Decides = Literal["composition", "answers"]


def option(
    default: Any,
    metavar: str,
    help: str,
    *flags: str,
    decides: Decides | None = None,
    least: float = -math.inf,
    most: float = math.inf,
    read: Callable[[str, str], Any] | None = None,
    typed: bool = False,
    commands: tuple[str, ...] = (),
    shows: bool = False,
) -> Any:
    """The field of an option in a class of options.

    metavar: stands for its value in the help; "" for an option without one. flags: where they are
    not the field's name. decides: by which kept answers are told apart. least, most: of a number,
    both included. read: (text, flag) -> value. typed: it sends, runs, writes or overwrites, so no
    file of --config sets it. commands: of an option that an extension adds, those that take it.
    shows: it only writes a result once more, so neither Python nor the next command has it.
    """
    told = {"metavar": metavar, "help": help, "flags": flags, "decides": decides, "typed": typed}
    more = {"least": least, "most": most, "read": read, "commands": commands}
    return field(default=default, metadata={**told, **more, "shows": shows})


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


def as_fields(named: Mapping[str, Any]) -> str:
    """Key of an item -> name of a field or several, as --fields takes it."""
    lists = {key: at if isinstance(at, (list, tuple)) else [at] for key, at in named.items()}
    return ",".join(f"{key}={','.join(map(str, names))}" for key, names in lists.items())


@dataclass(frozen=True)
class AdapterOptions:
    """What of the adapters is accepted, and what is done to them first.

    `subtract` holds adapters or references.
    """

    allow: tuple[str, ...] = option(
        (),
        "TEXT",
        "Accept one named issue, such as base-mismatch; may be repeated.",
        decides="answers",
    )
    balance: Literal["none", "norm"] = option(
        "none",
        "none|norm",
        "norm: scale the adapters to one Frobenius norm, the mean of theirs, first; or none.",
        decides="composition",
    )
    subtract: tuple[Any, ...] = option(
        (),
        "TEXT",
        "Subtract this adapter's deltas (the mean of several) from every other's first; may be "
        "repeated.",
        decides="composition",
    )


@dataclass(frozen=True)
class TaskOptions:
    """How the file of a task is read: one text for all tasks or one for each, "" for none."""

    fields: tuple[Any, ...] = option(
        (),
        "KEY=FIELD",
        "Which fields of the task's file hold an item's keys, such as prompt=question, with commas "
        "between them; a prompt may be a text with {field} for a field; after=TEXT: the gold "
        "answer follows this text in its field, as #### in gsm8k; repeated: one for each task.",
    )


@dataclass(frozen=True)
class CompositionOptions:
    """Which merges and routers are made, and how.

    `router_prompts` holds pairs of an adapter's name and a file with one prompt a line. `layers`,
    which only a card gives, has weights of single layers: layer -> one for each adapter.
    """

    methods: tuple[str, ...] = option(
        ("uniform", "sum"),
        "TEXT",
        "Merge method, such as ties:density=0.3, without the default routers; may be repeated; "
        "none: no merge, but the routers.",
        "--method",
    )
    routers: tuple[str, ...] = option(
        ("arrow",),
        "TEXT",
        "Router, such as arrow:top_k=1; may be repeated; none: no router.",
        "--router",
    )
    systems: tuple[str, ...] = option(
        (),
        "TEXT",
        "Compose only this system; may be repeated. The base, the single adapters and the controls "
        "stay.",
        "--system",
    )
    router_prompts: tuple[tuple[str, Path], ...] = option(
        (),
        "NAME=FILE",
        "Unlabelled prompts of one adapter, one a line, for a router that learns from prompts; "
        "may be repeated.",
        read=read_named_file,
    )
    weights: tuple[float, ...] | Literal["learn", "learn:per=layer"] | None = option(
        None,
        "TEXT",
        "One weight for each adapter, such as 0.7,0.3 or 1,-0.5, used as given (uniform ignores "
        "them); or learn, or learn:per=layer: by gradient descent on a part of the task that "
        "serves nothing else.",
        read=read_weights,
        decides="composition",
    )
    space: str | None = option(
        None,
        "TEXT",
        "Space in which a merge runs: full, core or knots; without it the method's own.",
        decides="composition",
    )
    rank: int | Literal["auto"] = option(
        "auto",
        "N",
        "Rank of the merge; auto: as many as lose nothing, at most the sum of the ranks.",
        least=1,
        read=read_auto_or_count,
        decides="composition",
    )
    layers: Mapping[str, tuple[float, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class EvaluationOptions:
    """What is asked and measured, and when a composition is worth it."""

    limit: int | None = option(None, "N", "Use only the first N items.", least=1)
    all_items: bool = option(
        False,
        "",
        "Ask every system all items; otherwise a run stops as soon as the decision holds.",
    )
    max_new_tokens: int | None = option(
        None, "N", "Longest answer, in tokens.", least=1, decides="answers"
    )
    metric: str = option(
        "auto",
        "TEXT",
        "How answers are judged: auto (by what the gold answers need), exact_match, strict, "
        "contains, json, numeric, regex, choice or answer_loss; TASK=metric for one task; may be "
        "repeated.",
    )
    margin: float | None = option(
        None,
        "X",
        f"Gain below which composing is not worth it (default {MARGIN:g}).",
        least=0,
        most=1,
    )
    guards: tuple[Any, ...] = option(
        (),
        "TASK|FILE",
        "What must not get worse than the base: a task, as --task takes it, or the file of a text, "
        "judged by its loss; may be repeated.",
        "--guard",
    )
    guard_margin: float = option(
        MARGIN,
        "X",
        "What may be lost on a --guard: accuracy, or nats a token of a text (0.05 nats are 5 % of "
        "perplexity).",
        least=0.001,
        most=1,
    )
    retention: float = option(
        RETENTION,
        "X",
        "Share of each specialist's gain that one model must keep.",
        least=0,
        most=1,
    )
    chat_template: Literal["auto", "on", "off"] = option(
        "auto",
        "auto|on|off",
        "auto (the better for the single adapters), on or off.",
    )
    diagnostics: tuple[str, ...] = option(
        (),
        "TEXT",
        "Also compute this diagnostic, such as intruder_dimensions (needs --base); may be "
        "repeated.",
        "--diagnostic",
    )
    per_module: bool = option(False, "", "Also give a row for every module.")
    seed: int = option(
        0, "N", "Seed of everything that is drawn.", least=0, most=2**32 - 1, decides="answers"
    )


@dataclass(frozen=True)
class MachineOptions:
    """Where the base runs, in which form, and what code may run beside it."""

    device: str = option("auto", "TEXT", "auto, cpu, cuda[:n] or mps.")
    dtype: str = option(
        "auto",
        "TEXT",
        "Of the base: auto (by the device), float32, bfloat16 or float16.",
        decides="answers",
    )
    quantize: Literal["none", "4bit", "8bit"] = option(
        "none", "TEXT", "Load the base as it is (none), in 4bit or in 8bit.", decides="answers"
    )
    device_map: Literal["none", "auto"] = option(
        "none",
        "none|auto",
        "auto: spread the base over all devices (needs accelerate); or none.",
        decides="answers",
    )
    trust_remote_code: bool = option(
        False, "", "Run model code that the base's repository holds.", decides="answers", typed=True
    )
    batch_size: int | Literal["auto"] = option(
        "auto", "N", "Prompts a batch, or auto.", least=1, read=read_auto_or_count
    )
    threads: int | None = option(None, "N", "CPU threads.", least=1, most=4096)


@dataclass(frozen=True)
class AddedOptions:
    """The base of the options of an extension.

    title: of their group in help. shared: command -> options of the core that it takes beside its
    own, for what the extension does.
    """

    title: ClassVar[str] = ""
    shared: ClassVar[Mapping[str, tuple[str, ...]]] = {}

    def check(self, options: Options) -> None:
        """Raises UsageError for values that contradict each other or the other options.

        It is called for every call of a command, also where none of these options is given.
        """


Added = TypeVar("Added", bound=AddedOptions)


@dataclass(frozen=True)
class Options(AdapterOptions, TaskOptions, CompositionOptions, EvaluationOptions, MachineOptions):
    """All options that decide a result. added: those of extensions.

    Raises UsageError for values that are out of range or contradict each other.
    """

    added: tuple[AddedOptions, ...] = ()

    def __post_init__(self) -> None:
        # A single reference is a string and so a sequence: it counts as one adapter.
        one = isinstance(self.subtract, (str, Path)) or not isinstance(self.subtract, Sequence)
        object.__setattr__(self, "subtract", (self.subtract,) if one else tuple(self.subtract))
        if any(isinstance(one, tuple) for one in self.fields):  # a mapping, as Python has them
            object.__setattr__(self, "fields", (as_fields(dict(self.fields)),))
        for name in ("methods", "routers"):
            if "none" in (held := getattr(self, name)):
                if len(held) > 1:
                    raise UsageError(f"--{name[:-1]} none leaves out all {name}; give it alone.")
                object.__setattr__(self, name, ())
        if not isinstance(self.metric, str):
            object.__setattr__(self, "metric", ",".join(self.metric or ()) or "auto")
        for name in (*_CORE, *(one for group in self.added for one in vars(group))):
            _check(name, self.value(name))
        self._check_combinations()
        for kind in _kinds_of_extensions():
            self.of_extension(kind).check(self)

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> Options:
        """The options of a Python call or a command line; None there is what was not given.

        Who names methods asks for these alone, without the default routers.
        """
        held = {name: _read(name, value) for name, value in given.items() if value is not None}
        if held.get("methods", ("none",)) not in (("none",), ()):
            held.setdefault("routers", ())
        added = []
        for kind in _kinds_of_extensions():
            own = {one.name: held.pop(one.name) for one in fields(kind) if one.name in held}
            added += [kind(**own)] if own else []
        return cls(**held, added=tuple(added))

    def of_extension(self, kind: type[Added]) -> Added:
        """The options of an extension, the class of which it names."""
        return next((one for one in self.added if isinstance(one, kind)), kind())

    def value(self, name: str) -> Any:
        """The value of an option of the core or of an extension."""
        group = next((one for one in self.added if name in vars(one)), self)
        return getattr(group, name) if hasattr(group, name) else table()[name].default

    def _check_combinations(self) -> None:
        """Raises UsageError for options that do not go together, or that need another option."""
        if self.device_map == "auto" and self.device != "auto":
            raise UsageError("--device-map=auto places the base by itself; leave --device out.")
        if self.learns and self.weights not in LEARNED:
            raise UsageError(
                f"--weights takes one number an adapter or {' or '.join(LEARNED)}, not "
                f"{self.weights!r}."
            )
        if not all(map(math.isfinite, self.given_weights or ())):
            raise UsageError(f"--weights must be finite numbers, not {self.weights!r}.")
        if self.metric == LOSS and self.margin is None:
            raise UsageError(
                "--metric=answer_loss needs --margin; give the loss difference that matters."
            )
        if self.guard_margin != MARGIN and not self.guards:
            raise UsageError("--guard-margin goes with --guard=TASK, which it is about; add that.")
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
                f"--weights gives {numbers} for {count(adapters, 'adapter')}; give one for each."
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
        names = (*deciding("composition"), *deciding("answers"), "metric")
        # What is subtracted is the last of the adapters, whose content is known.
        return {name: self.value(name) for name in names} | {"subtract": len(self.subtract)}


_CORE = [one.name for group in Options.__bases__ for one in fields(group)]


def _kinds_of_extensions() -> list[type[AddedOptions]]:
    return [kind for one in extensions() if (kind := one.options) is not None]


def groups() -> list[type]:
    """The classes of options: those that `Options` joins, then those of extensions."""
    return [*Options.__bases__, *_kinds_of_extensions()]


@functools.cache
def table() -> Mapping[str, Field[Any]]:
    """Name of an option -> its field."""
    return {one.name: one for group in groups() for one in fields(group)}


@functools.cache
def hints() -> Mapping[str, Any]:
    """Name of an option -> its type."""
    told = (typing.get_type_hints(group) for group in groups())
    return {name: hint for one in told for name, hint in one.items() if name in table()}


def added_to(command: str) -> list[str]:
    """The names of the options that extensions add to a command."""
    own = [name for name, one in table().items() if command in one.metadata.get("commands", ())]
    return own + [name for one in _kinds_of_extensions() for name in one.shared.get(command, ())]


def deciding(what: Decides) -> list[str]:
    """The names of the options that decide this."""
    return [name for name, one in table().items() if one.metadata.get("decides") == what]


def named_options() -> list[str]:
    """The names of the options that Python and the next command have, group by group."""
    told = ((name, one.metadata) for name, one in table().items())
    return [name for name, its in told if "metavar" in its and not its["shows"]]


def flag_of(name: str) -> str:
    """How the command line calls an option, by the name of its field."""
    return next(iter(table()[name].metadata.get("flags", ())), _flag(name))


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def repeats(name: str) -> bool:
    """Whether an option may be given several times."""
    return name == "metric" or typing.get_origin(hints()[name]) is tuple


def _read(name: str, value: Any) -> Any:
    """The value of an option as its field holds it; a single value of a repeatable one is one."""
    if name not in hints():
        return value
    if isinstance(value, Mapping):
        return tuple(value.items())
    one = isinstance(value, (str, Path)) or not isinstance(value, Iterable)
    held = (value,) if one else tuple(value)
    if read := table()[name].metadata.get("read"):
        held = tuple(read(v, flag_of(name)) if isinstance(v, str) else v for v in held)
    return held[0] if one and not repeats(name) else held


def _check(name: str, value: Any) -> None:
    """Raises UsageError for a value of another type than the option's, or out of its limits."""
    hint, flag = hints()[name], flag_of(name)
    kinds = typing.get_args(hint) or (hint,)
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
    least, most = (table()[name].metadata[limit] for limit in ("least", "most"))
    if is_number and not least <= value <= most:
        if most < math.inf:
            raise UsageError(f"{flag} must lie between {least} and {most}, not {value}.")
        raise UsageError(f"{flag} must be at least {least:g}, not {value}.")


def takes(options: str, command: str = "") -> Callable[[Function], Function]:
    """Gives a Python function these options as keywords beside its own; its docstring lists them.

    command: to which extensions add further options. Other keywords raise UsageError. None for any
    of them is as if it was not given, which is a UsageError where the function needs it. Errors
    name options by their keywords.
    """

    def decorate(function: Function) -> Function:
        signature = inspect.signature(function)
        taken = sorted({*options.split(), *({*added_to(command)} & {*named_options()})})
        known = [name for name in (*signature.parameters, *taken) if name != "options"]
        parameters = {name: one for name, one in signature.parameters.items() if name in known}
        needed = [name for name, one in parameters.items() if one.default is one.empty]
        if options:
            listed = f"options: {', '.join(taken)} (docs/options.md)."
            text = inspect.cleandoc(function.__doc__ or "")
            function.__doc__ = "\n".join([text, "", *wrapped(listed, 100)])

        @functools.wraps(function)
        def called(*given: Any, **keywords: Any) -> Any:
            for name in keywords:
                if name not in known:
                    hint = nearest(name, known)
                    raise UsageError(f"{function.__name__} has no option {name!r}: {hint}")
            held = {name: one for name, one in keywords.items() if one is not None}
            bound = signature.bind_partial(*given, **held).arguments
            held |= {name: one for name, one in bound.items() if one is not None}
            held |= held.pop("options", {})
            if lacking := [name for name in needed if name not in held]:
                told = f"{function.__name__} needs {listing(lacking)}"
                raise UsageError(f"{told}; None is as if nothing was given.")
            try:
                return function(**held)
            except LoraprobeError as error:
                error.in_python(function.__name__, _keywords(known))
                raise

        return cast(Function, called)

    return decorate


def _keywords(known: Iterable[str]) -> Mapping[str, str]:
    """Option of the command line -> the keyword of a Python function that has these."""
    named = {flag_of(name) if name in table() else _flag(name): name for name in known}
    others = {"tasks": "--task", "prompts": "--router-prompts"}
    return named | {flag: name for name, flag in others.items() if name in known}
