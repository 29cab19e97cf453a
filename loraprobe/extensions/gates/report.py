"""What a page shows of the gates of routers."""

from __future__ import annotations

from collections.abc import Sequence

from loraprobe.extensions.gates.records import GateStatistics
from loraprobe.formatting import number
from loraprobe.records import display_name
from loraprobe.report.parts import Table, figures, text


def table(rows: Sequence[GateStatistics]) -> Table:
    """How each token router shared its gates, over all layers."""
    names = list(dict.fromkeys(name for row in rows for name in row.share))
    lines = [
        [
            display_name(row.system),
            *(number(row.share.get(name)) for name in names),
            f"{number(row.entropy)} ({number(row.entropy_share)})",
        ]
        for row in rows
    ]
    evenness = "entropy in nats (share of the largest)"
    columns = [text("router"), *figures(*names, evenness)]
    return Table("Mean share of each adapter's gate on the prompts", columns, lines)
