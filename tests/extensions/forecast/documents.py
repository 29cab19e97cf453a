"""A calibration with invented numbers."""

import json
import tomllib

from pydantic import TypeAdapter

from loraprobe.extensions.forecast.probability import Calibration

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
