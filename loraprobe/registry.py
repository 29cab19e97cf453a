"""A shelf: a folder whose files each hold one thing, a frozen dataclass whose fields are options.

The listing of the folder is the registry. `Registry(package, base_class).make("ties:density=0.3")`
finds `ties.py` in the package, takes the one subclass of `base_class` defined there and builds it
with the options, converted to the types of its fields.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import pkgutil
import types
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from loraprobe.errors import UsageError

T = TypeVar("T")


@dataclass(frozen=True)
class Registry(Generic[T]):
    """The things of one folder.

    `package` is its dotted name, `base` the class they derive from, `noun` what a user calls one.
    """

    package: str
    base: type[T]
    noun: str

    def names(self) -> list[str]:
        """Names of all things, which are the names of their files."""
        path = importlib.import_module(self.package).__path__
        return sorted(m.name for m in pkgutil.iter_modules(path) if not m.name.startswith("_"))

    def get(self, name: str) -> type[T]:
        """The class of that name. Raises UsageError with the nearest name if there is none."""
        names = self.names()
        if name not in names:
            close = difflib.get_close_matches(name, names, 1)
            hint = f"did you mean {close[0]!r}?" if close else f"there are {', '.join(names)}."
            raise UsageError(f"Unknown {self.noun} {name!r}: {hint}")
        module = importlib.import_module(f"{self.package}.{name}")
        found = [
            thing
            for thing in vars(module).values()
            if isinstance(thing, type)
            and issubclass(thing, self.base)
            and thing.__module__ == module.__name__
            and not thing.__name__.startswith("_")
        ]
        if len(found) != 1:
            raise TypeError(f"{module.__name__} must define exactly one {self.base.__name__}")
        return found[0]

    def make(self, spec: str | T) -> T:
        """Build from "name" or "name:option=value,option=value"; an instance passes through."""
        if not isinstance(spec, str):
            return spec
        name, _, rest = spec.partition(":")
        cls = self.get(name.strip().replace("-", "_"))
        options = self._options(cls, name, rest)
        try:
            return cls(**options)
        except ValueError as error:
            raise UsageError(f"{self.noun.capitalize()} {spec!r}: {error}") from None

    def _options(self, cls: type[T], name: str, rest: str) -> dict[str, Any]:
        fields = {f.name: f for f in dataclasses.fields(cls) if f.init}  # type: ignore[arg-type]
        hints = typing.get_type_hints(cls)
        options: dict[str, Any] = {}
        for part in filter(None, (p.strip() for p in rest.split(","))):
            key, equals, text = part.partition("=")
            key = key.strip().replace("-", "_")
            key = key if key in fields or f"{key}_" not in fields else f"{key}_"  # a word of Python
            if not equals or key not in fields:
                known = ", ".join(name.rstrip("_") for name in fields) or "none"
                raise UsageError(f"{self.noun.capitalize()} {name!r} has no option {part!r}; "
                                 f"its options are: {known}.")  # fmt: skip
            options[key] = convert(text.strip(), hints[key], f"{name}:{key}")
        return options

    def __iter__(self) -> Iterator[type[T]]:
        return (self.get(name) for name in self.names())


def spec_of(thing: Any) -> str:
    """The text "name:option=value,..." from which `Registry.make` builds an equal thing."""
    name = type(thing).__module__.rpartition(".")[2]
    values = {f.name: getattr(thing, f.name) for f in dataclasses.fields(thing) if f.init}
    given = {key.rstrip("_"): value for key, value in values.items() if value is not None}
    options = ",".join(f"{key}={value}" for key, value in given.items())
    return f"{name}:{options}" if options else name


def convert(text: str, hint: Any, what: str) -> Any:
    """A text as the type of a field: int, float, bool, str, Literal or a union with None."""
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        if text.lower() in ("none", "null") and type(None) in typing.get_args(hint):
            return None
        hint = next(a for a in typing.get_args(hint) if a is not type(None))
        origin = typing.get_origin(hint)
    if origin is typing.Literal:
        allowed = typing.get_args(hint)
        if text not in allowed:
            raise UsageError(f"{what} must be one of {', '.join(map(str, allowed))}, not {text!r}.")
        return text
    if origin is tuple:
        option = what.rpartition(":")[2].replace("_", "-")
        raise UsageError(f"{what} takes several values; on the command line use --{option}.")
    if hint is bool:
        if text.lower() in ("true", "yes", "on", "1"):
            return True
        if text.lower() in ("false", "no", "off", "0"):
            return False
        raise UsageError(f"{what} must be true or false, not {text!r}.")
    try:
        return hint(text)
    except (TypeError, ValueError):
        kind = {int: "a whole number", float: "a number"}.get(hint, getattr(hint, "__name__", hint))
        raise UsageError(f"{what} must be {kind}, not {text!r}.") from None
