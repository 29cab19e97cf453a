"""Constructions of the decision compared by simulation: intervals, selection and looks.

A design is a test of one pair (`signed`), whether only contending systems and baselines are
corrected for (`contention`), and the alpha of each look (`spent`). All runs of a case are drawn at
once; the bootstrap runs only where a single pair would decide.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import special, stats

from loraprobe_lab.experiments.rule.exact import MARGIN, Array
from loraprobe_lab.experiments.rule.simulated import SHARED, SimulatedCase

ALPHA = 0.05  # both sides together
DRAWS = 1000  # of the multiplier bootstrap, used with both signs
SELECTION = 2.0  # standard errors that separate what no longer contends

Signed = Callable[[Array, Array, int, float], Array]  # gained, lost, n, difference -> z
Spending = Callable[[float], float]  # share of the items -> share of alpha


def bonett_price(gained: Array, lost: Array, n: int, difference: float) -> Array:
    """One observation is added in each direction: the interval until now."""
    mean = (gained - lost) / (n + 2)
    variance = ((gained + lost + 2) / (n + 2) - mean**2) / (n + 2)
    return (mean - difference) / np.sqrt(variance)


def tango(gained: Array, lost: Array, n: int, difference: float) -> Array:
    """The score test (Tango 1998): the variance under the hypothesis."""
    low = _restricted(gained, lost, n, difference)
    variance = (2 * low + difference * (1 - difference)) / n
    return ((gained - lost) / n - difference) / np.sqrt(variance)


def likelihood(gained: Array, lost: Array, n: float, difference: float) -> Array:
    """The signed root of the likelihood ratio, with half an observation in each direction."""
    gained, lost, n = gained + 0.5, lost + 0.5, n + 1
    low = _restricted(gained, lost, n, difference)
    same = n - gained - lost
    ratio = special.xlogy(gained, gained / n / (low + difference))
    ratio += special.xlogy(lost, lost / n / low)
    ratio += special.xlogy(same, same / n / np.maximum(1 - 2 * low - difference, 1e-300))
    sign = np.sign((gained - lost) / n - difference)
    return sign * np.sqrt(np.maximum(2 * ratio, 0))


def _restricted(gained: Array, lost: Array, n: float, difference: float) -> Array:
    """The most likely share of lost items, given the difference of the two shares."""
    b = (2 * n - gained + lost) * difference - gained - lost
    root = np.sqrt(np.maximum(b * b + 8 * n * lost * difference * (1 - difference), 0))
    return (root - b) / (4 * n)


def o_brien_fleming(share: float) -> float:
    return 2 * float(special.ndtr(special.ndtri(ALPHA / 2) / math.sqrt(share))) / ALPHA


def pocock(share: float) -> float:
    return math.log(1 + (math.e - 1) * share)


def power(share: float, exponent: float = 2.0) -> float:
    """Kim and DeMets (1987)."""
    return float(share**exponent)


def increments(spending: Spending, shares: Sequence[float]) -> list[float]:
    """The alpha of each look: what is spent since the last one, used on its own (Bonferroni)."""
    spent = [ALPHA * spending(share) for share in shares]
    return np.diff([0.0, *spent]).tolist()


def boundaries(spending: Spending, shares: Sequence[float]) -> list[float]:
    """The alpha of each look so that a Brownian path crosses with the probability spent.

    Armitage, McPherson and Rowe's recursion on a grid (both sides, symmetric).
    """
    grid = np.linspace(-8, 8, 1601)
    step, density, found = grid[1] - grid[0], None, []
    before = 0.0
    for share, amount in zip(shares, increments(spending, shares), strict=True):
        own = math.sqrt(share - before)
        if density is None:
            density = stats.norm.pdf(grid, scale=own)
        else:
            density = stats.norm.pdf(grid[:, None] - grid, scale=own) @ density * step
        tails = np.cumsum(density[::-1])[::-1] * step
        place = np.interp(amount / 2, tails[::-1], grid[::-1])
        density = np.where(np.abs(grid) < place, density, 0.0)
        found.append(2 * float(special.ndtr(-place / math.sqrt(share))))
        before = share
    return found


def confidence_sequence(shares: Sequence[float], tuned: float = 0.3) -> list[float]:
    """The alpha of each look under a normal mixture (Robbins 1970), which holds at every item.

    tuned: the share of the items at which it is the narrowest.
    """
    rho = tuned / (-2 * math.log(ALPHA) + math.log(-2 * math.log(ALPHA)) + 1)
    found = []
    for t in shares:
        bound = math.sqrt((t + rho) / t * math.log((t + rho) / (rho * ALPHA**2)))
        found.append(2 * float(special.ndtr(-bound)))
    return found


@dataclass(frozen=True)
class Design:
    """A construction. alphas: shares of the items at the looks -> alpha of each look."""

    name: str
    signed: Signed = likelihood
    contention: bool = True
    alphas: Callable[[Sequence[float]], list[float]] = lambda shares: [ALPHA] * len(shares)
    shares: tuple[float, ...] = (1.0,)
    drops: bool = False


@dataclass(frozen=True)
class Figures:
    """What a design does on a case: shares of decisions, items and passes (share of all)."""

    design: str
    case: str
    n: int
    truth: float
    likely: float
    unlikely: float
    items: float
    passes: float

    @property
    def wrong(self) -> float:
        if abs(self.truth - MARGIN) < 1e-9:
            return 0.0
        return self.likely if self.truth < MARGIN else self.unlikely


def compare(
    case: SimulatedCase, n: int, designs: Sequence[Design], repeats: int, seed: int = 0
) -> list[Figures]:
    """All designs on the same runs of a case."""
    rng = np.random.default_rng([seed, n])
    right = _draw(rng, case, n, repeats)
    return [_figures(case, n, design, right, rng) for design in designs]


def _draw(rng: np.random.Generator, case: SimulatedCase, n: int, repeats: int) -> Array:
    """Right and wrong [repeats, n, columns]: baselines and compositions plainly, then by steps."""
    best = max(case.baselines)
    means = [*case.baselines, *[best + case.gain] * case.compositions]
    if case.steps_gain is not None:
        steps = case.steps_baseline
        means += [b if steps is None else steps for b in case.baselines]
        means += [best + case.steps_gain] * case.compositions
    common = rng.standard_normal((repeats, n, 1), dtype=np.float32)
    own = rng.standard_normal((repeats, n, len(means)), dtype=np.float32)
    latent = SHARED**0.5 * common + (1 - SHARED) ** 0.5 * own
    return (latent < special.ndtri(np.array(means))).astype(np.float32)


def _figures(
    case: SimulatedCase, n: int, design: Design, right: Array, rng: np.random.Generator
) -> Figures:
    looks = [round(n * share) for share in design.shares]
    alphas = design.alphas([look / n for look in looks])
    counts = {"likely": 0, "unlikely": 0}
    items = passes = 0.0
    for run in right:
        state = _Run(case, run, design, rng)
        decision, used, cost = state.decide(looks, alphas)
        counts[decision] = counts.get(decision, 0) + 1
        items += used / n
        passes += cost / (n * (len(case.baselines) + case.compositions))
    runs = len(right)
    return Figures(
        design.name,
        case.name,
        n,
        case.truth,
        counts["likely"] / runs,
        counts["unlikely"] / runs,
        items / runs,
        passes / runs,
    )


class _Run:
    """One run of one case: which compositions are left, and the decision after each look."""

    def __init__(self, case: SimulatedCase, right: Array, design: Design, rng: object) -> None:
        self.case, self.right, self.design, self.rng = case, right, design, rng
        self.left = list(range(case.compositions))

    def decide(self, looks: Sequence[int], alphas: Sequence[float]) -> tuple[str, int, float]:
        cost, before = 0.0, 0
        for n, alpha in zip(looks, alphas, strict=True):
            cost += (n - before) * (len(self.case.baselines) + len(self.left))
            before = n
            decision, out = self._look(n, alpha)
            if decision or n == looks[-1]:
                return decision or "open", n, cost
            if self.design.drops:
                self.left = [s for s in self.left if s not in out]
        raise AssertionError

    def _look(self, n: int, alpha: float) -> tuple[str, set[int]]:
        forms = [self._form(n, steps) for steps in range(1 + (self.case.steps_gain is not None))]
        contending = [True] * len(forms)
        if self.design.contention and len(forms) > 1:
            top = [max(f.center - SELECTION * f.se) for f in forms]
            contending = [max(f.center + SELECTION * f.se) >= max(top) for f in forms]
        likely = any(
            f.exceeds(alpha / sum(contending)) for f, c in zip(forms, contending, strict=True) if c
        )
        if likely:
            return "likely", set()
        below = [f.below(alpha) for f in forms]
        out = {s for k, s in enumerate(self.left) if all(b[k] for b in below)}
        if len(out) == len(self.left):
            return "unlikely", out
        worse = [f.worse(alpha) for f in forms]
        out |= {s for k, s in enumerate(self.left) if all(w[k] for w in worse)}
        return "", out

    def _form(self, n: int, steps: int) -> _Form:
        b, s = len(self.case.baselines), self.case.compositions
        block = self.right[:n]
        base = block[:, :b] if not steps else block[:, [*range(b), *range(b + s, 2 * b + s)]]
        composed = block[:, [(b + s) * steps + b + k for k in self.left]]
        return _Form(composed, base, self.design, self.rng)


class _Form:
    """The compositions [items, S] and baselines [items, B] on one form of the question."""

    def __init__(self, composed: Array, base: Array, design: Design, rng: object) -> None:
        self.composed, self.base, self.design, self.rng = composed, base, design, rng
        self.n = len(base)
        x = composed[:, :, None] - base[:, None, :]
        self.x = x.reshape(self.n, -1)
        self.shape = x.shape[1:]
        self.gained, self.lost = (x > 0).sum(0).astype(float), (x < 0).sum(0).astype(float)
        self.z = design.signed(self.gained, self.lost, self.n, MARGIN)
        mean = (self.gained - self.lost) / (self.n + 2)
        self.pair = mean
        self.pair_se = np.sqrt(
            ((self.gained + self.lost + 2) / (self.n + 2) - mean**2) / (self.n + 2)
        )
        nearest = mean.argmin(1)
        self.center = mean[np.arange(len(mean)), nearest]
        self.se = self.pair_se[np.arange(len(mean)), nearest]

    def exceeds(self, alpha: float) -> bool:
        """Whether some composition gains more than the margin."""
        best = self.z.min(1).max()
        if best <= special.ndtri(1 - alpha / 2):
            return False
        keep = np.ones(self.shape, dtype=bool)
        if self.design.contention:
            reach = SELECTION * self.se
            keep &= (self.center + reach >= (self.center - reach).max())[:, None]
        return bool(best > self._critical(alpha, keep, axis=1))

    def below(self, alpha: float) -> Array:
        """Which compositions gain less than the margin: [S]."""
        low = self.z.min(1)
        if low.min() >= special.ndtri(alpha / 2):
            return np.zeros(len(low), dtype=bool)
        keep = np.ones(self.shape, dtype=bool)
        if self.design.contention:
            reach = SELECTION * self.pair_se
            keep = self.pair - reach <= (self.pair + reach).min(1, keepdims=True)
        critical = self._critical(alpha, keep, axis=2)
        return np.asarray(np.where(keep, self.z, np.inf).min(1) < -critical)

    def worse(self, alpha: float) -> Array:
        """Which compositions are worse than the leader: [S]."""
        leader = self.center.argmax()
        x = self.composed - self.composed[:, [leader]]
        z = self.design.signed((x > 0).sum(0), (x < 0).sum(0), self.n, 0.0)
        count = max(1, len(z) - 1)
        return np.asarray(z < special.ndtri(alpha / 2 / count))

    def _critical(self, alpha: float, keep: Array, axis: int) -> float:
        """The critical value of the largest over systems (axis 1) or baselines (axis 2)."""
        single = -float(special.ndtri(alpha / 2))
        many = int(keep.sum(axis - 1).max())
        if many == 1:
            return single
        bonferroni = -float(special.ndtri(alpha / 2 / many))
        if alpha * DRAWS < 25:
            return bonferroni
        x = self.x - self.x.mean(0)
        covariance = x.T @ x / self.n**2 + np.eye(x.shape[1]) * 2 / self.n**2
        scale = np.sqrt(np.diag(covariance))
        values, vectors = np.linalg.eigh(covariance / np.outer(scale, scale))
        root = (vectors * np.sqrt(values.clip(0))) @ vectors.T
        draws = self.rng.standard_normal((DRAWS, len(scale))) @ root  # type: ignore[attr-defined]
        grid = np.concatenate([draws, -draws]).reshape(-1, *self.shape)
        top = np.where(keep, grid, -np.inf).max(axis)
        return min(bonferroni, max(single, float(np.quantile(top, 1 - alpha / 2, axis=0).max())))


def results(
    designs: Sequence[Design],
    cases: Mapping[str, Sequence[SimulatedCase]],
    sizes: Sequence[int],
    repeats: int,
    seed: int = 0,
) -> list[Figures]:
    return [
        row
        for n in sizes
        for chosen in cases.values()
        for case in chosen
        for row in compare(case, n, designs, repeats, seed)
    ]
