"""The extensions of this installation. No other file of the core names one.

An extension is a folder of `loraprobe.extensions`, or a package of somebody else that has an entry
point of that group. Whoever deletes a folder, its tests and its line here has deleted it.
"""

import functools
import importlib
import warnings
from importlib.metadata import entry_points
from typing import Any

GROUP = "loraprobe.extensions"
EXTENSIONS: tuple[str, ...] = (
    "files",
    "find",
    "forecast",
    "harness",
    "ray",
    "screen",
    "serve",
)  # fmt: skip


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
