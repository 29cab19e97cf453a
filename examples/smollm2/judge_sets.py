"""Judge adapter sets with `inspect` and `merge-and-eval`, as a user runs them, and print the table.

    python judge_sets.py SETS BASE OUT NAME... [-- OPTION...]

SETS holds one world a folder (adapters/, tasks/), NAME is one of them, and OPTION goes to both
commands. Each run leaves NAME.inspect.json or NAME.merge-and-eval.json in OUT: the audit, the exit
code and the CPU seconds; what is there is not run again. The two runs of a set share one new cache,
so `merge-and-eval` uses the answers that `inspect` got.
"""

import json
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

COMMANDS = ("inspect", "merge-and-eval")


def run(command: str, world: Path, base: str, out: Path, options: list[str]) -> dict[str, Any]:
    """The record of one run: {"arguments", "exit", "cpu_seconds", "audit"}; made once and kept."""
    kept = out / f"{world.name}.{command}.json"
    if kept.is_file():
        return json.loads(kept.read_text())
    arguments = [command, *(str(path) for path in sorted((world / "adapters").iterdir()))]
    arguments += ["--base", base, "--max-new-tokens", "24", "--limit", "72", "--json", *options]
    for task in sorted((world / "tasks").iterdir()):
        arguments += ["--task", str(task)]
    if command == "merge-and-eval":
        arguments += ["--resume", "--save-samples", str(out / f"{world.name}.samples.jsonl")]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        "LORAPROBE_CACHE": str(out / f"{world.name}.cache"),
    }
    done = subprocess.run(
        [sys.executable, "-m", "loraprobe", *arguments],
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    record = {
        "arguments": arguments,
        "exit": done.returncode,
        "cpu_seconds": round(seconds, 1),
        "audit": json.loads(done.stdout),
    }
    kept.write_text(json.dumps(record))
    return record


def row(name: str, command: str, record: dict[str, Any]) -> str:
    """A line of the table."""
    verdict, gain = record["audit"]["verdict"], record["audit"]["verdict"].get("gain")
    answers = sum(score["n"] for score in record["audit"]["evaluation"])
    told = "–"
    if gain:
        low, high = gain["ci95"]
        told = f"{gain['difference']:+.2f} [{low:.2f}, {high:.2f}]"
    cells = [name, command, verdict["decision"], verdict["action"], verdict["system"] or "–", told]
    cells += [str(answers), f"{record['cpu_seconds']:.0f}"]
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    """Run what is not there yet and print a row a run."""
    words = sys.argv[1:]
    cut = words.index("--") if "--" in words else len(words)
    (sets, base, out, *names), options = words[:cut], words[cut + 1 :]
    Path(out).mkdir(parents=True, exist_ok=True)
    print("| set | command | decision | action | composition | gain | answers | CPU s |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for name in names:
        for command in COMMANDS:
            record = run(command, Path(sets) / name, base, Path(out), options)
            print(row(name, command, record), flush=True)


if __name__ == "__main__":
    main()
