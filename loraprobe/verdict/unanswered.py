"""Where nothing answers: no system is shown to answer more than guessing, on the question or a hop.

Nothing was learned about composing then, whatever the intervals of the gains: a gold answer in
another form, a limit of tokens or a chat template makes every system wrong alike. The decision is
open, without a probability, and the replies are what to look at.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

from loraprobe.defaults import FEWEST_ITEMS
from loraprobe.records import (
    BASELINES,
    FORMS,
    SHRUNK,
    EvaluationRecords,
    Reason,
    Sample,
    Score,
    Verdict,
    display_name,
)
from loraprobe.verdict.evidence import GUESSING, Evidence, ScoredSystem
from loraprobe.verdict.reasons import about_replies, reason_of

SHOWN = 2  # systems whose replies are shown


def nothing_answers(evidence: Evidence) -> bool:
    """Whether no system but a control answers more than guessing, on any part of any task.

    Where all questions were asked this has to be shown. A first round and few questions show too
    little: there a score that was measured above guessing is enough.
    """
    rows, rounds = _rows(evidence), evidence.measured.rounds
    first = evidence.level != "evaluation" and (rounds is None or rounds.early)
    if evidence.losses or not any(row.part in FORMS for row in rows):
        return False

    def answers(row: Score) -> bool:
        few = first or row.estimate.clusters < FEWEST_ITEMS
        return (row.value if few else row.ci95[0]) > _least(evidence, row)

    return not any(map(answers, rows))


def _least(evidence: Evidence, row: Score) -> float:
    """What a score has to exceed to answer: what guessing scores and a tie."""
    least = evidence.tie + (_guessed(evidence, row) if row.part in FORMS else 0.0)
    return evidence.tie if least >= 1 else least  # where all gold answers are the same


def _guessed(evidence: Evidence, row: Score) -> float:
    """What guessing scores on the task of a score."""
    rows = [one for one in evidence.measured.coverage if one.name == GUESSING]
    return next((one.value or 0.0 for one in rows if one.task == row.task), 0.0)


def _rows(evidence: Evidence) -> list[Score]:
    """The scores of all systems but controls."""
    return [row for row in evidence.measured.scores if row.kind != "control"]


def unanswered(evidence: Evidence) -> Verdict:
    """The verdict where nothing answers: open, with what the scores show of the cause.

    A control that answers is the best adapter with a part of its strength, or with adapters of
    random directions: then the adapters themselves may be scaled wrongly, and the verdict is about
    that control.
    """
    (best, *_), least = closest(evidence.measured), evidence.guessing + evidence.tie
    why = [reason_of("nothing-answers", best.score.value, least, decisive=True, best=best)]
    able = _able_control(evidence)
    if able is not None:
        why.append(_about_scale(evidence, able))
    told = [*about_replies(evidence, [row for row in _rows(evidence) if row.part in FORMS])]
    why += told or [reason_of("replies-differ")]
    system = None if able is None else able.system
    return Verdict("inconclusive", evidence.rests_on, tuple(why), system, missing="answers")


def _able_control(evidence: Evidence) -> Score | None:
    """The score of the control that answers best, a shrunk adapter before others."""
    rows = [
        row
        for row in evidence.measured.scores
        if row.kind == "control"
        and row.part in FORMS
        and row.value > _least(evidence, row)
        and row.ci95[0] > _guessed(evidence, row)
    ]
    return max(rows, key=lambda row: (row.system.startswith(SHRUNK), row.value), default=None)


def _about_scale(evidence: Evidence, control: Score) -> Reason:
    """That a control answers, so that the scale of the adapters is wrong."""
    single = control.system.removeprefix(SHRUNK)
    where = f" on {control.task}" if evidence.several else ""
    name = display_name(control.system)
    who = f"{name}, scores {control.value:.2f}{where}, though no adapter answers"
    cure = "look at the scaling of the adapters (lora_alpha)"
    if single != control.system:
        strength = f"1/{len(evidence.systems(('adapter',)))} of its strength"
        who = f"{single} answers with {strength} ({control.value:.2f}{where}) and not as it is"
        cure = "its scale (lora_alpha) is too large, so write it with that weight or a smaller "
        cure += "one and give that in its place"
    least = _least(evidence, control)
    return reason_of("only-shrunk-answers", control.value, least, who=who, cure=cure)


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
