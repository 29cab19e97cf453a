"""The extensions of this installation. No other file of the core names one.

An extension is a folder of `loraprobe.extensions`, or a package of somebody else that has an entry
point of that group. Whoever deletes a folder, its tests and its line here has deleted it.
"""

import functools
import importlib
import warnings
from collections.abc import Mapping
from dataclasses import fields
from importlib.metadata import entry_points
from typing import Any

from loraprobe.errors import PACKAGES, UsageError

GROUP = "loraprobe.extensions"
EXTENSIONS: tuple[str, ...] = (
    "data_sets",
    "files",
    "find",
    "forecast",
    "gates",
    "harness",
    "layouts",
    "methods",
    "ray",
    "reports",
    "screen",
    "serve",
    "task_check",
    "train",
    "upkeep",
)  # fmt: skip
# What the core has by name, as `claim` takes it: the modules that have it say so here.
OF_CORE: dict[str, str] = {}


def claim(taken: dict[str, str], names: Mapping[str, str]) -> None:
    """Adds names, as "the option margin", to those that are taken, each with its module.

    Raises UsageError for a name that is taken.
    """
    for name, module in names.items():
        if name in taken:
            both = f"{taken[name]} and {module} both have {name}"
            raise UsageError(f"{both}; uninstall the extension that you need less.")
    taken |= names


def option_names(group: Any) -> dict[str, str]:
    """The options of a dataclass by their fields and flags, as `claim` takes them."""
    names = [f"the option {one.name}" for one in fields(group)]
    for one in fields(group):
        flags = one.metadata.get("flags") or [f"--{one.name.replace('_', '-')}"]
        names += [f"the flag {flag}" for flag in flags]
    return dict.fromkeys(names, group.__module__)


def names_of(extension: Any) -> dict[str, str]:
    """What an extension adds by name, as `claim` takes it."""
    names = {} if extension.options is None else option_names(extension.options)
    names |= {f"the command {spec.name}": spec.function for spec in extension.commands}
    return names | {f"the function {name}": at for name, at in extension.functions.items()}


@functools.cache
def extensions() -> tuple[Any, ...]:
    """The `Extension` of each, those of other packages last.

    Their modules are small: they import what they need when it is used. One of another package that
    cannot be loaded, or that adds what is there by the same name, is left out with a warning.
    """
    found, taken = list[Any](), dict(OF_CORE)
    for name in EXTENSIONS:
        found.append(importlib.import_module(f"{GROUP}.{name}").EXTENSION)
        claim(taken, names_of(found[-1]))
    for point in entry_points(group=GROUP):
        try:
            extension = point.load()
            claim(taken, names_of(extension))
            found.append(extension)
            package = f"the package {point.dist.name}" if point.dist else point.name
            PACKAGES.setdefault(point.value.partition(".")[0].partition(":")[0], package)
        except Exception as error:  # whatever its module does while it is imported
            package = f" of the package {point.dist.name}" if point.dist else ""
            warnings.warn(
                f"The extension {point.name}{package} cannot be loaded and is left out "
                f"({type(error).__name__}: {error}); update or uninstall it.",
                stacklevel=2,
            )
    return tuple(found)
