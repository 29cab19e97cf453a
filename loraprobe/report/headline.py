"""The headline of a verdict: what to do, and what was shown.

A table (`[headlines]` of verdict/codes.toml) has a sentence by decision, by the code of the reason
that decides, and by where the interval of the gain lies. That a gain is below the margin is said
only where the interval excludes it. Elsewhere the headline names what decides, and the probability
of a gain, or how much of it the interval does not exclude.
"""

from __future__ import annotations

from collections.abc import Mapping

from loraprobe.formatting import count, digits_beside, listing, probability, signed
from loraprobe.records import FORMS, SHRUNK, STEPS, Audit, Verdict, called
from loraprobe.verdict.advice import Basis, basis_of
from loraprobe.verdict.evidence import FORM, SWITCH, Evidence, ranked
from loraprobe.verdict.next_command import may_stop
from loraprobe.verdict.reasons import HEADLINES

# Codes of rules that decide on the gain although its interval leaves it open.
ON_GAIN = ("nothing-to-gain", "hop-unknown-to-all", "disjoint-hops", "chain-outdoes")


def headline(audit: Audit, verdict: Verdict) -> str:
    """The headline of a verdict on what was measured, as a sentence."""
    measured = basis_of(verdict, audit.evaluation)
    code, states = deciding(verdict), _states(audit, verdict)
    sentences = HEADLINES[verdict.decision][code]
    text = next(sentences[state] for state in states if state in sentences)
    said = text.format(**_words(audit, verdict, measured))
    if chance := _chance(verdict, code, states):
        said = f"{said[:-1]}; {chance})" if said.endswith(")") else f"{said} ({chance})"
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
    """By what the table tells sentences of one code apart, the most special first."""
    several = len(audit.evaluation.tasks) > 1
    codes = {reason.code for reason in verdict.reasons}
    steps = verdict.gain is not None and verdict.gain.form == STEPS
    found = {
        "chain": verdict.action.kind == "chain",
        "switched": verdict.action.kind == SWITCH,
        "several": several,
        "steps": steps,
        "hops": verdict.gain is not None and verdict.gain.system == "chain",
        "hopeless": may_stop(verdict),
        "first": verdict.evidence == "pilot",
        "control": "only-shrunk-answers" in codes,
        "named": "right-without-form" in codes,
        lies(verdict): True,
        "any": True,
    }
    return [state for state, holds in found.items() if holds]


def _words(audit: Audit, verdict: Verdict, measured: Basis) -> Mapping[str, str]:
    """What the sentences name."""
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
        "control": f"a {called(system)}" if single == system else f"the shrunk {single}",
        "wrong": "the adapters" if single == system else single,
        "guards": listing(guards) or "a guard",
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
    if verdict.action.kind != "gather-evidence" or all(
        reason.code != "better-is-unsafe" for reason in verdict.reasons
    ):
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
    }.get(verdict.action.kind, called(verdict.system or "") if verdict.composes else "")
    if not who:
        return ""
    forms = {row.part for row in audit.evaluation.scores} >= {*FORMS}
    form = f" {FORM[STEPS]}" if forms and used is not None and used.part == STEPS else ""
    return f"use {who}{form}" + (f" ({used.shown:z.2f})" if used is not None else "")
