"""Registries: the members of a folder, found by listing it, and those that extensions add.

A member is a frozen dataclass whose fields are its options. A file of the folder defines one or
several members; files that start with an underscore are helpers. The name of a member is that of
its class in snake_case (`dare_ties` for `DareTies`) or the class's `registry_name`. An extension
names its modules with members in `Extension.members`, by the noun of the registry.

`Registry(package, base, noun).make("ties:density=0.3")` finds the class `Ties` in the package and
builds it with the options, converted to the types of its fields.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import importlib
import inspect
import pkgutil
import re
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from loraprobe import wiring
from loraprobe.errors import UsageError
from loraprobe.formatting import nearest

T = TypeVar("T")


@dataclass(frozen=True)
class Registry(Generic[T]):
    """The members of one folder.

    package: the dotted name of the folder, or of a file that has them all. base: the base class of
    all members. noun: the word for a member in messages, by which extensions add some. elsewhere: a
    name that other tools use -> which member that is.
    """

    package: str
    base: type[T]
    noun: str
    elsewhere: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @functools.cached_property
    def members(self) -> Mapping[str, type[T]]:
        """Name -> class, sorted by name. Imports all files of the folder, and what extensions name.

        Raises TypeError for a file without a member, UsageError for two members of one name.
        """
        package = importlib.import_module(self.package)
        files = [file.name for file in pkgutil.iter_modules(getattr(package, "__path__", ()))]
        names = [f"{self.package}.{name}" for name in files if not name.startswith("_")]
        names = names or [self.package]
        for extension in wiring.extensions():
            names += extension.members.get(self.noun, ())
        members, taken = dict[str, type[T]](), dict[str, str]()
        for cls in (cls for name in names for cls in self._defined_in(name)):
            wiring.claim(taken, {f"the {self.noun} {name_of(cls)}": cls.__module__})
            members[name_of(cls)] = cls
        return dict(sorted(members.items()))

    def _defined_in(self, name: str) -> list[type[T]]:
        """The members that a module defines. Raises TypeError where it has none."""
        module = importlib.import_module(name)
        classes = [
            thing
            for thing in dict.fromkeys(
                one for one in vars(module).values() if isinstance(one, type)
            )
            if issubclass(thing, self.base)
            and thing.__module__ == name
            and not thing.__name__.startswith("_")
            and not inspect.isabstract(thing)
        ]
        if not classes:
            raise TypeError(f"{name} defines no {self.base.__name__}")
        return classes

    def __contains__(self, spec: str) -> bool:
        """Whether a spec such as "ties:density=0.3" names a member."""
        return _name_in(spec) in self.members

    def names(self) -> list[str]:
        """The names of all members, sorted."""
        return list(self.members)

    def get(self, name: str) -> type[T]:
        """The class of a name. Raises UsageError with what other tools mean by an unknown one, or
        with the nearest name."""
        if name in self.members:
            return self.members[name]
        meaning = self.elsewhere.get(name)
        if meaning is None:
            raise UsageError(f"Unknown {self.noun} {name!r}:", nearest(name, self.members))
        raise UsageError(f"There is no {self.noun} {name!r} here:", meaning)

    def make(self, spec: str | T) -> T:
        """Builds a member from "name" or "name:option=value,..."; returns an instance as it is.

        Raises UsageError for an unknown name or option and for a value that does not fit.
        """
        if not isinstance(spec, str):
            return spec
        name, _, rest = spec.partition(":")
        cls = self.get(_name_in(spec))
        options = self._options(cls, name, rest)
        try:
            return cls(**options)
        except ValueError as error:
            what = f"{self.noun.capitalize()} {spec!r}: {str(error).removesuffix('.')}"
            raise UsageError(f"{what}; see loraprobe methods {name}.") from None

    def _options(self, cls: type[T], name: str, rest: str) -> dict[str, Any]:
        fields = {f.name: f for f in dataclasses.fields(cls) if f.init}  # type: ignore[arg-type]
        hints = _hints(cls)  # type: ignore[arg-type]
        options: dict[str, Any] = {}
        for part in filter(None, (p.strip() for p in rest.split(","))):
            key, equals, text = part.partition("=")
            key = key.strip().replace("-", "_")
            if key not in fields and f"{key}_" in fields:  # a keyword of Python, such as lambda
                key += "_"
            if not equals or key not in fields:
                known = [name.rstrip("_") for name in fields]
                close = difflib.get_close_matches(key, known, 1)
                near = f"did you mean {close[0]!r}? Its" if close and equals else ""
                raise UsageError(
                    f"{self.noun.capitalize()} {name!r} has no option {part!r}"
                    f"{':' if near else ';'}",
                    f"{near or 'its'} options are: {', '.join(known) or 'none'}.",
                )
            options[key] = convert(text.strip(), hints[key], f"{name}:{key}")
        return options

    def __iter__(self) -> Iterator[type[T]]:
        return iter(self.members.values())


@functools.cache
def _hints(cls: Any) -> dict[str, Any]:
    """The types of the fields of a class; to find them takes longer than a small merge."""
    return typing.get_type_hints(cls)


def _name_in(spec: str) -> str:
    """The name in a spec: "task_arithmetic" of "task-arithmetic", "ties" of "ties:density=0.3"."""
    return spec.partition(":")[0].strip().replace("-", "_")


def name_of(member: Any) -> str:
    """The name of a member, which is a class or an instance."""
    cls = member if isinstance(member, type) else type(member)
    given = vars(cls).get("registry_name")
    if given is not None:
        return str(given)
    words = re.sub(r"(.)([A-Z][a-z]+)", r"\1_\2", cls.__name__)
    return re.sub(r"([a-z0-9])([A-Z])", r"\1_\2", words).lower()


def spec_of(member: Any, short: bool = False) -> str:
    """The text "name:option=value,..." from which `Registry.make` builds an equal member.

    short: without the options that have the values of a member built without any.
    """
    plain = type(member)() if short else None  # else an option is left out where it is None
    values = {f.name: getattr(member, f.name) for f in dataclasses.fields(member) if f.init}
    given = {k: value for k, value in values.items() if value != getattr(plain, k, None)}
    options = ",".join(f"{key.rstrip('_')}={value}" for key, value in given.items())
    return f"{name_of(member)}:{options}" if options else name_of(member)


def check_choices(member: Any) -> None:
    """Raises ValueError if the value of a Literal option is not one of its words."""
    hints = _hints(type(member))  # type: ignore[arg-type]
    for field in (f for f in dataclasses.fields(member) if f.init):
        words, value = typing.get_args(hints[field.name]), getattr(member, field.name)
        if typing.get_origin(hints[field.name]) is typing.Literal and value not in words:
            raise ValueError(f"{field.name} is one of {', '.join(words)}, not {value!r}.")


def convert(text: str, hint: Any, what: str) -> Any:
    """Converts a text to the type of a field, such as int, bool, Literal or Optional.

    what: the name of the option for errors. Raises UsageError if the text is not of that type.
    """
    from pydantic import TypeAdapter, ValidationError

    if text.lower() in ("none", "null") and type(None) in typing.get_args(hint):
        return None
    try:
        return TypeAdapter(hint).validate_python(text)
    except ValidationError as error:
        wanted = error.errors()[0]["msg"].removeprefix("Input should ").partition(", unable")[0]
        raise UsageError(f"{what} must {wanted}, not {text!r}.") from None
