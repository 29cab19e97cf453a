"""What only calibrating needs, imported when it is needed."""

from __future__ import annotations

import importlib
from typing import Any

from loraprobe.errors import UsageError


def need(module: str) -> Any:
    """A module of the extra `lab`. Raises UsageError naming what to install."""
    try:
        return importlib.import_module(module)
    except ImportError:
        name = {"sklearn": "scikit-learn"}.get(module.partition(".")[0], module.partition(".")[0])
        raise UsageError(
            f"Calibrating needs {name}, which is not installed: pip install loraprobe[lab]."
        ) from None
