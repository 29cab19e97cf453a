"""Where nothing answers: no system is shown to answer more than guessing, on the question or a hop.

Nothing was learned about composing then, whatever the intervals of the gains: a gold answer in
another form, a limit of tokens or a chat template makes every system wrong alike. The decision is
open, without a probability, and the replies are what to look at.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

from loraprobe.defaults import FEWEST_ITEMS
from loraprobe.records import BASELINES, FORMS, EvaluationRecords, Sample, Score, Verdict
from loraprobe.verdict.evidence import GUESSING, Evidence, ScoredSystem
from loraprobe.verdict.reasons import about_replies, reason_of

SHOWN = 2  # systems whose replies are shown


def nothing_answers(evidence: Evidence) -> bool:
    """Whether no system but a control answers more than guessing, on any part of any task.

    Of an evaluation this has to be shown. A first round and few questions show too little: there a
    score that was measured above guessing is enough.
    """
    rows = _rows(evidence)
    if evidence.losses or not any(row.part in FORMS for row in rows):
        return False
    guessed = {row.task: row.value for row in evidence.measured.coverage if row.name == GUESSING}

    def answers(row: Score) -> bool:
        few = evidence.level != "evaluation" or row.estimate.clusters < FEWEST_ITEMS
        least = evidence.tie + ((guessed.get(row.task) or 0.0) if row.part in FORMS else 0.0)
        least = evidence.tie if least >= 1 else least  # where all gold answers are the same
        return (row.value if few else row.ci95[0]) > least

    return not any(map(answers, rows))


def _rows(evidence: Evidence) -> list[Score]:
    """The scores of all systems but controls."""
    return [row for row in evidence.measured.scores if row.kind != "control"]


def unanswered(evidence: Evidence) -> Verdict:
    """The verdict where nothing answers: open, with what the scores show of the cause.

    A control that answers is the best adapter with a part of its strength, or with adapters of
    random directions: then the adapters themselves may be scaled wrongly.
    """
    (best, *_), least = closest(evidence.measured), evidence.guessing + evidence.tie
    why = [reason_of("nothing-answers", best.score.value, least, decisive=True, best=best)]
    controls = evidence.scored(evidence.systems(("control",)))
    able = [control for control in controls if control.score.low > least]
    why += [reason_of("only-shrunk-answers", able[0].shown, least, control=able[0])] if able else []
    told = [*about_replies(evidence, [row for row in _rows(evidence) if row.part in FORMS])]
    why += told or [reason_of("replies-differ")]
    return Verdict("inconclusive", evidence.rests_on, tuple(why), missing="answers")


def closest(records: EvaluationRecords) -> list[ScoredSystem]:
    """The systems whose replies come closest to the gold answers, each in its better form.

    Of equals these are first in whose replies a right answer stands, then adapters, then
    compositions; the base is last.
    """
    evidence = Evidence(records)
    held = {(row.system, row.part): row.contains or 0.0 for row in records.scores}
    kinds = {row.system: row.kind for row in records.scores if row.kind != "control"}
    found = sorted(
        evidence.scored(kinds),
        key=lambda one: (
            -round(one.score.value, 9),
            -held[one.system, one.part],
            one.kind == BASELINES[0],
            one.effort,
            one.system,
        ),
    )
    first = {one.system: one for one in reversed(found)}
    return [one for one in found if first[one.system] is one]


def telling(samples: Sequence[Sample], records: EvaluationRecords) -> list[Sample]:
    """The questions in the form in which the closest system answered best.

    Those come first in whose closest replies a right answer stands, then those of replies that the
    limit cut, then those of other replies with a text.
    """
    (best, *_), names = closest(records), {one.system for one in closest(records)[:SHOWN]}

    def shows(sample: Sample) -> tuple[bool, bool, bool]:
        replies = [reply for reply in sample.replies if reply.system in names]
        wrong = [reply for reply in replies if not reply.right]
        return (
            not any(reply.contains for reply in wrong),
            not any(reply.cut for reply in wrong),
            not all(reply.text.strip() for reply in replies),
        )

    return sorted((one for one in samples if one.part == best.part), key=shows)


def what_differs(sample: Sample, names: Sequence[str]) -> str:
    """How the replies of these systems differ from the gold answer, as far as texts show it."""
    replies = [reply.text.strip() for reply in sample.replies if reply.system in names]
    said, golds = set(filter(None, replies)), [gold.lower() for gold in sample.gold]
    if not said:
        return "These replies are blank: look at the chat template and at the adapters' scaling."
    if any(text.lower() in gold for text in said for gold in golds):
        return "The gold answer holds the reply and more: its form may be one that nothing learned."
    written = [_scripts(text) for text in said]
    if all(own and own.isdisjoint(_scripts(gold)) for own in written for gold in golds):
        return "The replies are written in another script than the gold answer."
    return "Compare form and language, the chat template, and what the adapters learned."


def _scripts(text: str) -> set[str]:
    """The scripts of a text's letters, such as LATIN."""
    return {unicodedata.name(sign, "?").split()[0] for sign in text if sign.isalpha()}
