"""The table of options: what each option is, and which command takes which.

A field of a group says all of an option: type, default, help, limits, what it affects. `Options`
joins the groups that affect a result. A `CommandSpec` names the options of a command. The command
line, its help, `--config`, the keywords of the Python functions and the next command that a verdict
gives all follow from these two.
"""

from __future__ import annotations

import functools
import inspect
import math
import typing
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import Field, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar, cast

from loraprobe.defaults import DEFAULT_METHODS, DEFAULT_ROUTERS, LOSS, MARGIN, RETENTION, SPELLED
from loraprobe.errors import LoraprobeError, UsageError
from loraprobe.formatting import count, listing, nearest, wrapped
from loraprobe.wiring import OF_CORE, extensions, option_names

LEARNED = "learn", "learn:per=layer"  # how --weights are found
Function = TypeVar("Function", bound=Callable[..., Any])
# What an option may affect: what is composed of the adapters; what a system answers to a question;
# which systems are asked which questions, how and by whom; what follows from the answers; where the
# base runs, and how fast; what else a report shows.
Affects = Literal["composition", "answers", "questions", "verdict", "machine", "report"]


def option(
    default: Any,
    metavar: str,
    help: str,
    *flags: str,
    affects: Collection[Affects] = (),
    least: float = -math.inf,
    most: float = math.inf,
    read: Callable[[str, str], Any] | None = None,
    typed: bool = False,
    plain: bool = False,
    completes: tuple[str, ...] = (),
    commands: tuple[str, ...] = (),
) -> Any:
    """The field of an option in a class of options.

    metavar: stands for its value in the help; "" for an option without one. flags: where they are
    not the field's name. affects: what of a result depends on it; an option that only says how a
    result is written affects nothing, and neither Python nor the next command has it. least, most:
    of a number, both included. read: (text, flag) -> value. typed: it sends, runs, writes or
    overwrites, so no file of --config sets it. plain: nothing in its value is a path. completes:
    MODULE.NAME of the registries or other collections whose names a shell completes. commands: of
    an option that an extension adds, those that take it.
    """
    metadata = {
        "metavar": metavar,
        "help": help,
        "flags": flags,
        "affects": frozenset(affects),
        "least": least,
        "most": most,
        "read": read,
        "typed": typed,
        "plain": plain,
        "completes": completes,
        "commands": commands,
    }
    return field(default=default, metadata=metadata)


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
        affects={"composition", "answers"},
        completes=("loraprobe.findings.CODES",),
    )
    balance: Literal["none", "norm"] = option(
        "none",
        "none|norm",
        "norm: scale the adapters to one Frobenius norm, the mean of theirs, first; or none.",
        affects={"composition"},
    )
    subtract: tuple[Any, ...] = option(
        (),
        "TEXT",
        "Subtract this adapter's deltas (the mean of several) from every other's first; may be "
        "repeated.",
        affects={"composition"},
    )


@dataclass(frozen=True)
class CompositionOptions:
    """Which merges and routers are made, and how.

    `router_prompts` holds pairs of an adapter's name and a file with one prompt a line. `layers`,
    which only a card gives, has weights of single layers: layer -> one for each adapter.
    """

    methods: tuple[str, ...] = option(
        DEFAULT_METHODS,
        "TEXT",
        "Merge method, such as ties:density=0.3, without the default routers; may be repeated; "
        "none: no merge, but the routers.",
        "--method",
        affects={"questions"},
        completes=("loraprobe.merging.METHODS",),
    )
    routers: tuple[str, ...] = option(
        DEFAULT_ROUTERS,
        "TEXT",
        "Router, such as arrow:top_k=1; may be repeated; none: no router.",
        "--router",
        affects={"questions"},
        completes=("loraprobe.routing.ROUTERS",),
    )
    systems: tuple[str, ...] = option(
        (),
        "TEXT",
        "Compose only this system; may be repeated. The base, the single adapters and the controls "
        "stay.",
        "--system",
        affects={"questions"},
        completes=(
            "loraprobe.merging.METHODS",
            "loraprobe.routing.ROUTERS",
            "loraprobe.records.FIXED",
        ),
    )
    router_prompts: tuple[tuple[str, Path], ...] = option(
        (),
        "NAME=FILE",
        "Unlabelled prompts of one adapter, one a line, for a router that learns from prompts; "
        "may be repeated.",
        read=read_named_file,
        affects={"questions"},
    )
    weights: tuple[float, ...] | Literal["learn", "learn:per=layer"] | None = option(
        None,
        "TEXT",
        "One weight for each adapter, such as 0.7,0.3 or 1,-0.5, used as given (uniform ignores "
        "them); or learn, or learn:per=layer: by gradient descent on a part of the task that "
        "serves nothing else.",
        read=read_weights,
        affects={"composition"},
    )
    space: str | None = option(
        None,
        "TEXT",
        "Space in which a merge runs: full, core or knots; without it the method's own.",
        affects={"composition"},
    )
    rank: int | Literal["auto"] = option(
        "auto",
        "N",
        "Rank of the merge; auto: as many as lose nothing, at most the sum of the ranks.",
        least=1,
        read=read_auto_or_count,
        affects={"composition"},
    )
    layers: Mapping[str, tuple[float, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class EvaluationOptions:
    """What is asked and measured, and when a composition is worth it."""

    limit: int | None = option(
        None, "N", "Use only the first N items.", least=1, affects={"questions"}
    )
    all_items: bool = option(
        False,
        "",
        "Ask every system all items; otherwise a run stops as soon as the decision holds.",
        affects={"questions"},
    )
    max_new_tokens: int | None = option(
        None, "N", "Longest answer, in tokens.", least=1, affects={"answers"}
    )
    metric: str = option(
        "auto",
        "TEXT",
        "How answers are judged: auto (by what the gold answers need), exact_match, strict, "
        "contains, json, numeric, regex, choice or answer_loss; TASK=metric for one task; may be "
        "repeated.",
        affects={"questions"},
    )
    margin: float | None = option(
        None,
        "X",
        f"Gain below which composing is not worth it (default {MARGIN:g}).",
        least=0,
        most=1,
        affects={"verdict"},
    )
    guards: tuple[Any, ...] = option(
        (),
        "TASK|FILE",
        "What must not get worse than the base: a task, as --task takes it, or the file of a text, "
        "judged by its loss; may be repeated.",
        "--guard",
        affects={"questions"},
    )
    guard_margin: float = option(
        MARGIN,
        "X",
        "What may be lost on a --guard: accuracy, or nats a token of a text (0.05 nats are 5 % of "
        "perplexity).",
        least=0.001,
        most=1,
        affects={"verdict"},
    )
    retention: float = option(
        RETENTION,
        "X",
        "Share of each specialist's gain that one model must keep.",
        least=0,
        most=1,
        affects={"verdict"},
    )
    chat_template: Literal["auto", "on", "off"] = option(
        "auto",
        "auto|on|off",
        "auto (the better for the single adapters), on or off.",
        affects={"answers"},
    )
    diagnostics: tuple[str, ...] = option(
        (),
        "TEXT",
        "Also compute this diagnostic, such as intruder_dimensions (needs --base); may be "
        "repeated.",
        "--diagnostic",
        affects={"report"},
        completes=("loraprobe.diagnostics.DIAGNOSTICS",),
    )
    per_module: bool = option(False, "", "Also give a row for every module.", affects={"report"})
    seed: int = option(
        0,
        "N",
        "Seed of everything that is drawn.",
        least=0,
        most=2**32 - 1,
        affects={"composition", "answers"},
    )


@dataclass(frozen=True)
class MachineOptions:
    """Where the base runs, in which form, and what code may run beside it."""

    device: str = option("auto", "TEXT", "auto, cpu, cuda[:n] or mps.", affects={"machine"})
    dtype: str = option(
        "auto",
        "TEXT",
        "Of the base: auto (by the device), float32, bfloat16 or float16.",
        affects={"answers", "machine"},
    )
    quantize: Literal["none", "4bit", "8bit"] = option(
        "none",
        "TEXT",
        "Load the base as it is (none), in 4bit or in 8bit.",
        affects={"answers", "machine"},
    )
    device_map: Literal["none", "auto"] = option(
        "none",
        "none|auto",
        "auto: spread the base over all devices (needs accelerate); or none.",
        affects={"answers", "machine"},
    )
    trust_remote_code: bool = option(
        False,
        "",
        "Run model code that the base's repository holds.",
        typed=True,
        affects={"answers", "machine"},
    )
    batch_size: int | Literal["auto"] = option(
        "auto",
        "N",
        "Prompts a batch, or auto.",
        least=1,
        read=read_auto_or_count,
        affects={"machine"},
    )
    threads: int | None = option(None, "N", "CPU threads.", least=1, most=4096, affects={"machine"})


@dataclass(frozen=True)
class AddedOptions:
    """The base of the options of an extension.

    title: of their group in help. shared: command -> options of the core that it takes beside its
    own, for what the extension does.
    """

    title: ClassVar[str] = ""
    shared: ClassVar[Mapping[str, tuple[str, ...]]] = {}

    def implied(self) -> Mapping[str, Any]:
        """Options of the core that these set, by name, whatever was given for them."""
        return {}

    def for_each(self, tasks: Sequence[Any], guards: Sequence[Any]) -> list[AddedOptions]:
        """These options for each of the tasks of a run, then for each guard, where they differ.

        Raises UsageError where they do not go with these references.
        """
        return [self] * (len(tasks) + len(guards))

    def check(self, options: Options) -> None:
        """Raises UsageError for values that contradict each other or the other options.

        It is called for every call of a command, also where none of these options is given.
        """


Added = TypeVar("Added", bound=AddedOptions)


@dataclass(frozen=True)
class Options(AdapterOptions, CompositionOptions, EvaluationOptions, MachineOptions):
    """All options that decide a result. added: those of extensions.

    Raises UsageError for values that are out of range or contradict each other.
    """

    added: tuple[AddedOptions, ...] = ()

    def __post_init__(self) -> None:
        # A single reference is a string and so a sequence: it counts as one adapter.
        one = isinstance(self.subtract, (str, Path)) or not isinstance(self.subtract, Sequence)
        object.__setattr__(self, "subtract", (self.subtract,) if one else tuple(self.subtract))
        for name in ("methods", "routers"):
            if "none" in (held := getattr(self, name)):
                if len(held) > 1:
                    raise UsageError(f"--{name[:-1]} none leaves out all {name}; give it alone.")
                object.__setattr__(self, name, ())
        if isinstance(self.weights, tuple):  # 1 and 1.0 are the same weights
            object.__setattr__(self, "weights", tuple(map(float, self.weights)))
        for name in ("routers", "systems"):
            named = (SPELLED.get(one, one) for one in getattr(self, name))
            object.__setattr__(self, name, tuple(named))
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
            held |= added[-1].implied() if own else {}
        return cls(**held, added=tuple(added))

    def of_extension(self, kind: type[Added]) -> Added:
        """The options of an extension, the class of which it names."""
        return next((one for one in self.added if isinstance(one, kind)), kind())

    def value(self, name: str) -> Any:
        """The value of an option of the core or of an extension."""
        group = next((one for one in self.added if name in vars(one)), self)
        return getattr(group, name) if hasattr(group, name) else table()[name].default

    def for_each(self, tasks: Sequence[Any], guards: Sequence[Any]) -> list[Options]:
        """The options for each of the tasks, then for each guard. Raises UsageError."""
        added = [one.for_each(tasks, guards) for one in self.added]
        places = range(len(tasks) + len(guards))
        return [replace(self, added=tuple(own[at] for own in added)) for at in places]

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
        names = [*affecting("composition", "answers"), "metric"]
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


def affecting(*what: Affects) -> list[str]:
    """The names of the options that affect any of these, group by group."""
    effects = {name: one.metadata.get("affects", frozenset()) for name, one in table().items()}
    return [name for name, affected in effects.items() if affected.intersection(what)]


def named_options() -> list[str]:
    """The names of the options that Python and the next command have: all that affect something."""
    return affecting(*typing.get_args(Affects))


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


# ---- which command takes which -------------------------------------------------------------------


@dataclass(frozen=True)
class CommandSpec:
    """A command of the command line.

    name: as it is typed, behind its group and a space where it stands in one. function: the dotted
    name of its function, which is imported when the command is called or explained. Its parameters
    are `options` (the `Options`) and `output` (how the result is printed and written), if it needs
    them, its arguments, and the options that are in no table; its docstring is the help. section:
    of `loraprobe --help`. examples: one or two calls, which the help shows. options: the names of
    all that it takes, in the order of the help; extensions may add further ones. first: those that
    stand before them, in a group of their own. changed: option -> what of it is otherwise in this
    command, its `default` (... for an option that has to be given) or its `help`. done: the
    headline where it makes something, such as MERGED. lists_adapters: it lists adapters of the base
    that it is given, so that the next command names it where another adapter is needed.
    """

    name: str
    function: str
    section: str
    examples: tuple[str, ...]
    options: str = ""
    first: str = ""
    changed: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    done: str = ""
    lists_adapters: bool = False


# The commands of the core, section by section of --help.
CORE = (
    CommandSpec(
        "demo",
        "loraprobe.cli.measuring.demo",
        "Start",
        ("loraprobe demo", "loraprobe demo --scenario skill-and-facts"),
        "scenario margin guards guard_margin all_items seed device threads json "
        "explain quiet exit_zero",
    ),
    CommandSpec(
        "task sample",
        "loraprobe.cli.task.sample",
        "Start",
        ("loraprobe task sample questions.jsonl --base gpt2",),
        "base limit metric chat_template trust_remote_code json",
    ),
    CommandSpec(
        "inspect",
        "loraprobe.cli.measuring.inspect",
        "Start",
        (
            "loraprobe inspect ./legal owner/chat",
            "loraprobe inspect ./legal owner/chat --base auto --probe auto",
        ),
        "base allow task probe per_module diagnostics limit max_new_tokens metric margin "
        "chat_template seed device dtype batch_size threads trust_remote_code resume json "
        "explain quiet exit_zero",
    ),
    CommandSpec(
        "merge-and-eval",
        "loraprobe.cli.measuring.merge_and_eval",
        "Start",
        (
            "loraprobe merge-and-eval ./legal owner/chat --task questions.jsonl",
            "loraprobe merge-and-eval ./legal owner/chat --task questions.jsonl --dry-run",
        ),
        "balance subtract allow systems space rank weights router_prompts metric margin "
        "guards guard_margin retention limit all_items max_new_tokens chat_template seed device "
        "dtype quantize device_map batch_size threads trust_remote_code resume overwrite json "
        "explain dry_run quiet exit_zero",
        first="base task methods routers target",
        changed={
            "base": {"default": "auto"},
            "target": {"help": "Directory for the recommended composition."},
        },
    ),
    CommandSpec(
        "merge",
        "loraprobe.cli.making.merge",
        "Make",
        (
            "loraprobe merge ./legal owner/chat -o merged",
            "loraprobe merge ./legal owner/chat --method ties:density=0.3 --weights 0.7,0.3 "
            "-o merged",
        ),
        "base balance subtract allow task methods weights space rank dtype device threads "
        "limit seed target overwrite json explain quiet",
        changed={
            "methods": {"default": "uniform", "help": "Merge method, as ties:density=0.3."},
            "dtype": {
                "help": "Of the file: auto (the sources' widest), float32, bfloat16 or float16."
            },
        },
        done="MERGED",
    ),
    CommandSpec(
        "route",
        "loraprobe.cli.making.route",
        "Make",
        ("loraprobe route ./legal owner/chat --router arrow:top_k=1 -o routed",),
        "base balance subtract allow task routers router_prompts weights limit "
        "chat_template seed device quantize device_map batch_size threads trust_remote_code target "
        "overwrite json explain quiet",
        changed={
            "routers": {"default": "arrow", "help": "Router, such as arrow:top_k=1."},
            "target": {"default": ...},
        },
        done="COMPOSED",
    ),
    CommandSpec(
        "report",
        "loraprobe.cli.measuring.report",
        "Other",
        ("loraprobe report audit.json --explain",),
        "explain quiet",
    ),
    CommandSpec(
        "methods",
        "loraprobe.cli.methods.methods",
        "Other",
        ("loraprobe methods", "loraprobe methods ties arrow"),
        "json",
    ),
    CommandSpec("lab", "loraprobe.cli.lab.lab", "Other", ("loraprobe lab --help",)),
)
EVERYWHERE = "config", "debug"  # the options that every command takes
_LISTED = [name for spec in CORE for name in f"{spec.first} {spec.options}".split()]
# Arguments of the core's commands, and what the classes of options have beside options.
_TAKEN = {
    *_LISTED,
    *EVERYWHERE,
    "refs",
    "file",
    "files",
    "names",
    "help",
    "added",
    *vars(AddedOptions),
}
for _group in Options.__bases__:
    OF_CORE |= option_names(_group)
OF_CORE |= {f"the option {name}": __name__ for name in _TAKEN}
# One that a single command takes may be written alike in a command of an extension.
_SHARED = {name for name in _LISTED if _LISTED.count(name) > 1}
OF_CORE |= {f"the flag {_flag(name)}": __name__ for name in (*_SHARED, *EVERYWHERE, "help")}
OF_CORE |= {f"the flag {flag}": __name__ for flag in ("--output", "-o", "-q", "-h")}
OF_CORE |= {f"the command {spec.name}": __name__ for spec in CORE}


@functools.cache
def commands() -> Mapping[str, CommandSpec]:
    """Name of a command -> the command, those of extensions last."""
    added = (spec for one in extensions() for spec in one.commands)
    return {spec.name: spec for spec in (*CORE, *added)}


def options_of(command: str) -> list[str]:
    """The names of the options of a command, in the order of its help, those that extensions add
    last."""
    spec = commands()[command]
    added = [name for name, one in table().items() if command in one.metadata.get("commands", ())]
    shared = [name for one in _kinds_of_extensions() for name in one.shared.get(command, ())]
    return [*spec.first.split(), *spec.options.split(), *added, *shared]


def takes(command: str = "") -> Callable[[Function], Function]:
    """Gives a Python function the options of a command as keywords, but those that it has itself.

    Its docstring lists them. Other keywords raise UsageError. None for any of them is as if it was
    not given, which is a UsageError where the function needs it. Errors name options by their
    keywords.
    """

    def decorate(function: Function) -> Function:
        signature = inspect.signature(function)
        taken = _keywords_of(command, signature.parameters) if command else []
        known = [name for name in (*signature.parameters, *taken) if name != "options"]
        parameters = {name: one for name, one in signature.parameters.items() if name in known}
        needed = [name for name, one in parameters.items() if one.default is one.empty]
        if command:
            listed = f"options: {', '.join(taken)} (docs/options.md)."
            text = inspect.cleandoc(function.__doc__ or "")
            function.__doc__ = "\n".join([text, "", *wrapped(listed, 100)])

        @functools.wraps(function)
        def called(*given: Any, **keywords: Any) -> Any:
            for name in keywords:
                if name not in known:
                    lead = f"{function.__name__} has no option {name!r}:"
                    raise UsageError(lead, nearest(name, known))
            values = {name: one for name, one in keywords.items() if one is not None}
            bound = signature.bind_partial(*given, **values).arguments
            values |= {name: one for name, one in bound.items() if one is not None}
            values |= values.pop("options", {})
            if lacking := [name for name in needed if name not in values]:
                sentence = f"{function.__name__} needs {listing(lacking)}"
                raise UsageError(f"{sentence}; None is as if nothing was given.")
            try:
                return function(**values)
            except LoraprobeError as error:
                error.in_python(function.__name__, _keywords(known))
                raise

        return cast(Function, called)

    return decorate


def _keywords_of(command: str, own: Iterable[str]) -> list[str]:
    """The keywords for the options of a command, in order, without those that `own` replace, such
    as `method`. What is kept for --resume may lie in a directory `state`."""
    options = options_of(command)
    names = {n for n in named_options() if n in options and not {n, n.removesuffix("s")} & {*own}}
    return sorted(names.union({"resume", "state"} if "resume" in options else ()))


def _keywords(known: Iterable[str]) -> Mapping[str, str]:
    """Option of the command line -> the keyword of a Python function that has these."""
    named = {flag_of(name) if name in table() else _flag(name): name for name in known}
    others = {"tasks": "--task", "prompts": "--router-prompts"}
    return named | {flag: name for name, flag in others.items() if name in known}
