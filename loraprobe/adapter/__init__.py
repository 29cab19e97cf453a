"""Adapter: one LoRA adapter as a mapping from module path to LowRank, and its PEFT directory.

Reading accounts for every tensor of the file: it is a factor, an extra, or named in an issue.
`use_rslora`, `alpha_pattern`, `rank_pattern` and `fan_in_fan_out` are folded into (A, B, scaling)
here and exist nowhere else.
"""

from loraprobe.adapter.reading import read_adapter
from loraprobe.adapter.saving import StagedDirectory, check_output
from loraprobe.adapter.types import (
    Adapter,
    Extra,
    LayerKind,
    ModuleInfo,
    Modules,
    Source,
    adapter_of,
    layer_pattern,
    natural,
)

__all__ = [
    "Adapter",
    "Extra",
    "LayerKind",
    "ModuleInfo",
    "Modules",
    "Source",
    "StagedDirectory",
    "adapter_of",
    "check_output",
    "layer_pattern",
    "natural",
    "read_adapter",
]
