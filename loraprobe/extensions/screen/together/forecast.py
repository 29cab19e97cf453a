"""How much of its skill an adapter keeps in a merge, forecast from few merges or none.

A merge M of the updates dW_j contains the share

    share_i = <M, dW_i> / ||dW_i||^2

of the update dW_i: the coefficient of dW_i in the least squares fit of M. For a linear merge it is
sum_j w_j <dW_j, dW_i> / ||dW_i||^2. What an adapter keeps in an average is close to what it keeps
*alone* at the gate share_i, less what partners take beyond that, its interference:

    kept_i = curve_i(share_i) - interference_i

Small models have next to none; in larger ones most adapters keep all of their skill alone at one
half, and lose it beside others. It is a property of the adapter more than of the partner, so two
measured pairs tell it: N adapters in a cycle, each asked beside its two neighbours, N merges in
all. From these and the adapters alone at a few gates come the averages of every subset.

`examples/together` has the error of such forecasts. They hold for averages: a sum contains each
adapter whole or more.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from loraprobe.adapters import Adapter
from loraprobe.evaluation.statistics import Array
from loraprobe.extensions.screen.defaults import ALONE_ERROR, FORECAST_ERROR, LEAST_GAIN
from loraprobe.lora.grams import gram_matrices
from loraprobe.records.measurements import Z95

DRAWS = 500  # samples of the items
WIDTH = 200  # groups of one size from which larger ones are made
PRIOR = 2  # pairs of average interference that count beside those of an adapter


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

    def error(self, share: float) -> float:
        """The standard error at a gate, by the items."""
        return float(np.interp(share, self.gates, self.errors))


@dataclass(frozen=True)
class MeasuredPair:
    """The retention of an adapter beside another one in their uniform merge.

    error: its standard error by the items. forecast: the retention alone at its share.
    """

    adapter: str
    partner: str
    value: float
    error: float
    forecast: float


def cycle(names: Sequence[str], seed: int) -> list[tuple[str, str]]:
    """The pairs to measure: each of three adapters or more beside two others, drawn.

    Two adapters are one pair, which the proof measures.
    """
    drawn = random.Random(f"pairs:{seed}").sample([*names], len(names))
    return [*zip(drawn, [*drawn[1:], drawn[0]], strict=True)] if len(names) > 2 else []


def interferences(names: Sequence[str], pairs: Sequence[MeasuredPair]) -> dict[str, float]:
    """What each adapter loses beside others, more than alone at its share, from measured pairs.

    Those of an adapter count beside PRIOR of average interference. It is 0 without pairs.
    """
    losses = defaultdict[str, list[float]](list)
    for pair in pairs:
        losses[pair.adapter].append(pair.forecast - pair.value)
    mean = float(np.mean([one for own in losses.values() for one in own])) if losses else 0.0
    return {
        name: (sum(losses[name]) + PRIOR * mean) / (len(losses[name]) + PRIOR) for name in names
    }


def inner_products(adapters: Sequence[Adapter]) -> Array:
    """<dW_i, dW_j> of whole adapters, over all modules: [n, n]."""
    batches = gram_matrices([adapter.modules for adapter in adapters])
    return np.asarray(sum(grams.inner.sum(0) for grams in batches))


def shares(inner: Array) -> list[float]:
    """How much of each of n updates their uniform merge contains. inner: products, [n, n]."""
    return [float(share) for share in inner.mean(0) / inner.diagonal()]


@dataclass(frozen=True)
class MergeForecast:
    """What adapters keep in uniform merges of any of them.

    curves: of the adapters with a skill. inner: the inner products of their updates, [n, n].
    interference: by adapter, where it was measured. pairs: what was measured.
    """

    curves: Mapping[str, Curve]
    inner: Array
    interference: Mapping[str, float] = field(default_factory=dict)
    pairs: Sequence[MeasuredPair] = ()

    def shares(self, group: Sequence[str]) -> list[float]:
        """How much of each adapter the uniform merge of a group contains."""
        names = [*self.curves]
        at = [names.index(name) for name in group]
        return shares(self.inner[np.ix_(at, at)])

    def kept(self, group: Sequence[str]) -> list[float]:
        """The retention of each adapter of a group in their uniform merge, measured or forecast."""
        return [self.of(name, group)[0] for name in group]

    def of(self, name: str, group: Sequence[str]) -> tuple[float, float]:
        """The retention of one adapter in the uniform merge of a group, and its standard error.

        A forecast has the error of the items and that of such forecasts.
        """
        for pair in self.pairs:
            if pair.adapter == name and {*group} == {name, pair.partner}:
                return pair.value, pair.error
        curve, share = self.curves[name], self.shares(group)[[*group].index(name)]
        unexplained = FORECAST_ERROR if name in self.interference else ALONE_ERROR
        kept = curve.at(share) - self.interference.get(name, 0.0)
        return min(1.0, max(0.0, kept)), float(np.hypot(curve.error(share), unexplained))

    def interval(self, name: str, group: Sequence[str]) -> tuple[float, float]:
        """The 95 % interval of `of`."""
        value, error = self.of(name, group)
        return value - Z95 * error, value + Z95 * error

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
