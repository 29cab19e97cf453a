"""The stages of each command in order; the command line and the Python functions call these.

`inspect`, `merge` and `compose` need no statistics and `inspect` and `merge` no model, so modules
are imported when one of their names is used.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from loraprobe.pipeline.commands import (
        Outcome,
        compose,
        estimate_cost,
        inspect,
        merge,
        merge_and_eval,
    )
    from loraprobe.pipeline.inputs import base_of
    from loraprobe.pipeline.saved import Routed, load_composition
    from loraprobe.pipeline.verification import verify

_MODULES = {
    "Outcome": "commands",
    "Routed": "saved",
    "base_of": "inputs",
    "compose": "commands",
    "estimate_cost": "commands",
    "inspect": "commands",
    "load_composition": "saved",
    "merge": "commands",
    "merge_and_eval": "commands",
    "verify": "verification",
}

__all__ = [
    "Outcome",
    "Routed",
    "base_of",
    "compose",
    "estimate_cost",
    "inspect",
    "load_composition",
    "merge",
    "merge_and_eval",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(name)
    return getattr(importlib.import_module(f"loraprobe.pipeline.{_MODULES[name]}"), name)
