"""The page of `loraprobe lab recycling`: score and regret of every rule, with nulls.

Means are over the cases of a task, then over tasks; intervals are those of resampled tasks. The
null of a rule gives the choices that it made to cases at random.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from loraprobe_lab.experiments.pages import BLUE, GREY, Pages, as_svg, drawing, number, render
from loraprobe_lab.experiments.recycling import (
    ITEMS,
    Array,
    Cases,
    llama_cases,
    look,
    qwen_cases,
    rules_of,
)

DRAWS, SAMPLES, SHUFFLES = 40, 2000, 1000
WRONG = 0.05  # a regret above this counts as a wrong choice
EDGES = (-1.0, -0.05, 0.0, 0.05, 0.1, 0.2, 1.0)  # of the best single's corrected lead over the base


def recycling(data: Path, seed: int = 0) -> Pages:
    """Reads the published measurements in `data` and judges every rule on them.

    Raises UsageError for a missing file.
    """
    made = [judged(cases, seed) for cases in (llama_cases(data), qwen_cases(data))]
    document = {"source": "arXiv 2602.12323", "seed": seed, "models": made}
    page = render(
        "recycling", models=made, items=ITEMS, wrong=WRONG, draws=DRAWS, interval=_interval
    )
    return Pages("recycling", document, page, lambda: _figure(made))


def judged(cases: Cases, seed: int = 0) -> dict[str, Any]:
    """Every rule on the cases of one model, as plain data."""
    rng = np.random.default_rng(seed)
    draws = [look(cases, rng) for _ in range(DRAWS)]
    chosen = {
        name: np.stack([rule(seen) for seen in draws]) for name, rule in rules_of(cases).items()
    }
    return {
        "model": cases.model,
        "cases": len(cases.task),
        "tasks": len(set(cases.task)),
        "actions": list(cases.actions),
        "rules": [{"rule": name, **_row(cases, made, rng)} for name, made in chosen.items()],
        "by_k": _by_k(cases, chosen),
        "by_lead": _by_lead(cases, draws[0].corrected - draws[0].base),
        "winners_curse": _curse(cases, draws[0].best, draws[0].corrected),
    }


def task_means(cases: Cases, values: Array) -> Array:
    """The mean of `values` [..., cases] over the cases of each task: [..., tasks]."""
    tasks, place = np.unique(np.array(cases.task), return_inverse=True)
    weights = np.zeros((len(place), len(tasks)))
    weights[np.arange(len(place)), place] = 1 / np.bincount(place)[place]
    return values @ weights


def regrets(cases: Cases, chosen: Array) -> Array:
    """Test accuracy of the best action minus that of the chosen one: [draws, cases]."""
    taken = cases.outcomes[np.arange(len(cases.task)), chosen]
    return cases.outcomes.max(1) - taken


def _row(cases: Cases, chosen: Array, rng: np.random.Generator) -> dict[str, Any]:
    """Score, regret with interval, and the null; `chosen`: [draws, cases] actions."""
    regret = regrets(cases, chosen)
    each = task_means(cases, regret.mean(0))
    sampled = each[rng.integers(0, len(each), (SAMPLES, len(each)))].mean(1)
    flat = chosen.ravel()
    null = np.array(
        [
            task_means(cases, regrets(cases, rng.choice(flat, (1, len(cases.task))))[0]).mean()
            for _ in range(SHUFFLES)
        ]
    )
    beaten = 1 + (null <= each.mean()).sum()
    return {
        "score": float(task_means(cases, cases.outcomes.max(1) - regret.mean(0)).mean()),
        "regret": float(each.mean()),
        "ci95": [float(v) for v in np.quantile(sampled, (0.025, 0.975))],
        "wrong": float(task_means(cases, (regret > WRONG).mean(0)).mean()),
        "null": float(null.mean()),
        "p": None if len(set(flat)) == 1 else float(beaten / (1 + SHUFFLES)),
        "shares": [float((chosen == i).mean()) for i in range(len(cases.actions))],
    }


def _by_k(cases: Cases, chosen: Mapping[str, Array]) -> list[dict[str, Any]]:
    """Mean regret of every rule for every number of adapters."""
    found = []
    for k in sorted(set(cases.k.tolist())):
        part = cases.k == k
        some = Cases(
            cases.model,
            cases.actions,
            tuple(task for task, here in zip(cases.task, part, strict=True) if here),
            cases.k[part],
            tuple(s for s, here in zip(cases.singles, part, strict=True) if here),
            cases.composed[part],
            cases.outcomes[part],
        )
        row = {
            name: float(task_means(some, regrets(some, made[:, part]).mean(0)).mean())
            for name, made in chosen.items()
        }
        found.append({"k": k, "cases": int(part.sum()), "regret": row})
    return found


def _by_lead(cases: Cases, lead: Array) -> list[dict[str, Any]]:
    """Mean gain of every action over the base, by the best single's corrected lead over it."""
    found = []
    for low, high in pairwise(EDGES):
        part = (lead > low) & (lead <= high)
        if part.any():
            gains = (cases.outcomes[part] - cases.outcomes[part, :1]).mean(0)
            row = {"from": low, "to": high, "cases": int(part.sum())}
            found.append(row | {"gains": [float(gain) for gain in gains]})
    return found


def _curse(cases: Cases, best: Array, corrected: Array) -> dict[str, float] | None:
    """By how much the best single's validation score exceeds its test accuracy, in the mean."""
    if "single" not in cases.actions:
        return None
    truth = cases.outcomes[:, cases.actions.index("single")]
    return {
        "best": float((best - truth).mean()),
        "corrected": float((corrected - truth).mean()),
        "composed": float((cases.composed - cases.outcomes[:, -1]).mean()),
    }


def _interval(row: Mapping[str, Any]) -> str:
    low, high = row["ci95"]
    return f"{number(row['regret'])} ({number(low)} to {number(high)})"


def _figure(models: list[dict[str, Any]]) -> str:
    """The regret of every rule with its interval, a panel for each model."""
    with drawing() as Figure:
        figure = Figure(figsize=(8, 5))
        panels = figure.subplots(len(models), 1, squeeze=False)[:, 0]
        for panel, model in zip(panels, models, strict=True):
            rows = [row for row in reversed(model["rules"]) if row["rule"] != "oracle"]
            for y, row in enumerate(rows):
                fixed = row["rule"].startswith("always")
                panel.plot(row["ci95"], [y, y], color=GREY, linewidth=1)
                panel.plot(row["regret"], y, "o", color=GREY if fixed else BLUE)
            panel.set_yticks(range(len(rows)), [row["rule"] for row in rows])
            panel.set_xlim(left=0)
            panel.set_title(f"{model['model']}, {model['tasks']} tasks", fontsize=9)
        panels[-1].set_xlabel("regret (test accuracy below the best action), mean over tasks")
        figure.tight_layout()
        return as_svg(figure)
