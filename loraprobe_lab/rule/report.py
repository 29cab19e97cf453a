"""`loraprobe lab rule`: the rule after evaluation as a document, a page and a figure."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from loraprobe_lab.rule import exact, simulated
from loraprobe_lab.rule.exact import Rate
from loraprobe_lab.world import write_text

Progress = Callable[[str, int, int], None]
LIMIT = 0.03  # how often a decision may be wrong, 0.01 away from the margin at 100 items
SHOWN = (-0.1, 0.0, 0.02, 0.04, 0.05, 0.06, 0.08, 0.1, 0.15, 0.2, 0.3)
LEVELS = ("least", "half", "all")  # discordances that the table of abstentions shows


@dataclass(frozen=True)
class Plan:
    """Numbers of items that are enumerated, those that are `simulated`, and with how many runs a
    case (0: none)."""

    items: tuple[int, ...] = (60, 100, 200, 500)
    steps: int = 21
    simulated: tuple[int, ...] = (60, 100, 200, 500)
    repeats: int = 200
    truths: tuple[float, ...] = (0.04, 0.06)
    seed: int = 0


def examine(plan: Plan | None = None, progress: Progress | None = None) -> dict[str, Any]:
    """Every outcome enumerated, every case simulated; the document holds plain numbers."""
    plan = plan or Plan()
    rows: list[Rate] = []
    for n in plan.items:
        rows += exact.rates(n, steps=plan.steps)
    return {
        "command": " ".join(["loraprobe lab rule", *_options(plan)]),
        "margin": exact.MARGIN,
        "limit": LIMIT,
        "plan": asdict(plan),
        "exact": [asdict(row) for row in rows],
        "simulated": _simulated(plan, progress),
    }


def _options(plan: Plan) -> list[str]:
    at = [] if plan.simulated == Plan.simulated else [f"--simulate {n}" for n in plan.simulated]
    return [*at, f"--repeats {plan.repeats}", f"--seed {plan.seed}"]


def _simulated(plan: Plan, progress: Progress | None) -> list[dict[str, Any]]:
    if plan.repeats == 0:
        return []
    chosen = [case for truth in plan.truths for case in simulated.cases(truth)]
    chosen += simulated.split_cases(max(plan.truths))
    rows, total = [], len(chosen) * sum(plan.simulated) * plan.repeats
    done = 0

    def tick(items: int) -> None:
        nonlocal done
        done += items
        if progress is not None:
            progress("simulated items", done, total)

    for n in plan.simulated:
        for case in chosen:
            found = simulated.simulate(case, n, plan.repeats, plan.seed, partial(tick, n))
            rows.append(found.as_dict())
    return rows


def markdown(document: Mapping[str, Any]) -> str:
    """The page: the worst case, how often the rule abstains, and the simulated cases."""
    rows = [Rate(**row) for row in document["exact"]]
    sections = [
        INTRODUCTION.format(**document),
        _worst(rows, document["limit"]),
        DECIDED.format(**document),
        _decided(rows),
    ]
    if document["simulated"]:
        sections += [SIMULATED.format(**document["plan"]), _cases(document), _beyond(document)]
    return "\n".join(sections)


INTRODUCTION = """\
# The rule after evaluation

`{command}`

merge-and-eval says `likely` where the lower end of the gain's 95 % interval exceeds the margin
{margin}, `unlikely` where the upper end lies below it, and abstains in between. For one composition
and one baseline all that n items can show is how many are gained and how many lost: the trinomial
of the two true shares is enumerated in full with the interval that evaluation computes (Bonett and
Price for paired proportions), so the figures of the first two tables are exact.

## How often it is wrong at worst

Over all discordances (share of items on which the two differ) from the least a gain allows to 1.
"""
DECIDED = """\
## How often it decides

Probability of `likely` / `unlikely`; it abstains in the rest. *least*: the composition loses no
item that the baseline has (or gains none); *half* and *all*: they differ on half or on all items.
"""
SIMULATED = """\
## Several systems, baselines and forms of asking

{repeats} simulated runs a case, judged by the code that judges a user's. The baselines stand at an
accuracy of 0.3 (near zero: 0.02; near one: 0.9), the compositions by the true gain above the best
of them. With both forms every system is also asked step by step; there `wrong` is about the better
form. *plainly +0.00* and *plainly -0.10* are cases whose forms disagree: the verdict is then about
the plain form, unless the step-by-step form gains or is undecided.
*95 %* is Wilson's interval of `wrong`. Controls are left out: they can only take a `likely` back.
"""


def _worst(rows: Sequence[Rate], limit: float) -> str:
    items = sorted({row.n for row in rows})
    gains = [gain for gain in SHOWN if gain in {row.gain for row in rows}]
    body = []
    for n in items:
        here = [row for row in rows if row.n == n]
        top = exact.worst(here)
        cells = [str(n)]
        for gain in gains:
            wrong = max(row.wrong() for row in here if row.gain == gain)
            cells.append("-" if abs(gain - exact.MARGIN) < 1e-9 else f"{wrong:.4f}")
        where = f"{top.wrong():.4f} at gain {top.gain:.2f}, discordance {top.discordance:.2f}"
        body.append([*cells, where, "yes" if top.wrong() <= limit else "**no**"])
    head = ["n", *(f"gain {gain:.2f}" for gain in gains), "worst anywhere", f"within {limit:.2f}"]
    return _lines(head, body)


def _decided(rows: Sequence[Rate]) -> str:
    items = sorted({row.n for row in rows})
    body = []
    for gain in (gain for gain in SHOWN if gain in {row.gain for row in rows}):
        for name in LEVELS:
            cells = [f"{gain:.2f}", name]
            for n in items:
                row = at_level([r for r in rows if r.n == n and r.gain == gain], name)
                cells.append(f"{row.likely:.3f} / {row.unlikely:.3f}")
            body.append(cells)
    return _lines(["true gain", "discordance", *(f"n = {n}" for n in items)], body)


def at_level(rows: Sequence[Rate], name: str) -> Rate:
    """Of the rows of one gain: that of the least discordance, nearest to a half, or of all."""
    wanted = {"least": 0.0, "half": 0.5, "all": 1.0}[name]
    return min(rows, key=lambda row: abs(row.discordance - wanted))


def _interval(row: Mapping[str, Any]) -> tuple[float, float]:
    """Wilson's interval of a simulated case's share of wrong decisions."""
    import numpy as np

    from loraprobe.intervals import wilson

    runs = np.arange(row["repeats"])
    return wilson((runs < round(row["wrong"] * row["repeats"])).astype(float), runs)


def _beyond(document: Mapping[str, Any]) -> str:
    """Which simulated cases are wrong too often, beyond doubt or by their estimate."""
    limit = document["limit"]
    found: dict[str, list[str]] = {"beyond doubt": [], "within the error of simulation": []}
    for row in document["simulated"]:
        if row["wrong"] > limit:
            sure = "beyond doubt" if _interval(row)[0] > limit else "within the error of simulation"
            found[sure].append(f"{row['case']} at n = {row['n']} ({row['wrong']:.3f})")
    lines = [
        f"Above {limit:.2f} {how}: {', '.join(names)}." for how, names in found.items() if names
    ]
    return "\n".join(lines or [f"No case is above {limit:.2f}."]) + "\n"


def _cases(document: Mapping[str, Any]) -> str:
    body = []
    for row in document["simulated"]:
        low, high = _interval(row)
        steps = "-" if row["steps_gain"] is None else f"{row['steps_gain']:.2f}"
        body.append(
            [str(row["n"]), row["case"], f"{row['gain']:.2f}", steps, f"{row['likely']:.3f}",
             f"{row['unlikely']:.3f}", f"{row['inconclusive']:.3f}",
             f"{row['wrong']:.3f} ({low:.3f} to {high:.3f})"]
        )  # fmt: skip
    head = ["n", "case", "true gain", "step by step", "likely", "unlikely", "abstains"]
    return _lines([*head, "wrong (95 %)"], body)


def check() -> None:
    """Raises UsageError if matplotlib is not installed, before anything is computed."""
    from loraprobe_lab.reproduce.figure import drawing

    with drawing():
        pass


def save(document: Mapping[str, Any], directory: Path) -> list[Path]:
    """Writes rule.md, rule.json and rule.svg; returns their paths.

    Raises UsageError if matplotlib is not installed.
    """
    from loraprobe_lab.rule.figure import figure

    texts = {
        "rule.svg": figure(document),
        "rule.json": json.dumps(document, indent=1) + "\n",
        "rule.md": markdown(document) + "\n![figure](rule.svg)\n",
    }
    for name, text in texts.items():
        write_text(directory / name, text)
    return [directory / name for name in texts]


def _lines(head: Sequence[str], body: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    rows = [head, ["---"] * len(head), *body]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows) + "\n"
