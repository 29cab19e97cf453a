"""How often the decision between several systems is wrong, by simulation: one look, and by rounds.

Items have a difficulty that all systems share in part. All runs of a case are judged at once; a run
is bootstrapped only where a single pair would decide. Controls are left out, because they can only
revoke a `likely`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy import special

from loraprobe.evaluation import statistics
from loraprobe.evaluation.rounds import look_alphas, look_shares
from loraprobe.evaluation.selection import SELECTION
from loraprobe.records import Progress
from loraprobe_lab.experiments.rule.exact import MARGIN, Array

SHARED = 0.3  # share of the variance of an item's latent difficulty that is common to all systems
DRAWS = 1000  # of the multiplier bootstrap, each with both signs
WRONG_AT = (0.04, 0.06)  # true gains at which wrong decisions are counted
DECIDED_AT = (-0.1, 0.0, 0.15, 0.3, 0.6)  # true gains at which right decisions are counted


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

    def accuracies(self) -> list[float]:
        """Of baselines, then compositions: plainly, and then step by step if that is asked."""
        best = max(self.baselines)
        means = [*self.baselines, *[best + self.gain] * self.compositions]
        if self.steps_gain is not None:
            steps = self.steps_baseline
            means += [b if steps is None else steps for b in self.baselines]
            means += [best + self.steps_gain] * self.compositions
        return means


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


@dataclass(frozen=True)
class SimulatedShares:
    """On all cases of n items: the most `wrong` decisions, on `case`, and means of the shares of
    right decisions, of the `items` that were asked, and of items times systems (`passes`)."""

    n: int
    rounds: bool
    wrong: float
    case: str
    decided: float
    items: float
    passes: float


def simulate(
    n: int, repeats: int, seed: int = 0, progress: Progress | None = None
) -> list[dict[str, Any]]:
    """One look and rounds on every case; one of WRONG_AT has `repeats` runs, another a quarter."""
    chosen = [(case, repeats) for truth in WRONG_AT for case in cases(truth)]
    chosen += [(case, repeats) for case in split_cases(max(WRONG_AT))]
    possible = [
        c for t in DECIDED_AT for c in cases(t) if max(c.baselines) + t > 0 and c.truth == t
    ]
    chosen += [(case, max(1, repeats // 4)) for case in possible]
    looks = {False: (1.0,), True: look_shares(n)}
    rows: dict[bool, list[tuple[SimulatedCase, Array]]] = {rounds: [] for rounds in looks}
    for k, (case, runs) in enumerate(chosen):
        rng = np.random.default_rng([seed, n, k])
        right = _draw(rng, case, n, runs)
        for rounds, shares in looks.items():
            rows[rounds].append((case, _Runs(case, right, rng).decide(shares)))
        if progress is not None:
            progress(f"{n} simulated items", k + 1, len(chosen))
    return [asdict(_summary(n, rounds, found)) for rounds, found in rows.items()]


def _summary(n: int, rounds: bool, found: Sequence[tuple[SimulatedCase, Array]]) -> SimulatedShares:
    wrong, right = [], []
    for case, (likely, unlikely, items, passes) in found:
        above = case.truth > MARGIN
        if case.truth in WRONG_AT:
            wrong.append((float(unlikely if above else likely), case.name))
        else:
            right.append((float(likely if above else unlikely), items, passes))
    worst, means = max(wrong), np.mean(right, axis=0)
    return SimulatedShares(n, rounds, *worst, *map(float, means))


def _draw(rng: np.random.Generator, case: SimulatedCase, n: int, runs: int) -> Array:
    """Right and wrong [runs, n, columns], in the order of `accuracies`."""
    means = case.accuracies()
    common = rng.standard_normal((runs, n, 1), dtype=np.float32)
    own = rng.standard_normal((runs, n, len(means)), dtype=np.float32)
    latent = SHARED**0.5 * common + (1 - SHARED) ** 0.5 * own
    return (latent < special.ndtri(np.array(means))).astype(np.float32)


class _Runs:
    """All runs of one case."""

    def __init__(self, case: SimulatedCase, right: Array, rng: np.random.Generator) -> None:
        self.case, self.right, self.rng = case, right, rng
        self.left = np.ones((len(right), case.compositions), dtype=bool)
        self.open = np.ones(len(right), dtype=bool)

    def decide(self, looks: Sequence[float]) -> Array:
        """Shares of likely, unlikely, of the items, and of the items times systems."""
        n, base, before = self.right.shape[1], len(self.case.baselines), 0
        sizes = [round(n * share) for share in looks]
        alphas = look_alphas(tuple(size / n for size in sizes))
        totals = np.zeros(4)
        for size, alpha in zip(sizes, alphas, strict=True):
            asked = self.left[self.open].sum(1) + base
            whole = base + self.case.compositions
            totals[2] += len(asked) * (size - before) / n
            totals[3] += asked.sum() / whole * (size - before) / n
            before = size
            totals[:2] += self._look(size, alpha)
        return np.asarray(totals / len(self.right))

    def _look(self, n: int, alpha: float) -> tuple[int, int]:
        """How many runs become likely and unlikely after n items; drops systems that cannot win."""
        single = -float(special.ndtri(alpha / 2))
        forms = [self._form(n, k) for k in range(1 if self.case.steps_gain is None else 2)]
        counts = [0, 0]
        tops = [np.where(self.left, form.z.min(2), -np.inf).max(1) for form in forms]
        for run in map(int, np.flatnonzero(self.open & (np.max(tops, axis=0) > single))):
            if self._exceeds(forms, run, alpha):
                self.open[run] = False
                counts[0] += 1
        for run in map(int, np.flatnonzero(self.open & (np.max(tops, axis=0) < -single))):
            if all(form.below(run, self.left[run], alpha, self.rng) for form in forms):
                self.open[run] = False
                counts[1] += 1
        gone = np.logical_and.reduce([form.out(self.left, alpha) for form in forms])
        self.left &= ~gone | gone.all(1, keepdims=True)
        return counts[0], counts[1]

    def _exceeds(self, forms: Sequence[_Form], run: int, alpha: float) -> bool:
        """Whether a form that contends exceeds the margin, where alpha is divided among them."""
        ends = [form.reach(run, self.left[run]) for form in forms]
        best = max(low.max() for low, _ in ends)
        contending = [
            form for form, (_, high) in zip(forms, ends, strict=True) if high.max() >= best
        ]
        share = alpha / len(contending)
        return any(form.exceeds(run, self.left[run], share, self.rng) for form in contending)

    def _form(self, n: int, steps: int) -> _Form:
        b, s = len(self.case.baselines), self.case.compositions
        block = self.right[:, :n]
        first = (b + s) * steps + b
        seconds = [*range(b), *(range(b + s, 2 * b + s) if steps else [])]
        return _Form(block[:, :, first : first + s], block[:, :, seconds])


class _Form:
    """Compositions [runs, n, S] and baselines [runs, n, B] on one form of the question."""

    def __init__(self, composed: Array, base: Array) -> None:
        self.composed, self.base, n = composed, base, base.shape[1]
        gained, lost = _counts(composed, base)
        self.z = _signed_root(gained, lost, n, MARGIN)  # [runs, S, B]
        self.mean = (gained - lost) / (n + 2)  # Bonett and Price's, with its standard error
        self.se = np.sqrt(((gained + lost + 2) / (n + 2) - self.mean**2) / (n + 2))

    def reach(self, run: int, left: Array) -> tuple[Array, Array]:
        """Ends of what each system can gain over its best baseline; -inf for a dropped one."""
        mean, se = self.mean[run], self.se[run]
        place = np.arange(len(mean)), mean.argmin(1)
        low, high = mean[place] - SELECTION * se[place], mean[place] + SELECTION * se[place]
        return np.where(left, low, -np.inf), np.where(left, high, -np.inf)

    def exceeds(self, run: int, left: Array, alpha: float, rng: np.random.Generator) -> bool:
        low, high = self.reach(run, left)
        keep = np.repeat((left & (high >= low.max()))[:, None], self.base.shape[2], axis=1)
        best = np.where(left, self.z[run].min(1), -np.inf).max()
        return bool(best > self._critical(run, keep, alpha, 0, rng))

    def below(self, run: int, left: Array, alpha: float, rng: np.random.Generator) -> bool:
        mean, se = self.mean[run], self.se[run]
        contends = mean - SELECTION * se <= (mean + SELECTION * se).min(1, keepdims=True)
        top = np.where(left, self.z[run].min(1), -np.inf).max()
        return bool(top < -self._critical(run, left[:, None] & contends, alpha, 1, rng))

    def out(self, left: Array, alpha: float) -> Array:
        """Which compositions fail, or are worse than the best one: [runs, S], by Bonferroni."""
        fails = self.z.min(2) < special.ndtri(alpha / 2 / self.base.shape[2])
        leader = np.where(left, self.mean.min(2), -np.inf).argmax(1)[:, None, None]
        best = np.take_along_axis(self.composed, leader, axis=2)
        gained, lost = _counts(self.composed, best)
        z = _signed_root(gained, lost, best.shape[1], 0.0)[:, :, 0]
        return np.asarray(fails | (z < special.ndtri(alpha / 2 / max(1, z.shape[1] - 1))))

    def _critical(
        self, run: int, keep: Array, alpha: float, axis: int, rng: np.random.Generator
    ) -> float:
        """The critical value of the largest over systems (axis 0) or baselines (axis 1)."""
        many = int(keep.sum(axis).max())
        single, bound = (-float(special.ndtri(alpha / 2 / m)) for m in (1, max(1, many)))
        if many <= 1 or alpha * DRAWS < 25:
            return bound
        x = (self.composed[run][:, :, None] - self.base[run][:, None, :]).reshape(
            len(self.base[run]), -1
        )
        x = x - x.mean(0)
        covariance = x.T @ x + 2 * np.eye(x.shape[1])
        scale = np.sqrt(np.diag(covariance))
        values, vectors = np.linalg.eigh(covariance / np.outer(scale, scale))
        root = (vectors * np.sqrt(values.clip(0))) @ vectors.T
        draws = rng.standard_normal((DRAWS, len(scale))) @ root
        grid = np.concatenate([draws, -draws]).reshape(-1, *keep.shape)
        top = np.where(keep, grid, -99.0).max(axis + 1)
        return min(bound, max(single, float(np.quantile(top, 1 - alpha / 2, axis=0).max())))


def _counts(composed: Array, base: Array) -> tuple[Array, Array]:
    """Gained and lost items of each pair, [runs, S, B], from [runs, n, S] and [runs, n, B]."""
    turned = composed.swapaxes(1, 2)
    return (turned @ (1 - base)).astype(float), ((1 - turned) @ base).astype(float)


def _signed_root(gained: Array, lost: Array, n: int, difference: float) -> Array:
    """The signed root of the likelihood ratio at this difference."""
    half = statistics.HALF
    size = np.full_like(gained, n + 2 * half)
    return statistics.signed_root(
        gained + half, lost + half, size, np.full_like(gained, difference)
    )
