"""How often the decision is wrong: exactly for one comparison, by simulation for several systems.

*Exactly*: one composition and one baseline, over every outcome that n items can have. An item is
gained (right with the composition only), lost (right with the baseline only) or the same for both.
The counts follow the trinomial of the two shares, and a decision depends on the counts alone, so
its probability is a finite sum: no simulation. The interval is the one that evaluation uses, called
and not copied.

*By simulation*: the code is that of a user's run, gains from `evaluation` and the decision from
`verdict`. Items have a difficulty that all systems share in part. One control is always beaten,
because controls can only revoke a `likely`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import special, stats

from loraprobe.evaluation import System, gains, statistics
from loraprobe.records import Comparison, Gain, ItemResult, Score
from loraprobe.verdict import judge_evaluation
from loraprobe.verdict.evidence import Evidence

Array = NDArray[np.float64]
MARGIN, LEVEL = 0.05, 0.95
COLUMNS = 2000  # outcomes whose intervals are computed at once
NEAR = (0.0, 0.005, 0.01, 0.02, 0.03, 0.05)  # discordance beyond |gain|, looked at closely
GAINS = tuple(
    float(gain)
    for gain in (
        "-1 -.5 -.3 -.2 -.15 -.1 -.05 0 .01 .02 .03 .04 .05 .06 .07 .08 .09 .1 .12 .15 .2 .25 "
        ".3 .4 .5 1"
    ).split()
)


@dataclass(frozen=True)
class Outcomes:
    """Every pair (gained, lost) of n items, and the rule's decision. All [outcomes]."""

    n: int
    gained: NDArray[np.int64]
    lost: NDArray[np.int64]
    likely: NDArray[np.bool_]
    unlikely: NDArray[np.bool_]


@dataclass(frozen=True)
class Rate:
    """The rule's decisions at a true `gain` = gained - lost, `discordance` = gained + lost.

    `likely`, `unlikely`, `abstains` are exact probabilities that sum to 1.
    """

    n: int
    gain: float
    discordance: float
    likely: float
    unlikely: float
    abstains: float

    def wrong(self) -> float:
        """The probability of a wrong decision; 0 at the margin itself, where none is wrong."""
        if abs(self.gain - MARGIN) < 1e-9:
            return 0.0
        return self.likely if self.gain < MARGIN else self.unlikely


def outcomes(n: int) -> Outcomes:
    """The rule's decision on each of the (n + 1)(n + 2) / 2 outcomes of n items."""
    gained, lost = np.meshgrid(np.arange(n + 1), np.arange(n + 1), indexing="ij")
    possible = gained + lost <= n
    gained, lost = gained[possible], lost[possible]
    likely, unlikely = np.zeros(len(gained), dtype=bool), np.zeros(len(gained), dtype=bool)
    place, alone = np.arange(n)[:, None], np.arange(n)
    for start in range(0, len(gained), COLUMNS):
        some = slice(start, start + COLUMNS)
        up, down = gained[some], lost[some]
        x = (place < up).astype(float) - ((place >= up) & (place < up + down))
        found = statistics.estimate(x, alone)
        low, high = found.interval(found.critical(LEVEL))
        likely[some], unlikely[some] = low > MARGIN, high < MARGIN
    return Outcomes(n, gained, lost, likely, unlikely)


def probabilities(found: Outcomes, gained: Array, lost: Array) -> Array:
    """Probability of each outcome [outcomes, G] under each pair of true shares [G], [G]."""
    counts = np.stack([found.gained, found.lost, found.n - found.gained - found.lost], axis=1)
    shares = np.stack([gained, lost, (1 - gained - lost).clip(0)], axis=1)
    shares = shares / shares.sum(1, keepdims=True)
    return np.stack([stats.multinomial.pmf(counts, found.n, row) for row in shares], axis=1)


def discordances(gain: float, steps: int = 21) -> Array:
    """Discordances that a gain allows, from the least |gain| to 1, closer together at the least."""
    least = abs(gain)
    every = np.concatenate([np.linspace(least, 1, steps), least + np.array(NEAR)])
    return np.unique(every[every <= 1].round(12))


def rates(n: int, gains: Sequence[float] = GAINS, steps: int = 21) -> list[Rate]:
    """The rule on n items for each true gain and each discordance that the gain allows."""
    found = outcomes(n)
    decided = np.stack([found.likely, found.unlikely]).astype(float)
    rows: list[Rate] = []
    for gain in gains:
        levels = discordances(gain, steps)
        weights = probabilities(found, (levels + gain) / 2, (levels - gain) / 2)
        for level, (yes, no) in zip(levels, (decided @ weights).T, strict=True):
            open_ = max(0.0, 1 - yes - no)
            rows.append(Rate(n, gain, float(level), float(yes), float(no), float(open_)))
    return rows


def worst(rows: Sequence[Rate], away: float = 0.01) -> Rate:
    """The row with the most wrong decisions among gains at least `away` from the margin."""
    far = [row for row in rows if abs(row.gain - MARGIN) > away - 1e-9]
    return max(far, key=lambda row: row.wrong())


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
