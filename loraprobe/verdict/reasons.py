"""The reasons of a verdict on scored compositions, each with its value, threshold and source."""

from __future__ import annotations

from collections.abc import Sequence

from loraprobe.defaults import COMPRESSION_LIMIT, FEWEST_ITEMS
from loraprobe.formatting import count, listing
from loraprobe.records import Decision, Forecast, Reason
from loraprobe.verdict import formatting as fmt
from loraprobe.verdict.codes import reason_of
from loraprobe.verdict.evaluated import DECISION, Candidate, Estimate
from loraprobe.verdict.evidence import LibraryChoice


def no_comparison() -> Reason:
    """There are scores but no gains, so nothing can be decided."""
    return reason_of(
        "no-comparison",
        "Compositions were scored, but their gains over base and single adapters on the same "
        "items are not known: run merge-and-eval with these systems together.",
    )


def chosen_from(choice: LibraryChoice) -> Reason:
    """Out of how many adapters and sets of them the compositions were chosen, and at what cost."""
    sets = f" and {choice.sets:,} sets of them" if choice.sets else ""
    proved = f"{count(choice.proved, 'set')} proved" if choice.proved else "the best alone proved"
    chosen = f"from {count(choice.adapters, 'adapter')}{sets}: {_passes(choice.passes)}"
    if not choice.adapters:
        items = sum(items for _, items in choice.passes)
        chosen, proved = f"before any adapter was asked: {count(items, 'question')}", "the base"
    return reason_of(
        "chosen-from-library",
        f"Chosen {chosen}, then {proved} on up to {count(choice.others, 'other')}.",
        float(choice.sets),
    )


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
    margin = fmt.number(found.threshold)
    if decision == "likely":
        code, value, tail = "gain-beyond-margin", found.low, f"more than {margin}"
    elif outcome == "likely":
        code, value = "gain-with-reservation", found.low
        tail = f"more than {margin}, but {_reservations(best)}"
    elif outcome == "unlikely":
        code, value, tail = "gain-below-margin", found.high, f"less than {margin}"
    else:
        code, value = "gain-undecided", found.value
        tail = f"the interval holds {margin}{found.would_decide()}"
    return reason_of(
        code,
        f"{best.system}, {fmt.PART[best.part]}, against {against(best)}: {found} on "
        f"{count(found.n, 'item')}, {tail}.",
        value,
        found.threshold,
        decisive=DECISION[outcome] == decision,
    )


def _reservations(best: Candidate) -> str:
    """Why a gain beyond the margin is not `likely`."""
    said = {
        f"{observed(best.gain.n, best.gain.clusters)} are too few to rely on": best.enough,
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
    return reason_of(
        "few-items",
        f"{observed(n, clusters)} can decide only what is plain to see: give {FEWEST_ITEMS} or "
        "more, better 100.",
        float(clusters),
        float(FEWEST_ITEMS),
        decisive=decisive,
    )


def other_form(other: Candidate) -> Reason:
    """What the best composition gains on the form that the decision is not about."""
    tail = {
        "likely": "it gains",
        "unlikely": "no gain",
        "open": "undecided" + other.gain.would_decide(),
    }[other.outcome]
    return reason_of(
        "plain-form" if other.part == "question" else "step-by-step-form",
        f"{fmt.PART[other.part].capitalize()}, the best composition is {other.system}: "
        f"{other.gain} against {against(other)}, {tail}.",
        other.gain.value,
        other.gain.threshold,
    )


def controls(best: Candidate) -> Reason:
    """Whether the composition beats a shrunk single adapter and random partners."""
    binding = best.outcome == best.beats_controls != best.gain.outcome
    if not best.controls:
        return reason_of(
            "controls-not-run",
            "No control was scored, so nothing shows that the partner matters: leave out --system.",
            decisive=binding,
        )
    name, nearest = min(
        best.controls.items(), key=lambda one: (one[1].outcome == "likely", one[1].value, one[0])
    )
    fails = best.gain.outcome == "unlikely"
    if nearest.outcome == "likely" or (fails and nearest.low > 0):
        what = _what_is(name, starts=False)
        text = f"{best.system} beats every control: {what} by {nearest}."
        return reason_of("controls-beaten", text, nearest.low, nearest.threshold)
    decided = fails or nearest.outcome == "unlikely"  # more items change nothing
    return reason_of(
        "partner-adds-nothing",
        f"{_what_is(name, starts=True)} {_compared(nearest)}: {best.system} differs by {nearest}"
        f"{'' if decided else nearest.would_decide()}.",
        nearest.low,
        nearest.threshold,
        decisive=binding,
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
        return "is not shown to be worse by the margin"
    return "is worse by less than the margin" if control.low > 0 else "is as good within the margin"


def retention(best: Candidate, asked: float) -> list[Reason]:
    """One reason a task: how much of its specialist the composition keeps, of what is asked."""
    return [_kept(best, task, share, asked) for task, share in best.kept.items()]


def _kept(best: Candidate, task: str, share: Estimate | None, asked: float) -> Reason:
    binding = best.outcome == best.retains and best.gain.outcome != best.outcome
    if share is None:
        return reason_of(
            "retention-undefined",
            f"On {task} no adapter is shown to differ from the base, so nothing can be kept: "
            "give more items, or an adapter that learned it.",
            None,
            asked,
            decisive=binding,
        )
    text = (
        f"On {task} {best.system} keeps {fmt.number(share.value)} "
        f"{fmt.interval(share.low, share.high)} of its specialist's gain; {fmt.number(asked)} asked"
    )
    if share.low >= asked:
        return reason_of("retention-kept", f"{text}.", share.low, asked)
    if share.outcome == "unlikely":
        code, value = "retention-lost", share.high
    else:
        code, value = "retention-undecided", share.low
        text += share.would_decide()
    return reason_of(code, f"{text}.", value, asked, decisive=binding)


def compression(candidate: Candidate, decisive: bool) -> Reason:
    """How much of its delta a composition lost to its rank."""
    error = candidate.compression_error or 0.0
    return reason_of(
        "compression-lost",
        f"{candidate.system} lost {fmt.number(error)} of its delta to its rank "
        f"({fmt.number(COMPRESSION_LIMIT)} is much), so the method was not tested: give a higher "
        "--rank.",
        error,
        COMPRESSION_LIMIT,
        decisive=decisive,
    )


def chain(found: Candidate, best: Candidate) -> Reason:
    """What a chain gains, which is the alternative to composing weights."""
    code, text = {
        "likely": ("chain-gains", "gains"),
        "unlikely": ("chain-fails", "does not gain"),
        "open": ("chain-undecided", "is undecided"),
    }[found.gain.outcome]
    return reason_of(
        code,
        f"Each hop by whoever answers it best ({found.system}) {text}: {found.gain} against "
        f"{found.against}; {best.system} {fmt.signed(best.gain.value)}.",
        found.gain.low,
        found.gain.threshold,
    )
