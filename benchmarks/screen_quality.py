"""Measures whether `loraprobe screen` finds the best pair of a library whose pairs were all tried.

    loraprobe lab build library -o LIBRARY
    loraprobe lab pairs LIBRARY -o pairs.json
    python benchmarks/screen_quality.py LIBRARY pairs.json -o DIR [--task newcomers] [--repeats 50]

Each task is screened as a user would. The short list and the verdict are compared with the truth in
pairs.json, and the short list with other rankings of all pairs (`rankings.py`).
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from rankings import (
    FIRST,
    NEAR,
    Seen,
    Truth,
    arguments,
    asked_alone,
    each_task,
    recalls,
    seen_of,
    task_file,
)

import loraprobe
from loraprobe_lab.experiments.pages import markdown_table
from loraprobe_lab.world import World


def best_singles(seen: Seen, names: Sequence[str], truth: Truth) -> dict[str, float]:
    """The pairs of the five best single adapters."""
    order = np.argsort(-seen.known.alone()[1:], kind="stable")[:5]
    pairs = [frozenset((names[i], names[j])) for i in order for j in order if i < j]
    return truth.of_first(pairs)


def proof_of(audit: Any) -> dict[str, Any]:
    """The largest gain of a set that was proved, and its differences to the controls.

    Empty where no set was proved.
    """
    gains = [one.gain for one in audit.shortlist if one.gain is not None]
    if not gains:
        return {}
    best = max(gains, key=lambda gain: gain.difference)
    controls = {row.system for row in audit.evaluation.scores if row.kind == "control"}
    return {
        "system": best.system,
        "items": best.n,
        "gain": [best.difference, *best.adjusted_ci95],
        "controls": {
            row.against: [row.difference, *row.adjusted_ci95]
            for row in audit.evaluation.comparisons
            if (row.system, row.part) == (best.system, best.part) and row.against in controls
        },
    }


def examined(world: World, truth: Truth, task: str, items: int, repeats: int) -> dict[str, Any]:
    start = time.perf_counter()
    audit = loraprobe.screen(
        [str(path) for path in world.adapters.values()],
        tasks=task_file(world, task),
        base=str(world.base),
        items=items,
        keep=FIRST,
        resume=True,
    )
    seconds = time.perf_counter() - start
    found, chosen, _ = asked_alone(world, task, items)
    names = chosen.names
    seen = seen_of(chosen, found)
    listed = [frozenset(one.adapters) for one in audit.shortlist if one.kind != "single"]
    gain = truth.best - max(truth.single, truth.base)
    return {
        "task": task,
        "adapters": len(names),
        "asked_all": sum(bool(row.scores) for row in audit.library.adapters),
        "items": items,
        "seconds": round(seconds, 1),
        "base": truth.base,
        "best_single": truth.single,
        "best_pair": truth.best,
        "near_pairs": sum(v >= truth.best - NEAR for v in truth.values.values()),
        "pairs": len(seen.pairs),
        "compose_is_right": gain > NEAR,
        "outcome": audit.verdict.decision,
        "action": str(audit.verdict.action),
        "proof": proof_of(audit),
        "shortlist": [
            {"adapters": sorted(pair), "value": truth.values.get(pair)} for pair in listed
        ],
        "screen": truth.of_first(listed),
        "best_singles": best_singles(seen, names, truth),
        "rankings": recalls(seen, names, truth, repeats),
    }


def shown(row: Mapping[str, Any]) -> str:
    """One task as Markdown."""
    own = {"ranking": "**screen's short list**", **row["screen"], "place": None}
    singles = {"ranking": "pairs of the five best singles", **row["best_singles"], "place": None}
    lines = [
        [
            one["ranking"],
            f"{one['best']:.2f}",
            f"{one['near']:.2f}",
            f"{one['value']:.2f}",
            "–" if one["place"] is None else f"{one['place']:.0f}",
        ]
        for one in (own, singles, *row["rankings"])
    ]
    head = ["ranking", "best", "near", "value", "place of the best pair"]
    return (
        f"\n## {row['task']}\n\n{row['adapters']} adapters ({row['asked_all']} asked all "
        f"items), {row['pairs']:,} pairs; base "
        f"{row['base']:.2f}, best single {row['best_single']:.2f}, best pair "
        f"{row['best_pair']:.2f}, {row['near_pairs']} pairs within {NEAR} of it. Verdict: "
        f"{row['outcome']} ({row['action']}); composing is "
        f"{'right' if row['compose_is_right'] else 'wrong'}. {row['seconds']:.0f} s.\n\n"
        + markdown_table(lines, head)
    )


def main() -> None:
    options = arguments().parse_args()
    few = options.items, options.repeats
    each_task(options, lambda world, truth, task: examined(world, truth, task, *few), shown)


if __name__ == "__main__":
    main()
