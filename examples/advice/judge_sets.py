"""Judge adapter sets as a user would, then ask every question, and compare the advice with that.

    python judge_sets.py OUT WORLD... [--only TEXT]... [--base DIR] [-- OPTION...]

WORLD is a directory that `loraprobe lab build` or `worlds.py` made, or one that holds such
directories. Every adapter set of a world (a scenario of its manifest) is a case. --only takes the
cases whose name holds one of the texts. DIR is the base of worlds that hold none. OPTION goes to
all runs.

A case is run three times: `inspect`, `merge-and-eval`, and `merge-and-eval --all-items`. The runs
of a case share one cache, so no question is asked twice. Each leaves its JSON, exit code and CPU
seconds in OUT/CASE.RUN.json; what is there is not run again. OUT/rows.jsonl gets a row a case.

What a row says was fixed before any result was seen:

*Options.* By all items: the base, each adapter, each merge and each router, as plain questions and
step by step; for several tasks also `switch-adapters`, each task answered by the best of base and
adapters. Of several tasks a score is the mean. These are the options that one call can run. The
chain is compared with the best of them.

*Advised* is the option that action and system of `merge-and-eval` name. `use-base` and `use-single`
do not name a form of the question, so the better one counts. The *regret* is the score of the best
one-call option minus that of the advised option; for `train-target-adapter`, which was not
measured, minus the better of base and guessing.

*Right advice.* For a one-call option: the regret is at most 0.02, and no chain was due. A chain is
due if it scores more than twice as much as the best one-call option, and more than the margin above
it. For `chain`: it scores at least twice as much as the best one-call option (0.02 less is a tie).
For `train-target-adapter`: the regret is at most the margin, and no chain was due.
`gather-evidence` advises nothing; it is counted apart where the decision is `inconclusive`, and
wrong elsewhere. Where the advised option scores less than the best, `certain` says whether the
interval (95 %, paired, clusters respected) of the difference lies above 0.

*Wrong decision.* `likely`, and by all items the interval (95 %, one comparison) of the gain of that
composition lies below the margin. `unlikely`, and by all items such an interval of some composition
lies above it, which keeps every skill (several tasks: each retention at least 0.8) and exceeds each
control that was asked by half the margin.

*Success*, for the probability of the first round (`verdict.gain.probability` of `inspect`): by all
items some composition gains more than the margin and keeps every skill, by point estimates.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from loraprobe.cli import app
from loraprobe.records import Action, display_name
from loraprobe.tasks import load_task
from loraprobe_lab.world import World, worlds_in

RUNS = {
    "inspect": ["inspect"],
    "rounds": ["merge-and-eval"],
    "all": ["merge-and-eval", "--all-items"],
}
MARGIN, RETENTION, TIE = 0.05, 0.8, 0.02
FORMS = ("question", "steps")
Audit = dict[str, Any]
Marks = dict[tuple[str, str], float]  # (task, item) -> score


@dataclass(frozen=True)
class Case:
    """One set of adapters with its tasks."""

    name: str
    base: str
    adapters: dict[str, Path]
    tasks: list[Path]
    kind: str = ""


def cases(worlds: Sequence[World], base: str | None) -> Iterator[Case]:
    """Every scenario of the worlds."""
    for world in worlds:
        for scenario in world.scenarios.values():
            name = world.path.name
            name += f".{scenario.name}" if len(world.scenarios) > 1 else ""
            where = str(world.base or base or world.base_name)
            adapters, tasks = {**scenario.adapters}, [*scenario.tasks]
            yield Case(name, where, adapters, tasks, scenario.world)


def run(name: str, case: Case, out: Path, options: Sequence[str]) -> dict[str, Any]:
    """The record of one run, made once: {"arguments", "exit", "cpu_seconds", "audit"}."""
    kept = out / f"{case.name}.{name}.json"
    if kept.is_file():
        return json.loads(kept.read_text())
    words = [*RUNS[name], *(f"{short}={path}" for short, path in case.adapters.items())]
    words += ["--base", case.base, *(w for task in case.tasks for w in ("--task", str(task)))]
    words += ["--json", "--resume", "--quiet", *options]
    if name == "all":
        words += ["--save-samples", str(out / f"{case.name}.samples.jsonl"), "--overwrite"]
    os.environ["LORAPROBE_CACHE"] = str(out / "cache" / case.name)
    printed, started = io.StringIO(), time.process_time()
    code = 0
    with contextlib.redirect_stdout(printed):
        try:
            app(words)
        except SystemExit as end:
            code = int(end.code or 0)
    record = {
        "arguments": words,
        "exit": code,
        "cpu_seconds": round(time.process_time() - started, 1),
        "audit": json.loads(printed.getvalue()),
    }
    if code not in (2, 130):
        kept.write_text(json.dumps(record))
    return record


class AllItems:
    """What every system answered to every question of a case."""

    def __init__(self, audit: Audit, samples: Path, tasks: Sequence[Path]) -> None:
        self.audit, self.tasks = audit, sorted({row["task"] for row in audit["evaluation"]})
        self.kind = {row["system"]: row["kind"] for row in audit["evaluation"]}
        self.marks: dict[tuple[str, str], Marks] = {}  # (system, form) -> marks
        for row in map(json.loads, samples.read_text().splitlines()):
            for reply in row["replies"] if row["part"] in FORMS else ():
                own = self.marks.setdefault((reply["system"], row["part"]), {})
                own[row["task"], row["item"]] = float(reply["right"])
        loaded = [load_task(task) for task in tasks]
        self.group = {(t.name, i.id): (t.name, i.group or i.id) for t in loaded for i in t.items}
        if len(self.tasks) > 1:
            self.marks["switch-adapters", "question"] = self._switched()

    def _switched(self) -> Marks:
        alone = [one for one in self.marks if self.kind[one[0]] in ("base", "adapter")]
        found: Marks = {}
        for task in self.tasks:
            best = max(alone, key=lambda one: self._mean(self.marks[one], task))
            found |= {key: value for key, value in self.marks[best].items() if key[0] == task}
        return found

    def _mean(self, marks: Marks, task: str) -> float:
        own = [value for key, value in marks.items() if key[0] == task]
        return sum(own) / len(own) if own else float("nan")

    def score(self, option: tuple[str, str]) -> float:
        """The mean over tasks, NaN if the option did not answer all of them."""
        means = [self._mean(self.marks.get(option, {}), task) for task in self.tasks]
        return sum(means) / len(means)

    def options(self) -> dict[tuple[str, str], float]:
        """What one call can run, with scores, the best first."""
        found = {
            option: self.score(option)
            for option in self.marks
            if self.kind.get(option[0]) not in ("chain", "control")
        }
        known = {option: score for option, score in found.items() if score == score}
        return dict(sorted(known.items(), key=lambda pair: -pair[1]))

    @cached_property
    def chain(self) -> tuple[str, str] | None:
        """The chain, if there is one."""
        return next(((s, "question") for s, kind in self.kind.items() if kind == "chain"), None)

    def guessing(self) -> float:
        """The mean over tasks of what guessing would score; 0 where it is not known."""
        rows = [r["value"] for r in self.audit["coverage"] if r["name"] == "guessing"]
        return sum(rows) / len(self.tasks) if rows else 0.0

    def least(self, better: tuple[str, str], other: tuple[str, str]) -> float:
        """The lower end of the 95 % interval of the paired difference of two options."""
        parts = []
        for task in self.tasks:
            groups: dict[tuple[str, str], list[float]] = {}
            for key, value in self.marks[better].items():
                if key[0] == task and key in self.marks[other]:
                    difference = value - self.marks[other][key]
                    groups.setdefault(self.group.get(key, key), []).append(difference)
            sums = np.array([sum(g) for g in groups.values()])
            n, k = sum(map(len, groups.values())), len(groups)
            mean = sums.sum() / n
            sizes = np.array([len(g) for g in groups.values()])
            spread = np.sum((sums - mean * sizes) ** 2) / n**2 * k / max(k - 1, 1)
            parts.append((mean, spread))
        mean = sum(p[0] for p in parts) / len(parts)
        error = sum(p[1] for p in parts) ** 0.5 / len(parts)
        return float(mean - 1.96 * error)

    def gains(self) -> list[dict[str, Any]]:
        """The gain of each composition and form over the best of base and adapters, with what it
        keeps and whether it exceeds the controls."""
        several, found = len(self.tasks) > 1, []
        for row in self.audit["gains"]:
            if self.kind[row["system"]] not in ("merge", "router"):
                continue
            if several != (row["task"] is None):
                continue
            own = [
                r
                for r in self.audit["evaluation"]
                if (r["system"], r["part"]) == (row["system"], row["part"])
            ]
            keeps = not several or all((r["retention"] or 0) >= RETENTION for r in own)
            found.append(
                {
                    "option": (row["system"], row["part"]),
                    "gain": row["difference"],
                    "ci95": row["ci95"],
                    "keeps": keeps,
                    "beats": all(d >= MARGIN / 2 for d in self._over_controls(row)),
                }
            )
        return sorted(found, key=lambda one: -one["gain"])

    def _over_controls(self, row: dict[str, Any]) -> list[float]:
        apart: dict[str, list[float]] = {}
        for pair in self.audit["comparisons"]:
            same = (pair["system"], pair["part"]) == (row["system"], row["part"])
            if same and self.kind.get(pair["against"]) == "control":
                apart.setdefault(pair["against"], []).append(pair["difference"])
        return [sum(found) / len(found) for found in apart.values()]


def advised(verdict: dict[str, Any], answers: AllItems) -> tuple[str, str] | None:
    """The measured option that an action names; None where it names none."""
    action, system = Action.read(verdict["action"]), verdict["system"]

    def better(name: str) -> tuple[str, str]:
        known = [(name, form) for form in FORMS if (name, form) in answers.marks]
        return max(known, key=answers.score)

    if action.kind == "use-base" or action.adapter:
        return better(action.adapter or "base")
    if action.kind == "chain":
        return answers.chain
    named = {"merge": "question", "route": "question", "step-by-step": "steps"}
    if action.kind in named:
        return system, named[action.kind]
    return (action.kind, "question") if action.kind == "switch-adapters" else None


def judged(verdict: dict[str, Any], answers: AllItems) -> dict[str, Any]:
    """What all items say of the advice of a verdict and of its decision."""
    action = verdict["action"]
    best, top = next(iter(answers.options().items()))
    chain = answers.score(answers.chain) if answers.chain else None
    due = chain is not None and chain > 2 * top and chain > top + MARGIN
    option = advised(verdict, answers)
    said: dict[str, Any] = {"option": option, "score": None, "regret": None, "certain": False}
    if action == "gather-evidence":
        said |= {"advice": "none" if verdict["decision"] == "inconclusive" else "worse"}
    elif action == "train-target-adapter":
        score = max(answers.score(o) for o in answers.marks if o[0] == "base")
        score = max(score, answers.guessing())
        fine = top - score <= MARGIN and not due
        said |= {"score": score, "regret": top - score, "advice": "right" if fine else "worse"}
    elif option is None or option not in answers.marks:
        said |= {"advice": "worse"}
    else:
        score = answers.score(option)
        regret = top - score
        fine = score >= 2 * top - TIE if action == "chain" else regret <= TIE and not due
        said |= {"score": score, "regret": regret, "advice": "right" if fine else "worse"}
        said |= {"certain": regret > 0 and answers.least(best, option) > 0}
    return said | {"wrong": wrong(verdict, answers), "chain_due": due}


def wrong(verdict: dict[str, Any], answers: AllItems) -> bool:
    """Whether a decision is wrong by all items."""
    gains = answers.gains()
    if verdict["decision"] == "likely":
        own = verdict["system"], (verdict["gain"] or {}).get("form", "question")
        return any(g["option"] == own and g["ci95"][1] < MARGIN for g in gains)
    if verdict["decision"] == "unlikely":
        return any(g["ci95"][0] > MARGIN and g["keeps"] and g["beats"] for g in gains)
    return False


def row_of(case: Case, records: dict[str, dict[str, Any]], out: Path) -> dict[str, Any]:
    """All that the page says of a case."""
    audit = records["all"]["audit"]
    answers = AllItems(audit, out / f"{case.name}.samples.jsonl", case.tasks)
    options = answers.options()
    best, top = next(iter(options.items()))
    gains = [gain for gain in answers.gains() if gain["keeps"]]
    first = records["inspect"]["audit"]["verdict"]
    return {
        "case": case.name,
        "kind": case.kind,
        "base": audit["base"]["reference"] if audit.get("base") else case.base,
        "adapters": [*case.adapters],
        "tasks": len(case.tasks),
        "items": {
            t: max(r["n"] for r in audit["evaluation"] if r["task"] == t) for t in answers.tasks
        },
        "probability": (first.get("gain") or {}).get("probability"),
        "success": bool(gains) and gains[0]["gain"] > MARGIN,
        "gain": gains[0] if gains else None,
        "all_gains": answers.gains()[:4],
        "best": best,
        "best_score": top,
        "chain": answers.score(answers.chain) if answers.chain else None,
        "scores": {f"{s} {form}": round(v, 4) for (s, form), v in options.items()},
        "guessing": answers.guessing(),
    } | {
        name: {
            "decision": records[name]["audit"]["verdict"]["decision"],
            "action": records[name]["audit"]["verdict"]["action"],
            "system": records[name]["audit"]["verdict"]["system"],
            "gain": records[name]["audit"]["verdict"].get("gain"),
            "answers": sum(r["n"] for r in records[name]["audit"]["evaluation"]),
            "cpu_seconds": records[name]["cpu_seconds"],
            **judged(records[name]["audit"]["verdict"], answers),
        }
        for name in RUNS
    }


def line(row: dict[str, Any]) -> str:
    """A row of the table."""
    own, p = row["rounds"], row["probability"]
    who = own["action"]
    if who in ("merge", "route", "step-by-step"):
        who += f" {display_name(own['system'])}"
    regret = "–" if own["regret"] is None else f"{max(own['regret'], 0):.2f}"
    cells = [
        row["case"],
        row["inspect"]["decision"] + ("" if p is None else f" ({p:.2f})"),
        own["decision"] + (" **wrong**" if own["wrong"] else ""),
        who + ("" if own["score"] is None else f" {own['score']:.2f}"),
        f"{display_name(row['best'][0])}{', steps' if row['best'][1] == 'steps' else ''} "
        f"{row['best_score']:.2f}",
        "–" if row["chain"] is None else f"{row['chain']:.2f}",
        regret + {"worse": " *", "none": " (open)"}.get(own["advice"], ""),
        f"{own['answers']} of {row['all']['answers']}",
    ]
    return "| " + " | ".join(cells) + " |"


HEAD = (
    "| case | `inspect` (probability) | decision | advised | best that one call runs | chain "
    "| regret | answers |\n| --- | --- | --- | --- | --- | --- | --- | --- |"
)


def auroc(scores: np.ndarray, success: np.ndarray) -> float:
    """The chance that a success has a higher score than a failure; ties count half."""
    pairs = scores[success][:, None] - scores[~success][None, :]
    return float(np.mean((pairs > 0) + 0.5 * (pairs == 0)))


def summary(rows: Sequence[dict[str, Any]]) -> str:
    """The figures over all cases, as a list in Markdown."""
    n, told = len(rows), []
    for name in ("inspect", "rounds"):
        said = [row[name] for row in rows]
        given = [one for one in said if one["advice"] != "none"]
        right = sum(one["advice"] == "right" for one in given)
        certain = sum(one["advice"] == "worse" and one["certain"] for one in given)
        counts = Counter(one["decision"] for one in said)
        told.append(
            f"- `{' '.join(RUNS[name])}`: {n} cases, "
            + ", ".join(f"{counts[d]} {d}" for d in ("likely", "unlikely", "inconclusive"))
            + f"; {sum(one['wrong'] for one in said)} decisions wrong. Advice is given in "
            f"{len(given)}, best or tied in {right} ({right / max(len(given), 1):.0%}); "
            f"of the others {certain} are shown to be worse than the best."
        )
    known = [row for row in rows if row["probability"] is not None]
    if known:
        p = np.array([row["probability"] for row in known])
        y = np.array([row["success"] for row in known])
        told.append(
            f"- The probability of the first round is given in {len(known)} cases, {y.sum()} of "
            f"them successes: AUROC {auroc(p, y):.3f}, Brier {np.mean((p - y) ** 2):.3f}; of "
            f"{(p >= 0.9).sum()} given 0.9 or more {(~y[p >= 0.9]).sum()} failed."
        )
    return "\n".join(told)


def main() -> None:
    """Run what is not there yet, write the rows and print table and summary."""
    words = sys.argv[1:]
    cut = words.index("--") if "--" in words else len(words)
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("worlds", type=Path, nargs="+")
    parser.add_argument("--only", action="append", help="cases whose name holds this text")
    parser.add_argument("--base", help="of worlds that hold no base")
    given, options = parser.parse_args(words[:cut]), words[cut + 1 :]
    (given.out / "cache").mkdir(parents=True, exist_ok=True)
    worlds = [world for place in given.worlds for world in worlds_in(place)]
    rows = []
    print(HEAD)
    for case in cases(worlds, given.base):
        if given.only and not any(text in case.name for text in given.only):
            continue
        records = {name: run(name, case, given.out, options) for name in RUNS}
        rows.append(row_of(case, records, given.out))
        print(line(rows[-1]), flush=True)
    kept = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (given.out / "rows.jsonl").write_text(kept)
    print("\n" + summary(rows))


if __name__ == "__main__":
    main()
