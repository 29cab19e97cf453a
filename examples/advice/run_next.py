"""Run every next command that judged records print, and tell how each one ends.

    python run_next.py RECORDS WORLD... [--base DIR] [--only TEXT]... [--out FILE]

RECORDS is a folder that `judge_sets.py` wrote, WORLD as it takes them. The next command of every
record (CASE.inspect.json, CASE.rounds.json, CASE.all.json) runs in a folder of its own, in which
adapters, base and tasks lie under the names that it has for them. What it leaves to fill in is
filled:

* DIR is a folder that does not exist; BASE is the base of the world.
* NEW is an adapter of the same world that the case does not have, else a copy of the case's last.
* MORE-FILE is the file with further items of the same world; without any the row says that.
* HARDER-FILE is a file of another task of the world, else the same.
* questions.jsonl is the first task of the case.

A line of Python runs with `base`, `model` and `tokenizer` of the world. A command for another
program than loraprobe is not run. Each row has the case, the run, the command, its exit code (0 for
Python that ran, 2 for Python that raised), its decision if it has one, and `sense`: whether the
exit code is none of wrong usage. Rows are printed as they come and written to FILE; a summary ends.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import re
import shlex
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from judge_sets import Case, cases

from loraprobe.cli import app
from loraprobe.records import Command
from loraprobe_lab.world import World, worlds_in

RUNS = ("inspect", "rounds", "all")
STARTS = ("MORE-", "HARDER-")
Row = dict[str, Any]


def records(folder: Path, every: Sequence[Case]) -> Iterator[tuple[Case, str, Row]]:
    """Case, run and record, of all that were judged."""
    for case in every:
        for name in RUNS:
            file = folder / f"{case.name}.{name}.json"
            if file.is_file():
                yield case, name, json.loads(file.read_text())


def laid_out(case: Case, world: World, words: Sequence[str], place: Path) -> str:
    """Puts what words name into a folder; returns what is missing, "" where nothing is."""
    others = [path for path in world.adapters.values() if path not in case.adapters.values()]
    held = {**case.adapters, **{path.name: path for path in case.adapters.values()}}
    held["NEW"] = (others or [*case.adapters.values()])[-1]
    base = Path(case.base)
    held |= {base.name: base, "BASE": base}
    held |= {task.name: task for task in case.tasks} | {"questions.jsonl": case.tasks[0]}
    for word in words:
        link = place / word.partition("=")[2] if "=" in word else place / word
        source = held.get(link.name)
        if source is not None and source.exists() and not link.exists():
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(source.resolve())
        start = next((one for one in STARTS if link.name.startswith(one)), None)
        if start is not None and not link.exists():
            own = held[link.name.removeprefix(start)]
            text = own.read_text() if start == "MORE-" else ""
            further = [one for one in sorted(own.parent.glob("*.jsonl")) if one != own]
            alike = [one for one in further if _alike(one, own)]
            if start == "MORE-" and not alike:
                return "needs more questions"
            link.write_text(_with_own_ids(text, (alike or [own])[0].read_text()))
    return ""


def _alike(one: Path, other: Path) -> bool:
    """Whether two files hold the same kind of items: the same keys, and no item twice."""
    rows = [[json.loads(line) for line in file.read_text().splitlines()] for file in (one, other)]
    keys = [set(held[0]) if held else set() for held in rows]
    prompts = [{row.get("prompt") for row in held} for held in rows]
    return keys[0] == keys[1] and not prompts[0] & prompts[1]


def _with_own_ids(text: str, more: str) -> str:
    """The lines of two files, the second ones with ids that the first do not have."""
    rows = [json.loads(line) for line in more.splitlines()]
    for row in rows if text else ():
        row |= {key: f"more-{row[key]}" for key in ("id", "group") if key in row}
    return text + "".join(json.dumps(row) + "\n" for row in rows)


def run_words(words: Sequence[str]) -> tuple[int, str, str]:
    """Exit code, decision and error of a command of loraprobe."""
    takes_json = words[0] not in ("task",)
    printed, code = io.StringIO(), 0
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(io.StringIO()):
        try:
            app([*words, *(["--json", "--quiet"] if takes_json else [])])
        except SystemExit as end:
            code = int(end.code or 0)
    try:
        document = json.loads(printed.getvalue())
    except ValueError:
        return code, "", "" if code != 2 else printed.getvalue()[:200]
    verdict = document.get("verdict") or {}
    return code, verdict.get("decision", ""), document.get("error", {}).get("message", "")


def run_python(text: str, base: str) -> tuple[int, str, str]:
    """0, or 2 and the error, of lines that use the base of a world."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(base)
    known = {"base": model, "model": model, "tokenizer": AutoTokenizer.from_pretrained(base)}
    before = "import loraprobe\nfrom transformers import AutoModelForCausalLM\n"
    before += "from peft import PeftModel\n"
    try:
        exec(before + text, known)
    except Exception as error:
        return 2, "", f"{type(error).__name__}: {error}"[:200]
    return 0, "", ""


def run_next(case: Case, world: World, record: Row) -> Row:
    """The row of one record."""
    verdict = record["audit"].get("verdict") or {}
    command = Command.read(verdict.get("next", ""))
    row: Row = {"decided": verdict.get("decision"), "action": verdict.get("action")}
    row |= {"command": str(command), "exit": None, "decision": "", "note": ""}
    if command.verb in ("", "shell"):
        return row | {"note": "nothing to run here"}
    here = Path.cwd()
    with tempfile.TemporaryDirectory() as place:
        os.chdir(place)
        try:
            if command.in_python:
                laid_out(case, world, re.findall(r"'([^'\n]+)'", str(command)), Path(place))
                code, decision, note = run_python(str(command), case.base)
            else:
                words = shlex.split(str(command))[1:]
                if missing := laid_out(case, world, words, Path(place)):
                    return row | {"note": missing}
                code, decision, note = run_words(words)
        finally:
            os.chdir(here)
    return row | {"exit": code, "decision": decision, "note": note}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("records", type=Path)
    parser.add_argument("worlds", nargs="+", type=Path)
    parser.add_argument("--base")
    parser.add_argument("--only", action="append", default=[])
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    folder = given.records.resolve()
    every = [world for place in given.worlds for world in worlds_in(place.resolve())]
    of = {case.name: (case, world) for world in every for case in cases([world], given.base)}
    wanted = [c for c, _ in of.values() if not given.only or any(t in c.name for t in given.only)]
    ends = Counter[str]()
    lines = given.out.resolve().open("w") if given.out else None
    for case, name, record in records(folder, wanted):
        cache = Path(tempfile.mkdtemp())
        kept = folder / "cache" / case.name
        if kept.is_dir():
            shutil.copytree(kept, cache / "kept")
        os.environ["LORAPROBE_CACHE"] = str(cache / "kept")
        row = {"case": case.name, "run": name, **run_next(case, of[case.name][1], record)}
        row["sense"] = row["exit"] in (None, 0, 1, 3)
        shutil.rmtree(cache)
        for file in filter(None, (sys.stdout, lines)):
            print(json.dumps(row), file=file, flush=True)
        verb = (row["command"] or "nothing").removeprefix("loraprobe ").split()[0]
        verb = verb if row["command"].startswith("loraprobe ") else "python"
        end = row["note"] if row["exit"] is None else f"exit {row['exit']}"
        ends[f"{verb}: {end}"] += 1
    print("\n".join(f"{n:4} {what}" for what, n in ends.most_common()))


if __name__ == "__main__":
    main()
