"""What limits an answer, in its lines: why it is so, what to watch, what licences ask, and what
extensions tell."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from loraprobe.extension import audit_parts, finding_owner
from loraprobe.records import Audit, Command, Issue, Reason, Verdict, by_severity
from loraprobe.report.parts import Line
from loraprobe.verdict.reasons import CODES, effect_rank
from loraprobe.verdict.unanswered import SHOWN, closest, what_differs

LACKS_BOTH = (
    "The items have no `hops` and no `cot_prompt`, so a chain and worked steps, which may answer, "
    "are not measured."
)
MOST_REASONS = 3
LICENCE = "licence-"  # how codes of findings begin
# Codes of reasons about the form of the question that the decision is not about.
OTHER_FORM = ("step-by-step-form", "plain-form")


# Reasons from weights that warn of nothing.
NOTES = ("unrelated-updates", "shared-initialisation")


def problems(issues: Sequence[Issue]) -> Iterator[Line]:
    """What stands in the way, and each cure once."""
    yield from (("why", f"{one.code}: {first_sentence(one)}") for one in issues[:MOST_REASONS])
    for cure in dict.fromkeys(issue.cure for issue in issues[:MOST_REASONS]):
        yield "fix", Command.read(cure) if cure.startswith("loraprobe ") else cure


def limits(audit: Audit, verdict: Verdict) -> Iterator[Line]:
    """At most three reasons: why, what to watch, and what the adapters' findings warn of."""
    why = [r for r in _told("why", verdict.reasons) if _explains(r, verdict)]
    why.sort(key=lambda r: r.severity != "decisive")
    explained = [("why", r.message) for r in why[:2]]
    if "replies-differ" in verdict.codes and audit.samples:
        names = [one.system for one in closest(audit.evaluation)[:SHOWN]]
        explained = [("why", what_differs(audit.samples[0], names))]  # the headline says the rest
    lacks = [r.message for r in _told("lacks", verdict.reasons)]
    lacking = [("lacks", text) for text in ([LACKS_BOTH] if len(lacks) > 1 else lacks)]
    # What may change the advice comes before what explains it; where nothing answers there is none.
    first = [*explained, *lacking] if verdict.missing == "answers" else [*lacking, *explained]
    yield from [*first, *(("watch", text) for text in watched(audit))][:MOST_REASONS]
    if verdict.evidence == "weights":
        yield from (("also", r.message) for r in verdict.reasons if r.code in NOTES)


def _told(line: str, reasons: Sequence[Reason]) -> list[Reason]:
    """The reasons that this line of the answer tells, those of the largest effect first."""
    found = [r for r in reasons if r.code in CODES and CODES[r.code].line == line]
    return sorted(found, key=lambda reason: effect_rank(reason.code))


def _explains(reason: Reason, verdict: Verdict) -> bool:
    """Whether a reason explains the decision: of an open one, only what keeps it open does."""
    best, open_ = verdict.gain, verdict.decision == "inconclusive"
    if verdict.missing == "answers":
        return reason.code != "replies-differ"  # the question that is shown says more
    if reason.code in OTHER_FORM:
        return open_ and best is not None and (reason.value or 0.0) > best.difference
    if verdict.evidence not in ("pilot", "evaluation") or not open_:
        return True
    return reason.severity == "decisive" or reason.code.startswith(
        ("retention", "compression", "better-is-unsafe")
    )


def watched(audit: Audit) -> list[str]:
    """What to watch: reasons of the verdict, then warnings among the findings, without those that
    a reason tells too, and without licences."""
    verdict = audit.verdict
    reasons, codes = (verdict.reasons, verdict.codes) if verdict is not None else ((), frozenset())
    twice = {"duplicate"} if codes & {"nearly-equal-updates", "same-adapter"} else set()
    twice |= {"said-otherwise"} if "right-without-form" in codes else set()
    warnings = [r.message for r in _told("watch", reasons) if r.code not in twice]
    for issue in audit.compatibility.issues:
        elsewhere = (
            issue.code in twice or issue.code.startswith(LICENCE) or finding_owner(issue.code)
        )
        if issue.severity == "warning" and not elsewhere:
            cure = f" {issue.cure}" if "--" in issue.cure else ""  # an option to set
            warnings.append(f"{first_sentence(issue)}{cure}")
    return warnings


def first_sentence(issue: Issue) -> str:
    """What a finding says, without what follows from it."""
    return re.split(r"(?<=\.)\s|;\s(?=an\s)", issue.message, maxsplit=1)[0]


def licences(audit: Audit) -> Iterator[Line]:
    """What licences ask of somebody who publishes what was made."""
    for issue in by_severity(audit.compatibility.issues):
        if issue.code.startswith(LICENCE):
            yield "licence", first_sentence(issue)


def of_extensions(audit: Audit) -> Iterator[Line]:
    """What extensions tell of their findings and of what is advised."""
    for part in audit_parts():
        yield from part.lines(audit)


def said(verdict: Verdict, code: str) -> str:
    """The sentence of the reason of this code; "" without the reason."""
    return next((r.message for r in verdict.reasons if r.code == code), "")


def clause(verdict: Verdict, code: str) -> str:
    """As `said`, for a sentence that begins with no name, without its capital and full stop."""
    sentence = said(verdict, code)
    return sentence[:1].lower() + sentence[1:].rstrip(".")
