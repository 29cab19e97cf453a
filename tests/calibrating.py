"""Synthetic cases with a planted relation between features and success."""

from __future__ import annotations

import math
import random

from loraprobe_lab.calibration.cases import Case, Truth

PLANTED = ("expected_gain", "norm_log_ratio")
NOISE = ("cosine_max", "hop_weakest", "overlap_out")


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def planted_logit(features):
    """What makes a synthetic case succeed; `norm_log_ratio` hurts."""
    return 3.0 * features["expected_gain"] - 1.5 * features["norm_log_ratio"] + 0.5


def synthetic(
    bases=18, sets=6, seed=0, kind="facts", logit=planted_logit, architectures=("llama", "gpt2"),
    scenarios=("two-hop", "skill-and-facts"),
):  # fmt: skip
    """Cases over separately trained bases; the label is drawn with the planted probability."""
    rng = random.Random(seed)
    cases = []
    for b in range(bases):
        for s in range(sets):
            for family, method in (("average", "uniform"), ("sum", "sum"), ("router", "arrow")):
                features = {name: rng.gauss(0, 1) for name in (*PLANTED, *NOISE)}
                features["base_score"] = rng.random()
                label = int(rng.random() < sigmoid(logit(features)))
                gain = 0.3 if label else 0.0
                cases.append(
                    case(
                        base=f"{kind}-{b:02d}", world=f"{kind}-{b:02d}", kind=kind,
                        architecture=architectures[b % len(architectures)],
                        scenario=scenarios[s % len(scenarios)], trial=f"t{s}",
                        adapters=(f"a{s}", f"b{s}"), method=method, family=family,
                        features=features, label=label,
                        truth=Truth(gain, (gain - 0.02, gain + 0.02), 300, "cot", 0.5, 0.2, 0.0),
                    )
                )  # fmt: skip
    return cases


def case(**changed):
    """A case with ordinary values wherever none is given."""
    values = {
        "base": "facts-00", "world": "facts-00", "architecture": "llama", "kind": "facts",
        "scenario": "two-hop", "trial": "t0", "adapters": ("a", "b"), "method": "uniform",
        "family": "average", "hops": 2, "tasks": 1, "features": {"expected_gain": 0.1},
        "truth": Truth(0.3, (0.2, 0.4), 300, "cot", 0.5, 0.2, 0.0), "label": 1,
    }  # fmt: skip
    return Case(**{**values, **changed})
