"""Reasons from the task's items: how many were asked, what they lack, how answers were read."""

from __future__ import annotations

import math
from collections.abc import Iterator

from loraprobe.defaults import (
    CUT_MATTERS,
    FEWEST_ITEMS,
    HARNESS,
    PLAIN_TOKENS,
    SAID_OTHERWISE,
    TEMPLATE_MATTERS,
    WORKED_TOKENS,
)
from loraprobe.formatting import count
from loraprobe.records import BASELINES, FORMS, Reason, Score, Verdict
from loraprobe.sample_size import Z95
from loraprobe.tasks import is_generated
from loraprobe.verdict import formatting as fmt
from loraprobe.verdict.codes import reason_of
from loraprobe.verdict.evidence import COMPOSITIONS, Evidence
from loraprobe.verdict.reasons import few_items


def about_items(evidence: Evidence, verdict: Verdict) -> Iterator[Reason]:
    """What the number of items and the fields that they lack leave open."""
    scored = [row for row in evidence.evaluation if row.part == "question"]
    if not scored:
        return
    rows = _deciding(evidence, verdict)
    yield from (*_about_cut(evidence, rows), *_about_wording(rows))
    yield from (*_about_template(evidence), *_about_rounds(evidence))
    largest = {row.task: row for row in sorted(scored, key=lambda row: row.n)}
    fewest = min(largest.values(), key=lambda row: row.clusters or row.n)
    told = {reason.code for reason in verdict.reasons}
    if (fewest.clusters or fewest.n) < FEWEST_ITEMS and "few-items" not in told:
        yield few_items(fewest.n, fewest.clusters or fewest.n, decisive=False)
    if verdict.decision == "inconclusive":
        yield from _about_ceiling(evidence)
    if evidence.several or evidence.losses or not needs_fields(verdict):
        return
    if not evidence.systems(COMPOSITIONS) or any(row.metric.startswith(HARNESS) for row in scored):
        return  # the items of lm-evaluation-harness have no such fields
    parts = {row.part for row in evidence.evaluation}
    if "steps" not in parts and any(is_generated(row.metric) for row in evidence.evaluation):
        yield reason_of("steps-missing")
    if not any(part.startswith("hop") for part in parts):
        yield reason_of("hops-missing")


def needs_fields(verdict: Verdict) -> bool:
    """Whether hops or worked answers may change what to do: nothing that was measured answers."""
    return verdict.action in ("train-target-adapter", "gather-evidence", "step-by-step") and (
        not verdict.composes
    )


def _about_rounds(evidence: Evidence) -> Iterator[Reason]:
    """That the run stopped early, at which look."""
    rounds = evidence.rounds
    if rounds is not None and rounds.early and evidence.level == "evaluation":
        yield reason_of(
            "stopped-early",
            float(rounds.items),
            float(rounds.total),
            source=f"alpha spent over the looks; intervals of level {rounds.level:.4g} at this one",
            rounds=rounds,
            items=count(rounds.total, "item"),
        )


def _about_template(evidence: Evidence) -> Iterator[Reason]:
    """That the chat template changes the answers, where it does."""
    for row in evidence.coverage:
        if row.name != "chat_template" or row.value is None or row.baseline is None:
            continue
        difference = row.value - row.baseline
        used = "with" if difference > 0 else "without"
        if abs(difference) >= TEMPLATE_MATTERS:
            yield reason_of("template-matters", difference, TEMPLATE_MATTERS, row=row, used=used)


def _about_ceiling(evidence: Evidence) -> Iterator[Reason]:
    """That no answers to so few items can show that nothing is left to gain.

    A score is at the ceiling if the lower end of its interval exceeds 1 - margin. If every item is
    right, Wilson's interval starts at n / (n + z^2).
    """
    if evidence.losses or evidence.several or not 0 < evidence.margin < 1:
        return
    ceiling = 1 - evidence.margin
    needed = math.floor(Z95**2 * ceiling / evidence.margin) + 1
    rows = [
        row
        for row in evidence.evaluation
        if row.kind in BASELINES and row.part in FORMS and row.value > ceiling >= row.ci95[0]
    ]
    best = max(rows, key=lambda row: (row.value, row.system), default=None)
    if best is not None and (best.clusters or best.n) < needed:
        yield reason_of(
            "ceiling-out-of-reach",
            float(best.clusters or best.n),
            float(needed),
            who=fmt.who(best.system),
            row=best,
            margin=evidence.margin,
            units="clusters of questions" if best.clusters else "questions",
        )


def _deciding(evidence: Evidence, verdict: Verdict) -> list[Score]:
    """The scores of generated answers on which the decision rests.

    Those of the best composition and of what it has to beat; before an evaluation those of the base
    and the single adapters.
    """
    rows = [row for row in evidence.evaluation if row.cut is not None]
    if verdict.gain is None:
        return [row for row in rows if row.kind in BASELINES and row.part != "steps"]
    names = (verdict.gain.system, verdict.gain.against)
    return [row for row in rows if row.system in names and row.part in FORMS]


def _about_cut(evidence: Evidence, rows: list[Score]) -> Iterator[Reason]:
    """That answers which may have been right were cut, and the limit to try."""
    worst = max(rows, key=_lost, default=None)
    if worst is None or _lost(worst) <= CUT_MATTERS:
        return
    parts = {row.part for row in evidence.evaluation}
    given = evidence.max_new_tokens
    limit = given or (WORKED_TOKENS if worst.part == "steps" else PLAIN_TOKENS)
    # The option sets the limit of worked answers as well, which must not become smaller.
    wanted = max(2 * limit, 0 if given or "steps" not in parts else WORKED_TOKENS)
    where = fmt.PART.get(worst.part) or f"to hop {worst.part.removeprefix('hop')}"
    yield reason_of(
        "answers-cut", worst.cut, CUT_MATTERS, row=worst, form=where, limit=limit, wanted=wanted
    )


def _lost(row: Score) -> float:
    """At most this share of the answers was cut before a right one stood in them."""
    return min(row.cut or 0.0, 1 - (row.contains or 0.0))


def _about_wording(rows: list[Score]) -> Iterator[Reason]:
    """That answers are right in other words only, so that the metric decides."""
    row = max(rows, key=_otherwise, default=None)
    if row is not None and _otherwise(row) > SAID_OTHERWISE:
        yield reason_of(
            "said-otherwise",
            _otherwise(row),
            SAID_OTHERWISE,
            row=row,
            form=fmt.PART[row.part],
            metric=row.metric.replace("_", " "),
        )


def _otherwise(row: Score) -> float:
    return 0.0 if row.contains is None or row.part not in FORMS else row.contains - row.value
