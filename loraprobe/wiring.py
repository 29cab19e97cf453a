"""The extensions of this installation. No other file of the core names one.

An extension is a folder of `loraprobe.extensions`, or a package of somebody else that has an entry
point of that group. Whoever deletes a folder, its tests and its line here has deleted it.
"""

import functools
import importlib
import warnings
from collections.abc import Iterable
from importlib.metadata import entry_points
from typing import Any, TypeVar

from loraprobe.errors import UsageError

GROUP = "loraprobe.extensions"
EXTENSIONS: tuple[str, ...] = (
    "data_sets",
    "files",
    "find",
    "forecast",
    "harness",
    "ray",
    "screen",
    "serve",
)  # fmt: skip
Value = TypeVar("Value")


def by_name(what: str, named: Iterable[tuple[str, str, Value]]) -> dict[str, Value]:
    """Name -> value. named: of each its name, the module that it comes from, and the value.

    Raises UsageError where two have one name. what: they are, as "the option".
    """
    values, modules = dict[str, Value](), dict[str, str]()
    for name, module, value in named:
        if name in values:
            both = f"{modules[name]} and {module} both have {what} {name}"
            raise UsageError(f"{both}; uninstall the extension that you need less.")
        values[name], modules[name] = value, module
    return values


@functools.cache
def extensions() -> tuple[Any, ...]:
    """The `Extension` of each, those of other packages last.

    Their modules are small: they import what they need when it is used. One of another package that
    cannot be loaded is left out with a warning.
    """
    found = [importlib.import_module(f"{GROUP}.{name}").EXTENSION for name in EXTENSIONS]
    for point in entry_points(group=GROUP):
        try:
            found.append(point.load())
        except Exception as error:  # whatever its module does while it is imported
            package = f" of the package {point.dist.name}" if point.dist else ""
            warnings.warn(
                f"The extension {point.name}{package} cannot be loaded and is left out "
                f"({type(error).__name__}: {error}); update or uninstall it.",
                stacklevel=2,
            )
    return tuple(found)
