"""Merging two adapters shaped like a 7B model's, against reading them and against peft.

    python benchmarks/merge_vs_peft.py [--layers 32] [--runs 3] [--peft square|all|none]

Every run is a process of its own, start-up included, and the kinds are interleaved:
  reading   imports torch, reads both files with safetensors, casts every tensor to float32
  writing   reading, and then writes a rank-16 adapter of the same modules in bf16 to the disk
  merge     `loraprobe merge`: read, check, merge exactly, cut to rank 16, measure all errors,
            write with a model card
  vlora     `vlora merge` of vlora-dev where it is installed; it averages A and B apart
peft's `svd` is timed on one module of each shape and multiplied by how many there are. `square`
times the 4096 x 4096 modules alone and so gives a lower bound, in about a minute; `all` takes
several minutes more. The aim is a merge within three times writing.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

RANK = 16
SHAPES = {
    **{f"self_attn.{name}_proj": (4096, 4096) for name in "qkvo"},
    "mlp.gate_proj": (11008, 4096),
    "mlp.up_proj": (11008, 4096),
    "mlp.down_proj": (4096, 11008),
}


class Figures(NamedTuple):
    """Of one process: wall seconds, CPU seconds, peak resident megabytes."""

    seconds: float
    cpu: float
    megabytes: float


def modules(layers: int) -> dict[str, tuple[int, int]]:
    """Module path -> (out, in) of a Llama-2-7B-shaped model."""
    return {
        f"model.layers.{i}.{name}": shape for i in range(layers) for name, shape in SHAPES.items()
    }


def write_adapter(directory: Path, layers: int, seed: int) -> None:
    """A random bf16 adapter as peft writes it."""
    import torch
    from safetensors.torch import save_file

    directory.mkdir()
    draw = torch.Generator().manual_seed(seed)
    tensors = {}
    for path, (out, into) in modules(layers).items():
        for name, shape in (("A", (RANK, into)), ("B", (out, RANK))):
            factor = torch.randn(shape, generator=draw) / into**0.5
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


def reading(directories: list[str], write: str | None = None) -> None:
    """What has to be done in any case."""
    import torch
    from safetensors.torch import load_file, save_file

    read = []
    for directory in directories:
        state = load_file(str(Path(directory) / "adapter_model.safetensors"))
        read.append({key: tensor.to(torch.float32) for key, tensor in state.items()})
    if write:
        path = Path(write) / "adapter_model.safetensors"
        path.parent.mkdir()
        save_file({key: tensor.to(torch.bfloat16) for key, tensor in read[0].items()}, str(path))
        with path.open("rb") as handle:
            os.fsync(handle.fileno())


def peft_svd(shape: tuple[int, int]) -> float:
    """Seconds of peft's add_weighted_adapter(combination_type="svd") for one module."""
    import torch
    from peft import LoraConfig, get_peft_model

    out, into = shape
    model = torch.nn.Sequential(torch.nn.Linear(into, out, bias=False))
    config = LoraConfig(r=RANK, target_modules=["0"], init_lora_weights=False)
    wrapped = get_peft_model(model, config, adapter_name="a")
    wrapped.add_adapter("b", config)
    start = time.perf_counter()
    wrapped.add_weighted_adapter(["a", "b"], [0.5, 0.5], "m", combination_type="svd", svd_rank=RANK)
    return time.perf_counter() - start


def timed(command: list[str]) -> Figures:
    """One child process from its start to its end; its output is thrown away."""
    start = time.perf_counter()
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(child.pid, 0)
    if status:
        raise SystemExit(f"{' '.join(command)} failed.")
    seconds = time.perf_counter() - start
    return Figures(seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024)


def measure(layers: int, runs: int) -> dict[str, list[Figures]]:
    """All kinds interleaved, `runs` times; the first round warms the disk cache and is left out."""
    with tempfile.TemporaryDirectory() as scratch:
        sources = [str(Path(scratch) / name) for name in "ab"]
        for seed, source in enumerate(sources):
            write_adapter(Path(source), layers, seed)
        kinds = commands(sources, "")
        results: dict[str, list[Figures]] = {kind: [] for kind in kinds}
        for run in range(runs + 1):
            for kind in kinds:
                output = str(Path(scratch) / f"{kind}-{run}")
                figures = timed(commands(sources, output)[kind])
                if run:
                    results[kind].append(figures)
    return results


def commands(sources: list[str], output: str) -> dict[str, list[str]]:
    """What is timed, by name."""
    child = [sys.executable, __file__, "--child"]
    merge = [sys.executable, "-m", "loraprobe", "merge", *sources, "-o", output]
    found = {
        "reading": [*child, "reading", *sources, output],
        "writing": [*child, "writing", *sources, output],
        "merge": [*merge, "--rank", str(RANK), "--json", "--quiet"],
    }
    if vlora := peer("vlora"):
        found["vlora"] = [vlora, "merge", *sources, "-o", output]
    return found


def peer(name: str) -> str | None:
    """The command of another tool, where it is installed."""
    return shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)


def report(results: dict[str, list[Figures]], layers: int) -> float:
    """Print the table; returns the median seconds of a merge."""
    print(f"{layers * len(SHAPES)} modules, rank {RANK}, bf16, two adapters; median (range)")
    median = {k: statistics.median(f.seconds for f in v) for k, v in results.items()}
    for kind, figures in results.items():
        seconds = sorted(f.seconds for f in figures)
        cpu = statistics.median(f.cpu for f in figures)
        ratio = median[kind] / median["writing"]
        print(
            f"  {kind:8} {median[kind]:6.2f} s ({seconds[0]:.2f} to {seconds[-1]:.2f}) = "
            f"{ratio:.2f} x writing, {cpu:.2f} s of CPU, {max(f.megabytes for f in figures):.0f} MB"
        )
    return median["merge"]


def report_peft(which: str, layers: int, merge_seconds: float) -> None:
    """Print peft's extrapolated time and how many merges fit into it."""
    shapes = [shape for shape in SHAPES.values() if which == "all" or shape[0] == shape[1]]
    seconds = {shape: peft_svd(shape) for shape in sorted(set(shapes))}
    total = layers * sum(seconds[shape] for shape in shapes)
    for (out, into), one in seconds.items():
        print(f"  peft svd {out} x {into}: {one:.1f} s a module")
    bound = "at least " if which == "square" else ""
    print(f"  peft, all modules: {bound}{total:.0f} s, {bound}{total / merge_seconds:.0f} x merge")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--peft", choices=("square", "all", "none"), default="square")
    parser.add_argument("--child", nargs=4, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        kind, *sources, output = arguments.child
        reading(sources, output if kind == "writing" else None)
        return
    seconds = report(measure(arguments.layers, arguments.runs), arguments.layers)
    if arguments.peft != "none":
        report_peft(arguments.peft, arguments.layers, seconds)


if __name__ == "__main__":
    main()
