"""What `loraprobe lab theory` found, as a page: tables, and the claims of the theory below."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from loraprobe_lab.world import write_text

Document = Mapping[str, Any]
PARTS = ("hop 1", "hop 2", "composed", "in one text", "sentence", "chain")
PLACES = {
    "down": "`down` of the last layer",
    "mlp": "the MLP of the last layer",
    "all layers": "all linear layers",
}
INTRODUCTION = """\
# One layer as a store of facts

`{command} --seed {seed}`

The MLP of the last layer of a small trained base (`{base}`, which ships with the package) stores
facts as key -> value: `down` [{hidden} x {inner}] maps the key of a prompt's last token to the
value that is added before the norm and the head. The theory (arXiv 2506.13479) has a LoRA change a
fact by a rank-one update, (target - old) k^T / |k|^2. The target here is the nearest value, along
the answer's own direction in the head, with which the model gives the new answer a probability of
0.9. All figures below are of questions as a user asks them, answered by the whole model.
"""
HOPS = """\
## Two hops

{chains} chains of made-up people: a is married to b, b lives in c. Shares of chains that are right.
*composed* asks where the spouse of a lives; *in one text* and *sentence* go on after the
written-out first step, with the question and with the sentence of the second hop; *chain* asks the
second hop anew with the first hop's answer. At most {inner} keys are independent, so no one edit
is exact for more facts than that.

### One chain at a time, rank-one edits
"""
KEYS = """\
## Why: whose key is it?

Cosine of a prompt's key to the second hop's key of its own chain and of the other chains, and how
often the nearest second key is the own one.
"""
BOUND = """\
## Facts per rank: the bound

An exact edit of N facts, each with its own value, needs the rank of the residual (new - old values
over the keys), and the least edit attains it: N at first, and never more than the width of the
layer or the number of directions in which the answers lie. *kept*: familiar facts that are still
answered right. *recalled at rank r*: with the best edit of rank r in least squares.
"""
TRAINED = """\
## Facts per rank: what training holds

LoRAs trained on the first N of these facts, each with an answer of its own (AdamW, scaling 1;
learning rate {rates}, {steps} steps in the layer, {everywhere} everywhere). Facts recalled exactly,
of N.
"""
FINDINGS = """\
## What the theory says, and what happens here

A share of at least 0.9 counts as all, one of at most 0.1 as none, anything between as a part.
"""


def markdown(document: Document) -> str:
    """The page. `document` is what `theory` gives, or what its JSON file holds."""
    plan = document["plan"]
    sections = [
        INTRODUCTION.format(**document["layer"], **document),
        _one_fact(document),
        HOPS.format(**document["layer"], **document),
        _hops(document["one at a time"]),
        "### The same, with edits that spare the keys of familiar questions\n",
        _hops(document["one at a time, sparing"]),
        "### All chains in one layer, exact edits\n",
        _hops(document["all at once"], count=True),
        KEYS,
        _table(document["keys"], "prompt own others nearest_is_own chance".split()),
        BOUND,
        _bound(document["bound"]),
        TRAINED.format(
            rates=" or ".join(f"{rate:g}" for rate in plan["training"]["rates"]),
            steps=plan["training"]["steps"],
            everywhere=plan["everywhere"]["steps"],
        ),
        *(_trained(document["trained"], place) for place in PLACES),
        _findings(document),
    ]
    return "\n".join(section for section in sections if section)


def check() -> None:
    """Raises UsageError if matplotlib is not installed, before anything is computed."""
    from loraprobe_lab.reproduce.figure import drawing

    with drawing():
        pass


def save(document: Document, directory: Path) -> list[Path]:
    """Writes theory.md, theory.json and theory.svg; returns their paths.

    Raises UsageError if matplotlib is not installed.
    """
    from loraprobe_lab.theory.figure import figure

    texts = {
        "theory.svg": figure(document),
        "theory.json": json.dumps(document, indent=1) + "\n",
        "theory.md": markdown(document) + "\n\n![figure](theory.svg)\n",
    }
    for name, text in texts.items():
        write_text(directory / name, text)
    return [directory / name for name in texts]


def _one_fact(document: Document) -> str:
    rows = document["one fact"]
    others = [name for name, value in rows[0].items() if isinstance(value, Mapping)]
    lines = [
        "## One fact, one rank-one edit\n",
        "The value written is exact, and the answer changes. What of the change reaches the keys "
        "of other prompts (mean and largest share), and how many of their answers it changes:\n",
    ]
    head = ["the edit reads its key by", "largest error", "right"]
    head += [f"{name}: {what}" for name in others for what in ("reach", "changed")]
    body = []
    for row in rows:
        cells = [row["reads"], f"{row['exactness']:.0e}", _share(row["right"])]
        for name in others:
            cells.append(f"{row[name]['reach']:.3f} (up to {row[name]['most']:.2f})")
            cells.append(_share(row[name]["flipped"]))
        body.append(cells)
    return "\n".join(lines) + "\n" + _lines(head, body)


def _hops(rows: Sequence[Mapping[str, Any]], count: bool = False) -> str:
    head = ["edits", *(["facts a hop"] if count else []), *PARTS]
    body = [
        [row["system"], *([str(row["facts"])] if count else []), *(_share(row[p]) for p in PARTS)]
        for row in rows
    ]
    return _lines(head, body)


def _table(rows: Iterable[Mapping[str, Any]], columns: Sequence[str]) -> str:
    names = [column.replace("_", " ") for column in columns]
    body = [[r if isinstance(r := row[n], str) else f"{r:.3f}" for n in names] for row in rows]
    return _lines(names, body)


def _bound(rows: Sequence[Mapping[str, Any]]) -> str:
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
    return _lines(head, body)


def _trained(rows: Sequence[Mapping[str, Any]], place: str) -> str:
    here = [row for row in rows if row["place"] == place]
    if not here:
        return ""
    counts = sorted({row["n"] for row in here})
    found = {(row["rank"], row["n"]): row for row in here}
    body = []
    for rank in sorted({row["rank"] for row in here}):
        cells = [str(rank), f"{found[rank, counts[0]]['parameters']:,}"]
        cells += [str(found[rank, n]["facts"]) for n in counts]
        body.append([*cells, f"{max(found[rank, n]['facts'] for n in counts) / rank:.1f}"])
    head = ["rank", "parameters", *(f"N = {n}" for n in counts), "most facts per rank"]
    return f"**{PLACES[place]}**\n\n{_lines(head, body)}"


def _findings(document: Document) -> str:
    """Each statement of the theory with its numbers, and whether they bear it out."""
    alone = {row["system"]: row for row in document["one at a time"]}
    first, both = document["one fact"][0], alone["edit A->B + edit B->C"]
    many = [row for row in document["all at once"] if row["system"] == "edit A->B + edit B->C"]
    return "\n".join(
        [
            FINDINGS,
            _finding(
                "A rank-one edit changes one fact exactly.",
                first["right"] if first["exactness"] < 1e-6 else 0.0,
                f"Largest error {first['exactness']:.0e}, answers right {_share(first['right'])}.",
            ),
            _finding(
                "The sum of both edits does not answer the composed question.",
                1 - both["composed"] if min(both["hop 1"], both["hop 2"]) >= 0.9 else 0.0,
                f"{_share(both['composed'])} (without any edit "
                f"{_share(alone['no edit']['composed'])}, with that of B->C alone "
                f"{_share(alone['edit B->C']['composed'])}), while each hop is answered: "
                f"{_share(both['hop 1'])}, {_share(both['hop 2'])}.",
            ),
            _finding(
                "Asking the second hop with the first one's answer puts the key back.",
                both["chain"],
                f"{_share(both['chain'])}.",
            ),
            _finding(
                "So does writing the first step into the same text.",
                max(both["in one text"], both["sentence"]),
                f"{_share(both['in one text'])} with the question, {_share(both['sentence'])} with "
                "the sentence after it: in a text the key is nearer to the one that was edited, "
                "but it is not that key.",
            ),
            _finding(
                "An edit that holds A->C answers the composed question.",
                alone["all three edits"]["composed"],
                f"{_share(alone['all three edits']['composed'])} beside the other two edits.",
            ),
            _finding(
                "Edits made apart can be added.",
                min(min(row["hop 1"], row["hop 2"]) for row in many),
                "Hops after adding: "
                + "; ".join(
                    f"{_share(row['hop 1'])} and {_share(row['hop 2'])} with {row['facts']} facts"
                    for row in many
                )
                + ".",
            ),
            *_rank_findings(document),
        ]
    )


def _finding(claim: str, value: float, numbers: str) -> str:
    """`value` is the share that the claim says is 1."""
    held = "holds" if value >= 0.9 else "does not hold" if value <= 0.1 else "holds in part"
    return f"- **{held}**: {claim} {numbers}"


def _rank_findings(document: Document) -> list[str]:
    """What the bound says, beside the most that training held."""
    exceeded = [row for row in document["trained"] if row["facts"] > row["rank"]]
    bound = all(row["edit rank"] == row["residual rank"] for row in document["bound"])
    found = [
        f"- **{'holds' if bound else 'does not hold'}**: the least exact edit has the rank of its "
        "residual. It is the bound of an *exact* edit, in which every value is met."
    ]
    if exceeded:
        most = max(exceeded, key=lambda row: row["facts"] / row["rank"])
        found.append(
            f"- **is no bound on facts**: a rank of {most['rank']} on {PLACES[most['place']]} "
            f"recalled {most['facts']} of {most['n']} facts after training; an answer has to come "
            "first, no value has to be met."
        )
    return found


def _share(value: float) -> str:
    return f"{value:.2f}"


def _lines(head: Sequence[str], body: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    rows = [head, ["---"] * len(head), *body]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows) + "\n"
