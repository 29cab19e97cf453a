"""Diagnostics of adapters from their factors, one file each; `diagnose` runs them in one pass."""

from __future__ import annotations

from loraprobe.diagnostics._diagnostic import DIAGNOSTICS, Diagnosis, FigureKey, diagnose
