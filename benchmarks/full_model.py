"""A merge written as a full model: peak memory, time, and that it computes the composition.

    python benchmarks/full_model.py [--shards 4] [--runs 1]
    python benchmarks/full_model.py --base DIR ADAPTER ADAPTER

First, a random Llama of width 2048 in bfloat16, in shards of about 0.9 GB, and two adapters of rank
16: the peak memory of `loraprobe merge --full-model` beside two shards, for an average and TIES.
With --base, real ones: the full model in float32 and in bfloat16, as transformers loads it, against
the composition of the adapters on the base in the same dtype.
"""

from __future__ import annotations

import argparse
import functools
import tempfile
from pathlib import Path

from machine import about, aim, interleaved, loraprobe, spread, timed

WIDTH, INNER, TOKENS, LAYERS = 2048, 8192, 32_768, 6  # layers of a shard
LINEAR = {
    **{f"self_attn.{name}_proj": (WIDTH, WIDTH) for name in "qkvo"},
    "mlp.gate_proj": (INNER, WIDTH),
    "mlp.up_proj": (INNER, WIDTH),
    "mlp.down_proj": (WIDTH, INNER),
}


def write_base(place: Path, shards: int) -> int:
    """Writes the base; the bytes of its largest shard."""
    import json

    import torch
    from safetensors.torch import save_file
    from transformers import LlamaConfig

    @functools.cache
    def drawn(*shape: int) -> torch.Tensor:
        return torch.randn(shape, dtype=torch.bfloat16) * 0.02

    weight_map = {}
    for shard in range(shards):
        tensors = {
            f"model.layers.{layer}.{name}.weight": drawn(*shape)
            for layer in range(shard * LAYERS, (shard + 1) * LAYERS)
            for name, shape in LINEAR.items()
        }
        for layer in range(shard * LAYERS, (shard + 1) * LAYERS):
            for norm in ("input_layernorm", "post_attention_layernorm"):
                tensors[f"model.layers.{layer}.{norm}.weight"] = drawn(WIDTH)
        if shard == 0:
            tensors["model.embed_tokens.weight"] = drawn(TOKENS, WIDTH)
            tensors["model.norm.weight"] = drawn(WIDTH)
        tensors = {key: tensor.clone() for key, tensor in tensors.items()}
        name = f"model-{shard + 1:05}-of-{shards:05}.safetensors"
        save_file(tensors, place / name, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(tensors, name)
    index = {"metadata": {}, "weight_map": weight_map}
    (place / "model.safetensors.index.json").write_text(json.dumps(index))
    LlamaConfig(
        vocab_size=TOKENS,
        hidden_size=WIDTH,
        intermediate_size=INNER,
        num_hidden_layers=shards * LAYERS,
        num_attention_heads=16,
        tie_word_embeddings=True,
        architectures=["LlamaForCausalLM"],
        dtype="bfloat16",
    ).save_pretrained(place)
    return max(file.stat().st_size for file in place.glob("*.safetensors"))


def write_adapters(place: Path, layers: int) -> list[Path]:
    """Two adapters of all linear layers."""
    import torch

    from loraprobe.adapters import adapter_of
    from loraprobe.lora.lowrank import LowRank

    for seed, name in enumerate("ab"):
        draw = torch.Generator().manual_seed(seed)
        modules = {
            f"model.layers.{layer}.{path}": LowRank(
                torch.randn(16, inp, generator=draw) * 0.02,
                torch.randn(out, 16, generator=draw) * 0.02,
            )
            for layer in range(layers)
            for path, (out, inp) in LINEAR.items()
        }
        adapter_of(name, modules, base_model="example/base").save(place / name)
    return [place / name for name in "ab"]


def memory(shards: int, runs: int) -> None:
    with tempfile.TemporaryDirectory() as space:
        place = Path(space)
        (place / "base").mkdir()
        shard = write_base(place / "base", shards) / 1e6
        adapters = write_adapters(place, shards * LAYERS)
        print(f"  {shards} shards, the largest {shard:.0f} MB")

        def merge(*more: object):
            return timed(loraprobe("merge", *adapters, "-q", "--overwrite", *more))

        full = "--base", place / "base", "--full-model", place / "full"
        calls = {
            "adapter alone": lambda: merge("-o", place / "out"),
            "uniform": lambda: merge(*full),
            "ties": lambda: merge(*full, "--method", "ties"),
        }
        for name, figures in interleaved(calls, runs, warm=0).items():
            megabytes = [one.megabytes for one in figures]
            print(
                f"  {name:14} {spread([f.seconds for f in figures], 1)} s, "
                f"{spread([f.cpu for f in figures], 1)} s of CPU, {spread(megabytes, 0)} MB"
            )
            if name != "adapter alone":
                aim(f"full model / {name}, memory in shards", [m / shard for m in megabytes], 2)


def logits(base: Path, references: list[str]) -> None:
    """Differences of logits on 256 tokens of this text, as shares of the largest logit."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    import loraprobe as package
    from loraprobe.composition import Composition, composed
    from loraprobe.routing.constant import ConstantGates

    adapters = tuple(package.load(one) for one in references)
    text = Path(__file__).read_text()
    tokens = AutoTokenizer.from_pretrained(base)(text, return_tensors="pt").input_ids[:, :256]

    @torch.no_grad()
    def answers(model):
        return model(input_ids=tokens).logits.double()

    exact = None
    for dtype in (torch.float32, torch.bfloat16):
        with tempfile.TemporaryDirectory() as space:
            stored, full = Path(space, "base"), Path(space, "full")
            model = AutoModelForCausalLM.from_pretrained(base, dtype=dtype).eval()
            model.save_pretrained(stored)
            merged = package.merge(adapters, "sum", base=stored)
            lost = loraprobe.save_full_model(merged, full)
            found = answers(AutoModelForCausalLM.from_pretrained(full, dtype=dtype).eval())
        alone = answers(model)
        with composed(model, Composition("c", adapters, ConstantGates.ones(len(adapters)))):
            routed = answers(model)
        exact = routed if exact is None else exact
        largest = float(exact.abs().max())
        print(
            f"  {str(dtype)[6:]}: rounding takes {lost:.1e} of the change; logits to {largest:.0f}"
        )
        for what, one, other in (
            ("base and composition", alone, routed),
            ("full model and composition", found, routed),
            ("full model and composition in float32", found, exact),
            ("composition and the same in float32", routed, exact),
        ):
            gap = (one - other).abs() / largest
            print(f"    {what:40} {float(gap.max()):.1e}, mean {float(gap.mean()):.1e}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("adapters", nargs="*")
    parser.add_argument("--base", type=Path)
    parser.add_argument("--shards", type=int, default=4)
    parser.add_argument("--runs", type=int, default=1)
    options = parser.parse_args()
    print(about())
    if options.base is not None:
        logits(options.base, options.adapters)
    else:
        memory(options.shards, options.runs)


if __name__ == "__main__":
    main()
