"""Diagnostics of adapters from their factors, one file each; `diagnose` runs them in one pass."""

from __future__ import annotations

from loraprobe.diagnostics._contract import Diagnostic
from loraprobe.diagnostics._engine import diagnose
from loraprobe.diagnostics._shelf import DIAGNOSTICS

__all__ = ["DIAGNOSTICS", "Diagnostic", "diagnose"]
