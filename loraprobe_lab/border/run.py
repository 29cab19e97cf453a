"""`loraprobe lab map`: trains the worlds of the map, asks every composition, draws the figure."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from loraprobe_lab.border.kit import BorderPlan, border_kit
from loraprobe_lab.border.measure import MARGIN, Reading, Surveyed, readings, survey
from loraprobe_lab.kit import build_kit
from loraprobe_lab.reproduce.bases import Bases, Shape, small_base
from loraprobe_lab.reproduce.page import Pages, as_json
from loraprobe_lab.train import ProgressCallback
from loraprobe_lab.world import write_text

BASES = Bases(architectures=("llama", "gpt2"), hidden=(64,), seeds=(0, 1))
NAME = "border"


class Map(Pages):
    """What a run left: the document (plain data), the page, and the files they stand in."""


def draw_map(
    output: str | Path,
    *,
    bases: Bases = BASES,
    plan: BorderPlan | None = None,
    shape: Shape = small_base,
    arguments: Sequence[str] = (),
    progress: ProgressCallback | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> Map:
    """Makes the map in the directory `output`: border.md, border.json, border.svg.

    What is finished is not made again, and the map is drawn anew after every world. Raises
    UsageError if matplotlib is missing, before anything is trained.
    """
    from loraprobe.base.quiet import quiet
    from loraprobe_lab.reproduce.figure import drawing

    with drawing():  # said before anything is trained, if it cannot be drawn
        pass
    output, places = Path(output), list(bases.places(shape))
    finished, start, drawn = list[Surveyed](), time.monotonic(), None
    for number, (place, recipe) in enumerate(places, 1):

        def report(stage: str, done: int, total: int, name: str = place.name) -> None:
            if progress is not None:
                progress(f"train {name}", done, total)

        with quiet():
            kit = border_kit(place.seed, recipe, plan)
            world = build_kit(kit, output / "worlds" / place.name, progress=report)
            finished.append(survey(world, place, output / "results", progress=progress))
        drawn = write_map(finished, output, arguments, [p.name for p, _ in places[number:]])
        left = (time.monotonic() - start) / number * (len(places) - number) / 60
        say(f"{place.name}: {number} of {len(places)} worlds, about {left:.0f} min left")
    assert drawn is not None  # there is at least one base
    return drawn


def write_map(
    worlds: Sequence[Surveyed], output: Path, arguments: Sequence[str], missing: Sequence[str]
) -> Map:
    """Writes the three files of these worlds, each complete or not at all."""
    from loraprobe_lab.border.figure import map_figure

    found = readings(worlds)
    command = " ".join(("loraprobe", *arguments)) if arguments else "draw_map()"
    document = {
        "format": 1,
        "command": command,
        "margin": MARGIN,
        "missing": list(missing),
        "worlds": [{**dataclasses.asdict(w.place), "norms": dict(w.norms)} for w in worlds],
        "claims": [],
        "cells": [_row(reading) for reading in found],
    }
    markdown = as_markdown(found, worlds, command, missing)
    files = tuple(output / f"{NAME}.{ending}" for ending in ("md", "json", "svg"))
    texts = (markdown, as_json(document), map_figure(found, len(worlds)))
    for path, text in zip(files, texts, strict=True):
        write_text(path, text)
    return Map(document, markdown, files)


def _row(reading: Reading) -> dict[str, Any]:
    point = dataclasses.asdict(reading.point)
    rest = dataclasses.asdict(dataclasses.replace(reading, point=reading.point))
    rest.pop("point")
    point["parts"] = [list(part) for part in point["parts"]]
    return {**point, **rest, "succeeds": reading.succeeds}


def as_markdown(
    found: Sequence[Reading], worlds: Sequence[Surveyed], command: str, missing: Sequence[str]
) -> str:
    """The page of the map: command, bases, figure, one table for each panel."""
    bases = ", ".join(f"{w.place.size} (seed {w.place.seed})" for w in worlds)
    parts = [
        "# Where success lives: new facts x worked steps",
        f"Made by\n\n```\n{command}\n```",
        f"Bases: {bases}.",
    ]
    if missing:
        parts.append(f"Not finished, and left out here: {', '.join(missing)}.")
    parts += [
        "One adapter learned to whom new people are married, another to answer in worked steps. "
        "Asked step by step where the spouse of a new person lives, does their composition beat "
        "the best of base and single adapters (in their better form)? Every figure is that gain, "
        "the mean over the bases, with its 95 % interval over persons; "
        f"**bold** where the interval lies above {MARGIN:g}, in brackets where it lies below.",
        "![the map](border.svg)",
        "## Unequal weights",
        "Across: weight of the facts adapter. Down: weight of the skill adapter. "
        "The base has read the second hop often; the skill was learned on familiar couples.",
        _heat(found),
    ]
    for panel, title, what in (
        ("familiarity", "How the second hop is known", "weight of each adapter"),
        ("invented", "Made-up couples in the skill adapter's data", "share of made-up couples"),
        ("norms", "Norms", "one adapter's update multiplied with"),
    ):
        parts += [f"## {title}", f"Across: {what}.", _lines(found, panel)]
    return "\n\n".join(parts) + "\n"


def _heat(found: Sequence[Reading]) -> str:
    cells = {(r.point.y, r.point.x): _said(r) for r in found if r.point.panel == "weights"}
    columns = sorted({x for _, x in cells})
    rows = [
        f"| {y:g} | " + " | ".join(cells[y, x] for x in columns) + " |"
        for y in sorted({y for y, _ in cells if y is not None})
    ]
    head = "| | " + " | ".join(f"{x:g}" for x in columns) + " |"
    return "\n".join([head, "| --- " * (len(columns) + 1) + "|", *rows])


def _lines(found: Sequence[Reading], panel: str) -> str:
    cells = {(r.point.series, r.point.x): _said(r) for r in found if r.point.panel == panel}
    columns = sorted({x for _, x in cells})
    rows = [
        f"| {series} | " + " | ".join(cells.get((series, x), "-") for x in columns) + " |"
        for series in dict.fromkeys(series for series, _ in cells)
    ]
    head = "| | " + " | ".join(f"{x:g}" for x in columns) + " |"
    return "\n".join([head, "| --- " * (len(columns) + 1) + "|", *rows])


def _said(reading: Reading) -> str:
    text = f"{reading.gain:+.2f} ({reading.ci95[0]:+.2f} to {reading.ci95[1]:+.2f})"
    if reading.succeeds is None:
        return text
    return f"**{text}**" if reading.succeeds else f"[{text}]"
