"""`make bench`: every benchmark one after the other, each against its peers in one run."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

RUNS = (
    ("inspect_vs_peers.py", "--runs", "5"),
    ("inspect_vs_peers.py", "--runs", "3", "--adapters", "8"),
    ("merge_vs_peft.py", "--runs", "5", "--peft", "square"),
    ("routed_layer_vs_peft.py",),
)


def main() -> None:
    print(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}")
    for script, *options in RUNS:
        print(f"\n{script} {' '.join(options)}", flush=True)
        subprocess.run([sys.executable, Path(__file__).with_name(script), *options], check=True)


if __name__ == "__main__":
    main()
