"""Features: each against a figure worked out by hand, and blind to what compositions scored."""

from __future__ import annotations

import ast
import dataclasses
import math
import random
import statistics
from pathlib import Path

import pytest

import loraprobe.verdict.features
from loraprobe.records import Attribution, Comparison, Coverage, Gain, Measurement, Score
from loraprobe.verdict import Evidence
from loraprobe.verdict.features import FAMILIES, FEATURES, features

HERE = Path(loraprobe.verdict.features.__file__).parent


def score(system, value, part="target", task="t", kind=None, metric="exact_match"):
    kind = kind or ("base" if system == "base" else "adapter")
    return Score(system, kind, task, part, metric, value, (value - 0.05, value + 0.05), 100)


def cover(name, value, adapters=(), task="t", **rest):
    return Coverage(name, task, value, 60, adapters=tuple(adapters), **rest)


def one_task():
    """Facts (hop 1) and steps: who knows what, plainly and step by step."""
    values = {
        "target": {"base": 0.0, "facts": 0.02, "steps": 0.05},
        "hop1": {"base": 0.0, "facts": 1.0, "steps": 0.1},
        "hop2": {"base": 0.9, "facts": 0.2, "steps": 0.8},
        "cot": {"base": 0.0, "facts": 0.01, "steps": 0.1},
    }
    scores = tuple(score(s, v, part) for part, row in values.items() for s, v in row.items())
    both = ("facts", "steps")
    rows = [
        cover("additive_score", 0.04, both, part="target", gate=0.5, baseline=0.06),
        cover("additive_score", 0.02, both, part="target", gate=1.0, baseline=0.06),
        cover("additive_score", 0.7, both, part="cot", gate=0.5, baseline=0.12),
        cover("additive_score", 0.2, both, part="cot", gate=1.0, baseline=0.12),
        cover("routed_score", 0.5, both, part="cot", baseline=0.12),
        cover("routed_score", 0.03, both, part="target", baseline=0.06),
        cover("shrunk_score", 0.6, ("facts",), hop=1, part="hop1", gate=0.5, baseline=1.0),
        cover("shrunk_score", 0.1, ("steps",), hop=1, part="hop1", gate=0.5, baseline=0.1),
        cover("shrunk_score", 0.9, ("facts",), hop=2, part="hop2", gate=0.5, baseline=0.2),
        cover("shrunk_score", 0.95, ("steps",), hop=2, part="hop2", gate=0.5, baseline=0.8),
        cover("shrunk_score", 0.0, ("facts",), part="cot", gate=0.5, baseline=0.01),
        cover("shrunk_score", 0.3, ("steps",), part="cot", gate=0.5, baseline=0.1),
        cover("hidden_crosstalk", 2.0, ("steps", "facts"), hop=1, part="hop1"),
        cover("hidden_crosstalk", 0.5, ("facts", "steps"), part="cot"),
        cover("hidden_crosstalk", 0.8, both, part="all"),
        cover("hidden_crosstalk", 1.25, ("steps", "facts"), part="all"),
        cover("gate_share", 0.7, ("facts",), hop=1, part="hop1", baseline=0.5),
        cover("gate_share", 0.3, ("steps",), hop=1, part="hop1", baseline=0.5),
        cover("gate_share", 0.4, ("facts",), part="cot", baseline=0.5),
        cover("gate_share", 0.6, ("steps",), part="cot", baseline=0.5),
        cover("gate_agreement", 0.8, ("facts",), hop=1, part="hop1", baseline=0.5),
        cover("gate_agreement", 0.9, ("steps",), part="cot", baseline=0.5),
        cover("gate_entropy", 0.4, both, hop=1, part="hop1", baseline=1.0),
        cover("gate_entropy", 0.6, both, part="cot", baseline=1.0),
        cover("effect_overlap", 0.2, both, part="cot", gate=0.5),
        cover("effect_overlap", 0.6, both, part="cot", gate=1.0),
        cover("own_answer_kept", 0.5, ("facts",), part="cot", gate=0.5, baseline=0.3),
        cover("own_answer_kept", 0.8, ("steps",), part="cot", gate=0.5, baseline=0.3),
        cover("template_loss", 2.5, ("facts", "steps"), part="cot", baseline=1.0),
        cover("answer_margin", 0.8),
        cover("answer_margin", 0.5, hop=1),
        cover("answer_margin", 0.1, hop=2),
        cover("gold_rank", 1.1, hop=2, baseline=5.5),
        cover("gold_rank", 5.5, hop=1, baseline=5.5),
        cover("name_swap", -0.1, hop=1, baseline=0.0),
        cover("name_swap", 9.0, hop=2, baseline=0.0),
        cover("min_k_plus_plus", -1.5, hop=2, baseline=-4.5),
    ]
    return Evidence(evaluation=scores, coverage=tuple(rows), tasks=1, level="base",
                    diagnostics=weights())  # fmt: skip


def weights():
    pair = ("facts", "steps")
    return (
        Measurement("norm_ratio", pair, math.e),
        Measurement("norm_ratio", pair, 50.0, module="x"),
        Measurement("relative_norm", ("facts",), 0.1),
        Measurement("relative_norm", ("steps",), 0.4),
        Measurement("subspace_overlap", pair, 0.3, side="in", chance=0.1),
        Measurement("subspace_overlap", pair, 0.2, side="out", chance=0.1),
        Measurement("cosine", pair, -0.2),
        Measurement("sign_conflict", pair, 0.55, chance=0.5),
        Measurement("energy_ratio", pair, 0.9),
        Measurement("stable_rank", ("facts",), 2.0),
        Measurement("stable_rank", ("steps",), 8.0),
        Measurement("cross_terms", pair, 0.8),
        Measurement("shared_initialisation", pair, 0.9),
    )


BY_HAND = {
    "average": {
        "adapters": 2, "tasks": 1, "hops": 2, "asks_steps": 1, "chooses": 0,
        "base_score": 0.0, "base_plain": 0.0, "base_steps": 0.0, "best_single_score": 0.1,
        "best_single_plain": 0.05, "best_single_steps": 0.1, "second_single_score": 0.02,
        "ceiling": 0.9, "single_over_base": 0.1, "steps_over_plain": 0.05,
        "specialist_score": None, "specialist_gap": None, "off_task_change": None,
        "hop_weakest": 0.9, "hop_base_weakest": 0.0, "hop_base_strongest": 0.9,
        "hops_base_knows": 1, "hop_chain": 0.9, "hop_chain_room": 0.8, "hop_one_adapter": 0.2,
        "hop_adapter_and_base": 0.9, "hops_share_owner": 0, "hop_spoiled": 0.7,
        "hop_partner_weakest": 0.1,
        "answer_margin_question": 0.8, "answer_margin_first_hop": 0.5,
        "answer_margin_last_hop": 0.1, "answer_margin_worst_hop": 0.5,
        "answer_margin_best_hop": 0.1, "gold_rank_question": None, "gold_rank_worst_hop": 1.0,
        "gold_rank_last_hop": 0.2, "name_swap_worst_hop": -0.1, "name_swap_best_hop": 9.0,
        "min_k_plus_plus_worst_hop": 3.0,
        "norm_log_ratio": 1.0, "relative_norm_log_mean": math.log(0.2),
        "relative_norm_log_max": math.log(0.4), "overlap_in": 0.3, "overlap_out": 0.2,
        "overlap_out_over_chance": math.log(2), "cosine_max": -0.2, "cosine_min": -0.2,
        "sign_conflict": 0.55, "energy_ratio": 0.9, "stable_rank_log_mean": math.log(4),
        "cross_terms": 0.8, "shared_initialisation": 0.9,
        "additive_score": 0.7, "additive_gain": 0.58, "additive_gain_plain": -0.02,
        "additive_gain_steps": 0.58, "additive_gain_any_gate": 0.58,
        "additive_gain_every_gate": 0.08, "expected_gain": 0.58, "routed_gain": 0.38,
        "expected_retention_min": None,
        "shrunk_retention_min": 0.6, "shrunk_retention_mean": 0.6, "shrunk_gain": 0.2,
        "shrunk_chain": 0.57, "shrunk_chain_room": 0.47,
        "hidden_crosstalk_max": math.log(2), "hidden_crosstalk_mean": 0.0,
        "hidden_crosstalk_asymmetry": math.log(1.25),
        "gate_share_min": 0.45, "gate_needed_min": 0.6, "gate_needed_mean": 0.65,
        "gate_agreement_min": 0.8, "gate_agreement_beyond": 0.35, "gate_entropy": 0.5,
        "effect_overlap": 0.2, "own_answer_kept_min": 0.5, "own_answer_kept_max": 0.8,
        "base_answer_kept": 0.3,
        "template_loss_max": 1.5, "template_loss_level": 2.5, "format_loss_max": None,
    },
    "sum": {
        "additive_score": 0.2, "additive_gain": 0.08, "additive_gain_any_gate": 0.58,
        "expected_gain": 0.08, "expected_score": 0.2, "effect_overlap": 0.6,
        "own_answer_kept_min": None, "shrunk_retention_min": 0.6,
    },
    "router": {
        "additive_score": 0.7, "additive_gain": 0.58, "expected_gain": 0.38,
        "expected_score": 0.5, "expected_gain_plain": -0.03, "effect_overlap": 0.4,
    },
}  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
def test_one_task_by_hand(family):
    found = features(one_task(), family)
    assert set(found) == set(FEATURES)
    for name, value in BY_HAND[family].items():
        assert found[name] == (None if value is None else pytest.approx(value)), name


def two_tasks():
    """A specialist each: a on s, b on t."""
    values = {"s": {"base": 0.1, "a": 0.9, "b": 0.05}, "t": {"base": 0.2, "a": 0.3, "b": 0.8}}
    scores = tuple(score(n, v, "target", t) for t, row in values.items() for n, v in row.items())
    rows = [
        cover("additive_score", 0.7, ("a", "b"), "s", part="target", gate=0.5, baseline=0.9),
        cover("additive_score", 0.5, ("a", "b"), "t", part="target", gate=0.5, baseline=0.8),
        cover("additive_score", 0.9, ("a", "b"), "s", part="target", gate=1.0, baseline=0.9),
        cover("additive_score", 0.8, ("a", "b"), "t", part="target", gate=1.0, baseline=0.8),
        cover("shrunk_score", 0.45, ("a",), "s", part="target", gate=0.5, baseline=0.9),
        cover("shrunk_score", 0.6, ("b",), "t", part="target", gate=0.5, baseline=0.8),
        cover("complementarity", 0.1, ("a", "b"), "s"),
        cover("complementarity", 0.2, ("a", "b"), "t"),
        cover("agreement", 0.4, ("a", "b"), "s", baseline=0.3),
        cover("format_loss", 3.0, ("a", "b"), "s", baseline=2.0),
        cover("format_loss", 1.0, ("b", "a"), "s", baseline=2.0),
    ]
    return Evidence(evaluation=scores, coverage=tuple(rows), tasks=2, level="base")


def test_several_tasks_by_hand():
    """The best single has 0.6 on average (a: 0.9 and 0.3), the specialists 0.85."""
    want = {
        "tasks": 2, "hops": 0, "best_single_score": 0.6, "base_score": 0.15, "ceiling": 0.4,
        "second_single_score": 0.425, "specialist_score": 0.85, "specialist_gap": 0.25,
        "specialist_least_gain": 0.6, "off_task_change": 0.025, "off_task_worst": -0.05,
        "off_task_lowest": 0.05,
        "additive_score": 0.6, "additive_gain": 0.0, "additive_gain_any_gate": 0.25,
        "expected_retention_min": 0.5, "expected_retention_mean": (0.75 + 0.5) / 2,
        "shrunk_retention_min": 0.5, "shrunk_retention_mean": 0.625,
        "complementarity": 0.15, "agreement": 0.4, "agreement_beyond_chance": 0.1,
        "format_loss_max": 1.0, "format_loss_mean": 0.0, "hop_weakest": None,
    }  # fmt: skip
    found = features(two_tasks(), "average")
    for name, value in want.items():
        assert found[name] == (None if value is None else pytest.approx(value)), name
    summed = features(two_tasks(), "sum")
    assert summed["additive_gain"] == pytest.approx(0.25)
    assert summed["expected_retention_min"] == pytest.approx(1.0)
    # without routed_score a router is expected to do what the better constant gate does
    assert features(two_tasks(), "router")["expected_retention_min"] == pytest.approx(1.0)


def compositions(rng, tasks):
    """What scored compositions, controls and the chain add to evidence, at random."""
    kinds = {"uniform": "merge", "arrow": "router", "chain": "chain", "shrunk:a": "control"}
    scores = tuple(
        score(system, rng.random(), part, task, kind)
        for system, kind in kinds.items()
        for part in ("target", "cot", "hop1", "hop7")
        for task in tasks
    )
    ci = (0.1, 0.9)
    return {
        "evaluation": scores,
        "comparisons": (Comparison("uniform", "base", tasks[0], "target", 0.5, ci, 100),),
        "gains": (Gain(None, "target", "uniform", "base", 0.5, ci, ci, 100),),
        "attribution": (Attribution("uniform", tasks[0], 50),),
    }


@pytest.mark.parametrize("make", [one_task, two_tasks])
@pytest.mark.parametrize("family", FAMILIES)
def test_what_compositions_scored_changes_no_feature(make, family):
    before, rng = make(), random.Random(0)
    want = features(before, family)
    tasks = sorted({s.task for s in before.evaluation})
    for _ in range(5):
        more = compositions(rng, tasks)
        rows = [*before.evaluation, *more.pop("evaluation")]
        rng.shuffle(rows)
        after = dataclasses.replace(before, evaluation=tuple(rows), level="evaluation", **more)
        assert features(after, family) == want


def test_no_feature_can_see_more_than_the_view_shows():
    """Only `View.of` touches the evidence's fields of compositions, to leave them out."""
    for file in HERE.glob("*.py"):
        tree = ast.parse(file.read_text())
        used = {n.attr for n in ast.walk(tree) if isinstance(n, ast.Attribute)}
        assert not used & {"gains", "comparisons", "attribution"}, file.name
        imported = {n.module for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
        allowed = ("loraprobe.records", "loraprobe.verdict", "collections", "dataclasses",
                   "functools", "typing", "__future__")  # fmt: skip
        assert all(str(name).startswith(allowed) for name in imported), file.name


@pytest.mark.parametrize("make", [one_task, two_tasks])
def test_order_and_names_do_not_matter(make):
    before, rng = make(), random.Random(1)
    names = {"facts": "zeta", "steps": "alpha", "a": "y", "b": "x"}

    def renamed(record):
        changes = {}
        if isinstance(record, Score):
            changes["system"] = names.get(record.system, record.system)
        else:
            changes["adapters"] = tuple(names[n] for n in record.adapters)
        return dataclasses.replace(record, **changes)

    fields = {}
    for name in ("evaluation", "coverage", "diagnostics"):
        rows = [renamed(row) for row in getattr(before, name)]
        rng.shuffle(rows)
        fields[name] = tuple(rows)
    for family in FAMILIES:
        after = features(dataclasses.replace(before, **fields), family)
        for name, value in features(before, family).items():
            assert after[name] == (None if value is None else pytest.approx(value)), name


def test_nothing_known_is_nothing_told_and_numbers_are_finite():
    for family in FAMILIES:
        assert set(features(Evidence(), family).values()) == {None}
    wild = Evidence(
        evaluation=(score("base", 0.0), score("a", 0.0), score("b", 0.0)),
        coverage=(
            cover("hidden_crosstalk", 0.0, ("a", "b")),
            cover("hidden_crosstalk", None, ("b", "a")),
            cover("additive_score", math.inf, ("a", "b"), part="target", gate=0.5),
            cover("shrunk_score", 0.5, ("a",), part="target", gate=0.5, baseline=0.0),
        ),
        diagnostics=(Measurement("norm_ratio", ("a", "b"), 0.0),),
        tasks=1,
    )
    for value in features(wild, "average").values():
        assert value is None or math.isfinite(value)


def test_the_chance_of_the_expected_gain_is_that_of_the_normal_distribution():
    """0.70 [0.58, 0.82] against 0.12: 0.53 beyond the margin, with an error of 0.12 / 1.96."""
    rows = [
        dataclasses.replace(row, ci95=(row.value - 0.12, row.value + 0.12))
        for row in one_task().coverage
        if row.name == "additive_score"
    ]
    low = [dataclasses.replace(row, value=0.2, ci95=(0.08, 0.32)) for row in rows]
    normal = statistics.NormalDist()
    for coverage, gain in ((rows, 0.58), (low, 0.14)):
        evidence = dataclasses.replace(one_task(), coverage=tuple(coverage))
        found = features(evidence, "average")["expected_gain_chance"]
        assert found == pytest.approx(normal.cdf((gain - 0.05) / (0.12 / 1.959964)))
    assert features(one_task(), "average")["expected_gain_chance"] is None  # without intervals
    pair = [
        dataclasses.replace(row, ci95=(row.value - 0.08, row.value + 0.08))
        for row in two_tasks().coverage
        if row.name == "additive_score"
    ]
    both = dataclasses.replace(two_tasks(), coverage=tuple(pair))
    error = 0.08 / math.sqrt(2) / 1.959964
    assert features(both, "sum")["expected_gain_chance"] == pytest.approx(
        normal.cdf((0.25 - 0.05) / error)
    )


def test_losses_are_no_scores():
    rows = tuple(score(s, v, metric="answer_loss") for s, v in (("base", 2.0), ("a", 1.0)))
    assert features(Evidence(evaluation=rows, tasks=1), "sum")["best_single_score"] is None


def test_an_unknown_family_is_refused():
    with pytest.raises(ValueError, match="soup"):
        features(Evidence(), "soup")
