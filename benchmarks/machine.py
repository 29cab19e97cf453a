"""Helpers of all benchmarks: timed child processes, ratios with their spread, hardware limits.

A ratio compares two measurements that followed each other in one run, so that other load on the
machine affects both. The median and the range over the runs are printed.
"""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

HERE = Path(__file__).resolve().parent


class Figures(NamedTuple):
    """Wall seconds, CPU seconds and peak resident megabytes of one process."""

    seconds: float
    cpu: float = 0.0
    megabytes: float = 0.0


def timed(command: Sequence[str], **environment: str) -> Figures:
    """Runs one child process to its end and discards its standard output.

    It may write bytecode: as installed, no command compiles the package again.
    """
    start = time.perf_counter()
    own = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL, env=own | environment)
    _, status, usage = os.wait4(child.pid, 0)
    seconds = time.perf_counter() - start
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise SystemExit(f"{' '.join(map(str, command))} ended with {child.returncode}.")
    return Figures(seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024)


def clocked(call: Callable[[], Any], wait: Callable[[], None] = lambda: None) -> Figures:
    """One call in this process; `wait` makes sure that a device is done."""
    cpu, start = time.process_time(), time.perf_counter()
    call()
    wait()
    return Figures(time.perf_counter() - start, time.process_time() - cpu)


def interleaved(
    kinds: Mapping[str, Callable[[], Figures]], runs: int, warm: int = 1
) -> dict[str, list[Figures]]:
    """Every kind `runs` times, taking turns; `warm` rounds before them are not counted."""
    found: dict[str, list[Figures]] = {kind: [] for kind in kinds}
    for run in range(warm + runs):
        for kind, measure in kinds.items():
            figures = measure()
            if run >= warm:
                found[kind].append(figures)
    return found


def ratios(
    above: Sequence[Figures], below: Sequence[Figures], figure: str = "seconds"
) -> list[float]:
    """A figure of the one over that of the other, run by run; CPU seconds on a busy machine."""
    pairs = zip(above, below, strict=True)
    return [getattr(a, figure) / getattr(b, figure) for a, b in pairs]


def spread(values: Sequence[float], digits: int = 2) -> str:
    """`median (least to most)`."""
    low, middle, high = min(values), statistics.median(values), max(values)
    return f"{middle:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def aim(what: str, values: Sequence[float], limit: float, *, least: bool = False) -> None:
    """One line: the aim, the result, and whether the median reaches the aim."""
    middle = statistics.median(values)
    met = middle >= limit if least else middle <= limit
    word = "at least" if least else "at most"
    print(f"AIM {'met   ' if met else 'MISSED'} {what}: {word} {limit:g}, found {spread(values)}")


def table(results: Mapping[str, Sequence[Figures]], unit: str, base: str) -> None:
    """A line a kind: seconds, how many times `base`, CPU seconds, peak memory."""
    for kind, figures in results.items():
        line = f"  {kind:24} {spread([f.seconds for f in figures])} s"
        line += f" = {spread(ratios(figures, results[base]))} x {unit}"
        if figures[0].cpu:
            line += f", {statistics.median(f.cpu for f in figures):.1f} s of CPU"
        if figures[0].megabytes:
            line += f", {max(f.megabytes for f in figures):.0f} MB"
        print(line)


def peer(name: str) -> str | None:
    """The command of another tool, where it is installed beside this Python or on the path."""
    return shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)


def script(name: str, *arguments: object) -> list[str]:
    """The command of a Python file of this folder."""
    return [sys.executable, str(HERE / name), *map(str, arguments)]


def loraprobe(*arguments: object) -> list[str]:
    """The command line of loraprobe itself."""
    return [sys.executable, "-m", "loraprobe", *map(str, arguments)]


def gemm_rate(dtype: Any, m: int, k: int, n: int, seconds: float = 0.3) -> float:
    """Flops a second of [m, k] @ [k, n] in a dtype of torch: the best of repeated calls."""
    import torch

    a, b = torch.ones(m, k, dtype=dtype), torch.ones(k, n, dtype=dtype)
    best, end = float("inf"), time.perf_counter() + seconds
    while best == float("inf") or time.perf_counter() < end:
        best = min(best, clocked(lambda: a @ b).seconds)
    return 2 * m * k * n / best


def read_rate(files: Sequence[str | Path]) -> float:
    """Bytes a second that plain reads of these files give once they are in the page cache."""
    memory = bytearray(1 << 22)
    best = float("inf")
    for _ in range(3):
        size, start = 0, time.perf_counter()
        for file in files:
            with open(file, "rb", buffering=0) as stream:
                while count := stream.readinto(memory):
                    size += count
        best = min(best, time.perf_counter() - start)
    return size / best


def about() -> str:
    """The machine in a line."""
    import platform

    import torch

    model = "?"
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next(
            (x.partition(":")[2].strip() for x in lines if x.startswith("model name")), model
        )
    rates = ", ".join(
        f"{str(dtype).removeprefix('torch.')} {gemm_rate(dtype, 2048, 2048, 2048) / 1e9:.0f}"
        for dtype in (torch.float64, torch.float32, torch.bfloat16)
    )
    python = f"Python {platform.python_version()}, torch {torch.__version__}"
    return f"{platform.machine()}, {model}, {os.cpu_count()} cores, {python}, GEMM Gflop/s: {rates}"
