"""Reasons from the task's items: too few of them, and what they lack."""

from __future__ import annotations

import math

from loraprobe.defaults import FEWEST_ITEMS, TEMPLATE_MATTERS
from loraprobe.records import BASELINES, FORMS, Reason, Verdict
from loraprobe.sample_size import Z95
from loraprobe.tasks import is_generated
from loraprobe.tasks.harness_task import PREFIX
from loraprobe.verdict import formatting as fmt
from loraprobe.verdict.answers import about_answers
from loraprobe.verdict.evidence import COMPOSITIONS, Evidence
from loraprobe.verdict.reasons import few_items


def about_items(evidence: Evidence, verdict: Verdict) -> list[Reason]:
    """What the number of items and the fields that they lack leave open."""
    scored = [row for row in evidence.evaluation if row.part == "question"]
    if not scored:
        return []
    found = [*about_answers(evidence, verdict), *_about_template(evidence)]
    largest = {row.task: row for row in sorted(scored, key=lambda row: row.n)}
    fewest = min(largest.values(), key=lambda row: row.clusters or row.n)
    told = {reason.code for reason in verdict.reasons}
    if (fewest.clusters or fewest.n) < FEWEST_ITEMS and "few-items" not in told:
        found.append(few_items(fewest.n, fewest.clusters or fewest.n, decisive=False))
    if verdict.decision == "inconclusive":
        found += _about_ceiling(evidence)
    if verdict.decision == "likely" or evidence.several or evidence.losses:
        return found
    if not evidence.systems(COMPOSITIONS) or any(row.metric.startswith(PREFIX) for row in scored):
        return found  # the items of lm-evaluation-harness have no such fields
    parts = {row.part for row in evidence.evaluation}
    generated = any(is_generated(row.metric) for row in evidence.evaluation)
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


def _about_ceiling(evidence: Evidence) -> list[Reason]:
    """That no answers to so few items can show that nothing is left to gain.

    A score is at the ceiling if the lower end of its interval exceeds 1 - margin. If every item is
    right, Wilson's interval starts at n / (n + z^2).
    """
    if evidence.losses or evidence.several or not 0 < evidence.margin < 1:
        return []
    ceiling = 1 - evidence.margin
    needed = math.floor(Z95**2 * ceiling / evidence.margin) + 1
    rows = [
        row
        for row in evidence.evaluation
        if row.kind in BASELINES and row.part in FORMS and row.value > ceiling >= row.ci95[0]
    ]
    best = max(rows, key=lambda row: (row.value, row.system), default=None)
    if best is None or (best.clusters or best.n) >= needed:
        return []
    unit = "clusters of questions" if best.clusters else "questions"
    return [
        Reason(
            "ceiling-out-of-reach",
            f"{fmt.who(best.system)} scores {fmt.number(best.value)}, but to show that nothing can "
            f"gain {fmt.number(evidence.margin)} on it takes at least {needed} {unit}, all right "
            f"({best.clusters or best.n} given).",
            float(best.clusters or best.n),
            float(needed),
            "arithmetic: the 95 % interval of n right answers to n questions starts at "
            "n / (n + 3.84)",
            "warning",
        )
    ]


def _missing(what: str, field: str, unknown: str) -> Reason:
    return Reason(
        f"{what}-missing",
        f"The items have no `{field}`, so {unknown}.",
        source="optional fields of a task file",
    )
