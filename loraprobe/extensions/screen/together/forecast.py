"""How much of its skill an adapter keeps in a merge, forecast from few merges or none.

The uniform merge of n updates dW_j contains the share

    share_i = (1 + kinship sum_{j != i} <dW_j, dW_i> / ||dW_i||^2) / n

of the update dW_i. With a kinship of 1 this is the coefficient of dW_i in the least squares fit of
the merge. It is larger than that where adapters of one domain do more of the same than their
weights show: on small models they keep as much as with a kinship of 2, on SmolLM2 with 1 or less.
The measured pairs tell it (`kinship_in`). What an adapter keeps in an average is close to what it
keeps *alone* at the gate share_i, less what partners take beyond that, its interference:

    kept_i = curve_i(share_i) - interference_i

Small models have next to none; in larger ones most adapters keep all of their skill alone at one
half, and lose it beside others. It is a property of the adapter more than of the partner, so two
measured pairs tell it: N adapters in a cycle, each asked beside its two neighbours, N merges in
all. From these and the adapters alone at a few gates come the averages of every subset.

`examples/together` has the error of such forecasts. They hold for averages: a sum contains each
adapter whole or more.
"""

from __future__ import annotations

import math
import random
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from loraprobe.adapters import Adapter
from loraprobe.evaluation.statistics import Array
from loraprobe.extensions.screen.defaults import (
    ALONE_ERROR,
    FORECAST_ERROR,
    KINSHIP,
    KINSHIP_ERROR,
    LEAST_GAIN,
)
from loraprobe.lora.grams import gram_matrices
from loraprobe.records.measurements import Z95

DRAWS = 500  # samples of the items
WIDTH = 200  # groups of one size from which larger ones are made
PRIOR = 2  # pairs of average interference that count beside those of an adapter
KINSHIPS = tuple(step / 4 for step in range(13))  # that are tried, 0 to 3


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

    error: its standard error by the items. alike: <dW_partner, dW> / ||dW||^2, of the adapter's
    update dW.
    """

    adapter: str
    partner: str
    value: float
    error: float
    alike: float

    @property
    def weight(self) -> float:
        """How much it counts: the less, the larger its error is in that of a forecast."""
        return FORECAST_ERROR**2 / (FORECAST_ERROR**2 + self.error**2)

    def loss(self, curves: Mapping[str, Curve], kinship: float) -> float:
        """How much less the adapter keeps than alone at its share."""
        return curves[self.adapter].at((1 + kinship * self.alike) / 2) - self.value


def cycle(names: Sequence[str], seed: int) -> list[tuple[str, str]]:
    """The pairs to measure: each of three adapters or more beside two others, drawn.

    Two adapters are one pair, which the proof measures.
    """
    drawn = random.Random(f"pairs:{seed}").sample([*names], len(names))
    return [*zip(drawn, [*drawn[1:], drawn[0]], strict=True)] if len(names) > 2 else []


def interferences(
    curves: Mapping[str, Curve], pairs: Sequence[MeasuredPair], kinship: float
) -> dict[str, float]:
    """What each adapter loses beside others, more than alone at its share, from measured pairs.

    Those of an adapter count beside PRIOR of average interference. It is 0 without pairs.
    """
    weights, losses = defaultdict[str, float](float), defaultdict[str, float](float)
    for pair in pairs:
        weights[pair.adapter] += pair.weight
        losses[pair.adapter] += pair.weight * pair.loss(curves, kinship)
    mean = sum(losses.values()) / sum(weights.values()) if pairs else 0.0
    return {name: (losses[name] + PRIOR * mean) / (weights[name] + PRIOR) for name in curves}


def kinship_in(curves: Mapping[str, Curve], pairs: Sequence[MeasuredPair]) -> float:
    """How much of what partners have alike counts: by what each pair is forecast best from others.

    The error of a forecast is FORECAST_ERROR; before any pair it is KINSHIP, with KINSHIP_ERROR.
    """
    weights = np.array([pair.weight for pair in pairs])
    kept = np.clip([pair.value for pair in pairs], 0, 1)
    own = [pair.adapter for pair in pairs]
    of = np.array([[one == other for other in own] for one in own], dtype=float)

    def cost(kinship: float) -> float:
        losses = np.array([pair.loss(curves, kinship) for pair in pairs])
        told = losses + [pair.value for pair in pairs]  # alone at the share
        lost = weights * losses
        mean = (lost.sum() - lost) / (weights.sum() - weights)
        taken = (of @ lost - lost + PRIOR * mean) / (of @ weights - weights + PRIOR)
        errors = (np.clip(told - taken, 0, 1) - kept) / FORECAST_ERROR
        return float(weights @ errors**2) + ((kinship - KINSHIP) / KINSHIP_ERROR) ** 2

    return min(KINSHIPS, key=cost) if len(pairs) > 1 else KINSHIP


def inner_products(adapters: Sequence[Adapter]) -> Array:
    """<dW_i, dW_j> of whole adapters, over all modules: [n, n]."""
    batches = gram_matrices([adapter.modules for adapter in adapters])
    return np.asarray(sum(grams.inner.sum(0) for grams in batches))


def shares(inner: Array, kinship: float = KINSHIP) -> list[float]:
    """How much of each of n updates their uniform merge contains. inner: products, [n, n]."""
    own = inner.diagonal()
    return [float(share) for share in (1 + kinship * (inner.sum(0) / own - 1)) / len(inner)]


@dataclass(frozen=True)
class Retention:
    """What an adapter keeps in a merge, measured or forecast.

    by_items: the standard error by the items. unexplained: the error of such forecasts beside it.
    """

    value: float
    by_items: float
    unexplained: float

    @property
    def ci95(self) -> tuple[float, float]:
        spread = Z95 * math.hypot(self.by_items, self.unexplained)
        return self.value - spread, self.value + spread


@dataclass(frozen=True)
class MergeForecast:
    """What adapters keep in uniform merges of any of them.

    curves: of the adapters with a skill. inner: the inner products of their updates, [n, n].
    interference: by adapter, where it was measured. pairs: what was measured. kinship: how much of
    what partners have alike counts.
    """

    curves: Mapping[str, Curve]
    inner: Array
    interference: Mapping[str, float] = field(default_factory=dict)
    pairs: Sequence[MeasuredPair] = ()
    kinship: float = KINSHIP

    @cached_property
    def measured(self) -> dict[tuple[str, ...], MeasuredPair]:
        """By adapter and partner."""
        return {(pair.adapter, pair.partner): pair for pair in self.pairs}

    @cached_property
    def _place(self) -> dict[str, int]:
        return {name: at for at, name in enumerate(self.curves)}

    def shares(self, group: Sequence[str]) -> list[float]:
        """How much of each adapter the uniform merge of a group contains."""
        at = [self._place[name] for name in group]
        return shares(self.inner[np.ix_(at, at)], self.kinship)

    def kept(self, group: Sequence[str]) -> list[float]:
        """The retention of each adapter of a group in their uniform merge, measured or forecast."""
        return [one.value for one in self.of(group)]

    def of(self, group: Sequence[str]) -> list[Retention]:
        """The same with errors."""
        pairs = zip(group, self.shares(group), strict=True)
        return [self._of(name, group, share) for name, share in pairs]

    def _of(self, name: str, group: Sequence[str], share: float) -> Retention:
        partners = (one for one in group if one != name)
        if len(group) == 2 and (pair := self.measured.get((name, *partners))):
            return Retention(pair.value, pair.error, 0.0)
        kept = self.curves[name].at(share) - self.interference.get(name, 0.0)
        unexplained = FORECAST_ERROR if name in self.interference else ALONE_ERROR
        return Retention(min(1.0, max(0.0, kept)), self.curves[name].error(share), unexplained)

    def groups(self, least: float, most: int, tasks: Mapping[str, str]) -> list[tuple[str, ...]]:
        """The largest groups of which every adapter is forecast to keep `least`, the best first.

        tasks: of each adapter. A group has at least two, unless there is only one. Groups grow by
        one adapter at a time from the WIDTH best smaller ones, so a larger one may be missed. Of
        one size that with the largest smallest retention, less its error by the items, comes
        first. Where none reaches `least`, the result is the best pair.
        """
        names, fewest = [*self.curves], min(2, len({*tasks.values()}))
        grown: list[tuple[str, ...]] = [(name,) for name in names]
        found, best_pair = list[tuple[str, ...]](), list[tuple[str, ...]]()
        while grown:
            wider = {
                tuple(name for name in names if name == more or name in group)
                for group in grown
                for more in names
                if more not in group
            }
            told = {group: self.of(group) for group in wider}
            sure = {g: min(one.value - one.by_items for one in told[g]) for g in wider}
            rated = sorted(wider, key=lambda group: (-sure[group], group))
            several = [g for g in rated if len({tasks[name] for name in g}) >= fewest]
            best_pair = best_pair or several[:1]
            grown = [g for g in rated if min(one.value for one in told[g]) >= least]
            found = [*(group for group in several if group in {*grown}), *found]
            grown = grown[:WIDTH]
        return (found or best_pair)[:most]
