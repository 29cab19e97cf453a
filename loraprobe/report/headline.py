"""The headline of an audit: what was made or found, or what to do and what was shown.

A table (`[headlines]` of verdict/codes.toml) has a sentence for what was measured, by decision, by
the code of the reason that decides, and by where the interval of the gain lies. That a gain is
below the margin is said only where the interval excludes it. Elsewhere the headline names what
decides, and the probability of a gain, or how much of it the interval does not exclude.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from loraprobe.compatibility import OF_BASE
from loraprobe.extension import finding_owner, summaries
from loraprobe.formatting import count, digits_beside, listing, probability, signed, spread
from loraprobe.options import commands
from loraprobe.records import FORMS, SHRUNK, STEPS, Audit, Verdict, display_name, references
from loraprobe.report.limits import MOST_REASONS, watched
from loraprobe.verdict.advice import Basis, basis_of
from loraprobe.verdict.evidence import FORM, SWITCH, Evidence, ranked
from loraprobe.verdict.next_command import may_stop
from loraprobe.verdict.reasons import HEADLINES

# Codes of rules that decide on the gain although its interval leaves it open.
ON_GAIN = ("nothing-to-gain", "hop-unknown-to-all", "disjoint-hops", "chain-outdoes")


def headline(audit: Audit) -> str:
    """The decision in words that a stranger understands."""
    verdict = audit.verdict
    if verdict is None:
        return next(filter(None, (one.headline for one in summaries(audit))), _of_files(audit))
    if verdict.decision == "incompatible":
        return f"INCOMPATIBLE: {_conflict(audit)}."
    if verdict.evidence == "weights":
        what = "the merge" if audit.command == "merge" else "composing"
        return f"{_done(audit)}. Whether {what} helps needs a task."
    if repeats(audit) and verdict.gain is not None:
        form = ", asked step by step" if verdict.gain.form == STEPS else ""
        return f"{_done(audit)}: measured to gain {verdict.gain.difference:.2f}{form}."
    if verdict.compositions_not_asked:
        head = verdict.action.kind
        who = {"use-base": "the base alone", "use-single": f"{verdict.action.adapter} alone"}
        best = f"{who.get(head, 'each task by its own adapter')} is the best of what was asked"
        best = "a chain gains what you asked for" if head == "chain" else best
        best = "nothing that was asked is shown to answer" if head == "gather-evidence" else best
        return f"MEASURED: {best}; merges and routers were not asked."
    return _of_measured(audit, verdict)


def repeats(audit: Audit) -> bool:
    """Whether the verdict was measured before, on the same composition."""
    return audit.verdict is not None and "measured-before" in audit.verdict.codes


def _conflict(audit: Audit) -> str:
    """What cannot be composed: adapters of another base, some of the adapters, or all."""
    errors = audit.compatibility.errors
    if audit.base is not None and any(issue.code in OF_BASE for issue in errors):
        names = list(dict.fromkeys(row.base_model for row in audit.adapters if row.base_model))
        theirs = f" ({listing(names)})" if names else ""
        return f"{audit.base.reference} is not the base of these adapters{theirs}"
    wrong = list(dict.fromkeys(name for issue in errors for name in issue.adapters))
    if errors and all(len(issue.adapters) == 1 for issue in errors):
        return f"{listing(wrong)} cannot be used as {'it is' if len(wrong) == 1 else 'they are'}"
    return "these adapters cannot be composed as they are"


def _of_files(audit: Audit) -> str:
    """What files alone tell: what one adapter is, or what was made."""
    errors = audit.compatibility.errors
    if len(audit.adapters) != 1 or audit.command != "inspect":
        return "INCOMPATIBLE." if errors else f"{_done(audit)}."
    row = audit.adapters[0]
    state = " It cannot be used as it is." if errors else ""
    if errors and all(tellers := [finding_owner(issue.code) for issue in errors]):
        state = " ".join(["", *dict.fromkeys(one.unfit for one in tellers if one is not None)])
    kind = f"{row.variant}, rank {spread(row.rank.values())}, {count(row.modules, 'module')}"
    base = row.base_model or "an unnamed base"
    return f"{row.name}: {kind} of {base}{_warnings(audit)}.{state}"


def _done(audit: Audit) -> str:
    """What the command did, and the number of warnings."""
    return f"{made(audit) or 'FIT TOGETHER'}{_warnings(audit)}"


def made(audit: Audit) -> str:
    """The headline of a command that makes something; "" for any other."""
    return commands()[audit.command].done if audit.command in commands() else ""


def _warnings(audit: Audit) -> str:
    found = len(watched(audit))
    rest = " (--explain tells all)" if found > MOST_REASONS else ""
    return f", {count(found, 'warning')}{rest}" if found else ""


# ---- what was measured ---------------------------------------------------------------------------


def _of_measured(audit: Audit, verdict: Verdict) -> str:
    """The headline of a verdict on what was measured, as a sentence."""
    measured = basis_of(verdict, audit.evaluation)
    code, states = deciding(verdict), _states(audit, verdict)
    sentences = HEADLINES[verdict.decision][code]
    text = next(sentences[state] for state in states if state in sentences)
    said = text.format(**_words(audit, verdict, measured, _chance(verdict, code, states)))
    lead = _lead(audit, verdict, measured) if verdict.decision == "unlikely" else ""
    lead = lead or _unsafe(audit, verdict)
    return f"{verdict.decision.upper()}: {'; '.join(filter(None, (lead, said)))}."


def tells_probability(verdict: Verdict) -> bool:
    """Whether the headline has the probability of a gain."""
    gain = verdict.gain
    if verdict.decision != "unlikely" or gain is None or gain.probability is None:
        return False
    return deciding(verdict) in ON_GAIN and lies(verdict) == "open"


def lies(verdict: Verdict) -> str:
    """Where the interval of the gain lies to the margin: "below", "open" if it holds that, "above";
    "" without a gain of a composition."""
    gain = verdict.gain
    if gain is None or gain.system == "chain":
        return ""
    low, high = gain.ci95
    return "below" if high < verdict.margin else "above" if low > verdict.margin else "open"


def deciding(verdict: Verdict) -> str:
    """The code that decides, of several the one that stands first in the table."""
    codes = {reason.code for reason in verdict.reasons if reason.severity == "decisive"}
    table = HEADLINES[verdict.decision]
    return next((code for code in table if code in codes), list(table)[-1])


def _states(audit: Audit, verdict: Verdict) -> list[str]:
    """The words that hold of a result, of those for which the table may have a sentence of a code.

    The sentence of the first one is used, so a special case stands before a general one.
    """
    several = len(audit.evaluation.tasks) > 1
    gain, action = verdict.gain, verdict.action.kind
    in_order = (
        ("chain", action == "chain"),
        ("switched", action == SWITCH),
        ("routed", several and action == "route"),
        ("several", several),
        ("steps", gain is not None and gain.form == STEPS),
        ("hops", gain is not None and gain.system == "chain"),
        ("hopeless", may_stop(verdict)),
        ("first", verdict.evidence == "pilot"),
        ("control", "only-shrunk-answers" in verdict.codes),
        ("named", "right-without-form" in verdict.codes),
        (lies(verdict), True),
        ("any", True),
    )
    return [state for state, holds in in_order if holds]


def _words(audit: Audit, verdict: Verdict, measured: Basis, chance: str) -> Mapping[str, str]:
    """What the sentences name. chance: of a gain, which stands in brackets."""
    gain = verdict.gain
    guards = [
        row.task
        for row in audit.evaluation.guards
        if gain is not None and (row.system, row.outcome) == (gain.system, verdict.decision)
    ]
    best, chain = measured.best, measured.chain
    system = verdict.system or ""
    single = system.removeprefix(SHRUNK)
    return {
        "asked": count(gain.n, "question") if gain is not None else "these scores",
        "margin": f"{verdict.margin:.2f}",
        "best": f"{best.shown:z.2f}" if best is not None else "",
        "chain": f"{chain.shown:z.2f}" if chain is not None else "",
        "control": f"a {display_name(system)}" if single == system else f"the shrunk {single}",
        "wrong": "the adapters" if single == system else single,
        "guards": listing(guards) or "a guard",
        "chance": f" ({chance})" if chance else "",
    }


def _chance(verdict: Verdict, code: str, states: list[str]) -> str:
    """What the interval leaves open of a gain that rules exclude."""
    gain = verdict.gain
    if gain is None or code not in ON_GAIN or "open" not in states:
        return ""
    if gain.probability is not None:
        return f"a gain has probability {probability(gain.probability)}"
    high = gain.ci95[1]
    return f"a gain up to {signed(high, digits_beside(verdict.margin, high))} is not excluded"


def _unsafe(audit: Audit, verdict: Verdict) -> str:
    """The best of what answers, where all of that loses a guard, with what it loses."""
    if verdict.action.kind != "gather-evidence" or "better-is-unsafe" not in verdict.codes:
        return ""
    best = ranked(Evidence(audit.evaluation).scored(audit.evaluation.unsafe))[0]
    lost = [
        row.task
        for row in audit.evaluation.guards
        if (row.system, row.outcome) == (best.system, "unlikely")
    ]
    who = "a chain" if best.kind == "chain" else str(best)
    return f"{who} ({best.shown:z.2f}) loses {listing(lost)}"


def _lead(audit: Audit, verdict: Verdict, measured: Basis) -> str:
    """What to use, where something that was measured answers."""
    used = measured.used
    who = {
        "chain": "a chain",
        "use-single": f"{verdict.action.adapter} alone",
        "use-base": "the base alone",
        "switch-adapters": "each task's own adapter",
    }.get(verdict.action.kind, display_name(verdict.system or "") if verdict.composes else "")
    if used is not None and used.kind in references():
        who = str(replace(used, both=False))
    if not who:
        return ""
    forms = {row.part for row in audit.evaluation.scores} >= {*FORMS}
    form = f" {FORM[STEPS]}" if forms and used is not None and used.part == STEPS else ""
    return f"use {who}{form}" + (f" ({used.shown:z.2f})" if used is not None else "")
