"""What two rules would have decided, replayed on the answers that `judge_sets.py` left.

    python replay.py OUT [ORDERS]

Each case of OUT is asked again in rounds, in ORDERS random orders of its questions (20 unless
given), with the intervals of `loraprobe.evaluation` at each look; all answers are there, so nothing
is computed but statistics. What is true is taken from all questions of the case.

*Controls.* After the first round in which some composition gains more than the margin, and after
all later ones, the best of these is compared with both controls under two thresholds: *whole*
(beaten above the margin, as good below it) and *half* (beaten above half of it, as good below
that).

*Chain.* A case of one task stops after the first round in which no composition measured a gain
above the margin, and the chain is shown to be better than every other option by more than it
(`loraprobe.verdict.rules.chain_outdoes`). That is wrong if a composition does gain more than
the margin.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from loraprobe.defaults import MARGIN
from loraprobe.evaluation import System, compare, measure_gains, rounds, score
from loraprobe.records import FORMS, EvaluationRecords, ItemPart, ItemResult
from loraprobe.tasks import Task, load_task
from loraprobe.verdict.evidence import Evidence
from loraprobe.verdict.rules import candidates, chain_outdoes

COMPOSED = ("merge", "router")


def read(out: Path, case: str) -> tuple[list[Task], list[System], list[ItemResult]]:
    """Tasks, systems and results of a case, the questions that were scored in both forms."""
    record = json.loads((out / f"{case}.all.json").read_text())
    words, audit = record["arguments"], record["audit"]
    loaded = [load_task(b) for a, b in pairwise(words) if a == "--task"]
    kinds = {row["system"]: row["kind"] for row in audit["evaluation"]}
    cluster = {(task.name, item.id): item.cluster for task in loaded for item in task.items}
    results = [
        ItemResult(
            reply["system"],
            row["task"],
            ItemPart(row["part"]),
            row["item"],
            "exact_match",
            float(reply["right"]),
            "",
            cluster[row["task"], row["item"]],
        )
        for row in map(json.loads, (out / f"{case}.samples.jsonl").read_text().splitlines())
        if row["part"] in FORMS
        for reply in row["replies"]
    ]
    scored = {(row.task, row.item) for row in results}
    tasks = [
        replace(task, items=tuple(i for i in task.items if (task.name, i.id) in scored))
        for task in loaded
    ]
    return tasks, [System(name, kind) for name, kind in kinds.items()], results


def looks(
    tasks: list[Task], results: list[ItemResult], seed: int
) -> Iterator[tuple[float, list[ItemResult]]]:
    """The alpha of each look of one order, and the results by then."""
    for this in rounds(tasks, seed):
        asked = {(task.name, item.id) for task in this.tasks for item in task.items}
        yield this.alpha, [row for row in results if (row.task, row.item) in asked]


def best_gain(systems: list[System], results: list[ItemResult]) -> float:
    """The largest gain of a composition over the best of base and adapters."""
    several, kind = len({row.task for row in results}) > 1, {s.name: s.kind for s in systems}
    rows = [g for g in measure_gains(results, systems) if kind[g.system] in COMPOSED]
    return max(g.difference for g in rows if not several or g.task is None)


def stops(systems: list[System], results: list[ItemResult], alpha: float, seed: int) -> bool:
    """Whether the chain's rule stops at this look."""
    measured = EvaluationRecords(
        scores=score(results, systems, level=1 - alpha),
        comparisons=compare(results, systems, seed=seed, level=1 - alpha),
        gains=measure_gains(results, systems, seed=seed, alpha=alpha),
    )
    evidence = Evidence(measured, tasks=1, level="evaluation")
    return chain_outdoes(evidence, [one for part in FORMS for one in candidates(evidence, part)])


def chain_rule(out: Path, case: str, orders: int) -> dict[str, Any] | None:
    """How often the rule stops the case, after how many questions, and what is true."""
    tasks, systems, results = read(out, case)
    if len(tasks) > 1 or all(s.kind != "chain" for s in systems):
        return None
    asked = []
    for seed in range(orders):
        for alpha, here in looks(tasks, results, seed):
            if stops(systems, here, alpha, seed):
                asked.append(len({row.item for row in here}))
                break
    mean = sum(asked) / len(asked) if asked else None
    gain = best_gain(systems, results)
    return {"case": case, "stopped": len(asked), "questions": mean, "gain": gain}


def control_rule(out: Path, case: str, orders: int) -> Counter[tuple[str, ...]]:
    """How often each threshold says what of the controls of a composition that gains.

    Keys: threshold, what it says, whether all questions put the composition above both controls by
    half the margin ("above"), not above one of them ("not above"), or between.
    """
    tasks, systems, results = read(out, case)
    kind, counted = {s.name: s.kind for s in systems}, Counter[tuple[str, ...]]()
    whole = compare(results, systems)

    def least(rows: Any, system: str, part: str, end: int | None, upper: bool = False) -> float:
        """The smallest of the differences to the controls, or of an end of their intervals."""
        apart: dict[str, list[float]] = {}
        for row in rows:
            if (row.system, row.part) == (system, part) and kind[row.against] == "control":
                value = row.difference if end is None else (row.adjusted_ci95 or row.ci95)[end]
                apart.setdefault(row.against, []).append(value)
        return min(sum(found) / len(found) for found in apart.values())

    for seed in range(orders):
        for alpha, here in looks(tasks, results, seed):
            found = measure_gains(here, systems, seed=seed, alpha=alpha)
            rows = [
                g
                for g in found
                if kind[g.system] in COMPOSED
                and (len(tasks) == 1 or g.task is None)
                and g.adjusted_ci95[0] > MARGIN
            ]
            if not rows:
                continue
            top = max(rows, key=lambda g: g.difference)
            compared = compare(here, systems, seed=seed, level=1 - alpha)
            true = least(whole, top.system, top.part, None)
            truth = "above" if true > MARGIN / 2 else "not above" if true <= 0 else "between"
            for name, threshold in (("whole", MARGIN), ("half", MARGIN / 2)):
                low = least(compared, top.system, top.part, 0)
                high = least(compared, top.system, top.part, 1)
                said = "beaten" if low > threshold else "as good" if high < threshold else "open"
                counted[name, said, truth] += 1
    return counted


def main() -> None:
    """Print both tables."""
    out, orders = Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 20
    cases = sorted(path.name.removesuffix(".all.json") for path in out.glob("*.all.json"))
    stopped = [row for case in cases if (row := chain_rule(out, case, orders)) is not None]
    print("| case | best gain of a composition | orders stopped | questions until then |")
    print("| --- | --- | --- | --- |")
    for row in stopped:
        until = "–" if row["questions"] is None else f"{row['questions']:.0f}"
        often = f"{row['stopped']} of {orders}"
        print(f"| {row['case']} | {row['gain']:+.2f} | {often} | {until} |")
    wrong = sum(row["stopped"] for row in stopped if row["gain"] > MARGIN)
    print(f"\nStopped {sum(row['stopped'] for row in stopped)} times, wrong {wrong} times.\n")
    counted = sum((control_rule(out, case, orders) for case in cases), Counter[tuple[str, ...]]())
    truths = ("above", "between", "not above")
    print("| threshold | said | " + " | ".join(truths) + " |\n| --- | --- | --- | --- | --- |")
    for name in ("whole", "half"):
        for said in ("beaten", "open", "as good"):
            cells = " | ".join(str(counted[name, said, truth]) for truth in truths)
            print(f"| {name} | {said} | {cells} |")


if __name__ == "__main__":
    main()
