"""Adds the cases of collected observations to a case file.

`python -m loraprobe_lab.calibration.append OUTPUT CASES [NAME]` takes the observations in OUTPUT, a
directory of `lab calibrate --collect-only`. NAME is needed where the sets lie on one base that the
lab did not train: it is the base's name in the cases and the prefix of their worlds. Cases of the
same sets in CASES are replaced, so the command may be repeated while observations come.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from loraprobe_lab.calibration.cases import Case, CaseError, read_cases, write_cases
from loraprobe_lab.calibration.collect import NATURAL, kept_cases


def append(output: Path, path: Path, name: str = "") -> tuple[int, list[str]]:
    """Writes the cases to the file `path`; returns their number, and a line for each set without.

    Raises CaseError if there are none, or if a base that the lab trained is given a name, or
    another one none.
    """
    found, skipped = kept_cases(output)
    if not found:
        raise CaseError(f"{output} holds no cases: collect observations first.")
    trained = {case.base for case in found if case.architecture != NATURAL}
    if trained and name:
        own = ", ".join(sorted(trained))
        raise CaseError(f"{own} has a base of its own, whose name its cases keep.")
    if others := sorted({case.base for case in found} - trained if not name else ()):
        raise CaseError(f"{', '.join(others)} needs a name: the lab did not train it.")
    if name:
        found = [replace(case, base=name, world=f"{name}-{case.world}") for case in found]
    write_cases(path, merged(read_cases(path) if path.is_file() else [], found))
    return len(found), skipped


def merged(old: Sequence[Case], new: Sequence[Case]) -> list[Case]:
    """Old cases, without those of sets that are in `new`, and then the new ones."""
    again = {case.set_key for case in new}
    return [*(case for case in old if case.set_key not in again), *new]


if __name__ == "__main__":
    count, without = append(Path(sys.argv[1]), Path(sys.argv[2]), *sys.argv[3:4])
    for line in without:
        print(f"Not judged: {line}", file=sys.stderr)
    print(f"{count} cases of {sys.argv[1]} in {sys.argv[2]}.")
