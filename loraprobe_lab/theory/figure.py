"""The figure of `loraprobe lab theory`: two hops, whose key, the bound, and what training holds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from loraprobe_lab.reproduce.figure import as_svg, drawing

DARK, RED, BLUE, GREY = "#333333", "#b3452c", "#2f6f9f", "#9a9a9a"
BARS = (("composed", RED), ("sentence", GREY), ("chain", BLUE))
NAMES = {
    "composed": "asked at once",
    "sentence": "after the written step",
    "chain": "second hop asked anew",
}


def figure(document: Mapping[str, Any]) -> str:
    """SVG with four panels. Raises UsageError if matplotlib is not installed."""
    with drawing() as Figure:
        drawn = Figure(figsize=(10, 7.2), layout="constrained")
        axes = drawn.subplots(2, 2)
        _hops(axes[0, 0], document)
        _keys(axes[0, 1], document)
        _bound(axes[1, 0], document)
        _trained(axes[1, 1], document)
        return as_svg(drawn)


def _hops(ax: Any, document: Mapping[str, Any]) -> None:
    rows = document["one at a time"]
    for k, (part, colour) in enumerate(BARS):
        places = [i + 0.26 * (k - 1) for i in range(len(rows))]
        ax.barh(places, [row[part] for row in rows], 0.24, color=colour, label=NAMES[part])
    ax.set_yticks(range(len(rows)), [row["system"].replace("->", "→") for row in rows])
    ax.invert_yaxis()
    ax.set_xlim(0, 1)
    ax.set_xlabel(f"share of {document['chains']} chains right")
    ax.set_title("Rank-one edits, one chain at a time", loc="left")
    ax.legend(frameon=False, fontsize=7, loc="upper right")


def _keys(ax: Any, document: Mapping[str, Any]) -> None:
    rows = document["keys"]
    places = range(len(rows))
    ax.barh([i - 0.18 for i in places], [r["own"] for r in rows], 0.34, color=BLUE, label="own b")
    ax.barh([i + 0.18 for i in places], [r["others"] for r in rows], 0.34, color=GREY,
            label="other people")  # fmt: skip
    for i, row in enumerate(rows):
        ax.text(row["own"] + 0.02, i - 0.18, f"nearest is own: {row['nearest is own']:.2f}",
                va="center", fontsize=7)  # fmt: skip
    ax.set_yticks(places, [row["prompt"].replace(", then", ",\nthen") for row in rows])
    ax.invert_yaxis()
    ax.set_xlim(0, 1.45)
    ax.set_xticks([0, 0.5, 1])
    ax.set_xlabel('cosine to the key of "Where does b live?"')
    ax.set_title("Whose key a prompt has", loc="left")
    ax.legend(frameon=False, fontsize=7, loc="lower right")


def _bound(ax: Any, document: Mapping[str, Any]) -> None:
    for kind, colour in (("own answers", RED), ("shared answers", BLUE)):
        rows = [row for row in document["bound"] if row["facts"] == kind]
        counts = [row["n"] for row in rows]
        ax.plot(counts, [row["residual rank"] for row in rows], "o-", color=colour, ms=3,
                label=f"{kind}: rank of the residual")  # fmt: skip
        ax.plot(counts, [row["rank of 99 % energy"] for row in rows], ":", color=colour,
                label=f"{kind}: 99 % of its energy")  # fmt: skip
    width = document["layer"]["hidden"]
    ax.axhline(width, color=GREY, lw=0.8)
    ax.annotate("width of the layer", (0, width), (2, 3), textcoords="offset points", fontsize=7,
                color=GREY)  # fmt: skip
    ax.set_xlabel("facts N")
    ax.set_ylabel("rank of the exact edit")
    ax.set_title("What an exact edit needs", loc="left")
    ax.legend(frameon=False, fontsize=7)


def _trained(ax: Any, document: Mapping[str, Any]) -> None:
    """Most facts that any training of a rank recalled, by place."""
    rows = document["trained"]
    places = {"down": ("down, last layer", GREY), "mlp": ("MLP, last layer", BLUE),
              "all layers": ("all linear layers", RED)}  # fmt: skip
    ranks = sorted({row["rank"] for row in rows})
    for place, (label, colour) in places.items():
        here = [row for row in rows if row["place"] == place]
        if here:
            mine = sorted({row["rank"] for row in here})
            most = [max(row["facts"] for row in here if row["rank"] == rank) for rank in mine]
            ax.plot(mine, most, "o-", color=colour, ms=4, label=label)
    ax.plot(ranks, ranks, "--", color=DARK, lw=0.8, label="one fact a rank")
    ax.set_xscale("log", base=2)
    ax.set_yscale("symlog", linthresh=1)
    ax.set_ylim(bottom=0)
    ax.set_xticks(ranks, [str(rank) for rank in ranks])
    ax.set_yticks([0, 1, 10, 100, 400], ["0", "1", "10", "100", "400"])
    ax.set_xlabel("rank of the trained LoRA")
    ax.set_ylabel("most facts recalled")
    ax.set_title("What training holds", loc="left")
    ax.legend(frameon=False, fontsize=7, loc="lower right")
