"""The compositions of the success map, and the gain of each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product

from loraprobe.records import Interval
from loraprobe_lab.worlds.name_sets import SHARES

MARGIN = 0.05
GATES = (0.2, 0.4, 0.6, 0.8, 1.0, 1.2)
SCALES = (0.25, 0.5, 1.0, 2.0, 4.0)
ROUTES = {"uniform": 0.5, "0.7 each": 0.7, "sum": 1.0, "arrow": 1.0}  # gate of each adapter
PAIR = ("facts", "steps-0")  # the steps were learned on familiar couples
# how the second hop is known: task, adapters
SECOND_HOPS = {
    "read often": ("familiar", PAIR),
    "read seldom": ("rare", PAIR),
    "made-up, in the facts adapter": ("made-up", ("both", "steps-0")),
    "made-up, in a third adapter": ("made-up", ("facts", "homes", "steps-0")),
}

Part = tuple[str, float, float]  # adapter, scale of the adapter itself, gate (unused by arrow)


@dataclass(frozen=True)
class Point:
    """One composition on one task.

    panel: "weights", "familiarity", "invented" or "norms"; `series` and `x` (and `y` in the heat
    map) are its coordinates. parts: (adapter, factor of its deltas, gate); with `arrow` the gates
    come from the router instead.
    """

    panel: str
    series: str
    x: float
    task: str
    parts: tuple[Part, ...]
    arrow: bool = False
    y: float | None = None

    @property
    def system(self) -> str:
        """A name that is the same for the same composition in several panels."""
        names = ",".join(
            f"{scaled_name(name, scale)}{'' if self.arrow else f'*{gate:g}'}"
            for name, scale, gate in self.parts
        )
        return f"{'arrow' if self.arrow else 'gates'}({names})"

    @property
    def baselines(self) -> tuple[str, ...]:
        """The base and the scaled adapters, each alone with gate 1."""
        return ("base", *(scaled_name(name, scale) for name, scale, _ in self.parts))


def scaled_name(name: str, scale: float) -> str:
    """The name of an adapter whose deltas are multiplied by `scale`."""
    return name if scale == 1.0 else f"{name}x{scale:g}"


def points() -> Iterator[Point]:
    """Every composition of the map, panel by panel.

    weights: unequal weights. familiarity: equal weights, by the source of the second hop. invented:
    by the share of made-up couples in the skill adapter's data. norms: one of the two adapters
    multiplied by a factor.
    """
    for gates in product(GATES, GATES):
        parts = tuple((name, 1.0, gate) for name, gate in zip(PAIR, gates, strict=True))
        yield Point("weights", "gates", gates[0], "familiar", parts, y=gates[1])
    for (series, (task, names)), gate in product(SECOND_HOPS.items(), GATES):
        yield Point("familiarity", series, gate, task, tuple((n, 1.0, gate) for n in names))
    for (route, gate), share in product(ROUTES.items(), SHARES):
        parts = tuple((name, 1.0, gate) for name in ("facts", f"steps-{share}"))
        yield Point("invented", route, share / 100, "familiar", parts, arrow=route == "arrow")
    for which, route, scale in product(PAIR, ("uniform", "arrow"), SCALES):
        parts = tuple((name, scale if name == which else 1.0, 0.5) for name in PAIR)
        series = f"{which.partition('-')[0]} scaled, {route}"
        yield Point("norms", series, scale, "familiar", parts, arrow=route == "arrow")


@dataclass(frozen=True)
class PointGain:
    """The figures of a point: gain over the best of base and singles, step by step.

    `gain` is the mean over the worlds with the interval over persons (each world a stratum, the
    choice of the best baseline covered); `each` gives it for every world; `score` is exact match.
    """

    point: Point
    gain: float
    ci95: Interval
    score: float
    against: str
    n: int
    each: Mapping[str, float]

    @property
    def succeeds(self) -> bool | None:
        """Whether the gain lies above the margin (True), below it (False), or neither is shown."""
        if self.ci95[0] > MARGIN:
            return True
        return False if self.ci95[1] < MARGIN else None
