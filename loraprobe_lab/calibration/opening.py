"""How often a held-out set was looked at: a log, one JSON line an opening, that only grows.

A figure on a held-out set is worth what its first opening was worth; every further one is a chance
to choose by it. So each is written down, with what was opened and by which version.
"""

from __future__ import annotations

import datetime
import json
import subprocess
from collections import Counter
from pathlib import Path

from loraprobe._version import __version__

NAME = "opening.jsonl"


def note(log: Path, held_out: str, command: str, cases: int, bases: int) -> None:
    """Appends one opening."""
    row = {
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "held_out": held_out,
        "cases": cases,
        "bases": bases,
        "command": command,
        "loraprobe": __version__,
        "commit": commit(),
    }
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row, ensure_ascii=False) + "\n")


def openings(log: Path) -> dict[str, int]:
    """How often each held-out set was opened, by name."""
    if not log.is_file():
        return {}
    rows = (json.loads(line) for line in log.read_text(encoding="utf-8").splitlines() if line)
    return dict(sorted(Counter(row["held_out"] for row in rows).items()))


def commit() -> str | None:
    """The last commit that touched this package, where it runs from a clone; None elsewhere."""
    package = Path(__file__).parents[1]
    try:
        found = subprocess.run(
            ["git", "-C", str(package), "log", "-1", "--format=%h", "--", "."],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.strip() or None
