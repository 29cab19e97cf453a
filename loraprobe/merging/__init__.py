"""Merging: adapters -> one adapter, without the base model where that is possible.

One file per family of methods; a method is a pure function on stacked matrices. The space in which
it runs (`loraprobe.lora.spaces`) and the rank to which its result is cut are separate choices. The
other files, in the order in which to read them:

    _method         the contract of a method: deltas [n, p, q], weights [n] -> [p, q]; MergeConfig,
                    which says how adapters are merged, and the inputs of one merge
    _compress       cutting to a rank: from Gram matrices, by QR, or by a sketch
    _extras         linear merges of DoRA, whole modules, biases and token rows
    _engine         `merge`: checks, then all modules one by one, then the merged adapter; what is
                    refused, and what is reported instead of hidden
"""

from loraprobe.merging._engine import Merged, add_change, check_adapters, check_kept, merge
from loraprobe.merging._method import (
    EVERY_SPACE,
    METHODS,
    Deltas,
    FactorMethod,
    Generators,
    LinearMethod,
    Matrix,
    MergeConfig,
    MergeInputs,
    MergeMethod,
    Weights,
)
