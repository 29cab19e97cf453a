"""The reasons of a verdict on scored compositions, each with its value, threshold and source."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from loraprobe.defaults import COMPRESSION_LIMIT, FEWEST_ITEMS
from loraprobe.formatting import count, listing
from loraprobe.records import Decision, Forecast, Reason
from loraprobe.verdict import formatting as fmt
from loraprobe.verdict.codes import reason_of
from loraprobe.verdict.evaluated import DECISION, Candidate, Estimate
from loraprobe.verdict.evidence import LibraryChoice


def chosen_from(choice: LibraryChoice | None) -> Iterator[Reason]:
    """Out of how many adapters and sets of them the compositions were chosen, and at what cost."""
    if choice is None:
        return
    sets = f" and {choice.sets:,} sets of them" if choice.sets else ""
    proved = f"{count(choice.proved, 'set')} proved" if choice.proved else "the best alone proved"
    chosen = f"from {count(choice.adapters, 'adapter')}{sets}: {_passes(choice.passes)}"
    if not choice.adapters:
        items = sum(items for _, items in choice.passes)
        chosen, proved = f"before any adapter was asked: {count(items, 'question')}", "the base"
    others = count(choice.others, "other")
    of = float(choice.sets)
    yield reason_of("chosen-from-library", of, chosen=chosen, proved=proved, others=others)


def _passes(passes: Sequence[tuple[int, int]]) -> str:
    """Such as "8 passes over 20 questions, 5 over 20 more, 13 over worked answers"."""
    first, *more = [(systems, items) for systems, items in passes if items]
    told = [f"{first[0]:,} passes over {count(first[1], 'question')}"]
    told += [f"{systems:,} over {items:,} more" for systems, items in more]
    worked = sum(systems for systems, items in passes if not items)
    return ", ".join([*told, *([f"{worked:,} over worked answers"] if worked else [])])


def against(candidate: Candidate | Forecast) -> str:
    """The best baseline's name, with its form if that differs from the composition's."""
    if candidate.against_part == candidate.part:
        return candidate.against
    return f"{candidate.against} {fmt.PART[candidate.against_part]}"


def gain(best: Candidate, decision: Decision) -> Reason:
    """What the most promising composition gains over the best of base and singles."""
    found, outcome = best.gain, best.gain.outcome
    code, value = {
        "likely": ("gain-beyond-margin", found.low),
        "unlikely": ("gain-below-margin", found.high),
        "open": ("gain-undecided", found.value),
    }[outcome]
    return reason_of(
        "gain-with-reservation" if outcome == "likely" != decision else code,
        value,
        found.threshold,
        decisive=DECISION[outcome] == decision,
        gain=f"{best.system}, {fmt.PART[best.part]}, against {against(best)}: {found} on "
        f"{count(found.n, 'item')}",
        reservations=_reservations(best),
        would_decide=found.would_decide(),
    )


def _reservations(best: Candidate) -> str:
    """Why a gain beyond the margin is not `likely`."""
    said = {
        f"{observed(best.gain.n, best.gain.clusters)} are too few to rely on": best.enough,
        "no control was scored": "likely" if best.controls else "open",
        "controls do not confirm it": best.beats_controls if best.controls else "likely",
        "not every skill is kept": best.retains,
        "the metric that the gold answers need does not confirm it": best.confirmed,
    }
    return listing([text for text, outcome in said.items() if outcome != "likely"])


def observed(n: int, clusters: int) -> str:
    """The number of questions, with that of their clusters if that is smaller."""
    if clusters < n:
        return f"{count(clusters, 'cluster')} of questions ({count(n, 'question')})"
    return count(n, "question")


def few_items(n: int, clusters: int, decisive: bool) -> Reason:
    """That so few items decide little."""
    asked = observed(n, clusters)
    few, least = float(clusters), float(FEWEST_ITEMS)
    return reason_of("few-items", few, least, decisive=decisive, questions=asked)


def other_form(other: Candidate) -> Reason:
    """What the best composition gains on the form that the decision is not about."""
    tail = {
        "likely": "it gains",
        "unlikely": "no gain",
        "open": "undecided" + other.gain.would_decide(),
    }[other.outcome]
    return reason_of(
        "plain-form" if other.part == "question" else "step-by-step-form",
        other.gain.value,
        other.gain.threshold,
        best=f"{other.system}: {other.gain} against {against(other)}, {tail}",
    )


def controls(best: Candidate) -> Reason:
    """Whether the composition beats a shrunk single adapter and random partners."""
    binding = best.binds(best.beats_controls)
    if not best.controls:
        return reason_of("controls-not-run", decisive=binding)
    name, nearest = min(
        best.controls.items(), key=lambda one: (one[1].outcome == "likely", one[1].value, one[0])
    )
    fails = best.gain.outcome == "unlikely"
    if nearest.outcome == "likely" or (fails and nearest.low > 0):
        code, control = "controls-beaten", _what_is(name, starts=False)
    else:
        code, control = "partner-adds-nothing", _what_is(name, starts=True)
    decided = fails or nearest.outcome == "unlikely"  # more items change nothing
    return reason_of(
        code,
        nearest.low,
        nearest.threshold,
        decisive=binding and code == "partner-adds-nothing",
        system=best.system,
        control=control,
        compares=_compared(nearest),
        difference=nearest,
        would_decide="" if decided else nearest.would_decide(),
    )


def _what_is(control: str, starts: bool) -> str:
    """A control in words, at the start of a sentence or within one."""
    kind, _, name = control.partition(":")
    if kind == "random-partner":
        return f"{'A' if starts else 'a'} random partner of the same size"
    told = f"{name} alone, only shrunk" if kind == "shrunk" else f"{kind}, a control"
    return f"{told}," if starts else told


def _compared(control: Estimate) -> str:
    """How a control that is not beaten compares with the composition."""
    if control.high < 0:
        return "is better"
    if control.outcome == "open":
        return "is not shown to be worse by half the margin"
    worse = control.low > 0
    return "is worse by less than half the margin" if worse else "is as good within half the margin"


def retention(best: Candidate, task: str, share: Estimate | None, asked: float) -> Reason:
    """How much of a task's specialist the composition keeps, of what is asked."""
    binding = best.binds(best.retains)
    if share is None:
        return reason_of("retention-undefined", None, asked, decisive=binding, task=task)
    if share.low >= asked:
        code, value = "retention-kept", share.low
    elif share.outcome == "unlikely":
        code, value = "retention-lost", share.high
    else:
        code, value = "retention-undecided", share.low
    return reason_of(
        code,
        value,
        asked,
        decisive=binding and code != "retention-kept",
        task=task,
        best=best,
        share=share,
        would_decide=share.would_decide(),
    )


def compression(candidate: Candidate, decisive: bool) -> Reason:
    """How much of its delta a composition lost to its rank."""
    error, system = candidate.compression_error or 0.0, candidate.system
    return reason_of("compression-lost", error, COMPRESSION_LIMIT, decisive=decisive, system=system)


def chain(found: Candidate, best: Candidate | None, decisive: bool = False) -> Reason:
    """What a chain gains, which is the alternative to composing weights.

    best: of the compositions; None where none was asked. decisive: where some were, the chain is
    shown to be better than everything else; where none was, it keeps the case open.
    """
    codes = {"likely": "chain-gains", "unlikely": "chain-fails", "open": "chain-undecided"}
    return reason_of(
        "chain-outdoes" if decisive and best else codes[found.gain.outcome],
        found.gain.low,
        found.gain.threshold,
        decisive=decisive,
        chain=found,
        beside="" if best is None else f"; {best.system} {fmt.signed(best.gain.value)}",
    )
