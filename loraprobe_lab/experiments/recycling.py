"""How good a rule chooses between base, best single adapter, composition and training.

`loraprobe lab recycling DATA` reads the published measurements of arXiv 2602.12323: community
adapters alone and LoraHub compositions of k random ones, on the tasks' own test sets. A case is one
draw of k adapters for one task. Of a case, a rule sees k, the validation scores of the adapters
(100 items each) and a validation score of the base, which was not published and is drawn here from
its test accuracy; some rules also see the composition's validation score, on the items that its
weights were fitted to. Regret is the test accuracy of the best action minus that of the chosen one.

A fitted rule chooses for tasks that took no part in its fit. Means are over the cases of a task,
then over tasks; intervals are those of resampled tasks. The null of a rule gives its choices to
cases at random.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from loraprobe.errors import UsageError
from loraprobe_lab.experiments.pages import BLUE, GREY, Pages, as_svg, drawing, render
from loraprobe_lab.world import read_lines

Array = npt.NDArray[Any]
Seen = Mapping[str, Array]  # what a rule sees of the cases: name -> [cases]
ITEMS = 100  # of a published validation score
PENALTY = 10.0  # of the ridge regression, on features with variance 1
GROUP = "xnli"  # one data set in several languages: left out together
DRAWS, SAMPLES, SHUFFLES = 40, 2000, 1000
WRONG = 0.05  # a regret above this counts as a wrong choice


@dataclass(frozen=True)
class Cases:
    """The cases of one model. `outcomes`: [cases, actions] test accuracy, the base first.

    singles: validation scores of the adapters of each case. composed: validation score of each
    composition, NaN where it was not published.
    """

    model: str
    actions: tuple[str, ...]
    task: tuple[str, ...]
    k: Array
    singles: tuple[Array, ...]
    composed: Array
    outcomes: Array


def corrected_best(scores: Array, items: int = ITEMS) -> float:
    """The expected accuracy of the adapter with the best score: its score drawn to the mean.

    The share that stays is the variance between adapters of the variance of the scores, which also
    has the binomial noise of the items (empirical Bayes).
    """
    mean = float(scores.mean())
    noise = max(mean * (1 - mean), 0.01) / items
    between = max(0.0, float(scores.var(ddof=1)) - noise) if len(scores) > 1 else 0.0
    return mean + between / (between + noise) * (float(scores.max()) - mean)


def llama_cases(data: Path) -> Cases:
    """Base, best single by validation and LoraHub's composition, on Llama-3.1-8B-Instruct."""
    name = "llama-3.1-8b-instruct"
    base = {row["task"]: float(row["accuracy"]) for row in _rows(data / f"{name}.base.test.csv")}
    test = _singles(data / f"{name}.singles.test.csv.gz")

    def alone(task: str, best: str) -> tuple[float, float]:
        return base[task], test[best][task]

    def known(task: str, adapter: str) -> bool:
        return task in base and task in test.get(adapter, {})

    rows = _compositions(data / name, known, alone)
    return _cases("Llama-3.1-8B-Instruct", ("base", "single", "compose"), rows)


def qwen_cases(data: Path) -> Cases:
    """Base, an adapter trained on 100 examples and LoraHub's composition, on Qwen3-4B."""
    trained = {
        row["task"]: (float(row["base"]), float(row["target_adapter_100_examples"]))
        for row in _rows(data / "qwen3-4b.base-and-target-adapter.test.csv")
        if row["base"] and row["target_adapter_100_examples"]
    }
    rows = _compositions(
        data / "qwen3-4b", lambda task, _: task in trained, lambda task, _: trained[task]
    )
    return _cases("Qwen3-4B", ("base", "train", "compose"), rows)


def _compositions(
    files: Path,
    known: Callable[[str, str], bool],
    alone: Callable[[str, str], tuple[float, float]],
) -> list[tuple[Any, ...]]:
    """The compositions on 100 examples without an adapter of the task itself, as rows of `_cases`.

    files: how the names of the model's files begin. known: whether all figures of a task and an
    adapter were published. alone: the test accuracy of the first two actions, from the task and the
    adapter with the best validation score.
    """
    validation, found = _singles(Path(f"{files}.singles.validation.csv.gz")), []
    for run in map(json.loads, _lines(Path(f"{files}.lorahub.jsonl.gz"))):
        task, adapters = run["task"], run["adapters"]
        asked = [a for a in adapters if task in validation.get(a, {}) and known(task, a)]
        if asked and run["examples"] == ITEMS and not run["with_target"]:
            scores = np.array([validation[adapter][task] for adapter in asked])
            k = 5 * round(len(adapters) / 5)  # that was meant: some runs do not list one or two
            outcome = (*alone(task, asked[scores.argmax()]), run["test"])
            found.append((task, k, scores, run["validation"], outcome))
    return found


def _cases(model: str, actions: tuple[str, ...], rows: Sequence[tuple[Any, ...]]) -> Cases:
    task, k, singles, composed, outcomes = zip(*rows, strict=True)
    return Cases(
        model, actions, task, np.array(k), singles, np.array(composed, float), np.array(outcomes)
    )


def _lines(path: Path) -> list[str]:
    if not path.is_file():
        raise UsageError(f"{path} is missing:", "name the directory of the published measurements.")
    return read_lines(path)


def _rows(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(_lines(path)))


def _singles(path: Path) -> dict[str, dict[str, float]]:
    """adapter -> task -> accuracy; what was not measured is absent."""
    return {
        row["adapter"]: {task: float(v) for task, v in row.items() if v and task != "adapter"}
        for row in _rows(path)
    }


def look(cases: Cases, rng: np.random.Generator) -> Seen:
    """What a rule sees, with one draw of the base's validation score, which was not published.

    measured: [cases, actions], each action on as many items that took no part in a choice.
    """
    return {
        "base": rng.binomial(ITEMS, cases.outcomes[:, 0]) / ITEMS,
        "best": np.array([scores.max() for scores in cases.singles]),
        "corrected": np.array(list(map(corrected_best, cases.singles))),
        "mean": np.array([scores.mean() for scores in cases.singles]),
        "k": cases.k,
        "composed": cases.composed,
        "measured": rng.binomial(ITEMS, cases.outcomes) / ITEMS,
    }


def fitted(cases: Cases, features: Array) -> Array:
    """The action with the largest gain over the base that a ridge regression expects: [cases].

    It is fitted on the cases of the other tasks.
    """
    gains = cases.outcomes[:, 1:] - cases.outcomes[:, :1]
    expected = np.zeros(cases.outcomes.shape)
    groups = np.array([GROUP if task.startswith(GROUP) else task for task in cases.task])
    for group in np.unique(groups):
        left_out = groups == group
        centre, spread = features[~left_out].mean(0), features[~left_out].std(0) + 1e-9
        x = np.column_stack([np.ones(len(features)), (features - centre) / spread])
        penalty = PENALTY * np.eye(x.shape[1])
        penalty[0, 0] = 0.0
        known = x[~left_out]
        weights = np.linalg.solve(known.T @ known + penalty, known.T @ gains[~left_out])
        expected[left_out, 1:] = x[left_out] @ weights
    return expected.argmax(1)


def rules_of(cases: Cases) -> dict[str, Callable[[Seen], Array]]:
    """Name -> a rule, from what is seen to the index of the chosen action: [cases]."""

    def always(action: int) -> Callable[[Seen], Array]:
        return lambda _: np.full(len(cases.task), action)

    def features(seen: Seen) -> Array:
        over = (seen["corrected"] - seen["base"], seen["mean"] - seen["base"])
        sizes = (np.log(seen["k"]),) if len(set(seen["k"])) > 1 else ()
        return np.stack([seen["base"], *over, *sizes], 1)

    found = {f"always {name}": always(i) for i, name in enumerate(cases.actions)}
    if "single" in cases.actions:
        found["better validation score of base and best single"] = lambda s: (
            (s["best"] > s["base"]) * 1
        )
        found["the same, corrected for the choice"] = lambda s: (s["corrected"] > s["base"]) * 1
    found["fitted to k, base and singles"] = lambda s: fitted(cases, features(s))
    if not np.isnan(cases.composed).any():
        found["best validation score, the composition's too"] = lambda s: np.stack(
            [s["base"], s["best"], s["composed"]], 1
        ).argmax(1)
        found["fitted, the composition's validation score too"] = lambda s: fitted(
            cases, np.column_stack([features(s), s["composed"] - s["base"]])
        )
    found[f"best of all on {ITEMS} fresh items (simulated)"] = lambda s: s["measured"].argmax(1)
    found["oracle"] = lambda _: cases.outcomes.argmax(1)
    return found


def recycling(data: Path, seed: int = 0) -> Pages:
    """Reads the published measurements in `data` and judges every rule on them.

    Raises UsageError for a missing file.
    """
    made = [judged(cases, seed) for cases in (llama_cases(data), qwen_cases(data))]
    document = {"source": "arXiv 2602.12323", "seed": seed, "models": made}
    page = render("recycling", models=made, items=ITEMS, wrong=WRONG, draws=DRAWS)
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
