"""Adapter: one LoRA adapter as a mapping from module path to LowRank, and its PEFT directory.

Every tensor of the file becomes a factor, an extra, or part of an issue. Reading folds
`use_rslora`, `alpha_pattern`, `rank_pattern` and `fan_in_fan_out` into (A, B, scaling); no other
room needs these keys.

types       Adapter and its parts
reading     reads a directory: config (adapter_config.json), tensors (the weights), keys and sorting
            (what each tensor is), extras, issues (what is odd)
lazy        tensors that are read when they are needed
targeting   which modules a config targets by peft's rules; expressions matches its expressions
experts     stacked parameters of mixtures of experts (target_parameters), one module an expert
saving      writes a directory and reads it back; staging makes outputs complete or absent
portable    one rank and one scaling in all modules, as servers read files; paths as peft reads them
fused       brings adapters with fused and with single projections to one layout, by rows
paths       module paths and the public names of bases
"""

from loraprobe.adapters.extras import copied_weight, same_weight
from loraprobe.adapters.issues import extreme_norm
from loraprobe.adapters.lazy import Tensors
from loraprobe.adapters.paths import (
    is_path,
    layer_pattern,
    local_name,
    natural,
    public_name,
    public_value,
)
from loraprobe.adapters.portable import MENDABLE, common_targets, mended, portable
from loraprobe.adapters.reading import adapter_of, read_adapter
from loraprobe.adapters.saving import save_adapter
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
)
