"""Figures of the rule, the theory and the calibration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from loraprobe.evaluation.statistics import Array, wilson
from loraprobe_lab.experiments.drawing import BLUE, DARK, GREY, RED, as_svg, drawing
from loraprobe_lab.experiments.rule.exact import MARGIN, Rate

BINS = 8  # of equal mass, in the figure of reliability
Document = Mapping[str, Any]


def rule_figure(document: Document) -> str:
    """SVG with two panels: how often the rule is wrong, and how often it abstains."""
    with drawing() as Figure:
        figure = Figure(figsize=(10, 3.8), layout="constrained")
        left, right = figure.subplots(1, 2)
        rows = [Rate(**row) for row in document["exact"]]
        for n, colour in zip(
            sorted({r.n for r in rows}), ("#c7a26b", RED, BLUE, DARK), strict=False
        ):
            here: dict[float, list[Rate]] = {}
            for row in rows:
                if row.n == n:
                    here.setdefault(row.gain, []).append(row)
            for below in (True, False):  # at the margin itself no decision is wrong
                gains = [g for g in here if abs(g - MARGIN) > 1e-9 and (g < MARGIN) == below]
                worst = [max(row.wrong() for row in here[gain]) for gain in gains]
                label = f"n = {n}" if below else None
                left.plot(gains, worst, "o-", ms=3, color=colour, label=label)
            least, most = (
                [pick(row.abstains for row in here[gain]) for gain in here] for pick in (min, max)
            )
            right.fill_between(list(here), least, most, color=colour, alpha=0.15, lw=0)
            right.plot(list(here), most, color=colour)
            right.plot(list(here), least, color=colour, lw=0.8)
        left.axhline(document["limit"], color=GREY, lw=0.8, ls="--")
        left.set(ylim=(0, 0.05), ylabel="probability of a wrong decision")
        left.set_title("Wrong, at the worst discordance", loc="left")
        right.set(ylim=(0, 1), ylabel="probability of no decision")
        right.set_title("Abstains (least to greatest over discordance)", loc="left")
        for ax in (left, right):
            ax.axvline(document["margin"], color=GREY, lw=0.8)
            ax.set(xlim=(-0.2, 0.4), xlabel="true gain (line: the margin)")
        left.legend(frameon=False, fontsize=8)
        return as_svg(figure)


def theory_figure(document: Document) -> str:
    """SVG with four panels: two hops, whose key, the bound, and what training holds."""
    with drawing() as Figure:
        figure = Figure(figsize=(10, 7.2), layout="constrained")
        axes = figure.subplots(2, 2).flat
        for ax, draw in zip(axes, (_hops, _keys, _bound, _trained), strict=True):
            draw(ax, document)
        return as_svg(figure)


BARS = {
    "composed": (RED, "asked at once"),
    "sentence": (GREY, "after the written step"),
    "chain": (BLUE, "second hop asked anew"),
}
PLACES = {
    "down": (GREY, "down, last layer"),
    "mlp": (BLUE, "MLP, last layer"),
    "all layers": (RED, "all linear layers"),
}


def _finish(ax: Any, title: str, legend: str = "best", **labels: Any) -> None:
    ax.set(**labels)
    ax.set_title(title, loc="left")
    ax.legend(frameon=False, fontsize=7, loc=legend)


def _hops(ax: Any, document: Document) -> None:
    rows = document["one at a time"]
    for k, (part, (colour, label)) in enumerate(BARS.items()):
        places = [i + 0.26 * (k - 1) for i in range(len(rows))]
        ax.barh(places, [row[part] for row in rows], 0.24, color=colour, label=label)
    ax.set_yticks(range(len(rows)), [row["system"].replace("->", "→") for row in rows])
    ax.invert_yaxis()
    share = f"share of {document['chains']} chains right"
    title = "Rank-one edits, one chain at a time"
    _finish(ax, title, "upper right", xlim=(0, 1), xlabel=share)


def _keys(ax: Any, document: Document) -> None:
    rows = document["keys"]
    places = range(len(rows))
    for shift, key, colour, label in (
        (-0.18, "own", BLUE, "own b"),
        (0.18, "others", GREY, "other people"),
    ):
        values = [row[key] for row in rows]
        ax.barh([i + shift for i in places], values, 0.34, color=colour, label=label)
    for i, row in enumerate(rows):
        text = f"nearest is own: {row['nearest is own']:.2f}"
        ax.text(row["own"] + 0.02, i - 0.18, text, va="center", fontsize=7)
    ax.set_yticks(places, [row["prompt"].replace(", then", ",\nthen") for row in rows])
    ax.invert_yaxis()
    ax.set_xlim(0, 1.45)
    ax.set_xticks([0, 0.5, 1])
    label = 'cosine to the key of "Where does b live?"'
    _finish(ax, "Whose key a prompt has", "lower right", xlabel=label)


def _bound(ax: Any, document: Document) -> None:
    for kind, colour in (("own answers", RED), ("shared answers", BLUE)):
        rows = [row for row in document["bound"] if row["facts"] == kind]
        for key, style, what in (
            ("residual rank", "o-", "rank of the residual"),
            ("rank of 99 % energy", ":", "99 % of its energy"),
        ):
            x, y = [row["n"] for row in rows], [row[key] for row in rows]
            ax.plot(x, y, style, color=colour, ms=3, label=f"{kind}: {what}")
    width = document["layer"]["hidden"]
    ax.axhline(width, color=GREY, lw=0.8)
    note = {"textcoords": "offset points", "fontsize": 7, "color": GREY}
    ax.annotate("width of the layer", (0, width), (2, 3), **note)
    _finish(ax, "What an exact edit needs", xlabel="facts N", ylabel="rank of the exact edit")


def _trained(ax: Any, document: Document) -> None:
    """Most facts that any training of a rank recalled, by place."""
    rows = document["trained"]
    ranks = sorted({row["rank"] for row in rows})
    for place, (colour, label) in PLACES.items():
        most: dict[int, int] = {}
        for row in sorted(rows, key=lambda row: row["rank"]):
            if row["place"] == place:
                most[row["rank"]] = max(row["facts"], most.get(row["rank"], 0))
        if most:
            ax.plot(list(most), list(most.values()), "o-", color=colour, ms=4, label=label)
    ax.plot(ranks, ranks, "--", color=DARK, lw=0.8, label="one fact a rank")
    ax.set_xscale("log", base=2)
    ax.set_yscale("symlog", linthresh=1)
    ax.set_xticks(ranks, [str(rank) for rank in ranks])
    ax.set_yticks([0, 1, 10, 100, 400], ["0", "1", "10", "100", "400"])
    ax.set_ylim(bottom=0)
    labels = {"xlabel": "rank of the trained LoRA", "ylabel": "most facts recalled"}
    _finish(ax, "What training holds", "lower right", **labels)


def calibration_figure(
    points: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    probability: Array,
    gained: Array,
    margin: float,
) -> str:
    """SVG with two panels: measured gains over forecasts, and whether probabilities are true.

    points: scenario -> forecast and measured gains. probability, gained [cases]: of the decided
    cases, by fits without their scenario, and whether they gained (1.0) or not.
    """
    with drawing() as Figure:
        figure = Figure(figsize=(9, 3.9), layout="constrained")
        left, right = figure.subplots(1, 2)
        left.plot([-1, 1], [-1, 1], color=GREY, linewidth=0.8)
        for value in (0.0, margin):
            left.axhline(value, color=GREY, linewidth=0.5, linestyle=":")
        for name, (forecasts, gains) in points.items():
            left.plot(forecasts, gains, "o", markersize=3, alpha=0.6, label=name)
        left.set(xlabel="forecast gain", ylabel="measured gain", xlim=(-1, 1), ylim=(-1, 1))
        left.set_title("Forecast and measured gain")
        left.legend(frameon=False, loc="upper left", fontsize=8)
        right.plot([0, 1], [0, 1], color=GREY, linewidth=0.8)
        for part in np.array_split(np.argsort(probability, kind="stable"), BINS):
            at, y = float(probability[part].mean()), gained[part]
            right.plot([at, at], wilson(y, np.arange(len(y))), color=BLUE, linewidth=1)
            right.plot(at, y.mean(), "o", color=BLUE, markersize=4)
        right.set(xlabel="probability given", ylabel="share that gained")
        right.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
        right.set_title("Left-out scenarios: are probabilities true?")
        return as_svg(figure)
