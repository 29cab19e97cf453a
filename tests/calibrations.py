"""A calibration with invented numbers and a case for it."""

import json
import tomllib

from evidences import evidence_of
from pydantic import TypeAdapter

from loraprobe.records import QUESTION, Gain, ItemPart, Score
from loraprobe.verdict.probability import Calibration

SMALL = 160
DOCUMENT = tomllib.loads("""
format = 4
made_by = "a test"
coefficients = {unit = 0.1, intercept = 0.3, baseline = -1.5, spread = 0.6}
measured = {cases = 40, bases = 4}
gained = [[0.0, 0.6], [0.05, 0.4], [0.25, 0.2]]

[accuracy.small]
where = "no bases at all"
sets = 17
items = 40
auroc = 0.91
brier = 0.12
likely = 8
wrong = 0.125

[[classes]]
base = "small"
tasks = 1
hops = 0
metric = "exact_match"
sets = 20
bases = 4
gained = [[0.0, 1.0], [0.05, 0.3], [0.25, 0.1]]
""")


def calibration(**changes):
    return calibration_of({**DOCUMENT, **changes})


def calibration_of(document):
    """As `read_calibration` reads it from a file."""
    return TypeAdapter(Calibration).validate_json(json.dumps(document), strict=True)


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
