"""`verify --of`: the time it takes against reading both models, and that it finds what was done.

    python benchmarks/merge_check.py [--runs 5]
    python benchmarks/merge_check.py --base DIR --merged DIR ADAPTER ...

Without --base a random Llama of width 2048 in bfloat16 and two adapters of rank 16, as in
full_model.py, which `loraprobe merge --full-model` merges. Reading: a process that imports torch,
reads every tensor of both models with safetensors and adds up its numbers. With --cold both models
are dropped from the page cache before each run.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import tempfile
from pathlib import Path

from full_model import write_adapters, write_base
from machine import Figures, about, aim, interleaved, loraprobe, ratios, script, table, timed


def read(folders: list[Path]) -> None:
    """Every tensor of the models, read and summed."""
    from safetensors import safe_open

    for folder in folders:
        for file in sorted(folder.glob("*.safetensors")):
            with safe_open(file, framework="pt") as tensors:
                for key in tensors.keys():  # noqa: SIM118
                    tensors.get_tensor(key).sum()


def drop(folders: list[Path]) -> None:
    """Takes the weights out of the page cache."""
    for file in (file for folder in folders for file in folder.glob("*.safetensors")):
        with file.open("rb") as stream:
            os.fsync(stream.fileno())
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def compare(base: Path, merged: Path, adapters: list[Path], runs: int, cold: bool) -> None:
    both = [base, merged]
    of = [word for one in adapters for word in ("--of", one)]
    check = loraprobe("verify", merged, "--base", base, *of, "--quiet")
    weights = "1,1" if len(adapters) == 2 else "1"
    told = subprocess.run(check, capture_output=True, text=True, check=False)
    print(f"  weights that are right: {weights} or 1/n; told: {told.stdout.strip()}")

    def after(command: list[str]) -> Figures:
        if cold:
            drop(both)
        return timed(command)

    results = interleaved(
        {
            "reading": lambda: after(script("merge_check.py", "--read", *both)),
            "verify --of": lambda: after(check),
        },
        runs,
    )
    table(results, "reading", "reading")
    aim(
        "verify --of / reading both models", ratios(results["verify --of"], results["reading"]), 1.3
    )
    aim("the same in CPU seconds", ratios(results["verify --of"], results["reading"], "cpu"), 1.3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("adapters", nargs="*", type=Path)
    parser.add_argument("--base", type=Path)
    parser.add_argument("--merged", type=Path)
    parser.add_argument("--read", nargs=2, type=Path)
    parser.add_argument("--cold", action="store_true")
    parser.add_argument("--runs", type=int, default=5)
    options = parser.parse_args()
    if options.read:
        read(options.read)
        return
    print(about())
    if options.base is not None:
        compare(options.base, options.merged, options.adapters, options.runs, options.cold)
        return
    with tempfile.TemporaryDirectory() as space:
        base, merged = Path(space, "base"), Path(space, "merged")
        base.mkdir()
        write_base(base, 1)
        adapters = write_adapters(Path(space), 6)
        timed(loraprobe("merge", *adapters, "--base", base, "--full-model", merged, "--quiet"))
        compare(base, merged, adapters, options.runs, options.cold)


if __name__ == "__main__":
    main()
