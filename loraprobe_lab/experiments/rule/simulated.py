"""The decision among several systems, baselines and forms of the question, by simulation.

The code is that of a user's run: gains from `evaluation`, the decision from `verdict`. Items have a
difficulty that all systems share in part. One control is always beaten, because controls can only
revoke a `likely`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import special

from loraprobe.evaluation import System, gains
from loraprobe.records import Comparison, Gain, ItemResult, Score
from loraprobe.verdict import judge_evaluation
from loraprobe.verdict.evidence import Evidence
from loraprobe_lab.experiments.rule.exact import MARGIN

SHARED = 0.3  # share of the variance of an item's latent difficulty that is common to all systems
PARTS = ("question", "steps")


@dataclass(frozen=True)
class SimulatedCase:
    """True accuracies: `baselines` are base and single adapters, `compositions` are `gain` above
    the best of them. `steps_gain` is that of the step-by-step form, None where it is not asked;
    baselines are right with worked steps as often as `steps_baseline`, None for as often as
    without."""

    name: str
    baselines: tuple[float, ...]
    compositions: int
    gain: float
    steps_gain: float | None = None
    steps_baseline: float | None = None

    @property
    def truth(self) -> float:
        """The gain on the better form."""
        return self.gain if self.steps_gain is None else max(self.gain, self.steps_gain)


@dataclass(frozen=True)
class DecidedShares:
    """The shares of decisions on a case in `repeats` runs of n items."""

    case: str
    n: int
    repeats: int
    gain: float
    steps_gain: float | None
    likely: float
    unlikely: float
    inconclusive: float

    def wrong(self) -> float:
        """How often the decision is wrong about the better form."""
        truth = max(g for g in (self.gain, self.steps_gain) if g is not None)
        return self.likely if truth < MARGIN else self.unlikely


def cases(gain: float) -> list[SimulatedCase]:
    """The cases of one true gain: many systems, tied baselines, both, and the ends of the scale."""
    return [
        SimulatedCase("one of each", (0.3,), 1, gain),
        SimulatedCase("three tied baselines", (0.3, 0.3, 0.3), 1, gain),
        SimulatedCase("eight systems", (0.3, 0.05, 0.05), 8, gain),
        SimulatedCase("four systems, three tied baselines", (0.3, 0.3, 0.3), 4, gain),
        SimulatedCase("near zero", (0.02,), 1, gain),
        SimulatedCase("near one, four systems", (0.9, 0.5), 4, min(gain, 0.099)),
        SimulatedCase("both forms, three of each", (0.3, 0.05, 0.05), 3, gain, gain),
        SimulatedCase("both forms, one of each", (0.3,), 1, gain, gain),
        SimulatedCase("both forms, baselines without steps", (0.3,), 1, gain, gain, 0.02),
    ]


def split_cases(gain: float) -> list[SimulatedCase]:
    """Cases whose forms disagree: a gain step by step, none or a loss in the plain form."""
    return [
        SimulatedCase(f"plainly {plain:+.2f}", (0.3, 0.05), 2, plain, gain) for plain in (0.0, -0.1)
    ]


def accuracies(case: SimulatedCase) -> list[float]:
    """Of baselines, then compositions: plainly, and then step by step if that is asked."""
    best = max(case.baselines)
    means = [*case.baselines, *[best + case.gain] * case.compositions]
    if case.steps_gain is not None:
        steps = case.steps_baseline
        means += [b if steps is None else steps for b in case.baselines]
        means += [best + case.steps_gain] * case.compositions
    return means


def simulate(
    case: SimulatedCase,
    n: int,
    repeats: int,
    seed: int = 0,
    tick: Callable[[], None] = lambda: None,
) -> DecidedShares:
    """Decides runs of n items of this case; `tick` is called after each run."""
    rng = np.random.default_rng([seed, n])
    systems = [System(f"b{k}", "adapter" if k else "base") for k in range(len(case.baselines))]
    systems += [System(f"s{k}", "merge") for k in range(case.compositions)]
    counts = {"likely": 0, "unlikely": 0, "inconclusive": 0}
    for run in range(repeats):
        found = _gains(rng, case, n, systems, run)
        counts[judge_evaluation(_evidence(found, systems)).decision] += 1
        tick()
    shares = {name: count / repeats for name, count in counts.items()}
    return DecidedShares(case.name, n, repeats, case.gain, case.steps_gain, **shares)


def _gains(
    rng: np.random.Generator, case: SimulatedCase, n: int, systems: Sequence[System], seed: int
) -> tuple[Gain, ...]:
    """The gains of one run, from simulated results of every system and form."""
    means = accuracies(case)
    columns = [(system.name, part) for part in PARTS for system in systems][: len(means)]
    common, own = rng.standard_normal((n, 1)), rng.standard_normal((n, len(means)))
    latent = SHARED**0.5 * common + (1 - SHARED) ** 0.5 * own
    right = (latent < special.ndtri(np.array(means))).astype(float)
    results = [
        ItemResult(name, "task", part, str(i), "exact_match", right[i, k], "", str(i))
        for k, (name, part) in enumerate(columns)
        for i in range(n)
    ]
    return gains(results, systems, seed=seed)


def _evidence(found: Sequence[Gain], systems: Sequence[System]) -> Evidence:
    """Evidence with these gains; the scores only name the evaluated systems and forms."""
    parts, control = dict.fromkeys(gain.part for gain in found), System("control", "control")
    scores = tuple(
        Score(s.name, s.kind, "task", part, "exact_match", 0.0, (0.0, 1.0), 1)
        for part in parts
        for s in (*systems, control)
    )
    beaten = tuple(
        Comparison(row.system, control.name, "task", row.part, 1.0, (1.0, 1.0), row.n)
        for row in found
    )
    return Evidence(
        evaluation=scores, comparisons=beaten, gains=tuple(found), tasks=1, level="evaluation"
    )
