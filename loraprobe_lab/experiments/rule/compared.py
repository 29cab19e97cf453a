"""Constructions of the decision (`designs`), compared on the same simulated runs.

The runs are those of `decisions.simulate`. A run is bootstrapped only where a single pair would
decide.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy import special

from loraprobe.defaults import ALPHA
from loraprobe.evaluation.rounds import look_shares
from loraprobe.evaluation.selection import SELECTION
from loraprobe.records import Progress
from loraprobe_lab.experiments.rule.decisions import (
    MARGIN,
    SHARED,
    Array,
    SimulatedCase,
    accuracies,
    cases,
    split_cases,
)
from loraprobe_lab.experiments.rule.designs import DESIGNS, Design, Signed, moments

DRAWS = 1000  # of the multiplier bootstrap, each with both signs
WRONG_AT = (0.04, 0.06)  # true gains at which wrong decisions are counted
DECIDED_AT = (-0.1, 0.0, 0.15, 0.3, 0.6)  # true gains at which right decisions are counted


@dataclass(frozen=True)
class DesignFigures:
    """On all cases of n items: the most `wrong` decisions, on `case`, and means of the shares of
    right decisions, of the `items` that were asked, and of items times systems (`passes`)."""

    design: str
    n: int
    wrong: float
    case: str
    decided: float
    items: float
    passes: float


def compare_designs(
    n: int,
    repeats: int,
    seed: int = 0,
    progress: Progress | None = None,
    designs: Sequence[Design] = DESIGNS,
) -> list[dict[str, Any]]:
    """Every design on every case; a case of WRONG_AT has `repeats` runs, another a quarter."""
    chosen = [(case, repeats) for truth in WRONG_AT for case in cases(truth)]
    chosen += [(case, repeats) for case in split_cases(max(WRONG_AT))]
    possible = [
        c for t in DECIDED_AT for c in cases(t) if max(c.baselines) + t > 0 and c.truth == t
    ]
    chosen += [(case, max(1, repeats // 4)) for case in possible]
    rows: dict[str, list[tuple[SimulatedCase, Array]]] = {design.name: [] for design in designs}
    for k, (case, runs) in enumerate(chosen):
        rng = np.random.default_rng([seed, n, k])
        right = _draw(rng, case, n, runs)
        for design in designs:
            rows[design.name].append((case, _Runs(case, right, design, rng).decide()))
        if progress is not None:
            progress("constructions", k + 1, len(chosen))
    return [asdict(_summary(name, n, found)) for name, found in rows.items()]


def _summary(name: str, n: int, found: Sequence[tuple[SimulatedCase, Array]]) -> DesignFigures:
    wrong, right = [], []
    for case, (likely, unlikely, items, passes) in found:
        above = case.truth > MARGIN
        if case.truth in WRONG_AT:
            wrong.append((float(unlikely if above else likely), case.name))
        else:
            right.append((float(likely if above else unlikely), items, passes))
    worst, means = max(wrong), np.mean(right, axis=0)
    return DesignFigures(name, n, *worst, *map(float, means))


def _draw(rng: np.random.Generator, case: SimulatedCase, n: int, runs: int) -> Array:
    """Right and wrong [runs, n, columns], in the order of `accuracies`."""
    means = accuracies(case)
    common = rng.standard_normal((runs, n, 1), dtype=np.float32)
    own = rng.standard_normal((runs, n, len(means)), dtype=np.float32)
    latent = SHARED**0.5 * common + (1 - SHARED) ** 0.5 * own
    return (latent < special.ndtri(np.array(means))).astype(np.float32)


class _Runs:
    """All runs of one case under one design."""

    def __init__(
        self, case: SimulatedCase, right: Array, design: Design, rng: np.random.Generator
    ) -> None:
        self.case, self.right, self.design, self.rng = case, right, design, rng
        self.n = right.shape[1]
        self.left = np.ones((len(right), case.compositions), dtype=bool)
        self.open = np.ones(len(right), dtype=bool)

    def decide(self) -> Array:
        """Shares of likely, unlikely, of the items, and of the items times systems."""
        looks = look_shares(self.n) if self.design.alphas else (1.0,)
        sizes = [round(self.n * share) for share in looks]
        shares = [size / self.n for size in sizes]
        alphas = self.design.alphas(shares) if self.design.alphas else [ALPHA]
        base, before = len(self.case.baselines), 0
        totals = np.zeros(4)
        for size, alpha in zip(sizes, alphas, strict=True):
            asked = self.left[self.open].sum(1) + base
            whole = base + self.case.compositions
            totals[2] += len(asked) * (size - before) / self.n
            totals[3] += asked.sum() / whole * (size - before) / self.n
            before = size
            totals[:2] += self._look(size, alpha)
        return np.asarray(totals / len(self.right))

    def _look(self, n: int, alpha: float) -> tuple[int, int]:
        """How many runs become likely and unlikely after n items."""
        single = -float(special.ndtri(alpha / 2))
        forms = [self._form(n, k) for k in range(1 if self.case.steps_gain is None else 2)]
        counts = [0, 0]
        tops = [np.where(self.left, form.z.min(2), -np.inf).max(1) for form in forms]
        for run in map(int, np.flatnonzero(self.open & (np.max(tops, axis=0) > single))):
            if self._exceeds(forms, run, alpha):
                self.open[run] = False
                counts[0] += 1
        for run in map(int, np.flatnonzero(self.open & (np.max(tops, axis=0) < -single))):
            if all(form.below(run, self.left[run], alpha, self) for form in forms):
                self.open[run] = False
                counts[1] += 1
        if self.design.alphas:
            gone = np.logical_and.reduce([form.out(self.left, alpha) for form in forms])
            self.left &= ~gone | gone.all(1, keepdims=True)
        return counts[0], counts[1]

    def _exceeds(self, forms: Sequence[_Form], run: int, alpha: float) -> bool:
        contends = [True] * len(forms)
        if self.design.contention:
            ends = [form.reach(run, self.left[run]) for form in forms]
            best = max(low.max() for low, _ in ends)
            contends = [bool(high.max() >= best) for _, high in ends]
        return any(
            form.exceeds(run, self.left[run], alpha / sum(contends), self)
            for form, one in zip(forms, contends, strict=True)
            if one
        )

    def _form(self, n: int, steps: int) -> _Form:
        b, s = len(self.case.baselines), self.case.compositions
        block = self.right[:, :n]
        first = (b + s) * steps + b
        seconds = [*range(b), *(range(b + s, 2 * b + s) if steps else [])]
        return _Form(block[:, :, first : first + s], block[:, :, seconds], self.design.signed)


class _Form:
    """Compositions [runs, n, S] and baselines [runs, n, B] on one form of the question."""

    def __init__(self, composed: Array, base: Array, signed: Signed) -> None:
        self.composed, self.base, self.n = composed, base, base.shape[1]
        turned = composed.swapaxes(1, 2)
        self.signed = signed
        self.gained = (turned @ (1 - base)).astype(float)  # [runs, S, B]
        self.lost = ((1 - turned) @ base).astype(float)
        self.z = signed(self.gained, self.lost, self.n, MARGIN)
        self.mean, self.se = moments(self.gained, self.lost, self.n)

    def reach(self, run: int, left: Array) -> tuple[Array, Array]:
        mean, se = self.mean[run], self.se[run]
        place = np.arange(len(mean)), mean.argmin(1)
        low, high = mean[place] - SELECTION * se[place], mean[place] + SELECTION * se[place]
        return np.where(left, low, -np.inf), np.where(left, high, -np.inf)

    def exceeds(self, run: int, left: Array, alpha: float, runs: _Runs) -> bool:
        keep: Any = np.repeat(left[:, None], self.base.shape[2], axis=1)
        if runs.design.contention:
            low, high = self.reach(run, left)
            keep &= (high >= low.max())[:, None]
        best = np.where(left, self.z[run].min(1), -np.inf).max()
        return bool(best > self._critical(run, keep, alpha, 0, runs.rng))

    def below(self, run: int, left: Array, alpha: float, runs: _Runs) -> bool:
        keep: Any = np.repeat(left[:, None], self.base.shape[2], axis=1)
        if runs.design.contention:
            mean, se = self.mean[run], self.se[run]
            keep &= mean - SELECTION * se <= (mean + SELECTION * se).min(1, keepdims=True)
        top = np.where(left, self.z[run].min(1), -np.inf).max()
        return bool(top < -self._critical(run, keep, alpha, 1, runs.rng))

    def out(self, left: Array, alpha: float) -> Array:
        """Which compositions fail, or are worse than the best one: [runs, S], by Bonferroni."""
        fails = self.z.min(2) < special.ndtri(alpha / 2 / self.base.shape[2])
        leader = np.where(left, self.mean.min(2), -np.inf).argmax(1)[:, None, None]
        best = np.take_along_axis(self.composed, leader, axis=2)
        turned = self.composed.swapaxes(1, 2)
        z = self.signed(
            (turned @ (1 - best)).astype(float)[:, :, 0],
            ((1 - turned) @ best).astype(float)[:, :, 0],
            self.n,
            0.0,
        )
        return np.asarray(fails | (z < special.ndtri(alpha / 2 / max(1, z.shape[1] - 1))))

    def _critical(
        self, run: int, keep: Array, alpha: float, axis: int, rng: np.random.Generator
    ) -> float:
        """The critical value of the largest over systems (axis 0) or baselines (axis 1)."""
        many = int(keep.sum(axis).max())
        single, bound = (-float(special.ndtri(alpha / 2 / m)) for m in (1, max(1, many)))
        if many <= 1 or alpha * DRAWS < 25:
            return bound
        x = (self.composed[run][:, :, None] - self.base[run][:, None, :]).reshape(self.n, -1)
        x = x - x.mean(0)
        covariance = x.T @ x + 2 * np.eye(x.shape[1])
        scale = np.sqrt(np.diag(covariance))
        values, vectors = np.linalg.eigh(covariance / np.outer(scale, scale))
        root = (vectors * np.sqrt(values.clip(0))) @ vectors.T
        draws = rng.standard_normal((DRAWS, len(scale))) @ root
        grid = np.concatenate([draws, -draws]).reshape(-1, *keep.shape)
        top = np.where(keep, grid, -99.0).max(axis + 1)
        return min(bound, max(single, float(np.quantile(top, 1 - alpha / 2, axis=0).max())))
