"""A library of adapters: the error of sketched cosines, the time and the memory of reading.

    python benchmarks/library.py [--seeds 8] [--layers 32] [--small 200 800] [--seven 5 9]
    python benchmarks/library.py --many 1000 --at DIRECTORY

First, deltas shaped like those of a 7B model with planted cosines: the standard deviation of the
sketched cosine over seeds of the sketch, beside the error that is stated and beside the exact
cosine of the Gram matrices. Then `read_library` in processes of their own, with an empty cache:
seconds an adapter against only reading the files, and the peak memory of few and of more adapters,
from which follow the memory an adapter and that of 1,000.

With --many a library for an 8B model is written into DIRECTORY, unless it is there: 70 % of the
adapters change q and v at rank 8, 25 % all of attention and 5 % all linear layers at rank 16. Among
them are families, copies (the same file, another basis, another scale), NaN, cut files and another
base. `loraprobe screen` then reads it with an empty cache, and once more with the cache: wall and
CPU seconds, and peak memory.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
from pathlib import Path

from machine import Figures, about, aim, interleaved, script, spread, timed
from seven import RANK, modules, write_adapter

SMALL = {f"model.layers.{i}.self_attn.{n}_proj": (64, 64) for i in range(2) for n in "qv"}


def planted(cosine: float, layers: int, shared: bool):
    """Two adapters of rank RANK and 2 RANK with this cosine in every module, spectra decaying.

    shared: the parts that differ have one A, the worst case of unrelated adapters.
    """
    import torch

    from loraprobe.lora.lowrank import LowRank

    draw = torch.Generator().manual_seed(0)
    decay = 0.8 ** torch.arange(RANK)
    one, other = {}, {}
    for path, (out, into) in modules(layers).items():
        U = torch.linalg.qr(torch.randn(out, 2 * RANK, generator=draw)).Q
        V = torch.linalg.qr(torch.randn(into, 2 * RANK, generator=draw)).Q.mT
        own, rest = V[:RANK], V[:RANK] if shared else V[RANK:]
        sine = (1 - cosine**2) ** 0.5
        B = torch.cat([U[:, :RANK] * decay * cosine, U[:, RANK:] * decay * sine], 1)
        one[path] = LowRank(own, U[:, :RANK] * decay)
        other[path] = LowRank(torch.cat([own, rest]), B)
    return one, other


def sketch(modules, seed: int):
    """The numbers of the sketch of one adapter, and its error."""
    from loraprobe.library.sketches import SketchBuilder
    from loraprobe.lora.grams import gram_matrices

    builder = SketchBuilder(seed)
    for joint in gram_matrices([modules], visitor=builder.visit):
        builder.take(joint)
    return builder.made()


def errors(layers: int, seeds: int) -> None:
    """A line for each planted cosine."""
    import numpy as np

    from loraprobe.library.sketches import cosines

    for shared in (False, True):
        for cosine in (0.0, 0.3, 0.9, 1.0):
            one, other = planted(cosine, layers, shared)
            inner = sum(float(one[p].inner(other[p])) for p in one)
            norms = [sum(float(u.inner(u)) for u in a.values()) ** 0.5 for a in (one, other)]
            pairs = [(sketch(one, s), sketch(other, s)) for s in range(seeds)]
            found = np.array([cosines([one[0], other[0]])[0, 1] for one, other in pairs])
            error = (1 - cosine**2) * (pairs[0][0][1] * pairs[0][1][1]) ** 0.5
            kind = "one A" if shared else "two A"
            print(
                f"  {kind}, exact {inner / norms[0] / norms[1]:+.4f}: sketched "
                f"{found.mean():+.4f}, standard deviation {found.std(ddof=1):.5f} over {seeds} "
                f"seeds, stated at most {error:.5f}"
            )


def write_small(directory: Path, count: int) -> list[str]:
    """Random adapters of four modules of 64 x 64 and rank 8."""
    import torch

    from loraprobe.adapters import adapter_of
    from loraprobe.lora.lowrank import LowRank

    for seed in range(count):
        draw = torch.Generator().manual_seed(seed)
        made = {
            path: LowRank(torch.randn(8, i, generator=draw), torch.randn(o, 8, generator=draw))
            for path, (o, i) in SMALL.items()
        }
        name = f"small-{seed}"
        adapter_of(name, made, base_model="example/base").save(directory / name)
    return [str(directory / f"small-{seed}") for seed in range(count)]


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


def reading(references: list[str], home: Path) -> Figures:
    """Seconds and peak memory of one process that reads and arranges a library, without a cache."""
    file = home / f"{len(references)}.txt"
    file.write_text("\n".join(references))
    told = home / "peak"
    figures = timed(
        script("library.py", "--child", f"@{file}", told),
        LORAPROBE_CACHE=tempfile.mkdtemp(dir=home),
        PYTHONPATH=os.pathsep.join(filter(None, [str(Path.cwd()), os.environ.get("PYTHONPATH")])),
    )
    return figures._replace(megabytes=int(told.read_text()) / 1024)


def child(reference: str, told: str) -> None:
    """Reads a library and arranges it; writes the peak of its own memory in kB.

    The peak that a parent reads holds what the parent had when it started the child.
    """
    from loraprobe.library import arranged, fitted, listed, read_library

    arranged(fitted(read_library(listed([reference]))))
    lines = Path("/proc/self/status").read_text().splitlines()
    Path(told).write_text(next(line.split()[1] for line in lines if line.startswith("VmHWM")))


def memory(name: str, counts: list[int], references: list[str], home: Path) -> float:
    """Prints peak memory for each count; megabytes for each further adapter."""
    peaks = [reading(references[:count], home).megabytes for count in counts]
    slope = (peaks[-1] - peaks[0]) / (counts[-1] - counts[0])
    listed = ", ".join(f"{n}: {peak:.0f} MB" for n, peak in zip(counts, peaks, strict=True))
    print(f"  {name}: {listed}; {slope * 1000:.0f} kB for each further adapter")
    return slope


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--small", type=int, nargs=2, default=[200, 800])
    parser.add_argument("--seven", type=int, nargs=2, default=[5, 9])
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--child", nargs=2)
    parser.add_argument("--many", type=int)
    parser.add_argument("--at", type=Path, default=Path("many"))
    given = parser.parse_args()
    if given.child:
        return child(*given.child)
    print(about())
    if given.many:
        return screened(given.many, given.at)
    print(f"cosines of adapters of {7 * given.layers} modules and rank {RANK} and {2 * RANK}:")
    errors(given.layers, given.seeds)
    with tempfile.TemporaryDirectory() as place:
        home = Path(place)
        large = [write_adapter(home / f"seven-{i}", given.layers, i) for i in range(given.seven[1])]
        few, many = given.seven
        kinds = {
            "library": lambda: reading(large[:few], home),
            "library of more": lambda: reading(large, home),
            "only reading": lambda: timed(script("seven.py", "read", *large[:few])),
            "only reading more": lambda: timed(script("seven.py", "read", *large)),
        }
        found = interleaved(kinds, given.runs, warm=0)
        cost, plain = (
            [(b.cpu - a.cpu) / (many - few) for a, b in zip(found[one], found[two], strict=True)]
            for one, two in (("library", "library of more"), ("only reading", "only reading more"))
        )
        print(f"CPU seconds for each further adapter: {spread(cost)}, only reading {spread(plain)}")
        print("peak memory:")
        memory("7B shapes", given.seven, large, home)
        peaks = write_small(home, given.small[1])
        slope = memory("small", given.small, peaks, home)
        aim("kB of memory for each further adapter", [slope * 1000], 200)


if __name__ == "__main__":
    main()
