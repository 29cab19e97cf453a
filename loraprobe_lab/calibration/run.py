"""`loraprobe lab calibrate`: worlds in, a calibration with its measured accuracy out."""

from __future__ import annotations

import json
import shlex
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from loraprobe._version import __version__
from loraprobe.words import count
from loraprobe_lab.calibration import collect as collecting
from loraprobe_lab.calibration import opening, splits
from loraprobe_lab.calibration.cases import Case, CaseError, decided, write_cases
from loraprobe_lab.calibration.collect import Progress, kept_cases
from loraprobe_lab.calibration.experiment import Results, measure
from loraprobe_lab.calibration.observe import Effort
from loraprobe_lab.calibration.optional import need
from loraprobe_lab.calibration.report import Page, accuracy
from loraprobe_lab.calibration.resample import resample
from loraprobe_lab.world import write_text

MARGIN = 0.05


def calibrate(
    worlds: Sequence[Path],
    output: Path,
    *,
    effort: Effort = Effort(),
    processes: int = 1,
    draws: int = 1000,
    progress: Progress | None = None,
    say: Callable[[str], None] = lambda line: None,
    collect_only: bool = False,
) -> Path:
    """Observes the worlds, fits, measures, and writes everything to the directory `output`.

    cases.jsonl, calibration.json, report.md, figure.svg and opening.jsonl, beside what is kept of
    every trial; what is there already is not observed again, so without `worlds` the trials kept
    in `output` are fitted anew. Returns the calibration's path. Raises LoraprobeError.
    """
    if not collect_only:
        need("sklearn"), need("matplotlib")
    if worlds:
        collecting.collect(worlds, output, effort, processes=processes, progress=progress)
    cases, skipped = kept_cases(output, MARGIN)
    if not cases:
        why = f" ({skipped[0]})" if skipped else ""
        raise CaseError(f"{output} holds no case{why}: name worlds with --world DIR.")
    for line in skipped:
        say(f"Not judged: {line}")
    write_cases(output / "cases.jsonl", cases)
    say(f"{len(cases)} cases, {len(decided(cases))} of them decided, in {output / 'cases.jsonl'}.")
    if collect_only:
        return output / "cases.jsonl"
    return fit_and_tell(cases, output, command_of(worlds, output), skipped, draws, effort.seed, say)


def fit_and_tell(
    cases: Sequence[Case],
    output: Path,
    command: str,
    skipped: Sequence[str] = (),
    draws: int = 1000,
    seed: int = 0,
    say: Callable[[str], None] = lambda line: None,
) -> Path:
    """From cases to calibration, page and figure; every opening of a held-out set is logged."""
    from loraprobe_lab.calibration.figure import draw

    log = output / opening.NAME

    def opened(name: str, own: Sequence[Case]) -> None:
        opening.note(log, name, command, len(own), len({case.base for case in own}))

    results = measure(cases, opened, count=draws, seed=seed)
    document = results.fitted.document(
        provenance(cases, command, opening.openings(log)), accuracy(results), MARGIN
    )
    agreement = resample(sorted((output / "items").glob("*/*.npz")), margin=MARGIN, seed=seed)
    page = Page(cases, results, document, agreement, opening.openings(log), tuple(skipped), command)
    draw(results, output / "figure.svg")
    write_text(output / "report.md", page.render())
    text = json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False)
    write_text(output / "calibration.json", text + "\n")
    for line in headline(results, opening.openings(log)):
        say(line)
    return output / "calibration.json"


def headline(results: Results, openings: dict[str, int]) -> list[str]:
    """What was measured on held-out bases, and how often they were looked at."""
    from loraprobe_lab.calibration.report import NAMES, figure

    lines = [f"{NAMES[name]}: {figure(v)}" for name, v in results.headline.figures.items()]
    looked = count(openings.get(results.headline.name, 0), "time")
    return [
        f"On {results.headline.cases} cases over {results.headline.bases} held-out bases:",
        *lines,
        f"The held-out bases were looked at {looked}.",
    ]


def provenance(cases: Sequence[Case], command: str, openings: dict[str, int]) -> dict[str, Any]:
    """What made a calibration."""
    train = splits.held_out_bases(cases).train
    return {
        "made_by": command,
        "loraprobe": __version__,
        "commit": opening.commit(),
        "worlds": sorted({case.world for case in cases}),
        "cases": len(decided(train)),
        "bases": len({case.base for case in train}),
        "adapter_sets": len({case.adapter_set for case in train}),
        "scenarios": sorted({case.scenario for case in train}),
        "architectures": sorted({case.architecture for case in train}),
        "openings": openings,
    }


def command_of(worlds: Sequence[Path], output: Path) -> str:
    """The command line, with directories by their names, so that it says nothing of a machine."""
    parts = ["loraprobe", "lab", "calibrate"]
    for world in worlds:
        parts += ["--world", world.name]
    return shlex.join([*parts, "--output", output.name])


def lines(say: Callable[[str], None], every: float = 30.0) -> Progress:
    """Progress as a line now and then, with the time that is left, where there is no terminal."""
    start, last = time.monotonic(), [float("-inf"), -1.0]

    def report(stage: str, done: int, total: int) -> None:
        now = time.monotonic()
        last[1] = done if last[1] < 0 else last[1]  # what an earlier run left takes no time
        if now - last[0] < every and done < total:
            return
        last[0], new = now, done - last[1]
        left = f", about {(now - start) / new * (total - done) / 60:.0f} min left" if new else ""
        say(f"{stage}: {done} of {total}{left if done < total else ''}")

    return report


def atlas(
    output: Path, processes: int = 1, progress: Progress | None = None, plans: Sequence[Any] = ()
) -> list[Path]:
    """The worlds of the atlas (or of `plans`), below `output`; what is finished is not built again.

    It takes hours; each world that is finished stays.
    """
    from loraprobe_lab.atlas import ATLAS, build_atlas

    return build_atlas(output / "worlds", plans or ATLAS, processes=processes, progress=progress)


def wanted(worlds: Sequence[Path], output: Path) -> bool:
    """Whether the atlas has to be built first: no worlds are named, and none were observed."""
    return not worlds and not (output / "audits").is_dir()
