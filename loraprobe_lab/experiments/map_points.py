"""Every composition that the success map asks: where it lies, and what it has to beat."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

from loraprobe_lab.worlds.name_sets import SHARES

GATES = (0.2, 0.4, 0.6, 0.8, 1.0, 1.2)
SCALES = (0.25, 0.5, 1.0, 2.0, 4.0)
ROUTES = {"uniform": 0.5, "0.7 each": 0.7, "sum": 1.0, "arrow": 1.0}  # gate of each adapter

Part = tuple[str, float, float]  # adapter, scale of the adapter itself, gate (unused by arrow)


@dataclass(frozen=True)
class Point:
    """One composition on one task.

    panel: "weights", "familiarity", "invented" or "norms"; `series` and `x` (and `y` in the heat
    map) are where it lies in it. parts: (adapter, what it is multiplied with before anything, its
    gate); with `arrow` the gates come from the router instead.
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
        """Base and the adapters as they go into the composition, each alone at full strength."""
        return ("base", *(scaled_name(name, scale) for name, scale, _ in self.parts))


def scaled_name(name: str, scale: float) -> str:
    """What an adapter is called once its deltas are multiplied with `scale`."""
    return name if scale == 1.0 else f"{name}x{scale:g}"


def points() -> list[Point]:
    """The whole map, panel by panel."""
    return [*_weights(), *_familiarity(), *_invented(), *_norms()]


def _weights() -> Iterator[Point]:
    """Unequal weights, second hop familiar to the base, steps learned on familiar couples."""
    for facts, steps in itertools.product(GATES, GATES):
        parts = (("facts", 1.0, facts), ("steps-0", 1.0, steps))
        yield Point("weights", "gates", facts, "familiar", parts, y=steps)


def _familiarity() -> Iterator[Point]:
    """Equal weights, by how the second hop is known."""
    rows = {
        "read often": ("familiar", ("facts", "steps-0")),
        "read seldom": ("rare", ("facts", "steps-0")),
        "made-up, in the facts adapter": ("made-up", ("both", "steps-0")),
        "made-up, in a third adapter": ("made-up", ("facts", "homes", "steps-0")),
    }
    for (series, (task, names)), gate in itertools.product(rows.items(), GATES):
        yield Point("familiarity", series, gate, task, tuple((n, 1.0, gate) for n in names))


def _invented() -> Iterator[Point]:
    """By the share of made-up couples on whom the skill adapter learned the worked steps."""
    for (route, gate), share in itertools.product(ROUTES.items(), SHARES):
        parts = tuple((name, 1.0, gate) for name in ("facts", f"steps-{share}"))
        yield Point("invented", route, share / 100, "familiar", parts, arrow=route == "arrow")


def _norms() -> Iterator[Point]:
    """One of the two adapters multiplied with a factor before it is composed."""
    names = ("facts", "steps-0")
    for which, route, scale in itertools.product(names, ("uniform", "arrow"), SCALES):
        parts = tuple((name, scale if name == which else 1.0, 0.5) for name in names)
        series = f"{which.partition('-')[0]} scaled, {route}"
        yield Point("norms", series, scale, "familiar", parts, arrow=route == "arrow")
