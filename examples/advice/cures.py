"""Do the cures that warnings print help? Each is tried, and what it changes is counted.

    python cures.py OUT WORLD... [-- OPTION...]

WORLD and OPTION are those of `judge_sets.py`, of which every case is asked all its questions, as it
is and with a cure. What a case says is one line of OUT/cures.jsonl, written when it is measured;
what is there is not measured again. Then a table is printed.

*As it is* is the default run, and *cured* the same with the option of the cure. Where the cure is
to use something else, both stand in one run. What is compared is the best score of the merges, over
plain questions and questions asked step by step; a router is compared with the best merge. A cure
*helps* where it raises that by more than 0.05, and *harms* where it lowers it by more. A merge
*gained* where it exceeds the best of base and adapters by more than that, without the cure.

What warns is told by the figures, because a verdict is silent about weights where a merge gained.
`--balance norm` is tried on every case, also where nothing warns. In hardly any trained set do two
updates oppose each other, so they are made: of two adapters the second has the first subtracted,
times half the ratio of their norms, so that the cosine of unrelated ones becomes -0.45.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from judge_sets import MARGIN, RUNS, Audit, Case, cases, run

from loraprobe.cli import app
from loraprobe.defaults import NORM_RATIO, OPPOSED_COSINE
from loraprobe_lab.world import worlds_in

RUNS |= {"balanced": [*RUNS["all"], "--balance", "norm"], "narrow": [*RUNS["all"], "--rank", "2"]}
MERGES, COMPOSED, ALONE = ("merge",), ("merge", "router"), ("base", "adapter")
OPPOSED = 0.5  # this part of the first adapter, at the norm of the second, is subtracted from it


def scores(audit: Audit, kinds: Sequence[str]) -> dict[str, float]:
    """ "system form" -> its mean over tasks, of systems of these kinds that answered all tasks."""
    found: dict[str, list[float]] = {}
    tasks = {row["task"] for row in audit["evaluation"]}
    for row in audit["evaluation"]:
        if row["kind"] in kinds and row["part"] in ("question", "steps"):
            found.setdefault(f"{row['system']} {row['part']}", []).append(row["value"])
    return {name: sum(v) / len(v) for name, v in found.items() if len(v) == len(tasks)}


def best(audit: Audit, kinds: Sequence[str]) -> float:
    """The best score of systems of these kinds."""
    return max(scores(audit, kinds).values(), default=0.0)


def measured(audit: Audit, diagnostic: str) -> list[float]:
    """The values of a diagnostic for whole adapters."""
    rows = [row for row in audit["diagnostics"] if row["name"] == diagnostic]
    return [row["value"] for row in rows if row["module"] is None and row["value"] is not None]


def warns(audit: Audit, code: str) -> bool:
    """Whether a reason of this code is among those of the verdict."""
    return any(reason["code"] == code for reason in audit["verdict"]["reasons"])


def tried(case: Case, out: Path, options: Sequence[str]) -> Iterator[dict[str, Any]]:
    """What each cure makes of a case."""
    plain = run("all", case, out, options)["audit"]

    def row(code: str, cure: str, before: Audit, after: Audit, warned: bool) -> dict[str, Any]:
        return {
            "case": case.name,
            "code": code,
            "cure": cure,
            "warned": warned,
            "alone": best(before, ALONE),
            "merge": [best(before, MERGES), best(after, MERGES)],
            "composed": [best(before, COMPOSED), best(after, COMPOSED)],
            "scores": [scores(audit, COMPOSED) for audit in (before, after)],
        }

    balanced = run("balanced", case, out, options)["audit"]
    ratios = [max(v, 1 / v) if v else 0.0 for v in measured(plain, "norm_ratio")]
    ratio = max(ratios, default=1.0)
    for code, warned in (
        ("norm-disparity", ratio > NORM_RATIO),
        ("mostly-interference", warns(plain, "mostly-interference")),
    ):
        yield row(code, "--balance norm", plain, balanced, warned) | {"value": ratio}
    narrow = run("narrow", case, out, options)["audit"]
    lost = warns(narrow, "compression-lost") or any(
        issue["code"] == "compression-lost" for issue in narrow["compatibility"]["issues"]
    )
    yield row("compression-lost", "--rank auto instead of 2", narrow, plain, lost)
    natural = min(measured(plain, "cosine"), default=1.0) < OPPOSED_COSINE
    pair = case if natural else opposed(case, plain, out)
    if pair is not None:
        made = plain if natural else run("all", pair, out, options)["audit"]
        cosine = min(measured(made, "cosine"))
        found = row("opposed-updates", "a router", made, made, cosine < OPPOSED_COSINE)
        found["composed"] = [best(made, MERGES), best(made, ("router",))]
        yield found | {"made": not natural, "value": cosine}


def opposed(case: Case, plain: Audit, out: Path) -> Case | None:
    """The case with a part of its first adapter subtracted from its second; None without two."""
    if len(case.adapters) != 2:
        return None
    (one, first), (other, second) = case.adapters.items()
    norms = {
        row["adapters"][0]: row["value"]
        for row in plain["diagnostics"]
        if row["name"] == "norm" and row["module"] is None
    }
    made = out / f"{case.name}.opposed"
    if not made.is_dir():
        share = OPPOSED * norms[other] / norms[one]
        words = ["merge", str(first), str(second), "--method", "task_arithmetic", "--quiet"]
        words += [f"--weights={-share:.6f},1", "--base", case.base, "-o", str(made)]
        try:
            app(words)
        except SystemExit as end:
            if end.code:
                raise
    return replace(case, name=made.name, adapters={one: first, "opposed": made})


def table(rows: Sequence[dict[str, Any]]) -> Iterator[str]:
    """How often each cure helped and harmed, where it was printed and elsewhere."""
    yield "| code | cure | sets | helped | harmed | neither |"
    yield "| --- | --- | --- | --- | --- | --- |"
    for code in dict.fromkeys(row["code"] for row in rows):
        of = [row for row in rows if row["code"] == code]
        what = "composed" if code == "opposed-updates" else "merge"
        for where, some in (
            ("that warn", [row for row in of if row["warned"]]),
            ("of these, a merge gained", [row for row in of if row["warned"] and gained(row)]),
            ("that do not warn", [row for row in of if not row["warned"]]),
        ):
            change = [row[what][1] - row[what][0] for row in some]
            helped = sum(one > MARGIN for one in change)
            harmed = sum(one < -MARGIN for one in change)
            counts = helped, harmed, len(some) - helped - harmed
            cells = (f"`{code}`", of[0]["cure"], f"{len(some)} {where}", *counts)
            yield f"| {' | '.join(map(str, cells))} |"


def gained(row: dict[str, Any]) -> bool:
    """Whether a merge gained without the cure."""
    return row["merge"][0] > row["alone"] + MARGIN


def main() -> None:
    """Measure what is not there yet and print the table."""
    words = sys.argv[1:]
    cut = words.index("--") if "--" in words else len(words)
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("worlds", type=Path, nargs="*")
    given, options = parser.parse_args(words[:cut]), words[cut + 1 :]
    (given.out / "cache").mkdir(parents=True, exist_ok=True)
    kept = given.out / "cures.jsonl"
    rows = [json.loads(line) for line in kept.read_text().splitlines()] if kept.is_file() else []
    done = {row["case"] for row in rows}
    for case in cases([world for place in given.worlds for world in worlds_in(place)], None):
        if case.name in done:
            continue
        found = [*tried(case, given.out, options)]
        rows += found
        with kept.open("a") as file:
            file.writelines(json.dumps(row) + "\n" for row in found)
        print(f"{case.name} is measured", file=sys.stderr, flush=True)
    print("\n".join(table(rows)))


if __name__ == "__main__":
    main()
