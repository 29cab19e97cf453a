"""The whole story in order, each stage one call; what the commands and the Python API run.

`inspect` and `merge` need no statistics and no model, so what evaluates is imported on first use.
"""

from typing import TYPE_CHECKING, Any

from loraprobe.audit.look import inspect, merge
from loraprobe.audit.opening import base_of
from loraprobe.audit.settings import Settings

if TYPE_CHECKING:
    from loraprobe.audit.evaluate import Outcome, merge_and_eval

__all__ = ["Outcome", "Settings", "base_of", "inspect", "merge", "merge_and_eval"]


def __getattr__(name: str) -> Any:
    if name in ("Outcome", "merge_and_eval"):
        from loraprobe.audit import evaluate

        return getattr(evaluate, name)
    raise AttributeError(name)
