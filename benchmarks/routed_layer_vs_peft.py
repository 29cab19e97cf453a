"""One routed layer of loraprobe against peft's Arrow layer, side by side in one process.

    python benchmarks/routed_layer_vs_peft.py [--width 2048 4096 8192] [--tokens 512 2048 8192]
        [--experts 2 4 8 16] [--rank 16] [--top-k 3] [--runs 5] [--entries N] [--work N]
        [--device cuda --dtype bfloat16] [--compiled none|graph|compile]

Both layers hold the same experts with the same exact prototypes. Their outputs are compared first,
and the timed calls take turns. The script prints the cost of routing: the time of the whole layer
minus that of the bare one, and the peak memory of a call minus that of the bare layer.
peft computes every expert's output for every token, a (tokens, experts, out) tensor; loraprobe
multiplies the gates in rank space. `one-hot` is a composition whose gates are (1, 0, ...), whole
layer, against a plain peft LoRA layer that holds one adapter. Cells whose (tokens, experts, width)
tensor has more than --entries entries, or whose bare layer takes more than --work multiplications,
are left out and named.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import statistics
from collections.abc import Callable, Iterator
from typing import Any

import torch
from machine import Figures, aim, clocked, interleaved, spread
from peft import LoraConfig
from peft.tuners.lora import ArrowConfig
from peft.tuners.lora.arrow import ArrowLoraLinearLayer
from peft.tuners.lora.layer import Linear as PeftLinear
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from loraprobe.adapters import adapter_of
from loraprobe.composition import Composition, composed
from loraprobe.lora.lowrank import LowRank
from loraprobe.routing import ROUTERS
from loraprobe.routing.constant import ConstantGates
from loraprobe.routing.scored import prototype

PATH = "layer"
Call = Callable[[], Tensor]


class One(nn.Module):
    """A model of one linear layer, into which a composition is put."""

    def __init__(self, width: int, device: str, dtype: torch.dtype) -> None:
        super().__init__()
        self.layer = nn.Linear(width, width, bias=False, device=device, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


class Held(TorchDispatchMode):
    """Bytes that are allocated at the peak of a call, without tensors that existed before it."""

    def __init__(self) -> None:
        super().__init__()
        self.peak = 0
        self.alive: dict[int, Any] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                known = StorageWeakRef(storage)
                self.alive[known.cdata] = (known, storage.nbytes())
        self.alive = {k: v for k, v in self.alive.items() if not v[0].expired()}
        self.peak = max(self.peak, sum(size for _, size in self.alive.values()))
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


def arrow_of_peft(
    experts: list[LowRank], top_k: int, base: nn.Linear
) -> Callable[[Tensor], Tensor]:
    """peft's own layers and their own formula: the bare layer plus what its Arrow layer gives."""
    names = [f"task_{i}" for i in range(len(experts))]
    config = ArrowConfig(top_k=top_k)
    config.task_adapter_names, config.gks_adapter_names = names, []
    LoraConfig(arrow_config=config)  # refuses options that peft would not take
    layer = ArrowLoraLinearLayer(experts[0].in_features, config)
    layer.register_buffer("prototypes", torch.stack([prototype(e) for e in experts]))
    A, B = (
        nn.ModuleDict(
            {name: _linear(getattr(e, which)) for name, e in zip(names, experts, strict=True)}
        )
        for which in "AB"
    )
    scaling = {name: float(e.scaling) for name, e in zip(names, experts, strict=True)}
    empty = nn.Identity()

    def call(x: Tensor) -> Tensor:
        result = base(x)
        return (result + layer(x, A, B, empty, scaling)).to(result.dtype)

    return call


def plain_of_peft(update: LowRank, base: nn.Linear) -> Callable[[Tensor], Tensor]:
    """A peft LoRA layer that holds one adapter."""
    rank = update.rank
    layer = PeftLinear(base, "a", LoraConfig(r=rank), r=rank, lora_alpha=2 * rank)
    layer.lora_A["a"].weight.data = update.A
    layer.lora_B["a"].weight.data = update.B
    return layer.eval()


def _linear(weight: Tensor) -> nn.Linear:
    out, into = weight.shape
    made = nn.Linear(into, out, bias=False, device="meta")
    made.weight = nn.Parameter(weight, requires_grad=False)
    return made


@contextlib.contextmanager
def layers(n: int, width: int, options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """The functions of x that are compared, over one and the same base layer."""
    dtype = getattr(torch, options.dtype)
    experts = updates(n, width, options.rank, options.device)
    top_k = min(options.top_k, n)
    adapters = tuple(adapter_of(f"e{i}", {PATH: u}) for i, u in enumerate(experts))
    # Three models share the weight; each carries its own hooks.
    bare, routed, single = (One(width, options.device, dtype) for _ in range(3))
    routed.layer.weight = single.layer.weight = bare.layer.weight
    arrow = Composition("arrow", adapters, ROUTERS.make(f"arrow:top_k={top_k}"))
    one_hot = Composition("one-hot", adapters, ConstantGates.one_hot(0, n))
    with composed(routed, arrow), composed(single, one_hot):
        yield {
            "bare": bare,
            "ours": routed,
            "peft": arrow_of_peft(experts, top_k, bare.layer),
            "one-hot": single,
            "peft one": plain_of_peft(experts[0], bare.layer),
        }


def ready(call: Callable[[Tensor], Tensor], x: Tensor, options: argparse.Namespace) -> Call:
    """The call on x: as it is, compiled, or captured in a CUDA graph."""
    if options.compiled == "compile":
        call = torch.compile(call, dynamic=False)
    if options.compiled != "graph":
        return lambda: call(x)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            call(x)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = call(x)

    def replay() -> Tensor:
        graph.replay()
        return result

    return replay


def held(call: Callable[[Tensor], Tensor], x: Tensor) -> int:
    """Bytes that a call holds at its peak."""
    if x.device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call(x)
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    with Held() as watch:
        call(x)
    return watch.peak


def measure(
    n: int, tokens: int, width: int, options: argparse.Namespace
) -> tuple[float, float, float]:
    """One row of the table; peft's over ours of added time and of added memory, and one-hot's."""
    x = torch.randn(1, tokens, width, device=options.device, dtype=getattr(torch, options.dtype))
    cuda = options.device.startswith("cuda")
    wait = torch.cuda.synchronize if cuda else (lambda: None)
    with layers(n, width, options) as kinds:
        rough = options.dtype != "float32"
        close = {"rtol": 2e-2, "atol": 1e-1} if rough else {"rtol": 1e-3, "atol": 1e-4}
        torch.testing.assert_close(kinds["ours"](x), kinds["peft"](x), **close)
        torch.testing.assert_close(kinds["one-hot"](x), kinds["peft one"](x), **close)
        memory = {name: held(call, x) for name, call in kinds.items()}
        calls = {name: ready(call, x, options) for name, call in kinds.items()}
        found = interleaved(
            {name: (lambda c=call: clocked(c, wait)) for name, call in calls.items()},
            options.runs,
            warm=2,
        )
    bare = statistics.median(f.seconds for f in found["bare"])
    # Of less than a hundredth of the layer's own time the clock tells nothing.
    ours, theirs = (max(added(found[name], found["bare"]), bare / 100) for name in ("ours", "peft"))
    extra = [max(memory[name] - memory["bare"], 1) for name in ("ours", "peft")]
    hot = [a.seconds / b.seconds for a, b in zip(found["one-hot"], found["peft one"], strict=True)]
    print(
        f"| {width} | {tokens} | {n} | {bare * 1e3:.2f} | {ours * 1e3:.2f} | "
        f"{theirs * 1e3:.2f} | {theirs / ours:.1f} | {extra[0] / 1e6:.0f} | {extra[1] / 1e6:.0f} "
        f"| {extra[1] / extra[0]:.1f} | {spread(hot)} |",
        flush=True,
    )
    return theirs / ours, extra[1] / extra[0], statistics.median(hot)


def added(figures: list[Figures], bare: list[Figures]) -> float:
    """Median over the runs of the seconds that a layer takes beyond the bare one."""
    return statistics.median(a.seconds - b.seconds for a, b in zip(figures, bare, strict=True))


def report(rows: list[tuple[int, tuple[float, float, float]]]) -> None:
    """Whether every cell reaches the aims, by number of experts."""
    for n in sorted({n for n, _ in rows}):
        own = [row for m, row in rows if m == n]
        aim(
            f"added time, peft / ours, {n} experts, least of {len(own)} cells",
            [min(row[0] for row in own)],
            n / 2,
            least=True,
        )
        aim(
            f"added memory, peft / ours, {n} experts, least of {len(own)} cells",
            [min(row[1] for row in own)],
            n / 2,
            least=True,
        )
    hot = [row[2] for _, row in rows]
    print(f"  one-hot over a plain peft LoRA layer, cells: {spread(hot)}")
    aim(
        "one-hot / a plain peft LoRA layer, geometric mean of the cells",
        [math.exp(statistics.fmean(map(math.log, hot)))],
        1.15,
    )


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--width", type=int, nargs="+", default=[2048, 4096, 8192])
    parser.add_argument("--tokens", type=int, nargs="+", default=[512, 2048, 8192])
    parser.add_argument("--experts", type=int, nargs="+", default=[2, 4, 8, 16])
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--top-k", type=int, default=3)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--entries", type=int, default=1 << 28)
    parser.add_argument("--work", type=int, default=1 << 35)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--compiled", default="none", choices=("none", "graph", "compile"))
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    where = (
        torch.cuda.get_device_name()
        if options.device.startswith("cuda")
        else (f"{torch.get_num_threads()} threads")
    )
    print(
        f"rank {options.rank}, top_k {options.top_k}, {options.dtype}, {options.device} "
        f"({where}), medians of {options.runs} runs; added to the bare layer"
    )
    print(
        "| width | tokens | experts | bare ms | ours ms | peft ms | ratio | ours MB | peft MB | "
        "ratio | one-hot / peft LoRA |"
    )
    print("|" + " --- |" * 11)
    rows, skipped = [], []
    for width in options.width:
        for tokens in options.tokens:
            for n in options.experts:
                if n * tokens * width > options.entries or tokens * width**2 > options.work:
                    skipped.append(f"{width} x {tokens} x {n}")
                else:
                    rows.append((n, measure(n, tokens, width, options)))
    if skipped:
        print(f"  left out for size: {', '.join(skipped)}")
    report(rows)


if __name__ == "__main__":
    main()
