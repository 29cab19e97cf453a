"""What `loraprobe lab theory` found, as a page: tables, and the claims of the theory below."""

from __future__ import annotations

from typing import Any

from loraprobe_lab.experiments.document_figures import theory_figure
from loraprobe_lab.experiments.pages import Pages, render

PLACES = {
    "down": "`down` of the last layer",
    "mlp": "the MLP of the last layer",
    "all layers": "all linear layers",
}


def theory_pages(document: dict[str, Any]) -> Pages:
    """The pages of what `theory` found, also of a document that was saved."""
    markdown = render(
        "theory",
        document=document,
        alone={row["system"]: row for row in document["one at a time"]},
        bound_met=all(row["edit rank"] == row["residual rank"] for row in document["bound"]),
        most=max(document["trained"], key=lambda row: row["facts"] / row["rank"]),
        places=PLACES,
    )
    return Pages("theory", document, markdown, lambda: theory_figure(document), digits=None)
