"""Adapters shaped like those of a 7B model, and the cost of only reading or writing them.

    python benchmarks/adapters_7b.py read DIRECTORY...
    python benchmarks/adapters_7b.py write OUTPUT DIRECTORY...

"Reading" is a process that imports torch, reads the files with safetensors and casts every tensor
to float32; "writing" reads and then writes one rank-16 adapter of the same modules in bf16 to the
disk.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

RANK = 16
SHAPES = {
    **{f"self_attn.{name}_proj": (4096, 4096) for name in "qkvo"},
    "mlp.gate_proj": (11008, 4096),
    "mlp.up_proj": (11008, 4096),
    "mlp.down_proj": (4096, 11008),
}


def modules(layers: int) -> dict[str, tuple[int, int]]:
    """Module path -> (out, in) of a Llama-2-7B-shaped model."""
    return {
        f"model.layers.{i}.{name}": shape for i in range(layers) for name, shape in SHAPES.items()
    }


def write_adapter(directory: Path, layers: int, seed: int) -> str:
    """A random bf16 adapter as peft writes it; its directory.

    Its A is as initialised, its B of condition 50, as in the trained adapters that were measured.
    """
    import torch
    from safetensors.torch import save_file

    directory.mkdir(parents=True)
    draw = torch.Generator().manual_seed(seed)
    tensors = {}
    mixed = torch.linalg.qr(torch.randn(RANK, RANK, generator=draw)).Q
    mixed *= torch.logspace(0, -1.7, RANK)[:, None]
    for path, (out, into) in modules(layers).items():
        for name, shape in (("A", (RANK, into)), ("B", (out, RANK))):
            factor = torch.randn(shape, generator=draw) / into**0.5
            factor = factor @ mixed if name == "B" else factor
            tensors[f"base_model.model.{path}.lora_{name}.weight"] = factor.bfloat16()
    save_file(tensors, str(directory / "adapter_model.safetensors"), metadata={"format": "pt"})
    config = {
        "peft_type": "LORA",
        "base_model_name_or_path": "example/7b",
        "task_type": "CAUSAL_LM",
        "r": RANK,
        "lora_alpha": 2 * RANK,
        "target_modules": sorted({name.rpartition(".")[2] for name in SHAPES}),
    }
    (directory / "adapter_config.json").write_text(json.dumps(config))
    return str(directory)


def weights(directories: list[str]) -> list[Path]:
    """The weight files of these adapters."""
    return [Path(directory) / "adapter_model.safetensors" for directory in directories]


def read(directories: list[str]) -> list[dict]:
    """Reads and casts every tensor, which any tool has to do."""
    import torch
    from safetensors.torch import load_file

    return [
        {key: tensor.to(torch.float32) for key, tensor in load_file(str(file)).items()}
        for file in weights(directories)
    ]


def write(output: str, directories: list[str]) -> None:
    """Read, then write one adapter of the same modules and see it on the disk."""
    import torch
    from safetensors.torch import save_file

    first = read(directories)[0]
    Path(output).mkdir()
    (path,) = weights([output])
    save_file({key: tensor.to(torch.bfloat16) for key, tensor in first.items()}, str(path))
    with path.open("rb") as handle:
        os.fsync(handle.fileno())


if __name__ == "__main__":
    kind, *arguments = sys.argv[1:]
    if kind == "read":
        kept = read(arguments)
    else:
        write(arguments[0], arguments[1:])
