"""The whole story in order, each stage one call; what the commands and the Python API run."""

from loraprobe.audit.evaluate import Outcome, merge_and_eval
from loraprobe.audit.look import inspect, merge
from loraprobe.audit.settings import Settings

__all__ = ["Outcome", "Settings", "inspect", "merge", "merge_and_eval"]
