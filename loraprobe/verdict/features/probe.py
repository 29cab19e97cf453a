"""Features of what the adapters do to the base's answers, each put into the model alone.

The adapters' effects on the logits simply added (`additive_score`), what shrinking alone costs
(`shrunk_score`), what one adapter makes of the hidden states that another works on
(`hidden_crosstalk`), whom a router would hear (`gate_share`), and how foreign one adapter finds
another's way of answering (`template_loss`, `format_loss`).
"""

from __future__ import annotations

import itertools
import math

from loraprobe.records import Coverage
from loraprobe.verdict.features._shelf import Shelf, on
from loraprobe.verdict.features._view import (
    BASE,
    FORMS,
    View,
    complete_mean,
    highest,
    lowest,
    mean,
    minus,
)

SHELF: Shelf = {}
LEARNED = 0.1  # an adapter that adds less to the base than this is nobody's specialist
SOME = 0.05  # a difference smaller than this is no denominator
LEAST, MOST = -1.0, 2.0  # shares of small differences are kept within these


def _form(row: Coverage) -> str:
    return row.part or (f"hop{row.hop}" if row.hop is not None else "target")


def _at(row: Coverage, gate: float) -> bool:
    return math.isclose(1.0 if row.gate is None else row.gate, gate, rel_tol=0, abs_tol=1e-3)


def _added(view: View, part: str, gate: float, task: str) -> Coverage | None:
    rows = view.rows("additive_score", task)
    return next((row for row in rows if _form(row) == part and _at(row, gate)), None)


def _additive(view: View, part: str, gate: float) -> float | None:
    """The macro mean over tasks of the additive score; None where one task lacks it."""
    rows = (_added(view, part, gate, task) for task in view.tasks)
    return complete_mean(None if row is None else row.value for row in rows)


def _to_beat(view: View, part: str, gate: float) -> float | None:
    """What the additive score has to beat: the row's own baseline, on the same items.

    Who is asked step by step has to beat plain answers too. With several tasks one system has to
    be beaten on all of them, which only the scores know.
    """
    if view.several:
        return view.baseline(part)
    own = [_added(view, form, gate, task) for form in FORMS for task in view.tasks]
    forms = ("target",) if part == "target" else FORMS
    known = highest(row.baseline for row in own if row is not None and _form(row) in forms)
    return view.baseline(part) if known is None else known


def _gain(view: View, part: str, gates: tuple[float, ...]) -> float | None:
    return highest(minus(_additive(view, part, gate), _to_beat(view, part, gate)) for gate in gates)


@on(SHELF, "score if the adapters' effects on the logits simply added, on the better form")
def additive_score(view: View) -> float | None:
    return highest(_additive(view, part, gate) for part in FORMS for gate in view.gates)


@on(SHELF, "gain over base and single adapters if the effects on the logits simply added")
def additive_gain(view: View) -> float | None:
    return highest(_gain(view, part, view.gates) for part in FORMS)


@on(SHELF, "gain if the effects on the logits simply added, asked plainly")
def additive_gain_plain(view: View) -> float | None:
    return _gain(view, "target", view.gates)


@on(SHELF, "gain if the effects on the logits simply added, asked step by step")
def additive_gain_steps(view: View) -> float | None:
    return _gain(view, "cot", view.gates)


@on(SHELF, "gain if the effects on the logits simply added, at gate 1/n or 1, whichever is better")
def additive_gain_any_gate(view: View) -> float | None:
    gates = (1 / max(1, len(view.adapters)), 1.0)
    return highest(_gain(view, part, gates) for part in FORMS)


@on(SHELF, "share of its specialist's gain that every task keeps if effects on logits added")
def additive_retention_min(view: View) -> float | None:
    return lowest(_retained(view))


@on(SHELF, "share of the specialists' gain that is kept if effects on logits added, on average")
def additive_retention_mean(view: View) -> float | None:
    return mean(_retained(view))


def _retained(view: View) -> list[float]:
    """Per task (additive - base) / (specialist - base), at the gate that keeps most of the least.

    Empty for one task, where there is nothing to keep.
    """
    if not view.several:
        return []
    found = []
    for gate in view.gates:
        shares = []
        for task, part in itertools.product(view.tasks, FORMS):
            row, base = _added(view, part, gate, task), view.score(BASE, task, part)
            top = highest(view.score(name, task, part) for name in view.adapters)
            span, kept = minus(top, base), minus(row.value if row else None, base)
            if span is not None and kept is not None and span >= SOME:
                shares.append(_bounded(kept / span))
        found.append(shares)
    return max(found, key=lambda shares: min(shares, default=LEAST))


def _bounded(share: float) -> float:
    return min(max(share, LEAST), MOST)


def _shrunk(view: View) -> list[tuple[str, str, float, float]]:
    """(task, part, score at gate 1/n, score at gate 1) of each part's specialist."""
    gate, found = 1 / max(1, len(view.adapters)), []
    rows = [row for row in view.rows("shrunk_score") if _at(row, gate) and len(row.adapters) == 1]
    for (task, part), group in _by_part(rows).items():
        base = view.score(BASE, task, part) or 0.0
        full = {row.adapters[0]: _full(view, row, part) for row in group}
        best = max(full, key=lambda name: (full[name] or 0.0, name))
        top = full[best]
        if top is not None and top - base >= LEARNED:
            small = next(row.value for row in group if row.adapters[0] == best)
            found.append((task, part, small or 0.0, top))
    return found


def _full(view: View, row: Coverage, part: str) -> float | None:
    """The adapter's score at gate 1: the row's baseline on the same items, or the task's."""
    return view.score(row.adapters[0], row.task, part) if row.baseline is None else row.baseline


def _by_part(rows: list[Coverage]) -> dict[tuple[str, str], list[Coverage]]:
    groups: dict[tuple[str, str], list[Coverage]] = {}
    for row in rows:
        groups.setdefault((row.task, _form(row)), []).append(row)
    return groups


@on(SHELF, "share of its score that the specialist which suffers most keeps at gate 1/n")
def shrunk_retention_min(view: View) -> float | None:
    return lowest(_bounded(small / full) for _, _, small, full in _shrunk(view))


@on(SHELF, "share of their scores that specialists keep at gate 1/n, on average")
def shrunk_retention_mean(view: View) -> float | None:
    return mean(_bounded(small / full) for _, _, small, full in _shrunk(view))


@on(SHELF, "what the best single adapter gains on the question by being shrunk to gate 1/n")
def shrunk_gain(view: View) -> float | None:
    gate = 1 / max(1, len(view.adapters))
    rows = [row for row in view.rows("shrunk_score") if _at(row, gate) and _form(row) in FORMS]
    reached = []
    for part, name in itertools.product(FORMS, view.adapters):
        own = {r.task: r.value for r in rows if (_form(r), r.adapters) == (part, (name,))}
        reached.append(
            minus(complete_mean(own.get(task) for task in view.tasks), view.baseline(part))
        )
    return highest(reached)


def _crosstalk(view: View) -> dict[tuple[str, ...], float]:
    """Ordered pair -> mean log ratio of the stranger's effect to the specialist's."""
    logs: dict[tuple[str, ...], list[float]] = {}
    for row in view.rows("hidden_crosstalk"):
        if row.value and row.value > 0 and len(row.adapters) == 2:
            logs.setdefault(row.adapters, []).append(math.log(row.value))
    return {pair: sum(values) / len(values) for pair, values in logs.items()}


@on(SHELF, "log of the largest effect of one adapter on hidden states that another works on")
def hidden_crosstalk_max(view: View) -> float | None:
    return highest(_crosstalk(view).values())


@on(SHELF, "log of the effect of one adapter on hidden states that another works on, on average")
def hidden_crosstalk_mean(view: View) -> float | None:
    return mean(_crosstalk(view).values())


@on(SHELF, "how unequally two adapters reach into each other's hidden states")
def hidden_crosstalk_asymmetry(view: View) -> float | None:
    found = _crosstalk(view)
    return highest(abs(found[pair] - found[pair[::-1]]) for pair in found if pair[::-1] in found)


@on(SHELF, "mean gate of the adapter that the router would hear least")
def gate_share_min(view: View) -> float | None:
    return lowest(_gates(view).values())


@on(SHELF, "mean gate of the adapter that the router would hear most")
def gate_share_max(view: View) -> float | None:
    return highest(_gates(view).values())


def _gates(view: View) -> dict[str, float]:
    """Adapter -> mean gate over tasks and parts."""
    shares: dict[str, list[float]] = {}
    for row in view.rows("gate_share"):
        if len(row.adapters) == 1 and row.value is not None:
            shares.setdefault(row.adapters[0], []).append(row.value)
    return {name: sum(values) / len(values) for name, values in shares.items()}


def _foreign(view: View, probe: str) -> list[float | None]:
    """Loss of every reader beyond the base's, in nats a token."""
    return [minus(row.value, row.baseline) for row in view.rows(probe) if row.adapters]


@on(SHELF, "largest loss of an adapter on worked answers beyond the base's, in nats a token")
def template_loss_max(view: View) -> float | None:
    return highest(_foreign(view, "template_loss"))


@on(SHELF, "mean loss of the adapters on worked answers beyond the base's, in nats a token")
def template_loss_mean(view: View) -> float | None:
    return mean(_foreign(view, "template_loss"))


@on(SHELF, "largest loss of an adapter on another's answers beyond the base's, in nats a token")
def format_loss_max(view: View) -> float | None:
    return highest(_foreign(view, "format_loss"))


@on(SHELF, "mean loss of the adapters on each other's answers beyond the base's, in nats a token")
def format_loss_mean(view: View) -> float | None:
    return mean(_foreign(view, "format_loss"))
