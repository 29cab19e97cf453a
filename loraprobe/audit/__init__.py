"""The whole story in order, each stage one call; what the commands and the Python API run.

`inspect` and `merge` need no statistics and no model, so what evaluates is imported on first use.
"""

from typing import TYPE_CHECKING, Any

from loraprobe.audit.look import inspect, merge
from loraprobe.audit.opening import base_of
from loraprobe.audit.settings import Settings

if TYPE_CHECKING:
    from loraprobe.audit.evaluate import Outcome, merge_and_eval
    from loraprobe.audit.routed import compose
    from loraprobe.audit.saved import Routed, load_composition
    from loraprobe.audit.verification import verify

__all__ = [
    "Outcome", "Routed", "Settings", "base_of", "compose", "inspect", "load_composition", "merge",
    "merge_and_eval", "verify",
]  # fmt: skip

_LATE = {
    "Outcome": "evaluate", "merge_and_eval": "evaluate", "compose": "routed", "Routed": "saved",
    "load_composition": "saved", "verify": "verification",
}  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _LATE:
        raise AttributeError(name)
    import importlib

    return getattr(importlib.import_module(f"loraprobe.audit.{_LATE[name]}"), name)
