"""All pairs of many adapters shaped like a 7B model's, against the Gram products alone.

    python benchmarks/all_pairs.py [--adapters 100] [--layers 4] [--runs 5]

Every module of n adapters of rank r needs two Gram matrices of n r vectors, A A^T and B^T B, which
this script computes as one GEMM each, in float64 and in float32, in separate processes.
`loraprobe inspect` computes all diagnostics of every adapter and every pair from the files; its
time includes start-up. It computes half of each symmetric matrix, the products of two of many
adapters in float32 and those of each with itself in float64 (docs/precision.md).

All layers have the same shapes, so the ratio of `--layers 4` is that of all 32, except that
start-up is a larger share; `--layers 32` takes 8 GB of disk and several minutes a run.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
from pathlib import Path

from adapters_7b import RANK, SHAPES, write_adapter
from machine import (
    Figures,
    aim,
    gemm_rate,
    interleaved,
    loraprobe,
    ratios,
    script,
    spread,
    table,
    timed,
)


def products(adapters: int, layers: int, dtype: str) -> None:
    """The two products of every module, one after the other; prints their wall and CPU seconds."""
    import time

    import torch

    k = adapters * RANK
    lengths = [length for shape in SHAPES.values() for length in shape]
    kind = getattr(torch, dtype)
    rows = {length: torch.ones(k, length, dtype=kind) for length in set(lengths)}
    gram = torch.empty(k, k, dtype=kind)
    for some in rows.values():
        torch.mm(some[:, :256], some[:, :256].mT, out=gram)  # the library wakes up
    start, cpu = time.perf_counter(), time.process_time()
    for length in lengths * layers:
        torch.mm(rows[length], rows[length].mT, out=gram)
    print(json.dumps([time.perf_counter() - start, time.process_time() - cpu]))


def alone(adapters: int, layers: int, dtype: str) -> Figures:
    """Seconds of the products in a child, without its start."""
    child = script("all_pairs.py", "--child", dtype, "--adapters", adapters, "--layers", layers)
    done = subprocess.run(child, capture_output=True, text=True, check=True)
    return Figures(*json.loads(done.stdout))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--adapters", type=int, default=100)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    n, layers = options.adapters, options.layers
    if options.child:
        products(n, layers, options.child)
        return
    with tempfile.TemporaryDirectory() as scratch:
        sources = [write_adapter(Path(scratch) / f"adapter{i}", layers, i) for i in range(n)]
        kinds = {
            "Gram products": lambda: alone(n, layers, "float64"),
            "in float32": lambda: alone(n, layers, "float32"),
            "reading": lambda: timed(script("adapters_7b.py", "read", *sources)),
            "inspect": lambda: timed(loraprobe("inspect", "--json", *sources)),
        }
        found = interleaved(kinds, options.runs, warm=0)
    k = n * RANK
    flops = 2 * k * k * sum(out + into for out, into in SHAPES.values()) * layers
    print(
        f"{n} adapters, {n * (n - 1) // 2} pairs, {layers * len(SHAPES)} modules of 7B shapes, "
        f"rank {RANK}"
    )
    table(found, "the products", "Gram products")
    import torch

    rates = [gemm_rate(torch.float64, k, 4096, k) for _ in range(3)]
    print(
        f"  limit: {flops / 1e12:.2f} Tflop at {spread([r / 1e9 for r in rates], 0)} Gflop/s in "
        f"float64 = {spread([flops / rate for rate in rates])} s"
    )
    for figure in ("seconds", "cpu"):
        shares = ratios(found["inspect"], found["in float32"], figure)
        aim(f"inspect of {n} / Gram products in float32, {figure}", shares, 1.2)
    module = 8 * k * max(out + into for out, into in SHAPES.values()) / 1e6
    memory = max(f.megabytes for f in found["inspect"])
    whole = 4 * k * sum(out + into for out, into in SHAPES.values()) * layers / 1e6
    print(
        f"  memory: {memory:.0f} MB at most; the factors of one module of all adapters take "
        f"{module:.0f} MB in float64, those of all {whole:.0f} MB in float32"
    )


if __name__ == "__main__":
    main()
