"""The table as a page (Markdown) and as a document (JSON)."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from loraprobe.words import count as counted
from loraprobe_lab.methods.answers import answers
from loraprobe_lab.methods.asking import Answers
from loraprobe_lab.methods.cases import QUESTIONS, Question
from loraprobe_lab.methods.pooling import Pooled
from loraprobe_lab.methods.table import MARGIN, ROLES, Count, Gain, Kept, Row, Table
from loraprobe_lab.show import describe_world
from loraprobe_lab.world import World, versions

FIRST = 8  # places that the page lists of every column
WHAT: Mapping[Question, str] = {
    "two-hop": "**two hops, asked at once**: one adapter knows A -> B, the other B -> C, and the "
    "question is A -> C, without room for steps.",
    "keep-both": "**keep both**: two adapters, each with a skill of its own; one model is asked "
    "for both.",
    "step-by-step": "**new facts, step by step**: one adapter knows A -> B for new people, the "
    "other writes worked steps, the base knows B -> C; asked A -> C step by step.",
}


def as_document(
    table: Table, answered: Sequence[Answers], worlds: Sequence[World], **notes: Any
) -> dict[str, Any]:
    """Everything measured as plain data, the figures of each world with it."""
    return {
        "format": 1,
        **notes,
        "versions": versions(),
        "margin": MARGIN,
        "worlds": [_base(world) for world in worlds],
        "cases": [
            {"case": one.case.name, "question": one.case.question, "roles": dict(one.case.roles)}
            for one in answered
        ],
        "counts": {question: dataclasses.asdict(c) for question, c in table.counts.items()},
        "refused": dict(table.refused),
        "claims": [dataclasses.asdict(answer) for answer in answers(table)],
        "cells": [_cell(row) for row in table.rows],
    }


def _cell(row: Row) -> dict[str, Any]:
    found = dataclasses.asdict(row)
    for key in ("two_hop", "step_by_step"):
        gain = getattr(row, key)
        if gain is not None:
            found[key]["standing"] = gain.standing
    return {**found.pop("entrant"), **found}


def _base(world: World) -> dict[str, Any]:
    found = describe_world(world)
    return {
        "name": world.path.resolve().name,
        "kind": found["kind"],
        "architecture": found["base"]["architecture"],
        "parameters": found["base"]["parameters"] or 0,
        "seed": world.seed,
    }


def as_markdown(
    table: Table, worlds: Sequence[World], *, command: str, missing: Sequence[str] = ()
) -> str:
    """The page, from its template."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("loraprobe_lab.methods", "."),
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    return environment.get_template("methods.md.jinja").render(
        command=command,
        versions=", ".join(f"{name} {version}" for name, version in versions().items()),
        bases=[_base(world) for world in worlds],
        missing=list(missing),
        answers=answers(table),
        questions=[
            f"{WHAT[question]} {_stands_on(question, table.counts[question])}"
            for question in QUESTIONS
            if question in table.counts
        ],
        margin=format(MARGIN, "g"),
        same=_same(table.rows),
        best=_best(table.rows),
        rows=[_line(row) for row in table.rows],
        refused=table.refused,
    )


def _stands_on(question: Question, count: Count) -> str:
    scores = ", ".join(f"{name} {count.baselines[name]:.2f}" for name in ("base", *ROLES[question]))
    return (
        f"{counted(count.worlds, 'world')}, {counted(count.cases, 'pair')} of adapters, "
        f"{count.items:,} questions; exact match alone: {scores}."
    )


def _best(rows: Sequence[Row]) -> list[list[str]]:
    """The first of each column, side by side; the chain is no composition of weights."""
    weights = [row for row in rows if row.entrant.family != "chain"]
    columns: list[list[str]] = []
    figures: list[tuple[Callable[[Row], Pooled | None], str]] = [
        (lambda row: row.two_hop.gain if row.two_hop else None, "+.2f"),
        (lambda row: row.keep_both.worse if row.keep_both else None, ".2f"),
        (lambda row: row.step_by_step.gain if row.step_by_step else None, "+.2f"),
    ]
    for figure_of, form in figures:
        there = [(f.value, row.entrant.label) for row in weights if (f := figure_of(row))]
        there.sort(key=lambda one: -one[0])
        columns.append([f"{label} {format(value, form)}" for value, label in there])
    shown = itertools.zip_longest(*columns, fillvalue="-")
    return [[str(place), *line] for place, line in enumerate(itertools.islice(shown, FIRST), 1)]


def _same(rows: Sequence[Row]) -> list[str]:
    """Which methods give the same in which spaces, each once."""
    found = {
        row.entrant.spec: f"{row.entrant.spec}: {', '.join(row.entrant.same)}"
        for row in rows
        if len(row.entrant.same) > 1
    }
    return list(found.values())


def _line(row: Row) -> list[str]:
    kept = row.keep_both
    return [
        row.entrant.label,
        _gain(row.two_hop),
        _worse(kept),
        _figure(kept.both, ".2f") if kept else "-",
        _gain(row.step_by_step),
        "-" if row.lost is None else f"{row.lost:.2f}",
    ]


def _gain(found: Gain | None) -> str:
    if found is None:
        return "-"
    text = _figure(found.gain, "+.2f")
    if found.standing == "undecided":
        return text
    return f"**{text}**" if found.standing == "gains" else f"[{text}]"


def _worse(found: Kept | None) -> str:
    if found is None:
        return "-"
    text = _figure(found.worse, ".2f")
    return text if found.beaten else f"**{text}**"


def _figure(found: Pooled, form: str) -> str:
    own, all_ = (
        f"{format(low, form)} to {format(high, form)}"
        for low, high in (found.ci95, found.adjusted_ci95)
    )
    return f"{format(found.value, form)} ({own}; {all_})"
