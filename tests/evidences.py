"""Evidence planted for verdicts: scores, paired differences and gains of named systems, and first
rounds of questions."""

import dataclasses
from statistics import NormalDist

from hypothesis import strategies as st

from loraprobe.records import (
    QUESTION,
    Audit,
    Comparison,
    EvaluationRecords,
    Gain,
    GuardScore,
    ItemPart,
    Score,
)
from loraprobe.records.measurements import Z95
from loraprobe.verdict import Annotation, Annotator, Evidence, decide

N = 100
MEASURED = {field.name for field in dataclasses.fields(EvaluationRecords)}


def evidence_of(**fields):
    """Evidence with these fields, or with these fields of what was measured."""
    return replaced(Evidence(), **fields)


def replaced(record, **fields):
    """A record with other fields; of evidence and audits also those of what was measured."""
    place = {Evidence: "measured", Audit: "evaluation"}.get(type(record))
    measured = {name: fields.pop(name) for name in MEASURED & fields.keys() if place}
    if measured:
        fields[place] = dataclasses.replace(getattr(record, place), **measured)
    return dataclasses.replace(record, **fields)


KINDS = {
    "base": "base",
    "a": "adapter",
    "b": "adapter",
    "uniform": "merge",
    "sum": "merge",
    "arrow": "router",
    "chain": "chain",
    "shrunk:a": "control",
    "random-partner": "control",
}


def score(system, value, part="question", task="t", spread=0.05, **rest):
    ci = (max(0.0, value - spread), min(1.0, value + spread))
    return Score(system, KINDS[system], task, ItemPart(part), "exact_match", value, ci, N, **rest)


def versus(system, against, difference, half=0.04, part="question", task="t"):
    ci = (difference - half, difference + half)
    return Comparison(system, against, task, ItemPart(part), difference, ci, N, adjusted_ci95=ci)


def guards(margin=0.05, half=0.02, task="g", **lost):
    """What systems score beside a base of 0.8 on a guard."""
    return tuple(
        GuardScore(
            *(task, system, QUESTION, "exact_match", 0.8 + gap, 0.8, gap),
            *((gap - half, gap + half), margin, N),
        )
        for system, gap in lost.items()
    )


def needed(difference, half, margin):
    distance = abs(difference - margin)
    return None if distance < 1e-9 else max(N, round(N * (half / distance) ** 2))


def evidence(values, *, part="question", half=0.04, task="t", margin=0.05, **rest):
    """One part of one task: each composition is compared with all other systems at equal widths."""
    scores = [score(system, value, part, task) for system, value in values.items()]
    composed = [s for s in values if KINDS[s] in ("merge", "router", "chain")]
    singles = [s for s in values if KINDS[s] in ("base", "adapter")]
    controls = [s for s in values if KINDS[s] == "control"]
    pairs = [
        versus(s, o, values[s] - values[o], half, part, task)
        for s in composed
        for o in (*singles, *controls)
    ]
    gains = []
    for system in composed:
        best = max(singles, key=values.__getitem__)
        difference = values[system] - values[best]
        ci, items = (difference - half, difference + half), needed(difference, half, margin)
        gains.append(
            Gain(task, ItemPart(part), system, best, difference, ci, ci, N, items, ItemPart(part))
        )
    measured = {"scores": tuple(scores), "comparisons": tuple(pairs), "gains": tuple(gains)}
    return evidence_of(**measured, level="evaluation", tasks=1, margin=margin, **rest)


def known(found):
    """The evidence with a hop that a answers: without it nothing would answer where all fail."""
    hop = score("a", 0.9, "hop1", found.measured.scores[0].task)
    return replaced(found, scores=(*found.measured.scores, hop))


def changed(found, where=None, rows="scores", **fields):
    """The evidence with fields of its scores (or of other rows) replaced, in all or where asked."""
    made = [
        replaced(row, **fields) if where is None or where(row) else row
        for row in getattr(found.measured, rows)
    ]
    return replaced(found, **{rows: tuple(made)})


def codes(verdict):
    return [reason.code for reason in verdict.reasons]


def reason(verdict, code):
    return next(r for r in verdict.reasons if r.code == code)


def check(asked, decision, action=None, system=None, first=None, has=(), lacks=(), **severities):
    """The verdict, which has this decision (action, system) and these codes.

    severities: code with underscores -> its severity.
    """
    found = decide(asked)
    assert decision in (None, found.decision)
    assert action in (None, str(found.action)) and system in (None, found.system)
    assert first in (None, codes(found)[0])
    assert {*has} <= {*codes(found)} and not {*lacks} & {*codes(found)}
    for code, severity in severities.items():
        assert reason(found, code.replace("_", "-")).severity == severity
    return found


def forms(plain, steps, half=0.04, **options):
    """The same systems asked both plainly and step by step."""
    return both(evidence(plain, **options), evidence(steps, part="steps", half=half, **options))


def both(first, second):
    """Two pieces of evidence as one."""
    return replaced(
        first,
        scores=first.measured.scores + second.measured.scores,
        comparisons=first.measured.comparisons + second.measured.comparisons,
        gains=first.measured.gains + second.measured.gains,
    )


def skills(table, gain=-0.3):
    """Scores of systems on two tasks, of which compositions keep half: name -> (t1, t2)."""
    rows = [
        score(name, value, task=task)
        for name, pair in table.items()
        for task, value in zip(("t1", "t2"), pair, strict=True)
    ]
    kept = {"retention": 0.5, "retention_ci95": (0.4, 0.6)}
    rows = [replaced(r, **kept) if r.kind in ("merge", "router") else r for r in rows]
    ci = (gain - 0.05, gain + 0.05)
    gains = tuple(
        Gain(None, QUESTION, name, "p", gain, ci, ci, 2 * N)
        for name in table
        if KINDS.get(name) in ("merge", "router")
    )
    return evidence_of(scores=tuple(rows), gains=gains, tasks=2, level="evaluation")


def across_forms(found):
    """The evidence with gains over the best of base and single adapters in either form."""
    scores = {(row.system, row.part): row.value for row in found.measured.scores}
    singles = [key for key in scores if KINDS[key[0]] in ("base", "adapter")]
    gains = []
    for gain in found.measured.gains:
        against, part = max(singles, key=lambda key: (scores[key], key[1] == gain.part))
        difference = scores[gain.system, gain.part] - scores[against, part]
        half = gain.adjusted_ci95[1] - gain.difference
        ci = (difference - half, difference + half)
        items = needed(difference, half, found.margin)
        row = replaced(gain, against=against, against_part=part, difference=difference, ci95=ci)
        gains.append(replaced(row, adjusted_ci95=ci, n_needed=items))
    return replaced(found, gains=tuple(gains))


SMALL = 160  # the hidden size of the base


class Chances(Annotator):
    """Gains have the probability that a normal density of what was measured gives them."""

    def annotate(self, verdict, evidence):
        if verdict.gain is None or verdict.evidence not in ("pilot", "evaluation"):
            return Annotation()
        low, high = verdict.gain.ci95
        above = verdict.gain.difference - evidence.margin
        chance = NormalDist().cdf(above * 2 * Z95 / max(high - low, 1e-9))
        return Annotation((), min(max(chance, 0.001), 0.999), 0.4)


def case(**rest):
    """Base and two adapters on one task."""
    scores = (score("base", 0.1), score("a", 0.3), score("b", 0.2))
    made = {"scores": scores, "tasks": 1, "level": "base"}
    made["hidden_size"] = SMALL
    return evidence_of(**{**made, **rest})


def measured(gain=0.2, half=0.15, **rest):
    """A first round of 30 items, in which an average gained so much against the best adapter."""
    scores = (*case().measured.scores, score("uniform", 0.3 + gain))
    ends = (gain - half, gain + half)
    row = Gain(None, QUESTION, "uniform", "a", gain, ends, ends, 30)
    made = {"scores": scores, "gains": (row,), "level": "pilot"}
    return case(**{**made, **rest})


unit = st.floats(0, 1).map(lambda x: round(x, 3))
COMPOSITIONS = ("uniform", "sum", "arrow", "chain")


@st.composite
def any_evidence(draw, level="evaluation"):
    values = {name: draw(unit) for name in KINDS}
    found = evidence(values, half=draw(st.floats(0.005, 0.2)))
    if draw(st.booleans()):
        steps = {name: draw(unit) for name in KINDS if name != "chain"}
        half = draw(st.floats(0.005, 0.2))
        found = across_forms(both(found, evidence(steps, part="steps", half=half)))
    return replaced(found, level=level)
