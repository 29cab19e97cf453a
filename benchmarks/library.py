"""A library of adapters: the error of sketched cosines, the time and the memory of reading.

    python benchmarks/library.py [--seeds 8] [--layers 32] [--small 200 800] [--seven 5 9]

First, deltas shaped like those of a 7B model with planted cosines: the standard deviation of the
sketched cosine over seeds of the sketch, beside the error that is stated and beside the exact
cosine of the Gram matrices. Then `read_library` in processes of their own, with an empty cache:
seconds an adapter against only reading the files, and the peak memory of few and of more adapters,
from which follow the memory an adapter and that of 1,000.
"""

from __future__ import annotations

import argparse
import os
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


def errors(layers: int, seeds: int) -> None:
    """A line for each planted cosine."""
    import numpy as np

    from loraprobe.library.sketches import cosine_error, cosines, sketch

    for shared in (False, True):
        for cosine in (0.0, 0.3, 0.9, 1.0):
            one, other = planted(cosine, layers, shared)
            inner = sum(float(one[p].inner(other[p])) for p in one)
            norms = [sum(float(u.inner(u)) for u in a.values()) ** 0.5 for a in (one, other)]
            pairs = [(sketch(one, s), sketch(other, s)) for s in range(seeds)]
            found = np.array([cosines(pair)[0, 1] for pair in pairs])
            error = cosine_error(*pairs[0], cosine)
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
    given = parser.parse_args()
    if given.child:
        return child(*given.child)
    print(about())
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
