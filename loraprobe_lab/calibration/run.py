"""`loraprobe lab calibrate`: makes a calibration from worlds and measures its accuracy."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path

from loraprobe.records import Progress
from loraprobe_lab.build import build_atlas
from loraprobe_lab.calibration.cases import Case, CaseError, read_cases, write_cases
from loraprobe_lab.calibration.collect import OBSERVATIONS, collect, kept_cases
from loraprobe_lab.calibration.fit import fit
from loraprobe_lab.calibration.observe import SampleSizes
from loraprobe_lab.calibration.several import SETS, AnsweredSet, read_sets
from loraprobe_lab.experiments.pages import number, percent
from loraprobe_lab.world import write_text

CASES = "cases.jsonl.gz"


def calibrate(
    worlds: Sequence[Path],
    output: Path,
    *,
    stored: Path | None = None,
    sizes: SampleSizes = SampleSizes(),
    processes: int = 1,
    progress: Progress | None = None,
    say: Callable[[str], None] = lambda line: None,
    collect_only: bool = False,
) -> Path:
    """Evaluates the worlds, fits, validates, and writes everything to the directory `output`.

    stored: a case file to fit in place of worlds. Otherwise the observations in `output` are used
    again. Without `worlds` only they are fitted; if there are none either, the worlds of the atlas
    are built first. Sets with several tasks are read from the file SETS beside the cases. Writes
    cases.jsonl.gz, calibration.json, report.md and figure.svg, and returns the calibration's path.
    Raises LoraprobeError.
    """
    command = command_of(worlds, output, stored)
    if stored is not None:
        cases, skipped = read_cases(stored), list[str]()
    else:
        if not worlds and not (output / OBSERVATIONS).is_dir():
            say("No worlds are named: the atlas is built first, which takes hours.")
            worlds = build_atlas(output / "worlds", processes, progress)
        collect(worlds, output, sizes, processes=processes, progress=progress)
        cases, skipped = kept_cases(output)
    if not cases:
        why = f" ({skipped[0]})" if skipped else ""
        raise CaseError(f"{stored or output} holds no case{why}: name worlds with --world DIR.")
    for line in skipped:
        say(f"Not judged: {line}")
    write_cases(output / CASES, cases)
    say(f"{len(cases)} cases in {output / CASES}.")
    if collect_only:
        return output / CASES
    answered = (stored or output / CASES).with_name(SETS)
    sets = read_sets(answered) if answered.is_file() else []
    return _fit_and_report(cases, sets, output, command, skipped, say)


def _fit_and_report(
    cases: Sequence[Case],
    sets: Sequence[AnsweredSet],
    output: Path,
    command: str,
    skipped: Sequence[str],
    say: Callable[[str], None],
) -> Path:
    """Writes calibration, page and figure of the cases."""
    from loraprobe_lab.calibration import several
    from loraprobe_lab.calibration.validation import FIRST_ROUND, measure, report

    results, kept = measure(cases), several.measure(sets, cases)
    document = fit(cases).document(cases, command, results.accuracy())
    document["several"] = several.accuracy(kept)
    write_text(output / "figure.svg", results.figure())
    write_text(output / "report.md", report(results, document, command, skipped, kept))
    text = json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False)
    write_text(output / "calibration.json", text + "\n")
    for what, figures in results.figures[FIRST_ROUND].items():
        say(
            f"Left-out {what}: AUROC within a kind {number(figures.auroc)}, Brier score "
            f"{number(figures.brier)}, {figures.likely:.0f} called likely, "
            f"{percent(figures.wrong)} of them wrong."
        )
    return output / "calibration.json"


def command_of(worlds: Sequence[Path], output: Path, stored: Path | None = None) -> str:
    """The command line with the last parts of paths, so that no private path is published."""
    parts = ["loraprobe", "lab", "calibrate"]
    for world in worlds:
        parts += ["--world", world.name]
    if stored is not None:
        parts += ["--cases", stored.name]
    return shlex.join([*parts, "--output", output.name])
