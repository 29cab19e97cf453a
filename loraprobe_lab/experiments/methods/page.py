"""The table of methods as a page and a document, with its answers by a stated rule."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any

from loraprobe_lab.build import describe_base
from loraprobe_lab.experiments.methods.evaluating import ROLES, CaseResults
from loraprobe_lab.experiments.methods.table import (
    MARGIN,
    MethodsRow,
    MethodsTable,
)
from loraprobe_lab.experiments.pages import (
    BLUE,
    DARK,
    GREEN,
    RED,
    Pages,
    as_svg,
    drawing,
    grid_lines,
    legend,
    render,
)
from loraprobe_lab.world import World, versions

FIRST = 8  # places that the page lists of every column
FORMS = ("+.2f", ".2f", "+.2f")  # of a row's three figures


def methods_pages(
    table: MethodsTable,
    answered: Sequence[CaseResults],
    worlds: Sequence[World],
    command: str,
    missing: Sequence[str] = (),
) -> Pages:
    """Everything measured, with the figures of each world, and the page of it."""
    bases = [_base(world) for world in worlds]
    document = {
        "format": 1,
        "command": command,
        "missing": list(missing),
        "versions": versions(),
        "margin": MARGIN,
        "worlds": bases,
        "cases": [
            {"case": one.case.name, "question": one.case.kind, "roles": dict(one.case.roles)}
            for one in answered
        ],
        "counts": {kind: dataclasses.asdict(count) for kind, count in table.counts.items()},
        "refused": dict(table.refused),
        "cells": [_cell(row) for row in table.rows],
    }
    same = {r.system.spec: r.system.same for r in table.rows if len(r.system.same) > 1}
    markdown = render(
        "methods",
        document=document,
        table=table,
        roles=ROLES,
        same=[f"{spec}: {', '.join(spaces)}" for spec, spaces in same.items()],
        best=_best(table.rows),
    )
    return Pages("methods", document, markdown, lambda: methods_figure(table.rows))


def _cell(row: MethodsRow) -> dict[str, Any]:
    found = dataclasses.asdict(row)
    for key, gain in (("two_hop", row.two_hop), ("step_by_step", row.step_by_step)):
        if gain is not None:
            found[key]["standing"] = gain.standing
    return {**found.pop("system"), **found}


def _base(world: World) -> dict[str, Any]:
    base = describe_base(world)
    return {
        "name": world.path.resolve().name,
        "kind": world.manifest["kind"],
        "architecture": base["architecture"],
        "parameters": base["parameters"] or 0,
        "seed": world.seed,
    }


def _best(rows: Sequence[MethodsRow]) -> list[list[str]]:
    """The first of each column, side by side; the chain is no composition of weights."""
    columns = []
    for k, form in enumerate(FORMS):
        found = [
            (figure.value, row.system.label)
            for row in rows
            if row.system.family != "chain" and (figure := row.figures[k])
        ]
        found.sort(key=lambda one: -one[0])
        columns.append([f"{label} {format(value, form)}" for value, label in found])
    shown = itertools.zip_longest(*columns, fillvalue="-")
    return [[str(place), *line] for place, line in enumerate(itertools.islice(shown, FIRST), 1)]


FAMILIES = {
    "linear": (DARK, "constant gates"),
    "merge": (RED, "merge into new weights"),
    "router": (BLUE, "router"),
    "chain": (GREEN, "chain of adapters"),
}
METHOD_PANELS = (  # what the panel shows, the line that counts, and its span
    ("two hops, asked at once\ngain over base and singles", 0.05, (-0.3, 1.02)),
    ("keep both\nretention of the worse skill", 0.8, (-0.15, 1.05)),
    ("new facts, step by step\ngain over base and singles", 0.05, (-0.3, 1.02)),
)


def methods_figure(rows: Sequence[MethodsRow]) -> str:
    """SVG. The thick line is each figure's own 95 % interval, the thin one holds for all of its
    panel; the dashed line is the margin, or the retention that counts as keeping."""
    with drawing() as Figure:
        figure = Figure(figsize=(10.5, 0.165 * len(rows) + 1.6))
        panels = figure.subplots(1, len(METHOD_PANELS), sharey=True, squeeze=False)[0]
        for i, (title, line, span) in enumerate(METHOD_PANELS):
            panels[i].set_title(title, fontsize=9)
            panels[i].set_xlim(*span)
            panels[i].axvline(0, color="#bbbbbb", linewidth=0.8)
            panels[i].axvline(line, color="#555555", linewidth=0.8, linestyle="--")
            grid_lines(panels[i])
            for y, row in enumerate(rows):
                found, colour = row.figures[i], FAMILIES[row.system.family][0]
                if found is not None:
                    panels[i].plot(found.adjusted_ci95, [y, y], color=colour, lw=0.7, alpha=0.6)
                    panels[i].plot(found.ci95, [y, y], color=colour, lw=2.0, alpha=0.7)
                    panels[i].plot(found.value, y, "o", color=colour, markersize=3.2)
        panels[0].set_yticks(range(len(rows)), [row.system.label for row in rows], fontsize=7)
        panels[0].set_ylim(len(rows) - 0.4, -0.6)
        families = [FAMILIES[f] for f in dict.fromkeys(row.system.family for row in rows)]
        entries: list[dict[str, Any]] = [
            {"marker": "o", "color": colour, "markersize": 4, "label": label}
            for colour, label in families
        ]
        entries += [
            {"color": "#777777", "linewidth": width, "label": label}
            for width, label in ((2, "95 %"), (0.7, "95 % for the whole panel"))
        ]
        legend(figure, entries, 6)
        figure.tight_layout(rect=(0, 0.45 / figure.get_figheight(), 1, 1))
        return as_svg(figure)
