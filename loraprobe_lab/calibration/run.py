"""`loraprobe lab calibrate`: makes a calibration from worlds and measures its accuracy."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from loraprobe.defaults import PILOT_ITEMS
from loraprobe.records import Progress
from loraprobe_lab.build import build_atlas
from loraprobe_lab.calibration.answered import AnsweredSet, read_sets, write_sets
from loraprobe_lab.calibration.cases import Case, CaseError, merged, read_cases, write_cases
from loraprobe_lab.calibration.collect import ANSWERS, SampleSizes, collect, is_across, kept_sets
from loraprobe_lab.calibration.fit import document_of, fit
from loraprobe_lab.calibration.several import SETS
from loraprobe_lab.experiments.pages import number, percent
from loraprobe_lab.world import write_text

CASES = "cases.jsonl.gz"


Say = Callable[[str], None]
Gathered = tuple[list[Case], list[AnsweredSet], list[str]]


def calibrate(
    worlds: Sequence[Path],
    output: Path,
    *,
    stored: Path | None = None,
    say: Say = lambda line: None,
    **asking: Any,
) -> Path:
    """Gathers cases, fits, validates, and writes everything to the directory `output`.

    asking: options of `gather`. Writes cases.jsonl.gz, SETS, calibration.json, report.md and
    figure.svg, and returns the calibration's path. Raises LoraprobeError.
    """
    from loraprobe_lab.calibration import several
    from loraprobe_lab.calibration.validation import measure, report

    cases, sets, skipped = gather(worlds, output, stored=stored, say=say, **asking)
    command = command_of(worlds, output, stored)
    results, kept = measure(cases), several.measure(sets, cases)
    document = document_of(fit(cases), cases, command, results.accuracy(), sets)
    document["several"] = several.errors(kept)
    write_text(output / "figure.svg", results.figure())
    write_text(output / "report.md", report(results, document, command, skipped, kept))
    text = json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False)
    write_text(output / "calibration.json", text + "\n")
    for what, row in results.figures[PILOT_ITEMS].items():
        say(
            f"Left-out {what}: AUROC within a kind {number(row.auroc)}, Brier score "
            f"{number(row.brier)}, {row.likely:.0f} called likely, {percent(row.wrong)} of them "
            "wrong."
        )
    return output / "calibration.json"


def gather(
    worlds: Sequence[Path],
    output: Path,
    *,
    stored: Path | None = None,
    sizes: SampleSizes = SampleSizes(),
    across: bool = False,
    processes: int = 1,
    progress: Progress | None = None,
    say: Say = lambda line: None,
) -> Gathered:
    """Cases, sets with several tasks, and a line for each set that could not be asked.

    stored: a case file; sets with several tasks are read from the file SETS beside it. Worlds that
    are named too replace its cases and sets of the same names and add theirs. Without both, the
    answers in `output` are used; if there are none either, the worlds of the atlas are built
    first. across: also sets across those of a world. Cases and sets are written to `output`.
    """
    cases, sets = _stored(stored)
    skipped = list[str]()
    if stored is None or worlds:
        if not worlds and not (output / ANSWERS).is_dir():
            say("No worlds are named: the atlas is built first, which takes hours.")
            worlds = build_atlas(output / "worlds", processes, progress)
        collect(worlds, output, sizes, across=across, processes=processes, progress=progress)
        found, skipped = kept_sets(output)
        cases = merged(cases, [case for one in found if not is_across(one) for case in one.cases()])
        sets = merged(sets, [one for one in found if one.tasks > 1])
    if not cases:
        why = f" ({skipped[0]})" if skipped else ""
        raise CaseError(f"{stored or output} holds no case{why}: name worlds with --world DIR.")
    for line in skipped:
        say(f"Not judged: {line}")
    write_cases(output / CASES, cases)
    if sets:
        write_sets(output / SETS, sets)
    say(f"{len(cases)} cases in {output / CASES}.")
    return cases, sets, skipped


def _stored(path: Path | None) -> tuple[list[Case], list[AnsweredSet]]:
    """The cases of a file, and the sets beside it."""
    if path is None:
        return [], []
    beside = path.with_name(SETS)
    return read_cases(path), read_sets(beside) if beside.is_file() else []


def command_of(worlds: Sequence[Path], output: Path, stored: Path | None = None) -> str:
    """The command line with the last parts of paths, so that no private path is published."""
    parts = ["loraprobe", "lab", "calibrate"]
    for world in worlds:
        parts += ["--world", world.name]
    if stored is not None:
        parts += ["--cases", stored.name]
    return shlex.join([*parts, "--output", output.name])
