"""Adapter: one LoRA adapter as a mapping from module path to LowRank, and its PEFT directory.

Every tensor of the file becomes a factor, an extra, or part of an issue. Reading folds
`use_rslora`, `alpha_pattern`, `rank_pattern` and `fan_in_fan_out` into (A, B, scaling); no other
room needs these keys.
"""

from loraprobe.adapters.completeness import extreme_norm
from loraprobe.adapters.extras import copied_weight, same_weight
from loraprobe.adapters.memory import adapter_of
from loraprobe.adapters.paths import (
    is_path,
    layer_pattern,
    local_name,
    natural,
    public_name,
    public_value,
)
from loraprobe.adapters.reading import read_adapter
from loraprobe.adapters.staging import (
    StagedDirectory,
    check_apart,
    check_output,
    check_place,
    staged_file,
)
from loraprobe.adapters.types import (
    Adapter,
    Extra,
    LayerKind,
    ModuleInfo,
    Modules,
    Source,
    Tensors,
)

__all__ = [
    "Adapter",
    "Extra",
    "LayerKind",
    "ModuleInfo",
    "Modules",
    "Source",
    "StagedDirectory",
    "Tensors",
    "adapter_of",
    "check_apart",
    "check_output",
    "check_place",
    "copied_weight",
    "extreme_norm",
    "is_path",
    "layer_pattern",
    "local_name",
    "natural",
    "public_name",
    "public_value",
    "read_adapter",
    "same_weight",
    "staged_file",
]
