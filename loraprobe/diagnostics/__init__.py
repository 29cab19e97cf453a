"""Diagnostics of adapters from their factors, one file each; `diagnose` runs them in one pass."""

from __future__ import annotations

from loraprobe.diagnostics._contract import Diagnostic
from loraprobe.diagnostics._engine import diagnose
from loraprobe.shelf import Shelf

DIAGNOSTICS = Shelf("loraprobe.diagnostics", Diagnostic, "diagnostic")  # type: ignore[type-abstract]

__all__ = ["DIAGNOSTICS", "Diagnostic", "diagnose"]
