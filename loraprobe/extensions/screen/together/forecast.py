"""How much of its skill an adapter keeps in a merge, forecast without making one.

A merge M of the updates dW_j contains the share

    share_i = <M, dW_i> / ||dW_i||^2

of the update dW_i: the coefficient of dW_i in the least squares fit of M. For a linear merge it is
sum_j w_j <dW_j, dW_i> / ||dW_i||^2. What an adapter keeps in an average is close to what it keeps
*alone* at the gate share_i. So N adapters, each asked alone at a few gates, forecast the averages
of every subset; the partners enter by their inner products only, which need no model.

`examples/together` has the error of such forecasts. They hold for averages: a sum contains each
adapter whole or more, so what it loses is interference, which no single adapter shows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from loraprobe.adapters import Adapter
from loraprobe.evaluation.statistics import Array
from loraprobe.extensions.screen.defaults import FORECAST_ERROR, LEAST_GAIN
from loraprobe.lora.grams import gram_matrices
from loraprobe.records.measurements import Z95

DRAWS = 500  # samples of the items
WIDTH = 200  # groups of one size from which larger ones are made


@dataclass(frozen=True)
class Curve:
    """What an adapter keeps alone at smaller gates.

    gates: in rising order, 0 and 1 included. kept, errors: the retention at each gate and its
    standard error by the items, [gates].
    """

    gates: tuple[float, ...]
    kept: Array
    errors: Array

    @classmethod
    def of(cls, base: Array, alone: Array, at: Mapping[float, Array], seed: int = 0) -> Curve:
        """From the values of each item: [items], of the base, of the adapter, and at each gate.

        All scores of a sample are of the same items, so what they share cancels.
        """
        gates = (0.0, *sorted(at), 1.0)
        gains = np.stack([base, *(at[gate] for gate in sorted(at)), alone]) - base
        items = np.random.default_rng(seed).integers(0, len(base), (DRAWS, len(base)))
        means = gains[:, items].mean(-1)  # [gates, samples]
        usable = means[-1] >= LEAST_GAIN / 2
        drawn = (means / np.where(usable, means[-1], 1.0))[:, usable].T
        return cls(gates, gains.mean(-1) / gains[-1].mean(), drawn.std(0))

    @classmethod
    def through(cls, points: Mapping[float, tuple[float, float]]) -> Curve:
        """From retentions that are known, each with its standard error, by gate."""
        known = {0.0: (0.0, 0.0), 1.0: (1.0, 0.0)} | dict(points)
        gates = tuple(sorted(known))
        kept, errors = np.array([known[gate] for gate in gates]).T
        return cls(gates, kept, errors)

    def at(self, share: float) -> float:
        """The retention at a gate, between the asked ones on a line; at 1 and above it is 1."""
        return float(np.interp(share, self.gates, self.kept))

    def interval(self, share: float) -> tuple[float, float]:
        """The 95 % interval of a forecast: by the items, and by the error of such forecasts."""
        error = np.interp(share, self.gates, self.errors)
        spread = Z95 * float(np.hypot(error, FORECAST_ERROR))
        return self.at(share) - spread, self.at(share) + spread


def inner_products(adapters: Sequence[Adapter]) -> Array:
    """<dW_i, dW_j> of whole adapters, over all modules: [n, n]."""
    batches = gram_matrices([adapter.modules for adapter in adapters])
    return np.asarray(sum(grams.inner.sum(0) for grams in batches))


@dataclass(frozen=True)
class MergeForecast:
    """What adapters keep in uniform merges of any of them.

    curves: of the adapters with a skill. inner: the inner products of their updates, [n, n].
    """

    curves: Mapping[str, Curve]
    inner: Array

    def shares(self, group: Sequence[str]) -> list[float]:
        """How much of each adapter the uniform merge of a group contains."""
        names = [*self.curves]
        at = [names.index(name) for name in group]
        inner = self.inner[np.ix_(at, at)]
        return [float(share) for share in inner.mean(0) / np.diag(inner)]

    def kept(self, group: Sequence[str]) -> list[float]:
        """The retention of each adapter of a group in their uniform merge."""
        pairs = zip(group, self.shares(group), strict=True)
        return [self.curves[name].at(share) for name, share in pairs]

    def groups(self, least: float, most: int) -> list[tuple[str, ...]]:
        """The largest groups of which every adapter is forecast to keep `least`, the best first.

        Groups grow by one adapter at a time from the WIDTH best smaller ones, so a larger one may
        be missed. Of one size that with the larger smallest retention comes first. Where no pair
        reaches `least`, the result is the best pair.
        """
        names = [*self.curves]
        grown: list[tuple[str, ...]] = [(name,) for name in names]
        found = list[tuple[str, ...]]()
        while grown:
            wider = {
                tuple(name for name in names if name == more or name in group)
                for group in grown
                for more in names
                if more not in group
            }
            rated = sorted((-min(self.kept(group)), group) for group in wider)
            grown = [group for worst, group in rated[:WIDTH] if -worst >= least]
            if not found and not grown and rated:
                grown, found = [], [rated[0][1]]
            found = [*grown, *found]
        return found[:most]
