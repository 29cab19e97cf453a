"""`make bench` runs all benchmarks one after the other, each with its peers in one run.

    python benchmarks/__main__.py [--quick] [--only NAME ...] [--output benchmarks/results.txt]

It takes about twenty minutes on two quiet cores. All output is also written to a file, which
begins with a line about the machine and ends with all aims. A benchmark that fails or exceeds its
time is reported, and the others still run.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TextIO

from machine import HERE, about

RUNS: dict[str, tuple[str, ...]] = {
    "start": ("start.py", "--runs", "7"),
    "inspect": ("inspect_vs_peers.py", "--runs", "5"),
    "inspect-20": ("inspect_vs_peers.py", "--runs", "5", "--adapters", "20"),
    "merge": ("merge_vs_peft.py", "--runs", "5", "--peft", "all"),
    "all-pairs": ("all_pairs.py", "--runs", "5", "--layers", "6"),
    "sketches": ("sketches.py",),
    "library": ("library.py",),
    "screen": ("screen_vs_peers.py",),
    "merge-check": ("merge_check.py", "--runs", "5"),
    "ties": ("ties_full.py", "--runs", "5", "--exact"),
    "routed-layer": ("routed_layer_vs_peft.py", "--runs", "5"),
    "evaluation": ("evaluation_vs_peft.py", "--runs", "5"),
    "harness": ("evaluation_vs_harness.py", "--runs", "5"),
    "proxy": ("proxy.py",),
}
QUICK: dict[str, tuple[str, ...]] = {
    "start": ("start.py", "--runs", "3"),
    "inspect": ("inspect_vs_peers.py", "--runs", "2", "--layers", "8"),
    "inspect-20": ("inspect_vs_peers.py", "--runs", "2", "--adapters", "20", "--layers", "8"),
    "merge": ("merge_vs_peft.py", "--runs", "2", "--layers", "8", "--peft", "none"),
    "all-pairs": ("all_pairs.py", "--runs", "2", "--layers", "1"),
    "sketches": ("sketches.py", "--seeds", "2", "--layers", "4"),
    "library": ("library.py", "--layers", "4", "--runs", "1"),
    "screen": ("screen_vs_peers.py", "--adapters", "40", "--pairs", "1"),
    "merge-check": ("merge_check.py", "--runs", "2"),
    "ties": ("ties_full.py", "--runs", "2"),
    "routed-layer": (
        "routed_layer_vs_peft.py",
        "--runs",
        "3",
        "--width",
        "2048",
        "--tokens",
        "512",
        "2048",
    ),
    "evaluation": ("evaluation_vs_peft.py", "--runs", "2", "--items", "30"),
    "harness": ("evaluation_vs_harness.py", "--runs", "2", "--items", "30"),
    "proxy": ("proxy.py", "--requests", "400"),
}
LIMIT = 900  # seconds that one benchmark may take


def run(command: tuple[str, ...], out: TextIO) -> list[str]:
    """Runs one script, prints its lines as they come, and returns them."""
    script, *options = command
    child = subprocess.Popen(
        [sys.executable, "-u", str(HERE / script), *options],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={
            **os.environ,
            "HF_HUB_OFFLINE": "1",
            "TOKENIZERS_PARALLELISM": "false",
            "PYTHONWARNINGS": "ignore",
            "COLUMNS": "200",
        },
    )
    end = signal.SIGALRM
    signal.signal(end, lambda *_: os.killpg(child.pid, signal.SIGKILL))
    signal.alarm(LIMIT)
    lines = []
    try:
        assert child.stdout is not None
        for line in child.stdout:
            lines.append(line.rstrip("\n"))
            say(lines[-1], out)
        child.wait()
    except BaseException:
        os.killpg(child.pid, signal.SIGKILL)
        raise
    finally:
        signal.alarm(0)
    if child.returncode:
        why = (
            f"took more than {LIMIT} s"
            if child.returncode < 0
            else f"ended with {child.returncode}"
        )
        lines.append(f"AIM FAILED {script} {' '.join(options)}: it {why}")
        say(lines[-1], out)
    return lines


def say(line: str, out: TextIO) -> None:
    """Writes a line to the screen and to the file."""
    print(line, flush=True)
    out.write(line + "\n")
    out.flush()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer runs and smaller cases")
    parser.add_argument("--only", nargs="+", choices=tuple(RUNS), default=tuple(RUNS))
    parser.add_argument("--output", type=Path, default=HERE / "results.txt")
    options = parser.parse_args()
    chosen = QUICK if options.quick else RUNS
    aims: list[str] = []
    start = time.perf_counter()
    with options.output.open("w", encoding="utf-8") as out:
        say(about(), out)
        say("medians (least to most) over runs by turns", out)
        for name in options.only:
            say(f"\n## {name}: {' '.join(chosen[name])}\n", out)
            since = time.perf_counter()
            aims += [line for line in run(chosen[name], out) if line.startswith("AIM")]
            say(f"  ({time.perf_counter() - since:.0f} s)", out)
        say(f"\n## All aims, after {(time.perf_counter() - start) / 60:.1f} minutes\n", out)
        for line in aims:
            say(line, out)
    print(f"\nWritten to {options.output}")


if __name__ == "__main__":
    main()
