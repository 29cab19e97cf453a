"""The command line of `cache`, `env` and `skill`."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import subprocess
import time
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from rich.console import Console

from loraprobe._version import __version__
from loraprobe.cli.parameters import setting
from loraprobe.cli.running import Output
from loraprobe.formatting import clean, count, size
from loraprobe.wiring import GROUP

if TYPE_CHECKING:
    from loraprobe.extensions.upkeep.kept_runs import KeptRun

PACKAGES = (
    "torch transformers peft safetensors tokenizers huggingface_hub accelerate bitsandbytes "
    "typer rich pydantic numpy scipy lm_eval ray"
).split()
VARIABLES = (
    "HF_HOME HF_TOKEN HF_ENDPOINT HF_HUB_OFFLINE CUDA_VISIBLE_DEVICES OMP_NUM_THREADS"
).split()
DAY = 86_400.0


def cache(
    output: Output,
    clear: Annotated[bool, setting(" ", "Delete it all.", None, "--clear", typed=True)] = False,
    older: Annotated[int, setting("DAYS", "Only runs not used for so many days.", min=0)] = 0,
) -> None:
    """List what runs keep for --resume, or delete it with --clear.

    It lies in LORAPROBE_CACHE, or in the user's cache, where the list says. What the Hub's client
    downloads is its own: hf cache.
    """
    from loraprobe.cache import cache_directory
    from loraprobe.extensions.upkeep.kept_runs import clear_kept, kept_runs

    now = time.time()
    runs = [run for run in kept_runs() if now - run.used >= older * DAY]
    used = clear_kept(runs, readings=older == 0) if clear else []
    rows = [
        {
            "name": run.place.name,
            "adapters": list(run.adapters),
            "tasks": list(run.tasks),
            "bytes": run.size,
            "used": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(run.used)),
        }
        for run in (used if clear else runs)
    ]
    place = cache_directory()
    if output.document("cache", {"cleared": clear, "place": str(place), "runs": rows}):
        return
    if clear:
        kept_back = f" What is in use stays: {count(len(used), 'run')}." if used else ""
        output.say(f"Deleted {count(len(runs) - len(used), 'run')}.{kept_back}")
    else:
        _show_cache(runs, now, place)


def _show_cache(runs: list[KeptRun], now: float, place: Path) -> None:
    from loraprobe.cache import usual_directory
    from loraprobe.report.parts import Column, tabulated, text
    from loraprobe.report.terminal import print_table

    table = tabulated(
        "Runs that are kept",
        runs,
        # Those of a run of another version are not known.
        (text("adapters"), lambda run: ", ".join(run.adapters) or "(of another version)"),
        (text("tasks"), lambda run: ", ".join(run.tasks)),
        (Column("size"), lambda run: size(run.size)),
        (Column("days unused"), lambda run: str(int((now - run.used) / DAY))),
    )
    print_table(Console(highlight=False), table)
    total = size(sum(run.size for run in runs))
    told = f"{count(len(runs), 'run')}, {total}. loraprobe cache --clear deletes them."
    told += f"\nThey lie in {place}"
    usual = usual_directory()
    if not os.environ.get("LORAPROBE_CACHE") and place != usual:
        told += f",\nas earlier versions had them. This one would take {usual};\nmove them there"
    print(clean(f"{told}."))


def env(output: Output) -> None:
    """Print versions, devices and memory for a bug report: no path, no name and no token.

    Of environment variables it says only which are set.
    """
    from loraprobe.memory import available

    free = available()
    added = [one.dist.name for one in entry_points(group=GROUP) if one.dist is not None]
    own = sorted(name for name in os.environ if name.startswith("LORAPROBE_"))
    environment = {  # without torch, whose import takes longer than all of this
        "loraprobe": __version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "cores": os.cpu_count(),
        "memory": None if free is None else size(free),
        "devices": ["cpu", *_gpus()],
        "packages": {name: v for name in (*PACKAGES, *added) if (v := _version(name))},
        "set": [name for name in (*VARIABLES, *own) if os.environ.get(name)],
    }
    if output.document("env", environment):
        return
    for name, value in environment.items():
        parts = [f"{k} {v}" for k, v in value.items()] if isinstance(value, dict) else value
        print(f"{name}: {', '.join(parts) if isinstance(parts, list) else parts}")


def _gpus() -> list[str]:
    """The names of NVIDIA's GPUs, as their driver tells."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return []
    asked = [tool, "--query-gpu=name", "--format=csv,noheader"]
    answer = subprocess.run(asked, capture_output=True, text=True)
    return answer.stdout.splitlines() if answer.returncode == 0 else []


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def skill() -> None:
    """Print a SKILL.md that tells an agent how to use this installation.

    Write it to loraprobe/SKILL.md in the directory of the agent's skills.
    """
    print(skill_text(), end="")


def skill_text() -> str:
    """SKILL.md, made from the table of commands and options and from the exit codes."""
    from loraprobe import cli
    from loraprobe.cli.parameters import tables, words_of
    from loraprobe.formatting import flowing
    from loraprobe.options import options_of

    new_file = ""
    if "task new" in cli.COMMANDS:
        new_file = "`loraprobe task new FILE` writes and explains a file of questions, "
    lines = [
        "---",
        "name: loraprobe",
        "description: Tells whether composing LoRA adapters (merging them, routing between them) "
        "works for a task, why, and what to do instead. Use it where somebody holds two or more "
        "adapters of one base model, has to choose among many, or is to check a merge.",
        "---",
        "",
        "# loraprobe",
        "",
        "Call commands with `--json` where they take it: standard output is then one document, "
        "also for an error (`error.code`, `message`, `cure`), and `loraprobe --json-schema` prints "
        "the schema of results. Read `verdict.decision`, `verdict.action`, `verdict.gain` and "
        "`verdict.reasons`, and run `verdict.next`, which is for a `shell` or for `python` as "
        "`verdict.next_in` says; words in capitals and files that you lack have to be replaced "
        f"before. {new_file}`--dry-run` tells time and memory first.",
        "",
        flowing(cli.options.__doc__),
    ]
    for name, spec in cli.COMMANDS.items():
        lines += ["", f"## loraprobe {name}", "", flowing(cli.function_of(name).__doc__), ""]
        lines += ["```", *spec.examples, "```"]
        told = [words_of(spec, option) for option in options_of(name) if option in tables()]
        lines += [""] * bool(told)
        for words in told:
            typed = f"{words['flags'][0]} {words['metavar']}".strip()
            lines.append(f"- `{typed}`: {words['help']}")
    return "\n".join(lines) + "\n"
