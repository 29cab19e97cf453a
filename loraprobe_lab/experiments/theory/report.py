"""What `loraprobe lab theory` found, as a page: tables, and the claims of the theory below."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from loraprobe_lab.experiments.document_figures import theory_figure
from loraprobe_lab.experiments.pages import Pages, markdown_table, render

Row = Mapping[str, Any]
PARTS = ("hop 1", "hop 2", "composed", "in one text", "sentence", "chain")
BOTH = "edit A->B + edit B->C"
PLACES = {
    "down": "`down` of the last layer",
    "mlp": "the MLP of the last layer",
    "all layers": "all linear layers",
}


def theory_pages(document: dict[str, Any]) -> Pages:
    """The pages of what `theory` found, also of a document that was saved."""
    plan = document["plan"]
    many = document["all at once"]
    added = [row for row in many if row["system"] == BOTH]
    markdown = render(
        "theory",
        **{name: document[name] for name in ("command", "seed", "base", "chains", "layer")},
        one_fact=_one_fact(document["one fact"]),
        alone=_hops(document["one at a time"]),
        sparing=_hops(document["one at a time, sparing"]),
        together=_hops(many, count=True),
        keys=_keys(document["keys"]),
        bound=_bound(document["bound"]),
        training={name: plan[name] for name in ("training", "everywhere")},
        trained={
            PLACES[place]: _trained(here)
            for place in PLACES
            if (here := [row for row in document["trained"] if row["place"] == place])
        },
        edits={row["system"]: row for row in document["one at a time"]},
        fact=document["one fact"][0],
        added=added,
        weakest=min(min(row["hop 1"], row["hop 2"]) for row in added),
        bound_met=all(row["edit rank"] == row["residual rank"] for row in document["bound"]),
        most=max(document["trained"], key=lambda row: row["facts"] / row["rank"]),
        both=BOTH,
        places=PLACES,
    )
    return Pages("theory", document, markdown, lambda: theory_figure(document), digits=None)


def _share(value: float) -> str:
    return f"{value:.2f}"


def _one_fact(rows: Sequence[Row]) -> str:
    others = [name for name, value in rows[0].items() if isinstance(value, Mapping)]
    head = ["the edit reads its key by", "largest error", "right"]
    head += [f"{name}: {what}" for name in others for what in ("reach", "changed")]
    body = []
    for row in rows:
        cells = [row["reads"], f"{row['exactness']:.0e}", _share(row["right"])]
        for name in others:
            cells.append(f"{row[name]['reach']:.3f} (up to {row[name]['most']:.2f})")
            cells.append(_share(row[name]["flipped"]))
        body.append(cells)
    return markdown_table(body, head)


def _hops(rows: Sequence[Row], count: bool = False) -> str:
    head = ["edits", *(["facts a hop"] if count else []), *PARTS]
    body = [
        [row["system"], *([str(row["facts"])] if count else []), *(_share(row[p]) for p in PARTS)]
        for row in rows
    ]
    return markdown_table(body, head)


def _keys(rows: Sequence[Row]) -> str:
    head = ["prompt", "own", "others", "nearest is own", "chance"]
    return markdown_table(
        [[row["prompt"], *(f"{row[name]:.3f}" for name in head[1:])] for row in rows], head
    )


def _bound(rows: Sequence[Row]) -> str:
    ranks = list(rows[0]["recalled"])
    plain = ["n", "answers", "residual rank", "rank of 99 % energy", "edit rank"]
    head = ["facts", *plain, "largest error", "norm / norm of W", "kept"]
    head += [f"recalled at rank {rank}" for rank in ranks]
    body = [
        [
            row["facts"],
            *(str(row[name]) for name in plain),
            f"{row['error']:.0e}",
            f"{row['norm']:.1f}",
            _share(row["kept"]),
            *(_share(row["recalled"][rank]) for rank in ranks),
        ]
        for row in rows
    ]
    return markdown_table(body, head)


def _trained(rows: Sequence[Row]) -> str:
    counts = sorted({row["n"] for row in rows})
    found = {(row["rank"], row["n"]): row for row in rows}
    body = []
    for rank in sorted({row["rank"] for row in rows}):
        facts = [found[rank, n]["facts"] for n in counts]
        parameters = f"{found[rank, counts[0]]['parameters']:,}"
        body.append([str(rank), parameters, *map(str, facts), f"{max(facts) / rank:.1f}"])
    head = ["rank", "parameters", *(f"N = {n}" for n in counts), "most facts per rank"]
    return markdown_table(body, head)
