"""The records of an audit that tell how routers shared their gates."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class GateStatistics:
    """How a token router shared its gates among the adapters while it read the tasks' prompts.

    Means over `n` tokens and the `modules` that at least two adapters have. `share` is each
    adapter's mean gate, `entropy` that of the gates in nats, `entropy_share` the same over the
    logarithm of the number of adapters present: 0 is one adapter a token, 1 all alike.
    """

    system: str
    share: Mapping[str, float]
    entropy: float
    entropy_share: float
    modules: int
    n: int


@dataclass(frozen=True)
class Gates:
    """A row of every token router."""

    gates: tuple[GateStatistics, ...] = ()
