"""What a composition costs on a GPU: prefill, decoding and peak memory beside the plain base.

    python benchmarks/gpu.py [--device cuda] [--dtype bfloat16] [--layers 16] [--width 2048]
        [--adapters 4] [--rank 16] [--runs 5]

A random Llama of the given size reads a batch of prompts and writes tokens after it, as the plain
base, with peft's adapter (one adapter), and with compositions of constant and of routed gates
(all adapters). Each run asks all systems by turns. It prints the card, and for each system tokens a
second (medians, with minimum and maximum), the ratio to the plain base, and the peak memory.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from machine import about

from loraprobe.adapters import Adapter, adapter_of
from loraprobe.composition import Composition, composed
from loraprobe.lora.lowrank import LowRank
from loraprobe.routing import ROUTERS
from loraprobe.routing.constant import ConstantGates

TARGETS = ("q_proj", "v_proj", "up_proj", "down_proj")


def llama(layers: int, width: int, device: str, dtype: torch.dtype) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=max(1, width // 64),
        num_key_value_heads=max(1, width // 256),
        vocab_size=32000,
        tie_word_embeddings=True,
    )
    with torch.device(device):
        model = LlamaForCausalLM(config)
    return model.to(dtype).eval().requires_grad_(False)


def adapters_of(model: Any, n: int, rank: int) -> list[Adapter]:
    found = []
    for seed in range(n):
        generator = torch.Generator().manual_seed(seed)
        updates = {}
        for path, module in model.named_modules():
            if path.endswith(TARGETS):
                A = torch.randn(rank, module.in_features, generator=generator)
                B = torch.randn(module.out_features, rank, generator=generator)
                updates[path] = LowRank(A.to(torch.bfloat16), B.to(torch.bfloat16), 1e-4)
        found.append(adapter_of(f"a{seed}", updates))
    return found


@contextmanager
def peft_adapter(model: Any, rank: int) -> Iterator[None]:
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=rank, target_modules=list(TARGETS), init_lora_weights=False)
    wrapped = get_peft_model(model, config).to(model.device)
    try:
        yield
    finally:
        wrapped.unload()


def seconds(work: Callable[[], Any], cuda: bool) -> float:
    wait = torch.cuda.synchronize if cuda else (lambda: None)
    wait()
    begin = time.perf_counter()
    work()
    wait()
    return time.perf_counter() - begin


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--width", type=int, default=2048)
    parser.add_argument("--adapters", type=int, default=4)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--new", type=int, default=32)
    parser.add_argument("--runs", type=int, default=5)
    o = parser.parse_args()
    cuda = o.device.startswith("cuda")
    model = llama(o.layers, o.width, o.device, getattr(torch, o.dtype))
    experts = adapters_of(model, o.adapters, o.rank)
    ids = torch.randint(3, 32000, (o.rows, o.tokens), device=o.device)
    options = {"max_new_tokens": o.new, "min_new_tokens": o.new, "do_sample": False}
    options |= {"pad_token_id": 0, "attention_mask": torch.ones_like(ids)}
    systems: dict[str, Callable[[], Any]] = {
        "plain base": lambda: composed(model, Composition("b", (), ConstantGates())),
        "peft, one adapter": lambda: peft_adapter(model, o.rank),
        "one adapter": lambda: composed(model, Composition("o", experts[:1], ConstantGates())),
        f"uniform of {o.adapters}": lambda: composed(
            model, Composition("u", experts, ConstantGates())
        ),
        f"arrow of {o.adapters}": lambda: composed(
            model, Composition("a", experts, ROUTERS.make("arrow"))
        ),
    }
    times: dict[str, dict[str, list[float]]] = {
        name: {"prefill": [], "decode": []} for name in systems
    }
    peaks = dict.fromkeys(systems, 0)
    for run in range(o.runs + 1):  # the first run warms up
        for name, entered in systems.items():
            with entered(), torch.inference_mode():
                if cuda:
                    torch.cuda.reset_peak_memory_stats()
                prefill = seconds(lambda: model(ids, logits_to_keep=1), cuda)
                whole = seconds(lambda: model.generate(ids, **options), cuda)
                if cuda:
                    peaks[name] = torch.cuda.max_memory_allocated()
            if run:
                times[name]["prefill"].append(o.rows * o.tokens / prefill)
                times[name]["decode"].append(o.rows * o.new / max(whole - prefill, 1e-9))
    print(about())
    card = torch.cuda.get_device_name() if cuda else o.device
    print(f"{card}, torch {torch.__version__}, {o.dtype}")
    print(
        f"Llama of {o.layers} layers, width {o.width}; adapters of rank {o.rank} on "
        f"{', '.join(TARGETS)}; {o.rows} rows of {o.tokens} tokens, {o.new} new ones; {o.runs} runs"
    )
    for name in systems:
        cells = []
        for what, found in times[name].items():
            median, plain = (statistics.median(t[what]) for t in (times[name], times["plain base"]))
            spread = f"{min(found):,.0f} to {max(found):,.0f}"
            cells.append(f"{what} {median:,.0f} tokens/s ({spread}), {plain / median:.2f} x time")
        memory = f"; peak {peaks[name] / 2**20:,.0f} MiB" if cuda else ""
        print(f"{name:20} {'; '.join(cells)}{memory}")


if __name__ == "__main__":
    main()
