"""One table for people (Markdown) and the same for programs (JSON)."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from loraprobe_lab.reproduce.cells import Cell, Matrix
from loraprobe_lab.reproduce.claims import Paper
from loraprobe_lab.reproduce.findings import Finding
from loraprobe_lab.reproduce.measure import METHODS

RULE = (
    "Every claim is turned into differences with 95 % intervals, one for each size (the worlds of "
    "one size, which differ in their seed, are pooled; each is a stratum; the answers about one "
    "person are one cluster). Claimed to lie above the margin, a difference says *yes* if the "
    "lower end of its interval lies above it, *no* if the upper end lies below it; claimed to lie "
    "below, the other way round; else *undecided*. A claim **holds** if every difference says yes, "
    "**does not hold** if one says no, and is **not decided** otherwise."
)
GAIN = (
    "The gain is exact match minus that of the best of base and single adapters on the same "
    "questions (paired, Bonett and Price's interval, the choice of the best covered)."
)


def as_document(
    matrix: Matrix, cells: Sequence[Cell], findings: Sequence[Finding], **notes: Any
) -> dict[str, Any]:
    """Everything measured as plain data."""
    return {
        "format": 1,
        **notes,
        "margin": matrix.margin,
        "rule": RULE,
        "worlds": [dataclasses.asdict(world.place) for world in matrix.worlds],
        "claims": [
            {
                **dataclasses.asdict(f),
                "standing": f.standing,
                "counts": dict(f.counts),
                "tests": [{**dataclasses.asdict(t), "outcome": t.outcome} for t in f.tests],
            }
            for f in findings
        ],
        "cells": [dataclasses.asdict(cell) for cell in cells],
    }


@dataclass(frozen=True)
class Pages:
    """What a run left: the document (plain data), the page, and the files they stand in."""

    document: dict[str, Any] = field(repr=False)
    markdown: str = field(repr=False)
    files: tuple[Path, ...] = ()

    @property
    def json(self) -> str:
        """The document as it is saved."""
        return as_json(self.document)


def as_json(document: Mapping[str, Any]) -> str:
    """The document with numbers rounded to four places; a cell or test is one line."""
    rounded = _rounded(document)
    lists = {"cells": rounded.pop("cells"), "claims": rounded.pop("claims")}
    text = json.dumps(rounded, indent=1, ensure_ascii=False)[:-2]
    for key, rows in lists.items():
        lines = ",\n".join("  " + json.dumps(row, ensure_ascii=False) for row in rows)
        text += f',\n "{key}": [\n{lines}\n ]'
    return text + "\n}\n"


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, 4)
    if isinstance(value, Mapping):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_rounded(item) for item in value]
    return value


def as_markdown(
    matrix: Matrix,
    cells: Sequence[Cell],
    findings: Sequence[Finding],
    paper: Paper,
    *,
    command: str,
    figure: str,
    missing: Sequence[str] = (),
) -> str:
    """The page: where it was run, the claims, the figure, the matrix."""
    parts = [
        f"# {paper.title}",
        "Made by\n\n```\n" + command + "\n```",
        _worlds(matrix),
    ]
    if missing:
        parts.append(f"Not finished, and left out here: {', '.join(missing)}.")
    parts += [
        "## The claims",
        f"{RULE} The margin is {matrix.margin:g}. {GAIN}",
        _claims(findings),
        "## The figure",
        f"![the matrix]({figure})",
        "## The matrix",
        _legend(paper),
        *(_matrix(cells, matrix, group, paper) for group in matrix.groups),
        "## The numbers behind the claims",
        *(_tests(finding) for finding in findings),
    ]
    return "\n\n".join(parts) + "\n"


def _worlds(matrix: Matrix) -> str:
    rows = [
        f"| {size} | {matrix.of_size(size)[0].place.parameters:,} "
        f"| {', '.join(str(world.place.seed) for world in matrix.of_size(size))} |"
        for size in matrix.sizes
    ]
    return "\n".join(["| base | parameters | seeds |", "| --- | ---: | --- |", *rows])


def _claims(findings: Sequence[Finding]) -> str:
    rows = []
    for f in findings:
        counts = f.counts
        said = f"{counts['yes']} yes, {counts['no']} no, {counts['undecided']} undecided"
        notes = "; ".join(f.notes.values())
        span = _span(f)
        rows.append(f"| {f.claim} | {f.where} | **{f.standing}** | {said} | {span} | {notes} |")
    head = "| claim | questions | here | differences | smallest to largest | beside it |"
    return "\n".join([head, "| --- | --- | --- | --- | --- | --- |", *rows])


def _span(finding: Finding) -> str:
    values = [test.value for test in finding.tests]
    return f"{min(values):+.2f} to {max(values):+.2f}" if values else "-"


def _legend(paper: Paper) -> str:
    names = [f"- {text}" for text in paper.names.values()]
    return "\n".join(
        [
            "Exact match with its 95 % interval; bold where the gain's interval lies above the "
            "margin. Template `plain` is asked at once, the others step by step. `2` is the "
            "library of the two one-hop adapters, `3` has the target adapter too. `best single` "
            "is the best of base and single adapters in the same form, `joint` one adapter that "
            "was trained on all of it.",
            "",
            *names,
        ]
    ).rstrip()


def _matrix(cells: Sequence[Cell], matrix: Matrix, group: str, paper: Paper) -> str:
    columns = ("best single", *METHODS, "chain", "joint")
    head = f"| base | template | library | {' | '.join(columns)} |"
    rows = []
    for size in matrix.sizes:
        for template in matrix.templates:
            for library in (2, 3):
                row = [
                    c
                    for c in cells
                    if (c.size, c.group, c.template, c.library) == (size, group, template, library)
                ]
                if row:
                    values = " | ".join(_column(row, column, matrix.margin) for column in columns)
                    rows.append(f"| {size} | {template} | {library} | {values} |")
    name = paper.names.get(group, group)
    return "\n".join([f"### {name}", "", head, "| --- " * (3 + len(columns)) + "|", *rows])


def _column(row: Sequence[Cell], column: str, margin: float) -> str:
    roles = {"joint": "yardstick", "best single": "baseline"}
    role = roles.get(column, "composition")
    found = [c for c in row if c.role == role and (column in roles or c.system == column)]
    if not found:
        return "-"
    best = max(found, key=lambda cell: cell.score)
    text = f"{best.score:.2f} ({best.score_ci95[0]:.2f}–{best.score_ci95[1]:.2f})"
    gains = best.gain_ci95 is not None and best.gain_ci95[0] > margin
    return f"**{text}**" if gains else text


def _tests(finding: Finding) -> str:
    rows = [
        f"| {t.where} | {t.value:+.3f} | {t.low:+.3f} to {t.high:+.3f} | {t.n} | {t.outcome} "
        f"| {t.note} |"
        for t in finding.tests
    ]
    head = ["| base | difference | 95 % | items | claim | systems |", "| --- " * 6 + "|"]
    title = f"**{finding.claim}** ({finding.where}): {finding.standing}. Rule: {finding.rule}."
    return "\n".join([title, "", *head, *rows])
