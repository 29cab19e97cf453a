"""Reasons from how answers were read: cut by the limit of tokens, right in other words only, or
gold answers that exact match cannot tell apart."""

from __future__ import annotations

from loraprobe.defaults import CUT_MATTERS, PLAIN_TOKENS, SAID_OTHERWISE, WORKED_TOKENS
from loraprobe.records import BASELINES, FORMS, Reason, Score, Verdict
from loraprobe.verdict import formatting as fmt
from loraprobe.verdict.evidence import Evidence


def about_answers(evidence: Evidence, verdict: Verdict) -> list[Reason]:
    """What a reader of the scores has to know about the answers behind them."""
    rows = _deciding(evidence, verdict)
    return [*_about_cut(evidence, rows), *_about_wording(rows), *_about_gold(evidence)]


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


def _about_cut(evidence: Evidence, rows: list[Score]) -> list[Reason]:
    """That answers which may have been right were cut, and the limit to try."""
    worst = max(rows, key=_lost, default=None)
    if worst is None or _lost(worst) <= CUT_MATTERS:
        return []
    parts = {row.part for row in evidence.evaluation}
    given = evidence.max_new_tokens
    limit = given or (WORKED_TOKENS if worst.part == "steps" else PLAIN_TOKENS)
    # The option sets the limit of worked answers as well, which must not become smaller.
    wanted = max(2 * limit, 0 if given or "steps" not in parts else WORKED_TOKENS)
    where = fmt.PART.get(worst.part) or f"to hop {worst.part.removeprefix('hop')}"
    return [
        Reason(
            "answers-cut",
            f"{worst.cut or 0.0:.0%} of the answers of {worst.system}, {where}, ended at the limit "
            f"of {limit} tokens: try --max-new-tokens {wanted}.",
            worst.cut,
            CUT_MATTERS,
            "loraprobe's convention: a tenth of the answers",
            "warning",
        )
    ]


def _lost(row: Score) -> float:
    """At most this share of the answers was cut before a right one stood in them."""
    return min(row.cut or 0.0, 1 - (row.contains or 0.0))


def _about_wording(rows: list[Score]) -> list[Reason]:
    """That answers are right in other words only, so that the metric decides."""
    row = max(rows, key=_otherwise, default=None)
    if row is None or row.contains is None or _otherwise(row) <= SAID_OTHERWISE:
        return []
    return [
        Reason(
            "said-otherwise",
            f"A right answer stands in {fmt.number(row.contains)} of the replies of {row.system}, "
            f"{fmt.PART[row.part]}, and {fmt.number(row.value)} are right by "
            f"{row.metric.replace('_', ' ')}: if more should count, use --metric contains.",
            _otherwise(row),
            SAID_OTHERWISE,
            "loraprobe's convention: a tenth of the answers",
            "warning",
        )
    ]


def _otherwise(row: Score) -> float:
    return 0.0 if row.contains is None or row.part not in FORMS else row.contains - row.value


def _about_gold(evidence: Evidence) -> list[Reason]:
    """That gold answers hold what exact match drops, and the metric that sees it."""
    several = evidence.several
    return [
        Reason(
            "answers-normalised",
            f"Exact match drops case, articles and punctuation, which the answers of {task} may "
            f"need ({example}): use --metric {f'{task}={metric}' if several else metric}.",
            source="SQuAD's normalisation of answers",
            severity="warning",
        )
        for task, (metric, example) in evidence.normalised.items()
    ]
