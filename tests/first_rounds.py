"""A first round of questions, and an annotator that says how probable its gain is."""

from statistics import NormalDist

from evidences import evidence_of

from loraprobe.records import QUESTION, Gain, ItemPart, Score
from loraprobe.records.measurements import Z95
from loraprobe.verdict import Annotation, Annotator

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


def score(system, kind, value, part="question", task="t", metric="exact_match"):
    ci = (max(0.0, value - 0.05), min(1.0, value + 0.05))
    return Score(system, kind, task, ItemPart(part), metric, value, ci, 100)


def case(**rest):
    """Base and two adapters on one task."""
    scores = (score("base", "base", 0.1), score("a", "adapter", 0.3), score("b", "adapter", 0.2))
    made = {"scores": scores, "tasks": 1, "level": "base"}
    made["hidden_size"] = SMALL
    return evidence_of(**{**made, **rest})


def measured(gain=0.2, half=0.15, **rest):
    """A first round of 30 items, in which an average gained so much against the best adapter."""
    scores = (*case().measured.scores, score("uniform", "merge", 0.3 + gain))
    ends = (gain - half, gain + half)
    row = Gain(None, QUESTION, "uniform", "a", gain, ends, ends, 30)
    made = {"scores": scores, "gains": (row,), "level": "pilot"}
    return case(**{**made, **rest})
