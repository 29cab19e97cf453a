"""The reasons of a verdict on scored compositions, each with its value, threshold and source."""

from __future__ import annotations

from loraprobe.defaults import COMPRESSION_LIMIT, FEWEST_ITEMS
from loraprobe.formatting import count, listing
from loraprobe.records import Decision, Forecast, Reason
from loraprobe.verdict import formatting as fmt
from loraprobe.verdict import more_items
from loraprobe.verdict.evaluated import Candidate, Control, Retained


def no_comparison() -> Reason:
    """There are scores but no gains, so nothing can be decided."""
    return Reason(
        "no-comparison",
        "Compositions were scored, but their gains over base and single adapters on the same "
        "items are not known: run merge-and-eval with these systems together.",
        source="a gain is a paired difference to base and every single adapter",
        severity="decisive",
    )


def against(candidate: Candidate | Forecast) -> str:
    """The best baseline's name, with its form if that differs from the composition's."""
    if candidate.against_part == candidate.part:
        return candidate.against
    return f"{candidate.against} {fmt.PART[candidate.against_part]}"


def gain(best: Candidate, decision: Decision) -> Reason:
    """What the most promising composition gains over the best of base and singles."""
    margin = fmt.number(best.margin)
    what = (
        f"{best.system}, {fmt.PART[best.part]}, against {against(best)}: "
        f"{fmt.gain(best.difference, best.low, best.high)} on {count(best.n, 'item')}"
    )
    if decision == "likely":
        code, value, tail = "gain-beyond-margin", best.low, f"more than {margin}"
    elif best.gains == "likely":
        code, value = "gain-with-reservation", best.low
        tail = f"more than {margin}, but {_reservations(best)}"
    elif best.gains == "unlikely":
        code, value, tail = "gain-below-margin", best.high, f"less than {margin}"
    else:
        code, value, tail = "gain-undecided", best.difference, _undecided(best, margin)
    deciding = {"likely": "likely", "unlikely": "unlikely", "inconclusive": "open"}
    decisive = best.gains == deciding.get(decision)
    return Reason(
        code,
        f"{what}, {tail}.",
        value,
        best.margin,
        fmt.MARGIN,
        "decisive" if decisive else "info",
    )


def _undecided(best: Candidate, margin: str) -> str:
    return f"the interval holds {margin}{more_items.would_decide(more_items.of_gain(best))}"


def _reservations(best: Candidate) -> str:
    """Why a gain beyond the margin is not `likely`."""
    said = {
        f"{observed(best.n, best.clusters)} are too few to rely on": best.enough,
        "no control was scored": "likely" if best.controls else "open",
        "controls do not confirm it": best.beats_controls if best.controls else "likely",
        "not every skill is kept": best.retains,
    }
    return listing([text for text, outcome in said.items() if outcome != "likely"])


def observed(n: int, clusters: int) -> str:
    """The number of questions, with that of their clusters if that is smaller."""
    if clusters < n:
        return f"{count(clusters, 'cluster')} of questions ({count(n, 'question')})"
    return count(n, "question")


def few_items(n: int, clusters: int, decisive: bool) -> Reason:
    """That so few items decide little."""
    return Reason(
        "few-items",
        f"{observed(n, clusters)} can decide only what is plain to see: give {FEWEST_ITEMS} or "
        "more, better 100.",
        float(clusters),
        float(FEWEST_ITEMS),
        "half a 95 % interval of a share is 0.35 with 8 items, 0.18 with 30, 0.10 with 100",
        "decisive" if decisive else "warning",
    )


def other_form(other: Candidate) -> Reason:
    """What the best composition gains on the form that the decision is not about."""
    what = (
        f"{fmt.PART[other.part].capitalize()}, the best composition is {other.system}: "
        f"{fmt.gain(other.difference, other.low, other.high)} against {against(other)}"
    )
    code = "plain-form" if other.part == "question" else "step-by-step-form"
    tail = {
        "likely": "it gains",
        "unlikely": "no gain",
        "open": "undecided",
    }[other.outcome]
    if other.outcome == "open":
        tail += more_items.would_decide(more_items.of_gain(other))
    return Reason(code, f"{what}, {tail}.", other.difference, other.margin, fmt.MARGIN)


def controls(best: Candidate) -> Reason:
    """Whether the composition beats a shrunk single adapter and random partners."""
    if not best.controls:
        return Reason(
            "controls-not-run",
            "No control was scored, so nothing shows that the partner matters: leave out --system.",
            source=fmt.CONTROL,
            severity="decisive" if best.outcome == best.beats_controls != best.gains else "warning",
        )
    nearest = min(best.controls, key=lambda c: (c.beaten, c.difference, c.name))
    how = fmt.gain(nearest.difference, nearest.low, nearest.high)
    if nearest.beaten or (best.gains == "unlikely" and nearest.low > 0):
        what = _what_is(nearest).removesuffix(",")
        text = f"{best.system} beats every control: {fmt.lowered(what)} by {how}."
        return Reason("controls-beaten", text, nearest.low, nearest.margin, fmt.CONTROL)
    decided = nearest.as_good or best.gains == "unlikely"  # more items change nothing
    open_ = more_items.of_control(best, nearest)
    return Reason(
        "partner-adds-nothing",
        f"{_what_is(nearest)} {_compared(nearest)}: {best.system} differs by {how}"
        f"{'' if decided else more_items.would_decide(open_)}.",
        nearest.low,
        nearest.margin,
        fmt.CONTROL,
        "decisive" if best.outcome == best.beats_controls != best.gains else "warning",
    )


def _what_is(control: Control) -> str:
    """A control in words: a random partner, or one adapter shrunk."""
    kind, _, name = control.name.partition(":")
    if kind == "shrunk":
        return f"{name} alone, only shrunk,"
    return (
        "A random partner of the same size" if kind == "random-partner" else f"{kind}, a control,"
    )


def _compared(control: Control) -> str:
    """How a control that is not beaten compares with the composition."""
    if control.high < 0:
        return "is better"
    if control.as_good and control.low > 0:
        return "is worse by less than the margin"
    if control.as_good:
        return "is as good within the margin"
    return "is not shown to be worse by the margin"


def retention(best: Candidate) -> list[Reason]:
    """One reason a task: how much of its specialist the composition keeps."""
    return [_kept(best, kept) for kept in best.kept]


def _kept(best: Candidate, kept: Retained) -> Reason:
    binding = best.outcome == best.retains and best.gains != best.outcome
    if kept.value is None or kept.ci95 is None:
        return Reason(
            "retention-undefined",
            f"On {kept.task} no adapter is shown to differ from the base, so nothing can be kept: "
            "give more items, or an adapter that learned it.",
            None,
            best.threshold,
            fmt.RETENTION,
            "decisive" if binding else "warning",
        )
    low, high = kept.ci95
    text = (
        f"On {kept.task} {best.system} keeps {fmt.number(kept.value)} "
        f"{fmt.interval(low, high)} of its specialist's gain; {fmt.number(best.threshold)} asked."
    )
    if low >= best.threshold:
        return Reason("retention-kept", text, low, best.threshold, fmt.RETENTION)
    lost, open_ = high < best.threshold, more_items.of_retention(best, kept)
    return Reason(
        "retention-lost" if lost else "retention-undecided",
        text if lost else text[:-1] + more_items.would_decide(open_) + ".",
        high if lost else low,
        best.threshold,
        fmt.RETENTION,
        "decisive" if binding else "warning",
    )


def compression(candidate: Candidate, decisive: bool) -> Reason:
    """How much of its delta a composition lost to its rank."""
    error = candidate.compression_error or 0.0
    return Reason(
        "compression-lost",
        f"{candidate.system} lost {fmt.number(error)} of its delta to its rank "
        f"({fmt.number(COMPRESSION_LIMIT)} is much), so the method was not tested: give a higher "
        "--rank.",
        error,
        COMPRESSION_LIMIT,
        fmt.COMPRESSION,
        "decisive" if decisive else "warning",
    )


def chain(found: Candidate, best: Candidate) -> Reason:
    """What a chain gains, which is the alternative to composing weights."""
    code, text = {
        "likely": ("chain-gains", "gains"),
        "unlikely": ("chain-fails", "does not gain"),
        "open": ("chain-undecided", "is undecided"),
    }[found.gains]
    return Reason(
        code,
        f"Each hop by whoever answers it best ({found.system}) {text}: "
        f"{fmt.gain(found.difference, found.low, found.high)} against {found.against}; "
        f"{best.system} {fmt.signed(best.difference)}.",
        found.low,
        found.margin,
        fmt.MARGIN,
    )
