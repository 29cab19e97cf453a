"""Which systems the table of methods chooses for each kind of question."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from loraprobe.merging import METHODS
from loraprobe.pipeline.systems import FILE
from loraprobe.routing import ROUTERS
from loraprobe_lab.experiments import methods as chosen

EXAMPLES = Path(__file__).parents[2] / "examples" / "reproduction"
FIXED = ["uniform", "sum", "arrow"]


def test_the_shipped_portfolio_is_what_the_table_of_methods_gives():
    document = json.loads((EXAMPLES / "methods.json").read_text(encoding="utf-8"))
    made = chosen.portfolio_files(document)
    assert FILE.read_text(encoding="utf-8") == made["portfolio.json"]
    assert (EXAMPLES / "portfolio.md").read_text(encoding="utf-8") == made["portfolio.md"]
    for kind in json.loads(FILE.read_text(encoding="utf-8"))["kinds"]:
        for system in kind["systems"]:
            registry = ROUTERS if system["spec"] in ROUTERS else METHODS
            registry.make(system["spec"])


def a_table(figures: dict[str, list[float]]) -> dict:
    """A document of `lab methods` with one question, in which these systems took part."""
    cells = [
        {
            "label": label,
            "family": "router" if label in ROUTERS else "merge",
            "spec": label.partition(" ")[0],
            "space": None,
            "strength": 1.0 if label.endswith("x1") else None,
            "balanced": False,
            "keep_both": {
                "worse": {"value": sum(each) / len(each), "ci95": [0.0, 1.0], "each": each}
            },
        }
        for label, each in figures.items()
    ]
    return {"cells": cells}


def test_a_system_joins_by_what_it_adds_on_worlds_that_did_not_choose_it():
    """A system that is best in one world by luck adds nothing on the others."""
    draw = random.Random(1)
    plain = {name: [0.3 + draw.gauss(0, 0.01) for _ in range(20)] for name in FIXED}
    lucky = [0.3] * 19 + [0.9]
    better = [0.5 + draw.gauss(0, 0.05) for _ in range(20)]
    other = {"tsv": lucky, "ties": [0.31] * 20}
    (step,) = chosen.choices(a_table({**plain, **other}))
    assert step["label"] == "tsv" and not step["joins"]
    first, second = chosen.choices(a_table({**plain, **other, "lag": better}))
    assert (first["label"], first["joins"], second["joins"]) == ("lag", True, False)
    assert first["beside"] == pytest.approx(0.31, abs=0.01)
    assert first["added"][0] == pytest.approx(0.2, abs=0.03)
    (step,) = chosen.choices(a_table({**plain, "slerp x1": better}))
    assert step["added"][0] > 0.1 and not step["joins"], "a spec cannot say its weights"
