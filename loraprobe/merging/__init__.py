"""Merging: adapters -> one adapter, without the base model where that is possible.

One file per method or family of methods; a method is a pure function on stacked matrices. The
space in which it runs (`loraprobe.lora.spaces`) and the rank to which its result is cut are
separate choices. Helpers, in the order in which to read them:

    _method         the contract of a method: deltas [n, p, q], weights [n] -> [p, q]
    _plan           adapters, method, weights, space, rank ... of one merge, nothing left out
    _validation     what is refused, and what is reported instead of hidden
    _engine         `merge`: checks, then all modules one by one, then the merged adapter
    _merged         the result
    _module         one module: factors -> space -> method -> rank, with what was lost
    _compress       cutting to a rank: from Gram matrices, by QR, or by a sketch
    _dora           linear merges of DoRA
    _replaced       linear merges of whole modules, biases and token rows
    _sparse         the contract of the family in sparse.py: which entries are kept (_selection),
                    and the election of a sign
"""

from loraprobe.merging._engine import merge
from loraprobe.merging._merged import Merged
from loraprobe.merging._method import METHODS, FactorMethod, LinearMethod, MergeMethod
from loraprobe.merging._validation import check_kept
