"""A calibration made up by hand and a case for it; neither is of any real world."""

from __future__ import annotations

import json

from loraprobe.records import Coverage, Score
from loraprobe.verdict import Evidence
from loraprobe.verdict.calibrated import calibration_of

TERMS = [
    {"feature": "additive_gain", "family": None, "transform": "identity", "mean": 0.1,
     "scale": 0.2, "missing": 0.0, "coefficient": 1.5, "range": [-0.4, 0.9],
     "typical": {"failure": 0.01, "success": 0.42}},
    {"feature": "hop_weakest", "family": None, "transform": "logit", "mean": 0.3, "scale": 1.7,
     "missing": -0.5, "coefficient": 0.8},
    {"feature": "hidden_crosstalk_max", "family": "sum", "transform": "log1p", "mean": 0.2,
     "scale": 0.6, "missing": 0.0, "coefficient": -0.9},
    {"feature": "norm_log_ratio", "family": None, "transform": "clip", "mean": 0.5, "scale": 0.4,
     "missing": 0.0, "coefficient": -0.3, "range": [0.0, 1.0]},
    {"feature": "hop_weakest", "family": None, "transform": "missing", "mean": 0.5, "scale": 0.5,
     "missing": 0.0, "coefficient": 0.25},
    {"feature": "constant", "family": "router", "coefficient": 0.4},
]  # fmt: skip
DOCUMENT = {
    "format": 1,
    "provenance": {"made_by": "a test", "cases": 40},
    "prior": 0.4,
    "margin": 0.05,
    "families": ["average", "sum", "router"],
    "model": {"kind": "logistic", "intercept": -0.7, "terms": TERMS},
    "support": {
        "method": "mahalanobis",
        "features": ["additive_gain", "base_score"],
        "center": [0.1, 0.2],
        "precision": [[20.0, -4.0], [-4.0, 10.0]],
        "threshold": 9.0,
        "ranges": {"additive_gain": [-0.6, 0.9], "tasks": [1, 2]},
    },
    "likely_from": 0.8,
    "accuracy": {"where": "no bases at all", "auroc": {"value": 0.9, "ci95": [0.8, 0.95]},
                 "brier": 0.1},
}  # fmt: skip


def calibration(**changes):
    return calibration_of({**json.loads(json.dumps(DOCUMENT)), **changes})


def score(system, kind, value, part="target", task="t"):
    ci = (max(0.0, value - 0.05), min(1.0, value + 0.05))
    return Score(system, kind, task, part, "exact_match", value, ci, 100)


def case(gain=0.3, **rest):
    """Base and two adapters on one task, and the additive score at both gates."""
    scores = (score("base", "base", 0.1), score("a", "adapter", 0.3), score("b", "adapter", 0.2))
    rows = tuple(
        Coverage("additive_score", "t", value, 60, None, ("a", "b"), baseline=0.3,
                 part="target", gate=gate)
        for gate, value in ((0.5, 0.3 + gain), (1.0, 0.3 + gain / 2))
    )  # fmt: skip
    made = {"evaluation": scores, "coverage": rows, "tasks": 1, "level": "base"}
    return Evidence(**{**made, **rest})
