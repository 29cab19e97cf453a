"""Reasons from the task's items: too few of them, and what they lack."""

from __future__ import annotations

from loraprobe.defaults import FEWEST_ITEMS, TEMPLATE_MATTERS
from loraprobe.formatting import count
from loraprobe.records import Reason, Verdict
from loraprobe.verdict import formatting as fmt
from loraprobe.verdict.evidence import BASELINES, COMPOSITIONS, Evidence


def about_items(evidence: Evidence, verdict: Verdict) -> list[Reason]:
    """What the number of items and the fields that they lack leave open."""
    counted = [row for row in evidence.evaluation if row.part == "question"]
    if evidence.level == "pilot":  # compositions answered fewer items than there are
        counted = [row for row in counted if row.kind in BASELINES]
    scored = [row.n for row in counted]
    if not scored:
        return []
    found = _about_template(evidence)
    if min(scored) < FEWEST_ITEMS:
        found.append(_few(min(scored)))
    if verdict.decision == "likely" or evidence.several or evidence.losses:
        return found
    if not evidence.systems(COMPOSITIONS):
        return found
    parts = {row.part for row in evidence.evaluation}
    generated = any(row.metric == "exact_match" for row in evidence.evaluation)
    if generated and "steps" not in parts:
        found.append(_missing("steps", "cot_prompt", "whether it works step by step is unknown"))
    if not any(part.startswith("hop") for part in parts):
        found.append(_missing("hops", "hops", "why answers fail, and a chain, are not measured"))
    return found


def _about_template(evidence: Evidence) -> list[Reason]:
    """That the chat template changes the answers, where it does."""
    found = []
    for row in evidence.coverage:
        if row.name != "chat_template" or row.value is None or row.baseline is None:
            continue
        if abs(row.value - row.baseline) >= TEMPLATE_MATTERS:
            used = "with" if row.value > row.baseline else "without"
            found.append(
                Reason(
                    "template-matters",
                    f"The chat template changes the answers: {fmt.number(row.value)} right with "
                    f"it, {fmt.number(row.baseline)} without, on {row.n} questions. Serve {used} "
                    "it, as was done here.",
                    row.value - row.baseline,
                    TEMPLATE_MATTERS,
                    "loraprobe's convention: a fifth of the questions",
                    "warning",
                )
            )
    return found


def _few(n: int) -> Reason:
    return Reason(
        "few-items",
        f"{count(n, 'question')} can decide only what is plain to see: give {FEWEST_ITEMS} or "
        "more, better 100.",
        float(n),
        float(FEWEST_ITEMS),
        "half a 95 % interval of a share is 0.35 with 8 items, 0.18 with 30, 0.10 with 100",
        "warning",
    )


def _missing(what: str, field: str, unknown: str) -> Reason:
    return Reason(
        f"{what}-missing",
        f"The items have no `{field}`, so {unknown}.",
        source="optional fields of a task file",
    )
