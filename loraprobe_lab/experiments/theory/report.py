"""What `loraprobe lab theory` found, as a page: tables, and the claims of the theory below."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from loraprobe_lab.experiments.document_figures import theory_figure
from loraprobe_lab.experiments.pages import Pages, markdown_table, render

Row = Mapping[str, Any]
PARTS = ("hop 1", "hop 2", "composed", "in one text", "sentence", "chain")
PLACES = {
    "down": "`down` of the last layer",
    "mlp": "the MLP of the last layer",
    "all layers": "all linear layers",
}


def theory_pages(document: dict[str, Any]) -> Pages:
    """The pages of what `theory` found, also of a document that was saved."""
    plan = document["plan"]
    many = document["all at once"]
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
        findings=list(_findings(document)),
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


def _findings(document: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Each statement of the theory with its numbers, and whether they confirm it."""
    alone = {row["system"]: row for row in document["one at a time"]}
    first, both = document["one fact"][0], alone["edit A->B + edit B->C"]
    yield _finding(
        "A rank-one edit changes one fact exactly.",
        first["right"] if first["exactness"] < 1e-6 else 0.0,
        f"Largest error {first['exactness']:.0e}, answers right {_share(first['right'])}.",
    )
    yield _finding(
        "The sum of both edits does not answer the composed question.",
        1 - both["composed"] if min(both["hop 1"], both["hop 2"]) >= 0.9 else 0.0,
        f"{_share(both['composed'])} (without any edit {_share(alone['no edit']['composed'])}, "
        f"with that of B->C alone {_share(alone['edit B->C']['composed'])}), while each hop is "
        f"answered: {_share(both['hop 1'])}, {_share(both['hop 2'])}.",
    )
    yield _finding(
        "Asking the second hop with the first one's answer puts the key back.",
        both["chain"],
        f"{_share(both['chain'])}.",
    )
    yield _finding(
        "So does writing the first step into the same text.",
        max(both["in one text"], both["sentence"]),
        f"{_share(both['in one text'])} with the question, {_share(both['sentence'])} with the "
        "sentence after it: in a text the key is nearer to the one that was edited, but it is not "
        "that key.",
    )
    target = alone["all three edits"]["composed"]
    yield _finding(
        "An edit that holds A->C answers the composed question.",
        target,
        f"{_share(target)} beside the other two edits.",
    )
    many = [row for row in document["all at once"] if row["system"] == both["system"]]
    yield _finding(
        "Edits made apart can be added.",
        min(min(row["hop 1"], row["hop 2"]) for row in many),
        "Hops after adding: "
        + "; ".join(
            f"{_share(row['hop 1'])} and {_share(row['hop 2'])} with {row['facts']} facts"
            for row in many
        )
        + ".",
    )
    bound = all(row["edit rank"] == row["residual rank"] for row in document["bound"])
    yield (
        "holds" if bound else "does not hold",
        "the least exact edit has the rank of its residual. It is the bound of an *exact* edit, in "
        "which every value is met.",
    )
    exceeded = [row for row in document["trained"] if row["facts"] > row["rank"]]
    if exceeded:
        most = max(exceeded, key=lambda row: row["facts"] / row["rank"])
        yield (
            "is no bound on facts",
            f"a rank of {most['rank']} on {PLACES[most['place']]} recalled {most['facts']} of "
            f"{most['n']} facts after training; an answer has to come first, no value has to be "
            "met.",
        )


def _finding(claim: str, value: float, numbers: str) -> tuple[str, str]:
    """`value` is the share that the claim says is 1."""
    held = "holds" if value >= 0.9 else "does not hold" if value <= 0.1 else "holds in part"
    return held, f"{claim} {numbers}"
