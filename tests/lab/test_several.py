"""Adapter sets with several tasks: outcome, first rounds, left-out bases, and how they come."""

from __future__ import annotations

import dataclasses
import gzip
import json
import math
from pathlib import Path

import numpy as np
import pytest
from calibrating import synthetic
from calibrations import DOCUMENT, SMALL, calibration

from loraprobe.records import ItemResult
from loraprobe.verdict import decide
from loraprobe.verdict.probability import shipped
from loraprobe_lab.calibration import fit as fitting
from loraprobe_lab.calibration.cases import AnsweredSet, CaseError, merged, read_sets, write_sets
from loraprobe_lab.calibration.fit import FEWEST_DECIDED, figures

STORED = Path(__file__).parents[2] / "examples" / "calibration" / fitting.SETS
KINDS = {"base": "base", "a": "adapter", "b": "adapter", "uniform": "merge", "arrow": "router"}


def a_set(uniform, arrow=(0.0, 0.0), n=120, seed=0, base="one", name="set", singles=1.0):
    """Two tasks, of which a knows the first and b the second; shares that the others keep."""
    rng = np.random.default_rng(seed)
    rates = {"base": (0.0, 0.0), "a": (singles, 0.0), "b": (0.0, singles)}
    rates |= {"uniform": uniform, "arrow": arrow}
    rows = [
        ItemResult(s, t, "question", str(i), "exact_match", float(rng.random() < p[k]), "", str(i))
        for s, p in rates.items()
        for k, t in enumerate("tu")
        for i in range(n)
    ]
    return AnsweredSet(base, "llama", "keep-both", base, name, KINDS, tuple(rows))


def test_the_outcome_is_that_of_the_best_composition_on_all_items():
    assert a_set((0.97, 0.97)).outcome == 1
    assert a_set((0.97, 0.3)).outcome == 0, "a gain of the mean is not enough"
    assert a_set((0.97, 0.3), (0.96, 0.98)).outcome == 1
    assert a_set((0.8, 0.97)).outcome is None
    assert a_set((1.0, 1.0), n=14).outcome is None, "too few items"
    assert a_set((0.9, 0.9), singles=0.0, n=30).outcome is None, "nobody is a specialist"


def test_a_first_round_has_the_probability_of_a_verdict():
    known = calibration(several={"small": DOCUMENT["accuracy"]["small"]})
    rng, coefficients = np.random.default_rng(0), known.coefficients
    for one in (a_set((0.9, 0.9), n=40), a_set((0.85, 0.7), n=40), a_set((0.2, 0.9), n=40)):
        found = decide(dataclasses.replace(one.evidence(one.results), hidden_size=SMALL), known)
        assert one.first_round(40, rng, coefficients) == pytest.approx(found.gain.probability)
    assert math.isnan(a_set((0.0, 0.0), singles=0.0).first_round(30, rng, coefficients))
    few = [a_set((0.9, 0.8)).first_round(30, rng, coefficients) for _ in range(8)]
    assert len(set(few)) > 1, "items are drawn"


def test_left_out_bases_and_their_figures(monkeypatch):
    monkeypatch.setattr(fitting, "SET_DRAWS", 3)
    good = [a_set((0.97, 0.97), seed=k, base=f"b{k % 3}", name=f"good{k}") for k in range(4)]
    bad = [a_set((0.9, 0.5), seed=k, base=f"b{k % 3}", name=f"bad{k}") for k in range(4)]
    none = [a_set((0.0, 0.0), singles=0.0, base="b0", name="none")]
    rows = fitting.measure_sets([*good, *bad, *none], synthetic())
    sets, found = rows["small"]
    assert (len(sets), found.decided, found.gained) == (9, 18, 8), "every set in both forms"
    assert [row.decided for _, row in rows.values()] == [18, 9, 9]
    assert found.silent == pytest.approx(1 / 9) and found.auroc > 0.95 > found.null
    assert found.brier < 0.1 < found.reference
    assert found.likely > 2 and found.wrong == 0 and found.called > 0.5
    assert fitting.set_errors(rows) == {}, "too few sets were decided"
    enough = dataclasses.replace(rows["small" + fitting.DEFAULT][1], decided=15)
    (row,) = fitting.set_errors({**rows, "small" + fitting.DEFAULT: (sets, enough)}).values()
    assert row["sets"] == 15 and row["items"] == 30 and row["where"] == fitting.SET_WHERE["small"]
    calibration(several={"small": row})


def test_probabilities_of_the_wrong_order_are_seen():
    sets = [a_set((0.97, 0.97)), a_set((0.9, 0.4), name="other")]
    p = np.array([[0.2, 0.9], [0.4, 0.4], [np.nan, 0.1]])
    found = figures([one.outcome for one in sets], p)
    assert found.auroc == pytest.approx(0.25) and found.silent == pytest.approx(1 / 6)
    squares = [0.8**2, 0.9**2, 0.6**2, 0.4**2, 0.1**2]
    assert found.brier == pytest.approx(np.mean(squares))
    assert found.likely == pytest.approx(1 / 3) and found.wrong == 1 and found.called == 0


def test_what_ships_is_what_the_page_tells_of_the_stored_sets():
    sets, known = read_sets(STORED), shipped().several
    assert {one.outcome for one in sets[:4]} <= {0, 1}
    page = (STORED.parent / "report.md").read_text(encoding="utf-8").partition("## Several")[2]
    page = page.partition("\n## ")[0]
    rows = [line.split(" | ") for line in page.splitlines() if line.startswith("| ")]
    kinds = {row[0].removeprefix("| "): row for row in rows}
    for kind in fitting.SET_WHERE:
        own, row = [one for one in sets if one.base_kind == kind], kinds[kind]
        assert row[1] == f"{len(own)}, {len({one.base for one in own})}"
        decided = int(kinds[kind + fitting.DEFAULT][2].partition(",")[0])
        brier = float(row[5].partition(" ")[0])
        assert (kind in known) == (decided >= FEWEST_DECIDED)
        if kind in known:
            told = known[kind]
            assert (told.sets, told.items, told.brier) == (decided, 30, brier)


def test_sets_survive_writing_and_replace_older_ones(tmp_path):
    path, one = tmp_path / "several.jsonl.gz", a_set((0.9, 0.9), n=12)
    other = a_set((0.1, 0.2), n=12, name="other")
    write_sets(path, [one, other])
    back = read_sets(path)
    assert [sorted(s.results, key=str) for s in back] == [
        sorted(s.results, key=str) for s in (one, other)
    ]
    assert back[0].kinds == KINDS and back[0].set_key == ("one", "set")
    new = dataclasses.replace(one, results=other.results)
    assert merged(back, [new])[1] == new and len(merged(back, [new])) == 2
    for content in (b"nothing", gzip.compress(b"{}\n"), gzip.compress(json.dumps([1]).encode())):
        path.write_bytes(content)
        with pytest.raises(CaseError, match="no file of answered sets"):
            read_sets(path)
