"""Merging two adapters shaped like a 7B model's, against reading them and against peft.

    python benchmarks/merge_vs_peft.py [--layers 32] [--runs 5] [--peft all|square|none]

Every run is a separate process with its start-up, and the kinds take turns:
  writing   imports torch, reads both files with safetensors, casts every tensor to float32, and
            writes a rank-16 adapter of the same modules in bf16 to the disk
  merge     `loraprobe merge`: read, check, merge exactly, cut to rank 16, measure all errors,
            write with a model card, read back
  vlora     `vlora merge` of vlora-dev if it is installed; it averages A and B separately
peft's `svd` is timed on one module of each shape and multiplied by their number (`square`: only
the 4096 x 4096 modules, a lower bound); both results of a module are compared.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import tempfile
from pathlib import Path

from adapters_7b import RANK, SHAPES, write_adapter
from machine import (
    Figures,
    aim,
    clocked,
    interleaved,
    loraprobe,
    peer,
    ratios,
    script,
    table,
    timed,
)


def measure(sources: list[str], runs: int, scratch: str) -> dict[str, list[Figures]]:
    """Times all kinds, which take turns."""
    number = itertools.count()

    def fresh() -> str:
        return f"{scratch}/out{next(number)}"

    rank = ("--rank", RANK, "--json", "--quiet")
    kinds = {
        "writing": lambda: timed(script("adapters_7b.py", "write", fresh(), *sources)),
        "merge": lambda: timed(loraprobe("merge", *sources, "-o", fresh(), *rank)),
    }
    if vlora := peer("vlora"):
        kinds["vlora"] = lambda: timed([vlora, "merge", *sources, "-o", fresh()])
    return interleaved(kinds, runs)


def against_peft(out: int, into: int) -> None:
    """Prints as JSON: seconds of peft's svd of one module, its relative distance from ours."""
    import torch
    from peft import LoraConfig, get_peft_model

    from loraprobe.adapters import adapter_of
    from loraprobe.lora.lowrank import LowRank
    from loraprobe.merging import METHODS, MergeConfig, merge

    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(into, out, bias=False))
    config = LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules=["0"], init_lora_weights=False)
    wrapped = get_peft_model(model, config, adapter_name="a")
    wrapped.add_adapter("b", config)
    names = {"combination_type": "svd", "svd_rank": RANK}
    figures = clocked(lambda: wrapped.add_weighted_adapter(["a", "b"], [0.5, 0.5], "m", **names))
    layer = wrapped.base_model.model[0]

    def update(name: str) -> LowRank:
        A, B = layer.lora_A[name].weight.detach(), layer.lora_B[name].weight.detach()
        return LowRank(A.double(), B.double(), float(layer.scaling[name]))

    theirs = update("m")
    adapters = [adapter_of(name, {"0": update(name)}) for name in "ab"]
    ours = merge(adapters, MergeConfig(METHODS.make("uniform"), rank=RANK)).adapter.modules["0"]
    gap = LowRank(
        torch.cat([ours.A, theirs.A]),
        torch.cat([ours.scaling * ours.B, -theirs.scaling * theirs.B], 1),
    )
    distance = float(gap.norm() / theirs.norm())
    print(json.dumps({"seconds": figures.seconds, "distance": distance}))


def peft_figures(which: str, layers: int) -> tuple[float, float]:
    """peft's seconds for all modules, extrapolated, and the largest distance of the results."""
    import subprocess

    shapes = [shape for shape in SHAPES.values() if which == "all" or shape[0] == shape[1]]
    known = {}
    for out, into in sorted(set(shapes)):
        child = script("merge_vs_peft.py", "--child", out, into)
        done = subprocess.run(child, capture_output=True, text=True)
        if done.returncode:
            sys.exit(done.stderr)
        known[out, into] = one = json.loads(done.stdout.splitlines()[-1])
        print(
            f"  peft svd {out} x {into}: {one['seconds']:.1f} s a module; its result and ours "
            f"differ by {one['distance']:.1e} of the norm",
            flush=True,
        )
    total = layers * sum(known[shape]["seconds"] for shape in shapes)
    return total, max(one["distance"] for one in known.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--peft", choices=("square", "all", "none"), default="all")
    parser.add_argument("--child", nargs=2, type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        against_peft(*options.child)
        return
    with tempfile.TemporaryDirectory() as scratch:
        sources = [
            write_adapter(Path(scratch) / name, options.layers, n) for n, name in enumerate("ab")
        ]
        found = measure(sources, options.runs, scratch)
    print(f"{options.layers * len(SHAPES)} modules, rank {RANK}, bf16, two adapters")
    table(found, "writing", "writing")
    for figure in ("seconds", "cpu"):
        shares = ratios(found["merge"], found["writing"], figure)
        aim(f"merge / reading and writing, {figure}", shares, 1.4)
    if options.peft != "none":
        total, distance = peft_figures(options.peft, options.layers)
        bound = "at least " if options.peft == "square" else ""
        print(f"  peft's svd of all modules, extrapolated: {bound}{total:.0f} s")
        aim(
            "peft svd / loraprobe merge, as a whole process",
            [total / f.seconds for f in found["merge"]],
            1000,
            least=True,
        )
        aim("distance between the results, of the norm", [distance], 1e-4)


if __name__ == "__main__":
    main()
