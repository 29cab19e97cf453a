"""What the router by text loses against the router by hidden states.

    python by_text.py stored                          # the sets of examples/calibration, no model
    python by_text.py asked OUT WORLD... [-- OPTION...]   # asks the sets of worlds that were built

`stored` makes the tasks of the stored adapter sets again, which their seeds decide, fits the router
to the items that were set apart there, and looks up what the adapter that it chooses answered. It
also measures the class "other": how many of the items go to the base, and how many prompts of other
tasks of the same base do not. A task counts as another one where it asks for something else than
both tasks of the set, and not where only the people differ.

`asked` runs `merge-and-eval` for each set with several tasks of worlds that `loraprobe lab build`
or examples/advice/worlds.py made. OPTION goes to each run; what is in OUT is not run again.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from loraprobe.cli import app
from loraprobe.defaults import BY_PROMPT, BY_TEXT, SPELLED
from loraprobe.text_profile import TextProfile
from loraprobe_lab.build import ATLAS, spec_of
from loraprobe_lab.calibration.cases import AnsweredSet, read_sets
from loraprobe_lab.world import worlds_in
from loraprobe_lab.worlds.english import all_sets
from loraprobe_lab.worlds.facts import CAPITALS

STORED = Path(__file__).parents[1] / "calibration" / "several.jsonl.gz"
LOSS, SHARE = 0.02, 0.9  # the aim: at most this loss on this share of the sets
Prompts = Mapping[str, Mapping[str, str]]  # task -> item -> its prompt


def tasks_of(base: str) -> Prompts:
    """The prompts of all tasks on a base, as the sets name them."""
    plan = next((one for one in ATLAS if one.name == base), None)
    if plan is not None:
        return {name: _prompts(items) for name, items in spec_of(plan).tasks.items()}
    countries = [*CAPITALS]
    return {
        f"{spec.notes['set']}.{name}": _prompts(items)
        for spec in all_sets(countries[:24], countries[-24:], layers=30)
        for name, items in spec.tasks.items()
    }


def _prompts(items: Sequence[Any]) -> dict[str, str]:
    return {str(item["id"]): str(item["prompt"]) for item in items}


def subject(task: str) -> str:
    """What a task asks for: "job" of "fact-and-skill-24.job2"."""
    return task.rpartition(".")[2].rstrip("0123456789")


def stored_row(one: AnsweredSet, tasks: Prompts) -> dict[str, Any]:
    """What both routers scored on a set, and what the class "other" did."""
    right = {(r.system, r.task, r.item): r.merit for r in one.results if r.part == "question"}
    asked = {task: [i for s, t, i in right if (s, t) == ("base", task)] for _, task, _ in right}
    known = {task: next(t for t in tasks if t.endswith(task)) for task in asked}
    apart = {task: _apart(tasks[known[task]], asked[task]) for task in asked}
    profile = TextProfile.of([*apart.values()])
    adapters = {task: _adapter(one, task) for task in asked}
    names = [*adapters.values()]
    scores, away = {BY_TEXT: [], BY_PROMPT: [], "switch": []}, []
    old = next(s for s in one.kinds if SPELLED.get(s, s) == BY_PROMPT)
    for task, items in asked.items():
        chosen = [profile.choice(tasks[known[task]][item]) for item in items]
        who = ["base" if c is None else names[c] for c in chosen]
        pairs = zip(who, items, strict=True)
        scores[BY_TEXT].append(np.mean([right[name, task, item] for name, item in pairs]))
        scores[BY_PROMPT].append(np.mean([right[old, task, item] for item in items]))
        best = max(
            np.mean([right[name, task, item] for item in items]) for name in ("base", *names)
        )
        scores["switch"].append(best)
        away += [c is None for c in chosen]
    own = {subject(task) for task in asked}
    other = [held for task, held in tasks.items() if subject(task) not in own]
    others = {prompt for held in other for prompt in [*held.values()][:40]}
    taken = [profile.choice(prompt) is not None for prompt in sorted(others)]
    return {
        "set": f"{one.base} {one.adapter_set}",
        **{name: float(np.mean(each)) for name, each in scores.items()},
        "own to the base": float(np.mean(away)),
        "others": len(taken),
        "others not to the base": float(np.mean(taken)) if taken else 0.0,
    }


def _apart(prompts: Mapping[str, str], asked: Sequence[str]) -> list[str]:
    """The prompts that were set apart: those before the last that was asked that were not."""
    order = [*prompts]
    last = max(order.index(item) for item in asked)
    return [prompts[item] for item in order[: last + 1] if item not in {*asked}]


def _adapter(one: AnsweredSet, task: str) -> str:
    """The adapter that learned a task, which has its name."""
    own = [name for name, kind in one.kinds.items() if kind == "adapter"]
    return next(name for name in own if name.endswith(task) or task.endswith(name))


def asked_rows(
    out: Path, places: Sequence[Path], options: Sequence[str]
) -> Iterator[dict[str, Any]]:
    """What both routers score on each set with several tasks of the worlds."""
    out.mkdir(parents=True, exist_ok=True)
    for world in (one for place in places for one in worlds_in(place)):
        for scenario in world.scenarios.values():
            if len(scenario.tasks) < 2:
                continue
            many = len(world.scenarios) > 1
            name = world.path.name + (f".{scenario.name}" if many else "")
            kept = out / f"{name}.json"
            if not kept.is_file():
                words = ["merge-and-eval", *(f"{n}={p}" for n, p in scenario.adapters.items())]
                words += ["--base", str(world.base or world.base_name)]
                words += [word for task in scenario.tasks for word in ("--task", str(task))]
                words += ["--system", BY_TEXT, "--system", BY_PROMPT, "--all-items", "--json"]
                kept.write_text(_run([*words, "--quiet", "--exit-zero", "--resume", *options]))
            audit = json.loads(kept.read_text())
            systems: dict[str, list[float]] = {}
            for row in audit["evaluation"]:
                if row["part"] == "question":
                    systems.setdefault(row["system"], []).append(row["value"])
            found = {name: float(np.mean(systems[name])) for name in (BY_TEXT, BY_PROMPT)}
            yield {"set": name, **found}


def _run(words: Sequence[str]) -> str:
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
        app([*words])
    return printed.getvalue()


def told(rows: Sequence[Mapping[str, Any]]) -> str:
    """A table of the sets and a summary, as Markdown."""
    columns = [name for name in rows[0] if name not in ("set", "others")]
    lines = [f"| set | {' | '.join(columns)} |", "| --- " * (1 + len(columns)) + "|"]
    for row in sorted(rows, key=lambda row: row[BY_TEXT] - row[BY_PROMPT]):
        lines.append(f"| {row['set']} | " + " | ".join(f"{row[c]:.3f}" for c in columns) + " |")
    differences = np.array([row[BY_TEXT] - row[BY_PROMPT] for row in rows])
    within = (differences >= -LOSS - 1e-9).sum()
    summary = [
        f"{BY_TEXT} is within {LOSS:g} of {BY_PROMPT}, or better, on {within} of {len(rows)} sets "
        f"({within / len(rows):.0%}; the aim was {SHARE:.0%}). Mean difference "
        f"{differences.mean():+.3f}, worst {differences.min():+.3f}, best {differences.max():+.3f}."
    ]
    if "others" in rows[0]:
        away = np.mean([row["own to the base"] for row in rows])
        prompts = sum(row["others"] for row in rows)
        taken = sum(row["others"] * row["others not to the base"] for row in rows) / prompts
        summary.append(
            f"Of their own items {away:.2%} go to the base. Of {prompts:,} prompts of other tasks "
            f"{taken:.2%} are taken for one of the skills."
        )
    return "\n".join([*summary, "", *lines])


def main() -> None:
    words = sys.argv[1:]
    cut = words.index("--") if "--" in words else len(words)
    if words[:1] == ["stored"]:
        known = dict[str, Prompts]()
        sets = read_sets(STORED)
        for one in sets:
            known.setdefault(one.base, tasks_of(one.base))
        print(told([stored_row(one, known[one.base]) for one in sets]))
    elif words[:1] == ["asked"] and cut > 2:
        out, *places = map(Path, words[1:cut])
        os.environ.setdefault("LORAPROBE_CACHE", str(out / "cache"))
        print(told([*asked_rows(out, places, words[cut + 1 :])]))
    else:
        sys.exit(__doc__)


if __name__ == "__main__":
    main()
