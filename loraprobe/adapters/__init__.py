"""Adapter: one LoRA adapter as a mapping from module path to LowRank, and its PEFT directory.

Every tensor of the file becomes a factor, an extra, or part of an issue. Reading folds
`use_rslora`, `alpha_pattern`, `rank_pattern` and `fan_in_fan_out` into (A, B, scaling); no other
room needs these keys.

types       Adapter and its parts, whose tensors are read when they are needed
names       paths of modules; names of base models and directories
config      adapter_config.json: ranks, scalings and targets by peft's rules, and what is odd in it
files       the directory of an adapter, its weights, and what other trainings leave there
reading     a directory -> Adapter: what each tensor is
experts     stacked parameters of mixtures of experts (target_parameters), one module an expert
building    adapters in memory: of tensors, portable, with repaired or other paths
layouts     the interface of other forms of updates, which extensions know
artifact    what commands make and write
saving      writes a directory and reads it back
staging     makes outputs complete or absent
"""

from loraprobe.adapters.artifact import Artifact, Composed
from loraprobe.adapters.building import adapter_of, portable
from loraprobe.adapters.names import (
    agreed_base,
    hub_id,
    is_path,
    layer_of,
    layer_pattern,
    local_name,
    natural,
    public_name,
    public_value,
)
from loraprobe.adapters.reading import copied_weight, read_adapter, same_weight
from loraprobe.adapters.saving import common_targets, save_adapter
from loraprobe.adapters.staging import (
    check_apart,
    check_file,
    check_output,
    check_place,
    staged_directory,
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
    extreme_norm,
)
