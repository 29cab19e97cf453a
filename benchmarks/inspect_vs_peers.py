"""`loraprobe inspect` on adapters shaped like a 7B model's, against reading them and vlora-dev.

    python benchmarks/inspect_vs_peers.py [--layers 32] [--adapters 2] [--runs 5]

Every run is a separate process with its start-up, and the kinds take turns:
  reading   imports torch, reads the files with safetensors, casts every tensor to float32
  inspect   loraprobe: compatibility, all diagnostics, all pairs
  vlora     `vlora analyze` of vlora-dev where it is installed; it compares raw factors only
The aim for two adapters is an inspect within twice reading; with twenty, within 3.5 times reading,
and less time and less memory than vlora.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from adapters_7b import RANK, SHAPES, weights, write_adapter
from machine import (
    Figures,
    aim,
    interleaved,
    loraprobe,
    peer,
    ratios,
    read_rate,
    script,
    table,
    timed,
)


def measure(sources: list[str], runs: int) -> dict[str, list[Figures]]:
    """Times all kinds, which take turns."""
    kinds = {
        "reading": script("adapters_7b.py", "read", *sources),
        "inspect": loraprobe("inspect", "--json", *sources),
    }
    if vlora := peer("vlora"):
        kinds["vlora"] = [vlora, "analyze", *sources]
    return interleaved({kind: (lambda c=c: timed(c)) for kind, c in kinds.items()}, runs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--adapters", type=int, default=2)
    parser.add_argument("--runs", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        sources = [
            write_adapter(Path(scratch) / f"adapter{seed}", options.layers, seed)
            for seed in range(options.adapters)
        ]
        found = measure(sources, options.runs)
        rate = read_rate(weights(sources))
        size = sum(file.stat().st_size for file in weights(sources))
    print(f"{options.adapters} adapters, {options.layers * len(SHAPES)} modules, rank {RANK}, bf16")
    table(found, "reading", "reading")
    print(
        f"  limit: {size / 1e6:.0f} MB at {rate / 1e9:.1f} GB/s from the page cache = "
        f"{size / rate:.2f} s, without start-up"
    )
    n, ours = options.adapters, found["inspect"]
    for figure in ("seconds", "cpu"):
        limit = 2 if n == 2 else 3.5
        aim(f"inspect of {n} / reading, {figure}", ratios(ours, found["reading"], figure), limit)
    if n > 2 and "vlora" in found:
        theirs = found["vlora"]
        for figure, name in (
            ("seconds", "seconds"),
            ("cpu", "CPU seconds"),
            ("megabytes", "memory"),
        ):
            aim(f"inspect of {n} / vlora analyze, {name}", ratios(ours, theirs, figure), 1)


if __name__ == "__main__":
    main()
