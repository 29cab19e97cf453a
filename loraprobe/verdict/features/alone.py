"""Features of what each adapter does by itself where another one is needed.

What shrinking alone costs (`shrunk_score`), what an adapter makes of the base's hidden states on
another's prompts (`hidden_crosstalk`), whom a router would hear (`gate_*`), and how foreign one
adapter finds another's way of answering (`template_loss`, `format_loss`).
"""

from __future__ import annotations

import itertools
import math

from loraprobe.records import Coverage
from loraprobe.verdict.features._shelf import Registry, on
from loraprobe.verdict.features._view import (
    BASE,
    FORMS,
    View,
    at_gate,
    bounded,
    complete_mean,
    form_of,
    highest,
    lowest,
    mean,
    minus,
)

SHELF: Registry = {}
LEARNED = 0.2  # an adapter that adds less to the base than this is nobody's specialist
ALL = "all"  # the part that stands for all prompts of a task


def _shrunk_rows(view: View) -> list[Coverage]:
    gate = 1 / max(1, len(view.adapters))
    return [r for r in view.rows("shrunk_score") if at_gate(r, gate) and len(r.adapters) == 1]


def _kept_when_shrunk(view: View) -> list[float]:
    """Of each part's specialist, the score at gate 1/n over that at gate 1."""
    groups: dict[tuple[str, str], list[Coverage]] = {}
    for row in _shrunk_rows(view):
        groups.setdefault((row.task, form_of(row)), []).append(row)
    kept = []
    for (task, part), group in groups.items():
        base = view.score(BASE, task, part) or 0.0
        full = [(_full(view, row, part) or 0.0, row.adapters, row.value) for row in group]
        top, _, small = max(full)
        if small is not None and top - base >= LEARNED:
            kept.append(bounded(small / top))
    return kept


def _full(view: View, row: Coverage, part: str) -> float | None:
    """The adapter's score at gate 1: the row's baseline on the same items, or the task's."""
    return view.score(row.adapters[0], row.task, part) if row.baseline is None else row.baseline


@on(SHELF, "share of its score that the specialist which suffers most keeps at gate 1/n")
def shrunk_retention_min(view: View) -> float | None:
    return lowest(_kept_when_shrunk(view))


@on(SHELF, "share of their scores that specialists keep at gate 1/n, on average")
def shrunk_retention_mean(view: View) -> float | None:
    return mean(_kept_when_shrunk(view))


@on(SHELF, "what the best single adapter gains on the question by being shrunk to gate 1/n")
def shrunk_gain(view: View) -> float | None:
    reached = []
    for part, name in itertools.product(FORMS, view.adapters):
        rows = [r for r in _shrunk_rows(view) if (form_of(r), r.adapters) == (part, (name,))]
        own = {row.task: row.value for row in rows}
        score = complete_mean(own.get(task) for task in view.tasks)
        reached.append(minus(score, view.baseline(part)))
    return highest(reached)


@on(SHELF, "product of hop accuracies, each hop by whoever is best at gate 1/n or the base")
def shrunk_chain(view: View) -> float | None:
    def figure(task: str) -> float | None:
        best: dict[int, float] = {}
        for row in _shrunk_rows(view):
            if row.task == task and row.hop is not None and row.value is not None:
                best[row.hop] = max(best.get(row.hop, 0.0), row.value)
        known = {hop: who.get(BASE, 0.0) for hop, who in view.hops(task).items()}
        if not best:
            return None
        return math.prod(max(best.get(hop, 0.0), known.get(hop, 0.0)) for hop in {*best, *known})

    return view.over_tasks(figure)


@on(SHELF, "how far that product lies above the best of base and single adapters")
def shrunk_chain_room(view: View) -> float | None:
    return minus(shrunk_chain(view), view.baseline())


def _crosstalk(view: View, *, everywhere: bool) -> list[float]:
    """Logs of how much larger a stranger's effect is than that of the adapter that is needed."""
    return [
        math.log(row.value)
        for row in view.rows("hidden_crosstalk")
        if row.value and row.value > 0 and (form_of(row) == ALL) == everywhere
    ]


@on(SHELF, "log of the largest effect on hidden states of an adapter that is not needed there")
def hidden_crosstalk_max(view: View) -> float | None:
    return highest(_crosstalk(view, everywhere=False))


@on(SHELF, "log of the mean effect on hidden states of an adapter that is not needed there")
def hidden_crosstalk_mean(view: View) -> float | None:
    return mean(_crosstalk(view, everywhere=False))


@on(SHELF, "log of how unequal two adapters' effects on all prompts' hidden states are")
def hidden_crosstalk_asymmetry(view: View) -> float | None:
    return highest(abs(log) for log in _crosstalk(view, everywhere=True))


@on(SHELF, "mean gate of the adapter that the router would hear least")
def gate_share_min(view: View) -> float | None:
    rows = view.rows("gate_share")
    return lowest(mean(r.value for r in rows if r.adapters == (n,)) for n in view.adapters)


def _needed(view: View) -> list[float]:
    """The mean gate of the adapter that each part needs."""
    owners = {(r.task, form_of(r)): r.adapters for r in view.rows("gate_agreement")}
    rows = view.rows("gate_share")
    return [
        float(row.value)
        for row in rows
        if row.value is not None and owners.get((row.task, form_of(row))) == row.adapters
    ]


@on(SHELF, "least gate that the router would give an adapter where it is needed")
def gate_needed_min(view: View) -> float | None:
    return lowest(_needed(view))


@on(SHELF, "mean gate that the router would give an adapter where it is needed")
def gate_needed_mean(view: View) -> float | None:
    return mean(_needed(view))


@on(SHELF, "how often the router would turn to the adapter that is needed, where least")
def gate_agreement_min(view: View) -> float | None:
    return lowest(row.value for row in view.rows("gate_agreement"))


@on(SHELF, "how much oftener the router would turn to the needed adapter than to any")
def gate_agreement_beyond(view: View) -> float | None:
    return mean(minus(row.value, row.baseline) for row in view.rows("gate_agreement"))


@on(SHELF, "how undecided the router would be, 0 certain, 1 all alike")
def gate_entropy(view: View) -> float | None:
    return mean(row.value for row in view.rows("gate_entropy"))


def _foreign(view: View, probe: str) -> list[float | None]:
    """Loss of every reader beyond the base's, in nats a token."""
    return [minus(row.value, row.baseline) for row in view.rows(probe) if row.adapters]


@on(SHELF, "largest loss of a partner on worked texts beyond the base's, in nats a token")
def template_loss_max(view: View) -> float | None:
    return highest(_foreign(view, "template_loss"))


@on(SHELF, "mean loss of the partners on worked texts beyond the base's, in nats a token")
def template_loss_mean(view: View) -> float | None:
    return mean(_foreign(view, "template_loss"))


@on(SHELF, "mean loss of the partners on worked texts, in nats a token")
def template_loss_level(view: View) -> float | None:
    return mean(row.value for row in view.rows("template_loss"))


@on(SHELF, "largest loss of an adapter on another's answers beyond the base's, in nats a token")
def format_loss_max(view: View) -> float | None:
    return highest(_foreign(view, "format_loss"))


@on(SHELF, "mean loss of the adapters on each other's answers beyond the base's, in nats a token")
def format_loss_mean(view: View) -> float | None:
    return mean(_foreign(view, "format_loss"))
