"""`loraprobe inspect` on adapters shaped like a 7B model's, against reading them and vlora-dev.

    python benchmarks/inspect_vs_peers.py [--layers 32] [--adapters 2] [--runs 3]

Every run is a process of its own, start-up included, and the kinds are interleaved:
  reading   imports torch, reads the files with safetensors, casts every tensor to float32
  inspect   loraprobe: compatibility, all diagnostics, all pairs
  vlora     `vlora analyze` of vlora-dev where it is installed; it compares raw factors
The aim for two adapters is an inspect within three times reading. `--adapters` shows that
loraprobe's memory does not grow with the number of files.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from pathlib import Path

from merge_vs_peft import RANK, SHAPES, Figures, peer, timed, write_adapter


def commands(sources: list[str]) -> dict[str, list[str]]:
    """What is timed, by name."""
    found = {
        "reading": [sys.executable, __file__, "--child", *sources],
        "inspect": [sys.executable, "-m", "loraprobe", "inspect", "--json", *sources],
    }
    if vlora := peer("vlora"):
        found["vlora"] = [vlora, "analyze", *sources]
    return found


def read(sources: list[str]) -> None:
    """What has to be done in any case."""
    import torch
    from safetensors.torch import load_file

    kept = []
    for source in sources:
        state = load_file(str(Path(source) / "adapter_model.safetensors"))
        kept.append({key: tensor.to(torch.float32) for key, tensor in state.items()})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--adapters", type=int, default=2)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--child", nargs="+", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        read(arguments.child)
        return
    with tempfile.TemporaryDirectory() as scratch:
        sources = [str(Path(scratch) / f"adapter{n}") for n in range(arguments.adapters)]
        for seed, source in enumerate(sources):
            write_adapter(Path(source), arguments.layers, seed)
        kinds = commands(sources)
        results: dict[str, list[Figures]] = {kind: [] for kind in kinds}
        for run in range(arguments.runs + 1):  # the first round warms the disk cache
            for kind, command in kinds.items():
                figures = timed(command)
                if run:
                    results[kind].append(figures)
    print(f"{arguments.adapters} adapters, {arguments.layers * len(SHAPES)} modules, rank {RANK}, "
          "bf16; median (range)")  # fmt: skip
    base = statistics.median(f.seconds for f in results["reading"])
    for kind, figures in results.items():
        seconds = sorted(f.seconds for f in figures)
        middle = statistics.median(seconds)
        memory = max(f.megabytes for f in figures)
        print(f"  {kind:8} {middle:6.2f} s ({seconds[0]:.2f} to {seconds[-1]:.2f}) = "
              f"{middle / base:.2f} x reading, {memory:.0f} MB")  # fmt: skip


if __name__ == "__main__":
    main()
