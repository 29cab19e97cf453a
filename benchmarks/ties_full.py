"""TIES in the full space on 7B shapes, compared with its necessary parts.

    python benchmarks/ties_full.py [--adapters 2] [--runs 5] [--method ties] [--exact]

TIES needs every entry of every delta, so it is dense by definition. Its three parts, each measured
alone on one module of each shape, by the plain routine of the library that has it:
  form     every delta B A once (torch.mm)
  select   the magnitude at the density's place in each delta (numpy's partition of |dW|)
  sketch   the factors of one dense matrix of that size (torch.svd_lowrank with its defaults)
against `loraprobe.merge(..., "ties", rank=16)` of the same module, which also elects, averages,
measures the loss, and iterates its sketch until it converges. `--exact` compares the sketch with a
full SVD of the same matrix.
"""

from __future__ import annotations

import argparse
import math
from typing import Any

import numpy as np
import torch
from adapters_7b import RANK, SHAPES
from machine import Figures, aim, clocked, gemm_rate, interleaved, spread

from loraprobe.adapters import Adapter, adapter_of
from loraprobe.lora.lowrank import LowRank
from loraprobe.merging import METHODS, MergeConfig, MergeMethod, merge


def updates(shape: tuple[int, int], n: int) -> list[LowRank]:
    """Random updates in bf16 whose components fall off as 1/k, as trained ones' do."""
    out, into = shape
    draw = torch.Generator().manual_seed(0)
    size = 1 / torch.arange(1, RANK + 1)
    return [
        LowRank(
            (torch.randn(RANK, into, generator=draw) / into**0.5).bfloat16(),
            (torch.randn(out, RANK, generator=draw) * size).bfloat16(),
            2.0,
        )
        for _ in range(n)
    ]


def parts(adapters: list[Adapter], density: float) -> dict[str, Any]:
    """The three parts of one module, as calls."""
    found = [adapter.modules["m"].to(torch.float32) for adapter in adapters]
    deltas = [torch.mm(u.B, u.A) for u in found]
    place = int((1 - density) * deltas[0].numel())

    def select() -> None:
        for delta in deltas:
            np.partition(np.abs(delta.numpy()).reshape(-1), place)

    return {
        "form": lambda: [torch.mm(u.B, u.A) for u in found],
        "select": select,
        "sketch": lambda: torch.svd_lowrank(deltas[0], RANK + 8),
    }


def sketch_error(adapters: list[Adapter], method: MergeMethod) -> str:
    """What the rank loses by the sketch and by a full SVD of the same matrix."""
    merged = merge(adapters, MergeConfig(method, rank=RANK))
    found = [adapter.modules["m"].to(torch.float32) for adapter in adapters]
    deltas = torch.stack([u.folded().B @ u.A for u in found])
    weights = torch.tensor(method.default_weights(len(found)))
    energy = torch.linalg.svdvals(method(deltas, weights)).double().square()
    best = math.sqrt(float(energy[RANK:].sum() / energy.sum()))
    return (
        f"the sketch loses {merged.compression_error:.6f} of the norm, a full SVD {best:.6f}, "
        f"and the last round still gained {merged.sketch_error:.1e}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--adapters", type=int, default=2)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--method", default="ties")
    parser.add_argument("--exact", action="store_true")
    options = parser.parse_args()
    method = METHODS.make(options.method)
    config, density = MergeConfig(method, rank=RANK), method.density
    ratios: list[float] = []
    print(
        f"{options.method} in the full space, {options.adapters} adapters, to rank {RANK}, "
        f"{torch.get_num_threads()} threads; seconds of one module"
    )
    for shape in sorted(set(SHAPES.values())):
        adapters = [
            adapter_of(f"a{i}", {"m": u}) for i, u in enumerate(updates(shape, options.adapters))
        ]
        calls = {
            **parts(adapters, density),
            "merge": lambda some=adapters: merge(some, config),
        }
        found = interleaved(
            {name: (lambda c=call: clocked(c)) for name, call in calls.items()}, options.runs
        )
        ratios += report(shape, found)
        if options.exact and shape[0] == shape[1]:
            print(f"    {sketch_error(adapters, method)}")
    aim(f"{options.method} / the sum of its three parts, per module", ratios, 2)
    rate = gemm_rate(torch.float32, 4096, RANK, 4096)
    print(f"  limit: forming runs at {rate / 1e9:.0f} Gflop/s (rank {RANK}, bound by writing)")


def report(shape: tuple[int, int], found: dict[str, list[Figures]]) -> list[float]:
    """Prints one line; the ratios of merge to the sum of the parts, run by run."""
    sums = [
        sum(figures[i].seconds for name, figures in found.items() if name != "merge")
        for i in range(len(found["merge"]))
    ]
    told = ", ".join(
        f"{name} {spread([f.seconds for f in figures])}" for name, figures in found.items()
    )
    print(f"  {shape[0]} x {shape[1]}: {told}", flush=True)
    return [f.seconds / total for f, total in zip(found["merge"], sums, strict=True)]


if __name__ == "__main__":
    with torch.no_grad():
        main()
