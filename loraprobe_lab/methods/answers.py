"""What the table answers, in sentences made from its numbers by a stated rule."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from loraprobe_lab.methods.pooling import Pooled
from loraprobe_lab.methods.table import MARGIN, Gain, Row, Table

ENOUGH = 0.8  # of a skill's gain, which a composition has to keep of every skill
SHOWN = 8  # names in a sentence


@dataclass(frozen=True)
class Answer:
    """A question of the page, and what the numbers say to it."""

    question: str
    text: str


def answers(table: Table) -> list[Answer]:
    """One answer for each question of which the table has a column."""
    found = []
    if "two-hop" in table.counts:
        found.append(
            Answer(
                "Does any of them rescue the latent two-hop?",
                _gaining(table, lambda row: row.two_hop, "asked at once"),
            )
        )
    if any(row.keep_both for row in table.rows):
        found.append(Answer("Which keeps both skills best?", _keeping(table)))
    if "step-by-step" in table.counts:
        found.append(
            Answer(
                "Which keeps what works step by step?",
                _gaining(table, lambda row: row.step_by_step, "asked step by step"),
            )
        )
    return found


def _gaining(table: Table, column: Callable[[Row], Gain | None], asked: str) -> str:
    """Yes, no or not decided, over all compositions of weights; then the chain beside them."""
    rows = [(row.entrant.label, column(row), row.entrant.family) for row in table.rows]
    weights = [(label, g) for label, g, family in rows if g is not None and family != "chain"]
    if not weights:
        return "No composition took part."
    by = {standing: [(label, g) for label, g in weights if g.standing == standing]
          for standing in ("gains", "does not gain", "undecided")}  # fmt: skip
    n, top = len(weights), max(weights, key=lambda one: one[1].gain.value)
    best = f"the largest gain {asked} is {top[0]}'s, {_interval(top[1].gain)}"
    if by["gains"]:
        names = sorted(by["gains"], key=lambda one: -one[1].gain.value)
        text = (
            f"{len(names)} of {n} gain more than {MARGIN:g} over the best of base and single "
            f"adapters ({_names([label for label, _ in names])}); {best}; "
            f"{len(by['does not gain'])} do not, {len(by['undecided'])} are undecided."
        )
    elif by["undecided"]:
        text = (
            f"None is seen to: {len(by['does not gain'])} of {n} compositions lie below a gain of "
            f"{MARGIN:g} over the best of base and single adapters, for {len(by['undecided'])} "
            f"it is not decided ({_names([label for label, _ in by['undecided']])}); {best}."
        )
    else:
        text = (
            f"No: all {n} compositions lie below a gain of {MARGIN:g} over the best of base and "
            f"single adapters; {best}."
        )
    chains = [g for _, g, family in rows if g is not None and family == "chain"]
    return text + "".join(f" The chain of both adapters has {_interval(g.gain)}." for g in chains)


def _keeping(table: Table) -> str:
    rows = [(row.entrant.label, row.keep_both) for row in table.rows if row.keep_both is not None]
    label, best = max(rows, key=lambda one: one[1].worse.value)
    rivals = [name for name, kept in rows if kept is not best and not kept.beaten]
    rivals.sort(key=lambda name: -dict(rows)[name].worse.value)
    low, high = best.worse.adjusted_ci95
    if low >= ENOUGH:
        enough = f"so both skills stay above {ENOUGH:g}"
    elif high < ENOUGH:
        enough = f"so nobody keeps {ENOUGH:g} of both"
    else:
        enough = f"which does not decide whether it keeps {ENOUGH:g} of both"
    told = (
        f"not told apart from it: {len(rivals)} of {len(rows) - 1} others ({_names(rivals)})"
        if rivals
        else f"it is better than each of the {len(rows) - 1} others"
    )
    return (
        f"{label}: of its worse skill it keeps {_interval(best.worse, '.2f')} of what the skill's "
        f"own adapter gains over the base (of both on average {best.both.value:.2f}), {enough}; "
        f"{told}."
    )


def _interval(found: Pooled, form: str = "+.2f") -> str:
    """The figure with the interval that holds for its whole column."""
    low, high = (format(end, form) for end in found.adjusted_ci95)
    return f"{format(found.value, form)} ({low} to {high})"


def _names(labels: Sequence[str]) -> str:
    more = len(labels) - SHOWN
    return "; ".join([*labels[:SHOWN], *([f"and {more} more"] if more > 0 else [])])
