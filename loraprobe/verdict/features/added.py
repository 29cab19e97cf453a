"""Features of the answers that the adapters' effects on the logits give if they simply add up.

`additive_score` at gate 1/n is what an average does but for interference inside the network, at
gate 1 what a sum does, and `routed_score` what a router does. "Expected" is the one of the family
that is asked about; for a router without `routed_score` the better of the other two.
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
Z95 = 1.959964  # half-width of a 95 % interval in standard errors
SMALLEST_ERROR = 0.02  # of a share of 60 items, however certain its interval looks
SOME = 0.05  # a difference smaller than this is no denominator
Source = tuple[str, float | None]  # a probe and its gate


def _sources(view: View) -> list[Source]:
    """Where the answers of the family's own added effects stand."""
    if view.family == "router" and view.rows("routed_score"):
        return [("routed_score", None)]
    return [("additive_score", gate) for gate in view.gates]


def _row(view: View, source: Source, part: str, task: str) -> Coverage | None:
    name, gate = source
    rows = (row for row in view.rows(name, task) if gate is None or at_gate(row, gate))
    return next((row for row in rows if form_of(row) == part), None)


def _score(view: View, source: Source, part: str) -> float | None:
    """The macro mean over tasks; None where one task lacks it."""
    rows = (_row(view, source, part, task) for task in view.tasks)
    return complete_mean(None if row is None else row.value for row in rows)


def _to_beat(view: View, source: Source, part: str) -> float | None:
    """What has to be beaten: the row's own baseline, on the same items.

    Who is asked step by step has to beat plain answers too. With several tasks one system has to
    be beaten on all of them, which only the scores know.
    """
    if view.several:
        return view.baseline(part)
    forms = ("target",) if part == "target" else FORMS
    rows = (_row(view, source, form, task) for form in forms for task in view.tasks)
    known = highest(row.baseline for row in rows if row is not None)
    return view.baseline(part) if known is None else known


def _gain(view: View, sources: list[Source], parts: tuple[str, ...] = FORMS) -> float | None:
    return highest(
        minus(_score(view, source, part), _to_beat(view, source, part))
        for source in sources
        for part in parts
    )


def _additive(gates: tuple[float, ...]) -> list[Source]:
    return [("additive_score", gate) for gate in gates]


@on(SHELF, "score if the effects on the logits added as this family adds them")
def expected_score(view: View) -> float | None:
    return highest(_score(view, source, part) for source in _sources(view) for part in FORMS)


@on(SHELF, "gain over base and singles if the effects on the logits added as this family does")
def expected_gain(view: View) -> float | None:
    return _gain(view, _sources(view))


@on(SHELF, "gain asked plainly if the effects on the logits added as this family adds them")
def expected_gain_plain(view: View) -> float | None:
    return _gain(view, _sources(view), ("target",))


@on(SHELF, "gain asked step by step if the effects on the logits added as this family does")
def expected_gain_steps(view: View) -> float | None:
    return _gain(view, _sources(view), ("cot",))


@on(SHELF, "chance that this gain exceeds the margin, by the sampling error of its score alone")
def expected_gain_chance(view: View) -> float | None:
    def chance(source: Source, part: str) -> float | None:
        gain = minus(_score(view, source, part), _to_beat(view, source, part))
        error = _error(view, source, part)
        if gain is None or error is None:
            return None
        beyond = (gain - view.evidence.margin) / max(error, SMALLEST_ERROR)
        return (1 + math.erf(beyond / math.sqrt(2))) / 2

    return highest(chance(source, part) for source in _sources(view) for part in FORMS)


def _error(view: View, source: Source, part: str) -> float | None:
    """The standard error of `_score`, from the half-widths of the tasks' intervals."""
    rows = [_row(view, source, part, task) for task in view.tasks]
    halves = [(r.ci95[1] - r.ci95[0]) / 2 for r in rows if r is not None and r.ci95 is not None]
    if not rows or len(halves) != len(rows):
        return None
    return math.hypot(*halves) / len(halves) / Z95


@on(SHELF, "score if constant shares of the adapters' effects on the logits added")
def additive_score(view: View) -> float | None:
    sources = _additive(view.gates)
    return highest(_score(view, source, part) for source in sources for part in FORMS)


@on(SHELF, "gain over base and single adapters if constant shares of the effects added")
def additive_gain(view: View) -> float | None:
    return _gain(view, _additive(view.gates))


@on(SHELF, "gain asked plainly if constant shares of the effects on the logits added")
def additive_gain_plain(view: View) -> float | None:
    return _gain(view, _additive(view.gates), ("target",))


@on(SHELF, "gain asked step by step if constant shares of the effects on the logits added")
def additive_gain_steps(view: View) -> float | None:
    return _gain(view, _additive(view.gates), ("cot",))


@on(SHELF, "gain if the effects added at gate 1/n or at gate 1, whichever is better")
def additive_gain_any_gate(view: View) -> float | None:
    return _gain(view, _additive((1 / max(1, len(view.adapters)), 1.0)))


@on(SHELF, "gain if the effects added at gate 1/n or at gate 1, whichever is worse")
def additive_gain_every_gate(view: View) -> float | None:
    gates = (1 / max(1, len(view.adapters)), 1.0)
    return lowest(_gain(view, _additive((gate,))) for gate in gates)


@on(SHELF, "gain if the adapters' effects added under the router's gates")
def routed_gain(view: View) -> float | None:
    return _gain(view, [("routed_score", None)])


@on(SHELF, "least share of a specialist's gain that is kept if the effects added")
def expected_retention_min(view: View) -> float | None:
    return lowest(_retained(view))


@on(SHELF, "mean share of the specialists' gains that is kept if the effects added")
def expected_retention_mean(view: View) -> float | None:
    return mean(_retained(view))


def _retained(view: View) -> list[float]:
    """(score - base) / (specialist - base) of every task and form that a specialist gains on.

    At the gate that keeps most where it keeps least. Empty for one task: nothing is to be kept.
    """
    if not view.several:
        return []
    found = []
    for source in _sources(view):
        shares = []
        for task, part in itertools.product(view.tasks, FORMS):
            row, base = _row(view, source, part, task), view.score(BASE, task, part)
            top = highest(view.score(name, task, part) for name in view.adapters)
            span, kept = minus(top, base), minus(row.value if row else None, base)
            if span is not None and kept is not None and span >= SOME:
                shares.append(bounded(kept / span))
        found.append(shares)
    return max(found, key=lambda shares: min(shares, default=float("-inf")), default=[])


def _at_gates(view: View, probe: str) -> list[Coverage]:
    return [
        row
        for row in view.rows(probe)
        if form_of(row) in FORMS and any(at_gate(row, gate) for gate in view.gates)
    ]


@on(SHELF, "cosine of two adapters' effects on the next token, on average")
def effect_overlap(view: View) -> float | None:
    return mean(row.value for row in _at_gates(view, "effect_overlap"))


@on(SHELF, "least cosine of two adapters' effects on the next token")
def effect_overlap_min(view: View) -> float | None:
    return lowest(row.value for row in _at_gates(view, "effect_overlap"))


def _kept(view: View) -> list[float]:
    """Each adapter's share of the added text that it would have written itself."""
    rows = _at_gates(view, "own_answer_kept")
    each = (mean(r.value for r in rows if r.adapters == (name,)) for name in view.adapters)
    return [share for share in each if share is not None]


@on(SHELF, "share of the added text that the adapter with least say would write itself")
def own_answer_kept_min(view: View) -> float | None:
    return lowest(_kept(view))


@on(SHELF, "share of the added text that the adapter with most say would write itself")
def own_answer_kept_max(view: View) -> float | None:
    return highest(_kept(view))


@on(SHELF, "share of the added text that the base would write itself")
def base_answer_kept(view: View) -> float | None:
    return mean(row.baseline for row in _at_gates(view, "own_answer_kept"))
