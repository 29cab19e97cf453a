"""One routed layer of loraprobe against peft's Arrow layer, side by side in one process.

    python benchmarks/routed_layer_vs_peft.py [--width 512] [--tokens 256] [--rank 16]
                                              [--experts 2 4 8] [--runs 30] [--threads 1]
                                              [--device cpu]

Both add what all experts together add to one linear layer's output. They are given the same
factors and the same prototypes, their results are compared first, and the timed calls alternate.
peft computes every expert's output for every token, a (tokens, experts, out) tensor; loraprobe
multiplies the gates in rank space. Printed are medians, their ratio, and the largest tensor that
either makes, in multiples of the output.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from peft import LoraConfig
from peft.tuners.lora import ArrowConfig
from peft.tuners.lora.arrow import ArrowLoraLinearLayer
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from loraprobe.adapter import adapter_of
from loraprobe.composition import Composition, prepared
from loraprobe.lowrank import LowRank
from loraprobe.routing.arrow import Arrow, prototype

PATH = "layer"


class Largest(TorchDispatchMode):
    """The number of entries of the largest tensor that an operation returns."""

    entries = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(tensor, Tensor):
                self.entries = max(self.entries, tensor.numel())
        return result


def updates(n: int, width: int, rank: int, device: str) -> list[LowRank]:
    """Gaussian experts of a square layer."""
    draw = torch.Generator().manual_seed(0)
    return [
        LowRank(
            (torch.randn(rank, width, generator=draw) / width**0.5).to(device),
            torch.randn(width, rank, generator=draw).to(device),
            2.0,
        )
        for _ in range(n)
    ]


def ours(experts: list[LowRank], top_k: int) -> Callable[[Tensor], Tensor]:
    """The experts' part of a layer, as loraprobe's hook computes it."""
    adapters = tuple(adapter_of(f"e{i}", {PATH: update}) for i, update in enumerate(experts))
    composition = Composition("arrow", adapters, Arrow(top_k=top_k))
    return prepared(composition, torch.float32)[0].to(experts[0].A.device).delta


def pefts(experts: list[LowRank], top_k: int) -> Callable[[Tensor], Tensor]:
    """The experts' part of a layer, as peft's Arrow layer computes it; exact prototypes."""
    names = [f"task_{i}" for i in range(len(experts))]
    config = ArrowConfig(top_k=top_k)
    config.task_adapter_names, config.gks_adapter_names = names, []
    LoraConfig(arrow_config=config)  # refuses options that peft would not take
    layer = ArrowLoraLinearLayer(experts[0].in_features, config)
    layer.register_buffer("prototypes", torch.stack([prototype(e) for e in experts]))
    lora_A, lora_B = nn.ModuleDict(), nn.ModuleDict()
    for name, update in zip(names, experts, strict=True):
        lora_A[name], lora_B[name] = (nn.Linear(w.shape[1], w.shape[0], bias=False)
                                      for w in (update.A, update.B))  # fmt: skip
        lora_A[name].weight.data, lora_B[name].weight.data = update.A, update.B
    scaling = {name: float(e.scaling) for name, e in zip(names, experts, strict=True)}
    return lambda x: layer(x, lora_A, lora_B, nn.Identity(), scaling)


def interleaved(calls: list[Callable[[], Tensor]], runs: int, device: str) -> list[float]:
    """Median seconds of each call, the calls taking turns."""
    seconds: list[list[float]] = [[] for _ in calls]
    for run in range(runs + 2):
        for number, call in enumerate(calls):
            start = time.perf_counter()
            call()
            if device.startswith("cuda"):
                torch.cuda.synchronize()
            if run >= 2:
                seconds[number].append(time.perf_counter() - start)
    return [statistics.median(times) for times in seconds]


def largest(call: Callable[[], Tensor]) -> int:
    with Largest() as watch:
        call()
    return watch.entries


def measure(n: int, options: argparse.Namespace) -> str:
    """One row of the table."""
    experts = updates(n, options.width, options.rank, options.device)
    x = torch.randn(1, options.tokens, options.width, device=options.device)
    top_k = min(options.top_k, n)
    mine, theirs = ours(experts, top_k), pefts(experts, top_k)
    torch.testing.assert_close(mine(x), theirs(x), rtol=1e-4, atol=1e-5)
    calls = [lambda: mine(x), lambda: theirs(x)]
    a, b = interleaved(calls, options.runs, options.device)
    sizes = [largest(call) / (options.tokens * options.width) for call in calls]
    return (f"| {n} | {a * 1e3:.3f} | {b * 1e3:.3f} | {b / a:.1f} | {sizes[0]:.1f} | "
            f"{sizes[1]:.1f} |")  # fmt: skip


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--top-k", type=int, default=3)
    parser.add_argument("--experts", type=int, nargs="+", default=[2, 4, 8])
    parser.add_argument("--runs", type=int, default=30)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(
        f"width {options.width}, {options.tokens} tokens, rank {options.rank}, "
        f"top_k {options.top_k}, {options.device}, {options.threads} threads"
    )
    print("| experts | loraprobe ms | peft ms | ratio | largest / output | peft's |")
    print("| --- | --- | --- | --- | --- | --- |")
    for n in options.experts:
        print(measure(n, options), flush=True)


if __name__ == "__main__":
    main()
