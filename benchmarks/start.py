"""Measures the start-up time of loraprobe, and which packages it imports.

    python benchmarks/start.py [--runs 7]

Every run is a separate process; the bare interpreter and `import torch` are the lower limits.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

from adapters_7b import write_adapter
from machine import aim, interleaved, loraprobe, spread, timed

HEAVY = ("transformers", "peft", "torch", "scipy", "matplotlib")
CHILD = """
import sys
sys.argv = ["loraprobe", *sys.argv[1:]]
from loraprobe.cli import app
try:
    app()
except SystemExit as end:
    assert not end.code, end.code
print(" ".join(sorted(name for name in {heavy} if name in sys.modules)), file=sys.stderr)
"""


def imported(*arguments: str) -> str:
    """Which of the heavy packages a command has imported when it ends."""
    command = [sys.executable, "-c", CHILD.format(heavy=HEAVY), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return done.stderr.strip().splitlines()[-1] if done.stderr.strip() else "none of them"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=7)
    runs = parser.parse_args().runs
    with tempfile.TemporaryDirectory() as scratch:
        sources = [write_adapter(Path(scratch) / f"a{seed}", 1, seed) for seed in range(2)]
        kinds = {
            "python -c pass": [sys.executable, "-c", "pass"],
            "import torch": [sys.executable, "-c", "import torch"],
            "loraprobe --help": loraprobe("--help"),
            "loraprobe inspect --help": loraprobe("inspect", "--help"),
            "loraprobe inspect, 7 modules": loraprobe("inspect", "--json", *sources),
        }
        calls = {kind: (lambda c=command: timed(c)) for kind, command in kinds.items()}
        found = interleaved(calls, runs)
        for kind, figures in found.items():
            print(f"  {kind:30} {spread([f.seconds for f in figures])} s")
        aim("seconds of --help", [f.seconds for f in found["loraprobe --help"]], 0.3)
        print(f"  of {', '.join(HEAVY)}, --help imports: {imported('--help')}")
        print(f"  and inspect imports: {imported('inspect', '--json', '--quiet', *sources)}")


if __name__ == "__main__":
    main()
