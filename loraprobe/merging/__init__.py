"""Merging: adapters -> one adapter, without the base model.

One file per method; a method is a pure function on stacked matrices (`_method.py`). The space in
which it runs (`loraprobe.lora.spaces`) and the rank to which its result is cut (`_compress.py`) are
separate choices, brought together in `_merge.py`.
"""

from loraprobe.merging._engine import Merged, merge
from loraprobe.merging._method import METHODS, FactorMethod, GramMethod, LinearMethod, MergeMethod
from loraprobe.merging._validation import check_kept

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
