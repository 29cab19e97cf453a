"""Synthetic cases with a planted relation between the best score alone and the measured gain."""

from __future__ import annotations

import math
import random

from loraprobe_lab.calibration.cases import METHODS, Case

UNIT = 0.05
PLANTED = {"intercept": 0.4, "baseline": -1.5, "spread": 0.5}


def synthetic(bases=10, sets=8, seed=0, spread=PLANTED["spread"], error=1e-3):
    """Cases whose t(gain) is logistic around the planted centre; errors are small."""
    rng = random.Random(seed)
    cases = []
    for b in range(bases):
        for s in range(sets):
            baseline = rng.random()
            for method in METHODS:
                centre = PLANTED["intercept"] + PLANTED["baseline"] * baseline
                u = rng.uniform(1e-6, 1 - 1e-6)
                gain = UNIT * math.sinh(centre + spread * math.log(u / (1 - u)))
                where = {"base": f"base-{b:02d}", "world": f"base-{b:02d}", "adapter_set": f"t{s}"}
                where["architecture"] = ("llama", "gpt2")[b % 2]
                where["scenario"] = ("two-hop", "math", "keep-both")[s % 3]
                figures = {"baseline": baseline, "gain": gain}
                figures["ci95"] = (gain - 1.96 * error, gain + 1.96 * error)
                cases.append(case(method=method, **where, **figures))
    return cases


def case(**changed):
    """A case with ordinary values for all fields that are not given."""
    where = {"base": "base-00", "architecture": "llama", "scenario": "two-hop", "world": "base-00"}
    asked = {"adapters": 2, "tasks": 1, "hops": 2, "metric": "exact_match", "part": "question"}
    measured = {"baseline": 0.2, "gain": 0.3, "ci95": (0.2, 0.4), "n": 300}
    values = {"adapter_set": "t0", "method": "uniform", **where, **asked, **measured}
    return Case(**{**values, **changed})
