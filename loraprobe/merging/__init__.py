"""Merging: adapters -> one adapter, without the base model.

One file per method; a method is a pure function on stacked matrices (`_method.py`). The space in
which it runs (`loraprobe.lora.spaces`) and the rank to which its result is cut (`_compress.py`) are
separate choices, brought together in `_merge.py`.
"""

from loraprobe.merging._checks import check_kept
from loraprobe.merging._merge import Merged, merge
from loraprobe.merging._method import FactorMethod, GramMethod, LinearMethod, MergeMethod
from loraprobe.merging._shelf import METHODS

__all__ = [
    "METHODS",
    "FactorMethod",
    "GramMethod",
    "LinearMethod",
    "MergeMethod",
    "Merged",
    "check_kept",
    "merge",
]
