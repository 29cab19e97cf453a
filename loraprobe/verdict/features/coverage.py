"""Features of who knows which hop, and of what the base knows of the task's names and answers."""

from __future__ import annotations

import math
from collections.abc import Callable

from loraprobe.records import Coverage
from loraprobe.verdict.features._shelf import Registry, on
from loraprobe.verdict.features._view import BASE, View, highest, lowest, mean, minus
from loraprobe.verdict.knowledge import KNOWN

SHELF: Registry = {}
Hops = dict[int, dict[str, float]]
CLOSE = 0.05  # two hop accuracies this close are one to a hundred items


def _over_hops(view: View, figure: Callable[[Hops], float | None]) -> float | None:
    """The mean over tasks of a figure of their hops, of those that have any."""
    return view.over_tasks(lambda task: figure(hops) if (hops := view.hops(task)) else None)


def _adapters_in(hops: Hops) -> list[str]:
    return sorted({name for systems in hops.values() for name in systems} - {BASE})


@on(SHELF, "accuracy on the weakest hop of whoever answers it best")
def hop_weakest(view: View) -> float | None:
    return _over_hops(view, lambda hops: min(max(who.values()) for who in hops.values()))


@on(SHELF, "accuracy of the base on the hop it knows least")
def hop_base_weakest(view: View) -> float | None:
    return _over_hops(view, lambda hops: lowest(who.get(BASE) for who in hops.values()))


@on(SHELF, "accuracy of the base on the hop it knows best")
def hop_base_strongest(view: View) -> float | None:
    return _over_hops(view, lambda hops: highest(who.get(BASE) for who in hops.values()))


@on(SHELF, "number of hops that the base knows")
def hops_base_knows(view: View) -> float | None:
    def figure(hops: Hops) -> float:
        return float(sum(who.get(BASE, 0.0) >= KNOWN for who in hops.values()))

    return _over_hops(view, figure)


@on(SHELF, "accuracy if each hop went to whoever answers it best (product over hops)")
def hop_chain(view: View) -> float | None:
    return _over_hops(view, lambda hops: math.prod(max(who.values()) for who in hops.values()))


@on(SHELF, "how far the product of hop accuracies lies above base and single adapters")
def hop_chain_room(view: View) -> float | None:
    return minus(hop_chain(view), view.baseline())


@on(SHELF, "accuracy of the one adapter that knows all hops best, on its weakest hop")
def hop_one_adapter(view: View) -> float | None:
    def figure(hops: Hops) -> float | None:
        return highest(
            lowest(who.get(name, 0.0) for who in hops.values()) for name in _adapters_in(hops)
        )

    return _over_hops(view, figure)


@on(SHELF, "accuracy on the weakest hop if the base helps one adapter out")
def hop_adapter_and_base(view: View) -> float | None:
    def figure(hops: Hops) -> float | None:
        return highest(
            lowest(max(who.get(name, 0.0), who.get(BASE, 0.0)) for who in hops.values())
            for name in _adapters_in(hops)
        )

    return _over_hops(view, figure)


@on(SHELF, "1 if one system, base or adapter, answers every hop about as well as any")
def hops_share_owner(view: View) -> float | None:
    def figure(hops: Hops) -> float:
        names = {name for who in hops.values() for name in who}
        return float(
            any(
                all(who.get(name, 0.0) >= max(who.values()) - CLOSE for who in hops.values())
                for name in names
            )
        )

    return _over_hops(view, figure)


@on(SHELF, "largest loss that an adapter alone causes on a hop that the base answers")
def hop_spoiled(view: View) -> float | None:
    def figure(hops: Hops) -> float | None:
        return highest(
            minus(who.get(BASE), value)
            for who in hops.values()
            for name, value in who.items()
            if name != BASE
        )

    return _over_hops(view, figure)


@on(SHELF, "mean accuracy of the other adapters on the hop that they support least")
def hop_partner_weakest(view: View) -> float | None:
    def figure(hops: Hops) -> float | None:
        others = []
        for who in hops.values():
            alone = sorted(value for name, value in who.items() if name != BASE)
            others.append(mean(alone[:-1]))
        return lowest(others)

    return _over_hops(view, figure)


def _asked(view: View, name: str, take: Callable[[list[Coverage]], float | None]) -> float | None:
    """The mean over tasks of what is taken from the rows of one probe of the base."""

    def figure(task: str) -> float | None:
        rows = [row for row in view.rows(name, task) if not row.adapters]
        return take(sorted(rows, key=lambda row: row.hop or 0))

    return view.over_tasks(figure)


def _over_guess(row: Coverage) -> float | None:
    """A figure over what guessing gives; as it stands where guessing is not known."""
    return row.value / row.baseline if row.value is not None and row.baseline else row.value


def _beyond_guess(row: Coverage) -> float | None:
    return minus(row.value, row.baseline or 0.0)


def _question(figure: Callable[[Coverage], float | None]) -> Callable[..., float | None]:
    return lambda rows: next((figure(row) for row in rows if row.hop is None), None)


def _hop(place: int, figure: Callable[[Coverage], float | None]) -> Callable[..., float | None]:
    def take(rows: list[Coverage]) -> float | None:
        steps = [figure(row) for row in rows if row.hop is not None]
        return steps[place] if steps else None

    return take


def _of_hops(
    pick: Callable[..., float | None], figure: Callable[[Coverage], float | None]
) -> Callable[..., float | None]:
    return lambda rows: pick(figure(row) for row in rows if row.hop is not None)


_PROBES: tuple[
    tuple[str, str, Callable[[Coverage], float | None], Callable[..., float | None]], ...
]
_PROBES = (
    ("answer_margin", "margin of the base's first choice over the right answer",
     lambda row: row.value, highest),
    ("gold_rank", "rank of the right answer under the base over that of guessing",
     _over_guess, highest),
    ("name_swap", "how much likelier the right answer is after the real names, in nats",
     lambda row: row.value, lowest),
    ("min_k_plus_plus", "familiarity of the text to the base (min-k%++) beyond made-up names",
     _beyond_guess, lowest),
)  # fmt: skip


def _declare() -> None:
    """Five features a probe: on the question, on the first, last, worst and best hop."""
    other = {highest: lowest, lowest: highest}
    for probe, text, figure, worst in _PROBES:
        takes = {
            "question": ("on the question", _question(figure)),
            "first_hop": ("on the first hop", _hop(0, figure)),
            "last_hop": ("on the last hop", _hop(-1, figure)),
            "worst_hop": ("on the hop where that is worst", _of_hops(worst, figure)),
            "best_hop": ("on the hop where that is best", _of_hops(other[worst], figure)),
        }
        for name, (where, take) in takes.items():

            def value(
                view: View, probe: str = probe, take: Callable[..., float | None] = take
            ) -> float | None:
                return _asked(view, probe, take)

            SHELF[f"{probe}_{name}"] = (f"{text}, {where}", value)


_declare()


@on(SHELF, "share of items that only another adapter than the best answers right")
def complementarity(view: View) -> float | None:
    return mean(row.value for row in view.rows("complementarity"))


@on(SHELF, "share of items on which two adapters are both right or both wrong")
def agreement(view: View) -> float | None:
    return mean(row.value for row in view.rows("agreement"))


@on(SHELF, "agreement of two adapters beyond what their scores alone would show")
def agreement_beyond_chance(view: View) -> float | None:
    return mean(minus(row.value, row.baseline) for row in view.rows("agreement"))
