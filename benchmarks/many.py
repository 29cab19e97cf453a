"""`loraprobe screen` on a library of many adapters of an 8B model.

    python benchmarks/many.py 1000 DIRECTORY

The library is written into the directory, unless it is there: 70 % of the adapters change q and v
at rank 8, 25 % all of attention and 5 % all linear layers at rank 16. Among them are families,
copies (the same file, another basis, another scale), NaN, cut files and another base. It is then
read with an empty cache, and once more with the cache: wall and CPU seconds, and peak memory.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from pathlib import Path

from machine import about, timed

EIGHT = {  # (out, in) of the linear layers of an 8B model
    "self_attn.q_proj": (4096, 4096),
    "self_attn.v_proj": (1024, 4096),
    "self_attn.k_proj": (1024, 4096),
    "self_attn.o_proj": (4096, 4096),
    "mlp.gate_proj": (14336, 4096),
    "mlp.up_proj": (14336, 4096),
    "mlp.down_proj": (4096, 14336),
}
EIGHT_LAYERS = 32


def write_eight(directory: Path, seed: int, modules: int, rank: int, family: int | None) -> None:
    """An adapter of so many kinds of modules, as peft writes it. family: the seed of its centre."""
    import torch
    from safetensors.torch import save_file

    draw, centre = torch.Generator().manual_seed(seed), torch.Generator()
    tensors, names = {}, list(EIGHT)[:modules]
    for layer in range(EIGHT_LAYERS):
        for name in names:
            out, into = EIGHT[name]
            A = torch.randn(rank, into, generator=draw)
            B = torch.randn(out, rank, generator=draw) / 100
            if family is not None:  # the same A, and half as much of its own in B
                centre.manual_seed(family * 1000 + layer * 10 + names.index(name))
                A = torch.randn(rank, into, generator=centre)
                B = torch.randn(out, rank, generator=centre) / 100 + B / 2
            path = f"base_model.model.model.layers.{layer}.{name}"
            tensors[f"{path}.lora_A.weight"] = (A / into**0.5).bfloat16()
            tensors[f"{path}.lora_B.weight"] = B.bfloat16()
    directory.mkdir()
    save_file(tensors, directory / "adapter_model.safetensors", metadata={"format": "pt"})
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": rank, "lora_alpha": 2 * rank}
    config |= {"target_modules": [name.partition(".")[2] for name in names]}
    config |= {"base_model_name_or_path": "example/base-8b"}
    (directory / "adapter_config.json").write_text(json.dumps(config))


def write_many(directory: Path, count: int) -> None:
    """A library of so many adapters, with everything that is found in libraries."""
    import torch
    from safetensors.torch import load_file, save_file

    directory.mkdir(parents=True)
    for number in range(count):
        place = directory / f"adapter-{number:04d}"
        file, settings = place / "adapter_model.safetensors", place / "adapter_config.json"
        original = directory / f"adapter-{number - 5:04d}"
        if number % 50 in (7, 27, 47):
            shutil.copytree(original, place)
        else:
            modules, rank = ((2, 8), (4, 16), (7, 16))[(number % 20 > 13) + (number % 20 > 18)]
            family = number // 20 % 10 * 20 + number % 20 if number % 20 in (3, 15) else None
            write_eight(place, number, modules, rank, family)
        config, tensors = json.loads(settings.read_text()), {}
        if number % 50 == 27:  # in another basis
            mixed = torch.linalg.qr(torch.randn(config["r"], config["r"])).Q
            for key, tensor in load_file(file).items():
                one = tensor.float()
                tensors[key] = mixed @ one if "lora_A" in key else one @ mixed.T
        if number % 50 == 47:  # at another scale
            config["lora_alpha"] *= 2
        if number % 100 == 40:
            tensors = load_file(file)
            next(iter(tensors.values()))[0, 0] = float("nan")
        if number % 100 == 80:
            config["base_model_name_or_path"] = "example/other"
        if tensors:
            save_file(tensors, file, metadata={"format": "pt"})
        settings.write_text(json.dumps(config))
        if number % 100 == 60:
            os.truncate(file, file.stat().st_size - 9)


def screened(count: int, home: Path) -> None:
    """Seconds, CPU seconds and peak memory of `screen` without a task."""
    library, cache = home / f"library-{count}", home / "cache"
    if not library.exists():
        write_many(library, count)
    references = home / f"{count}.txt"
    references.write_text("\n".join(map(str, sorted(library.iterdir()))))
    shutil.rmtree(cache, ignore_errors=True)
    size = sum(file.stat().st_size for file in library.rglob("*.safetensors"))
    print(f"{count} adapters of an 8B model, {size / 1e9:.1f} GB")
    command = [sys.executable, "-m", "loraprobe", "screen", f"@{references}", "--quiet"]
    for which in ("first", "again"):
        figures = timed(command, LORAPROBE_CACHE=str(cache))
        print(
            f"  {which}: {figures.seconds:.0f} s, {figures.cpu:.0f} CPU seconds, peak "
            f"{figures.megabytes:.0f} MB"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("adapters", type=int)
    parser.add_argument("directory", type=Path)
    given = parser.parse_args()
    print(about())
    screened(given.adapters, given.directory)


if __name__ == "__main__":
    main()
