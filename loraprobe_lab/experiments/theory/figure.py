"""The figure of the theory experiments."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from loraprobe_lab.experiments.drawing import BLUE, DARK, GREY, RED, as_svg, drawing

Document = Mapping[str, Any]


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
