"""The listing of this folder: every diagnostic by the name of its file."""

from loraprobe.diagnostics._contract import Diagnostic
from loraprobe.shelf import Shelf

DIAGNOSTICS: Shelf[Diagnostic] = Shelf("loraprobe.diagnostics", Diagnostic, "diagnostic")  # type: ignore[type-abstract]
