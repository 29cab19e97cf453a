"""A library of adapters: the time and the memory of reading.

    python benchmarks/library.py [--layers 32] [--small 200 800] [--large 5 9]

`read_library` in processes of their own, with an empty cache: seconds an adapter against only
reading the files, and the peak memory of few and of more adapters, from which follow the memory an
adapter and that of 1,000.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path

from adapters_7b import write_adapter
from machine import Figures, about, aim, interleaved, script, spread, timed

SMALL = {f"model.layers.{i}.self_attn.{n}_proj": (64, 64) for i in range(2) for n in "qv"}


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
    from loraprobe.extensions.screen.comparing import compare_members, mark_unfit
    from loraprobe.extensions.screen.reading import expand_references, read_library

    compare_members(mark_unfit(read_library(expand_references([reference]))))
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
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--small", type=int, nargs=2, default=[200, 800])
    parser.add_argument("--large", type=int, nargs=2, default=[5, 9])
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--child", nargs=2)
    given = parser.parse_args()
    if given.child:
        return child(*given.child)
    print(about())
    with tempfile.TemporaryDirectory() as place:
        home = Path(place)
        large = [write_adapter(home / f"large-{i}", given.layers, i) for i in range(given.large[1])]
        few, many = given.large
        kinds = {
            "library": lambda: reading(large[:few], home),
            "library of more": lambda: reading(large, home),
            "only reading": lambda: timed(script("adapters_7b.py", "read", *large[:few])),
            "only reading more": lambda: timed(script("adapters_7b.py", "read", *large)),
        }
        found = interleaved(kinds, given.runs, warm=0)
        cost, plain = (
            [(b.cpu - a.cpu) / (many - few) for a, b in zip(found[one], found[two], strict=True)]
            for one, two in (("library", "library of more"), ("only reading", "only reading more"))
        )
        print(f"CPU seconds for each further adapter: {spread(cost)}, only reading {spread(plain)}")
        print("peak memory:")
        memory("7B shapes", given.large, large, home)
        peaks = write_small(home, given.small[1])
        slope = memory("small", given.small, peaks, home)
        aim("kB of memory for each further adapter", [slope * 1000], 200)


if __name__ == "__main__":
    main()
