"""The verdict's rules, each on evidence planted for it, and its laws on random evidence."""

from __future__ import annotations

import ast
import re
import string
from pathlib import Path

import pytest
from evidences import (
    COMPOSITIONS,
    KINDS,
    N,
    any_evidence,
    both,
    changed,
    codes,
    evidence,
    evidence_of,
    reason,
    replaced,
    score,
    versus,
)
from hypothesis import given, settings
from hypothesis import strategies as st

import loraprobe.verdict
from loraprobe.defaults import UNKNOWN
from loraprobe.records import (
    Attribution,
    Compatibility,
    Coverage,
    Estimate,
    Gain,
    Issue,
    Measurement,
    Score,
    pooled,
)
from loraprobe.verdict import Request, decide, next_command
from loraprobe.verdict.evidence import criterion
from loraprobe.verdict.reasons import CODES, WEIGHT_WARNINGS

FAIL = {
    "base": 0.0,
    "a": 0.05,
    "b": 0.04,
    "uniform": 0.05,
    "arrow": 0.03,
    "shrunk:a": 0.04,
    "random-partner": 0.03,
}
GAIN = {**FAIL, "uniform": 0.5}


def test_structural_conflict_decides_alone_and_gives_the_cure():
    issue = Issue("error", "base-mismatch", ("a", "b"), "a wants gpt2, b wants llama.", "Take one.")
    note = Issue("warning", "partial-targets", ("a",), "only a touches x.", "")
    found = decide(evidence(GAIN, compatibility=Compatibility((note, issue))))
    assert (found.decision, found.evidence, found.action) == ("incompatible", "weights", "fix")
    assert codes(found) == ["structural-conflict"]
    assert "base-mismatch" in found.reasons[0].message and "Take one." in found.reasons[0].message
    warned = decide(evidence(GAIN, compatibility=Compatibility((note,))))
    assert warned.decision == "likely"


@pytest.mark.parametrize("level", ["weights", "probes", "base"])
def test_without_evaluation_the_next_evidence_is_named(level):
    found = decide(evidence_of(level=level))
    assert (found.decision, found.evidence, found.system) == ("inconclusive", level, None)
    assert "next-evidence" in codes(found)
    names = {"weights": "--probe", "probes": "task file", "base": "merge-and-eval"}
    assert names[level] in reason(found, "next-evidence").message


def test_a_gain_beyond_the_margin_is_likely():
    found = decide(evidence(GAIN))
    assert (found.decision, found.system, found.action) == ("likely", "uniform", "merge")
    first = found.reasons[0]
    assert first.code == "gain-beyond-margin" and first.severity == "decisive"
    assert first.value == pytest.approx(0.5 - 0.05 - 0.04) and first.threshold == 0.05
    assert "+0.45 [0.41, 0.49]" in first.message and "against a:" in first.message
    assert "controls-beaten" in codes(found)


def test_a_router_that_gains_says_route():
    found = decide(evidence({**FAIL, "arrow": 0.6}))
    assert (found.decision, found.system, found.action) == ("likely", "arrow", "route")


def test_bounds_at_the_margin_do_not_decide():
    # numbers that binary floats hold: 0.5 - 0.25 and 0.0 + 0.25 are the margin, to the last bit
    def decision(value, half):
        values = {"base": 0.0, "a": 0.0, "uniform": value, "shrunk:a": 0.0}
        return decide(evidence(values, half=half, margin=0.25)).decision

    assert (decision(0.5, 0.25), decision(0.5, 0.24)) == ("inconclusive", "likely")
    assert (decision(0.0, 0.25), decision(0.0, 0.24)) == ("inconclusive", "unlikely")


def test_the_interval_that_covers_the_choice_among_compositions_decides():
    def adjusted(value, plain, ends):
        made = evidence({"base": 0.0, "a": 0.05, "uniform": value, "shrunk:a": 0.0}, half=plain)
        return decide(changed(made, rows="gains", adjusted_ci95=ends)).decision

    assert adjusted(0.3, 0.05, (0.2, 0.3)) == "likely"
    assert adjusted(0.3, 0.05, (0.04, 0.3)) == "inconclusive"
    assert adjusted(0.05, 0.02, (-0.03, 0.04)) == "unlikely"
    assert adjusted(0.05, 0.02, (-0.03, 0.06)) == "inconclusive"
    unsure = changed(evidence(GAIN), rows="comparisons", adjusted_ci95=(-0.01, 0.9))
    assert decide(unsure).decision == "inconclusive", "and that of the controls"


def test_undecided_names_the_items_that_would_decide():
    found = decide(evidence({**FAIL, "uniform": 0.15}, half=0.1))
    assert found.decision == "inconclusive" and found.action == "gather-evidence"
    # difference 0.10, margin 0.05: the half-width has to halve, so four times the items
    assert "about 400 items" in reason(found, "gain-undecided").message


def test_controls_and_retentions_name_the_items_that_decide_in_four_runs_of_five():
    # The half-width has to shrink to 1 / 2, and to 1.96 / (1.96 + 0.84) of that for the power.
    def needed(value, low, high, threshold):
        return criterion(Estimate(value, low, high, 100, 100), threshold).needed

    assert needed(0.1, 0.0, 0.2, 0.05) == 818
    assert needed(0.05, -0.05, 0.15, 0.05) is None
    assert needed(0.75, 0.65, 0.90, 0.8) == 1839
    assert needed(0.8, 0.7, 0.9, 0.8) is None


def test_the_margin_can_be_set():
    assert decide(evidence(GAIN, margin=0.42)).decision == "inconclusive"
    assert decide(evidence(GAIN, margin=0.6)).decision == "unlikely"


def test_compositions_without_gains_do_not_decide():
    found = decide(replaced(evidence(GAIN), gains=()))
    assert (found.decision, codes(found)[0]) == ("inconclusive", "no-comparison")


def test_a_baseline_that_answers_at_once_is_named_with_its_form():
    steps = evidence({**FAIL, "uniform": 0.7}, part="steps")
    at_once = changed(steps, rows="gains", against="b", against_part="question")
    found = decide(both(evidence(FAIL), at_once))
    assert "against b on the question" in found.reasons[0].message


def test_a_control_that_scores_as_much_prevents_likely():
    # the other control stays open: 0.5 - 0.47 +- 0.02 holds both 0.02 and half the margin
    found = decide(evidence({**GAIN, "random-partner": 0.5, "shrunk:a": 0.47}, half=0.02))
    assert found.decision == "unlikely"
    found = decide(evidence({**GAIN, "random-partner": 0.5}, half=0.06))
    assert found.decision == "inconclusive"
    partner = reason(found, "partner-adds-nothing")
    assert partner.severity == "decisive" and "A random partner" in partner.message
    # 0.00 +- 0.06 has to become 0.00 +- 0.025, and smaller for the power
    assert "about 1,177 items" in partner.message
    found = decide(evidence({**GAIN, "random-partner": 0.38}, half=0.12))
    assert "about 327 items" in reason(found, "partner-adds-nothing").message
    assert "gain-with-reservation" in codes(found)


def test_nobody_is_asked_for_more_items_about_a_control_once_the_gain_decides():
    values = {"base": 0.5, "a": 0.6, "uniform": 0.3, "shrunk:a": 0.1, "random-partner": 0.3}
    found = decide(evidence(values, half=0.2))
    assert found.decision == "unlikely" and found.gain.ci95[1] < found.margin
    partner = reason(found, "partner-adds-nothing")
    assert partner.value < found.margin and "items" not in partner.message


@pytest.mark.parametrize(
    ("control", "half", "decision"),
    [
        (0.47, 0.001, "likely"),
        (0.47, 0.02, "inconclusive"),
        (0.48, 0.001, "unlikely"),
        (0.48, 0.02, "inconclusive"),
        (0.48, 0.08, "inconclusive"),
    ],
)
def test_a_control_is_beaten_by_half_the_margin_or_not_at_all(control, half, decision):
    """One threshold: with enough items, one that is 0.02 worse is as good."""
    found = decide(evidence({**GAIN, "random-partner": control}, half=half))
    assert found.decision == decision
    assert ("partner-adds-nothing" in codes(found)) == (decision != "likely")
    exactly = {"base": 0.0, "uniform": 0.75, "random-partner": 0.375}
    found = decide(evidence(exactly, half=0.25, margin=0.25))
    assert found.decision == "inconclusive"  # [0.125, 0.625] does not lie above 0.125


def test_the_second_best_wins_where_the_best_does_not_beat_a_control():
    found = changed(
        evidence({**GAIN, "sum": 0.45}),
        lambda c: (c.system, c.against) == ("uniform", "random-partner"),
        "comparisons",
        difference=0.0,
        ci95=(-0.1, 0.1),
        adjusted_ci95=(-0.1, 0.1),
    )
    found = decide(found)
    assert (found.decision, found.system) == ("likely", "sum")


def test_a_control_that_was_not_scored_is_not_beaten():
    found = decide(evidence({k: v for k, v in GAIN.items() if KINDS[k] != "control"}))
    assert (found.decision, found.action) == ("inconclusive", "merge")
    assert reason(found, "controls-not-run").severity == "decisive"
    assert "no control was scored" in reason(found, "gain-with-reservation").message
    failing = decide(evidence({k: v for k, v in FAIL.items() if KINDS[k] != "control"}))
    assert failing.decision == "unlikely"
    assert reason(failing, "controls-not-run").severity == "warning"


def test_only_the_step_by_step_form_gains():
    steps = {**FAIL, "uniform": 0.7}
    found = decide(both(evidence(FAIL), evidence(steps, part="steps")))
    assert (found.decision, found.system, found.action) == ("likely", "uniform", "step-by-step")
    assert "step by step" in found.reasons[0].message
    plain = reason(found, "plain-form")
    assert plain.value == pytest.approx(0.0) and plain.threshold == 0.05
    # both forms gain: the larger gain counts, the plain one on a tie
    found = decide(both(evidence(GAIN), evidence(steps, part="steps")))
    assert (found.decision, found.action) == ("likely", "step-by-step")
    steps = {**FAIL, "uniform": 0.54}
    found = decide(both(evidence(GAIN), evidence(steps, part="steps")))
    assert (found.decision, found.action) == ("likely", "merge")


def test_an_undecided_step_by_step_form_keeps_the_question_open():
    plain = evidence(FAIL)
    promise = evidence({**FAIL, "uniform": 0.2}, part="steps", half=0.12)
    found = decide(both(plain, promise))
    assert (found.decision, found.gain.form) == ("inconclusive", "steps")
    assert reason(found, "gain-undecided").severity == "decisive"
    # an estimate below the margin does not settle it: a true gain of 0.06 was called unlikely in
    # a quarter of all runs
    little = evidence({**FAIL, "uniform": 0.09}, part="steps", half=0.12)
    assert decide(both(plain, little)).decision == "inconclusive"
    none = evidence({**FAIL, "uniform": 0.03}, part="steps", half=0.01)
    assert decide(both(plain, none)).decision == "unlikely"


def test_the_chain_is_an_action_and_no_composition():
    found = decide(evidence({**FAIL, "chain": 0.95}))
    assert (found.decision, found.system, found.action) == ("unlikely", "uniform", "chain")
    assert "chain-gains" in codes(found)
    found = decide(evidence({**FAIL, "chain": 0.06}))
    assert found.action != "chain" and "chain-fails" in codes(found)
    found = decide(evidence({**FAIL, "chain": 0.15}, half=0.12))
    assert (found.decision, found.action) == ("inconclusive", "chain")  # +0.10 [-0.02, 0.22]


@pytest.mark.parametrize(
    "scores, half, action, decided",
    [
        ({"chain": 0.95}, 0.04, "chain", True),
        ({"chain": 0.6, "a": 0.5}, 0.12, "use-single:a", False),  # +0.10 [-0.02, 0.22]
        ({"chain": 0.30, "a": 0.5}, 0.04, "use-single:a", True),
        ({"chain": 0.40, "base": 0.4}, 0.04, "use-base", True),
        ({"a": 0.5}, 0.04, "use-single:a", True),
        ({"base": 0.5}, 0.04, "use-base", True),
        ({"a": 0.0, "b": 0.0}, 0.04, "gather-evidence", False),  # nobody answers
    ],
)
def test_without_a_merge_or_router_the_action_is_the_best_of_what_was_asked(
    scores, half, action, decided
):
    """Nothing is decided about compositions, which were not asked, and no probability is given."""
    alone = {"base": 0.0, "a": 0.05, "b": 0.04}
    found = decide(evidence({**alone, **scores}, half=half))
    assert (found.decision, found.evidence) == ("inconclusive", "base")
    assert found.action == action
    assert found.answers_without_composing == decided
    assert codes(found)[0] == "compositions-not-asked"
    assert (found.gain.system if found.gain else None) == ("chain" if "chain" in scores else None)
    assert found.probability is None and (found.gain is None or found.gain.probability is None)


def test_what_base_and_adapters_decide_stands_where_only_a_chain_was_asked():
    ceiling = evidence({"base": 0.99, "a": 0.9, "b": 0.9, "chain": 0.99}, half=0.01)
    found = decide(changed(ceiling, ci95=(0.96, 1.0)))
    assert (found.decision, found.action) == ("unlikely", "use-base")
    assert "compositions-not-asked" not in codes(found)


def test_a_target_adapter_is_used_alone():
    found = decide(evidence({**FAIL, "b": 0.9, "uniform": 0.6}))
    assert (found.decision, found.action) == ("unlikely", "use-single:b")
    # 0.09 [0.04, 0.14] is not shown to exceed the base by the margin
    assert decide(evidence({**FAIL, "b": 0.09})).action == "train-target-adapter"
    # step by step is a form in which a single adapter may suffice, too
    steps = evidence({**FAIL, "a": 0.8, "uniform": 0.5}, part="steps")
    found = decide(both(evidence(FAIL), steps))
    assert (found.decision, found.action) == ("unlikely", "use-single:a")
    assert "step by step" in reason(found, "single-suffices").message


def test_a_base_at_the_ceiling_needs_no_adapter():
    values = {"base": 1.0, "a": 1.0, "b": 0.2, "uniform": 1.0, "random-partner": 1.0}
    found = decide(changed(evidence(values), lambda s: s.value == 1, ci95=(0.97, 1.0)))
    assert (found.decision, found.action) == ("unlikely", "use-base")
    assert "base-suffices" in codes(found)
    for value in (0.45, 0.48, 0.53):  # worse, as good, and not shown to be better
        found = decide(evidence({"base": 0.5, "a": 0.3, "uniform": value}))
        assert (found.action, "base-is-better" in codes(found)) == ("use-base", True)


@pytest.mark.parametrize(
    ("counts", "systems", "action"),
    [
        ({"unknown": 80, "not_composed": 20}, {}, "train-target-adapter"),
        ({"interference": 80, "solved": 5}, {"arrow": None}, "train-target-adapter"),
        ({"interference": 80}, {"chain": 0.05}, "train-target-adapter"),
        ({"not_composed": 80}, {}, "step-by-step"),
        ({"not_composed": 80}, {"chain": 0.05}, "step-by-step"),
        ({"step_by_step": 80}, {}, "step-by-step"),
    ],
)
def test_the_action_follows_from_the_causes_of_failure(counts, systems, action):
    values = {k: v for k, v in {**FAIL, **systems}.items() if v is not None}
    rows = (Attribution("uniform", "t", **counts), Attribution("arrow", "t", unknown=999))
    found = decide(evidence(values, attribution=rows))
    assert (found.decision, found.action) == ("unlikely", action)
    total = sum(counts.values())
    mostly = next(r for r in found.reasons if r.code.startswith("mostly-"))
    assert mostly.value == max(v for k, v in counts.items() if k != "solved") / total


@pytest.mark.parametrize("chain", [{}, {"chain": 0.05}])
def test_closer_norms_are_advised_unless_they_were_made_equal(chain):
    values = {k: v for k, v in {**FAIL, **chain}.items() if chain or k != "arrow"}
    given = evidence(values, attribution=(Attribution("uniform", "t", interference=80),))
    message = reason(decide(given), "mostly-interference").message
    assert "bring the norms closer (--balance norm)" in message
    balanced = reason(decide(replaced(given, balanced=True)), "mostly-interference")
    assert "norms" not in balanced.message


def test_not_composed_with_steps_and_chain_measured_calls_for_training():
    values = {**FAIL, "chain": 0.05}
    rows = (Attribution("uniform", "t", not_composed=90, solved=10),)
    found = decide(both(evidence(values, attribution=rows), evidence(FAIL, part="steps")))
    assert found.action == "train-target-adapter"


@pytest.mark.parametrize("cause", ["not_composed", "interference"])
def test_where_the_chain_gains_nobody_is_told_to_train(cause):
    values = {**FAIL, "chain": 0.95}
    rows = (Attribution("uniform", "t", **{cause: 90}, solved=10),)
    found = decide(both(evidence(values, attribution=rows), evidence(FAIL, part="steps")))
    assert found.action == "chain"
    message = reason(found, "mostly-" + cause.replace("_", "-")).message
    assert message.endswith(".") and "train" not in message


def test_lossy_compression_is_not_blamed_on_the_method():
    def lossy(values):
        merges = changed(evidence(values), lambda s: s.kind == "merge", compression_error=0.3)
        return decide(merges)

    found = lossy({k: v for k, v in FAIL.items() if k != "arrow"})
    assert found.decision == "inconclusive"
    assert reason(found, "compression-lost").severity == "decisive"
    assert reason(found, "compression-lost").threshold == 0.1
    # a composition without loss failed as well: the decision stands, the loss is still said
    found = lossy(FAIL)
    assert found.decision == "unlikely"
    assert reason(found, "compression-lost").severity == "warning"


def two_tasks(retention, gain=0.4, ci=0.05, control=0.3, half=0.04, everywhere=None):
    """uniform keeps a share of what a gains on t1 and b gains on t2.

    everywhere: what the other adapter scores on each task.
    """
    kept = {"retention": retention, "retention_ci95": (retention - ci, retention + ci)}
    scores, pairs = [], []
    for task, best in (("t1", "a"), ("t2", "b")):
        scores += [
            score("base", 0.1, task=task),
            score("a", 0.5 if best == "a" else everywhere or 0.1, task=task),
            score("b", 0.5 if best == "b" else everywhere or 0.1, task=task),
            score("random-partner", 0.2, task=task),
            score("uniform", 0.5 + gain, task=task, **kept),
        ]
        pairs.append(versus("uniform", "random-partner", control, half, task=task))
    bounds = (gain - 0.04, gain + 0.04)
    mean = Gain(None, "question", "uniform", "a", gain, bounds, bounds, 2 * N)
    return evidence_of(
        scores=tuple(scores),
        comparisons=tuple(pairs),
        gains=(mean,),
        tasks=2,
        level="evaluation",
    )


UNDEFINED = {"retention": None, "retention_ci95": None}


def test_several_tasks_need_every_retention():
    assert decide(two_tasks(0.95)).decision == "likely"
    found = decide(two_tasks(0.82))
    assert found.decision == "inconclusive"
    # 0.82 +- 0.05 has to become 0.82 +- 0.02, and smaller for the power
    assert "about 1,278 items" in reason(found, "retention-undecided").message
    found = decide(two_tasks(0.6))
    assert found.decision == "unlikely"
    assert found.action == "switch-adapters"  # no single adapter keeps both
    lost = reason(found, "retention-lost")
    assert lost.threshold == 0.8 and lost.value == pytest.approx(0.65)
    assert decide(replaced(two_tasks(0.6), retention=0.5)).decision == "likely"


def test_a_retention_that_reaches_its_threshold_is_kept():
    def decision(retention):
        kept = two_tasks(retention, ci=0.25)
        return decide(replaced(kept, retention=0.75)).decision

    assert (decision(1.0), decision(0.5)) == ("likely", "inconclusive")  # from 0.75, up to 0.75
    assert (decision(0.99), decision(0.49)) == ("inconclusive", "unlikely")


def test_several_tasks_need_the_mean_to_gain():
    found = decide(two_tasks(0.95, gain=0.0, everywhere=0.48))
    assert (found.decision, found.action) == ("unlikely", "use-single:a")
    assert "gain-below-margin" in codes(found)


def test_a_retention_that_is_undefined_is_not_enough():
    found = decide(changed(two_tasks(0.95), lambda s: s.task == "t2", **UNDEFINED))
    assert found.decision == "inconclusive"
    assert reason(found, "retention-undefined").severity == "decisive"


@pytest.mark.parametrize("learned", [True, False])
def test_switching_adapters_is_advised_where_it_scores_best(learned):
    """Also where one specialist is not shown to be better than the base: it was measured so."""
    lost = changed(two_tasks(0.6), lambda s: s.task == "t2" and not learned, **UNDEFINED)
    router = [
        replaced(s, system="arrow", kind="router")
        for s in lost.measured.scores
        if s.system == "uniform"
    ]
    found = decide(replaced(lost, scores=(*lost.measured.scores, *router)))
    assert (found.decision, found.action) == ("unlikely", "switch-adapters")
    assert "switch-adapters" in codes(found)


def test_gains_of_one_task_say_nothing_of_the_mean():
    one = changed(two_tasks(0.95), rows="gains", task="t1")
    assert codes(decide(one))[0] == "no-comparison"


def test_several_tasks_pool_the_halfwidths_of_controls():
    # on each task the control may be as good; the mean of two is told from it
    assert decide(two_tasks(0.95, control=0.15, half=0.12)).decision == "likely"
    assert decide(two_tasks(0.95, control=0.15, half=0.18)).decision == "inconclusive"
    rows = [
        versus("uniform", "a", 0.2, 0.03, task="x"),
        versus("uniform", "a", 0.4, 0.04, task="y"),
    ]
    mean = pooled([row.estimate for row in rows])
    assert mean.value == pytest.approx(0.3)
    assert (mean.low, mean.high) == pytest.approx((0.275, 0.325))  # root of 0.03^2 + 0.04^2, halved


def hop(k, name, value, spread=0.05):
    ci = (max(0.0, value - spread), min(1.0, value + spread))
    kind = "base" if name == "base" else "adapter"
    return Score(name, kind, "t", f"hop{k}", "exact_match", value, ci, N)


def foreknown(hops, target):
    rows = tuple(hop(k, name, value) for (k, name), value in hops.items())
    scores = tuple(score(name, value) for name, value in target.items())
    return evidence_of(scores=(*scores, *rows), tasks=1, level="base")


DISJOINT = {
    (1, "base"): 0.0,
    (1, "a"): 1.0,
    (1, "b"): 0.05,
    (2, "base"): 0.04,
    (2, "a"): 0.03,
    (2, "b"): 0.9,
}
NOBODY = {"base": 0.0, "a": 0.04, "b": 0.03}


def test_disjoint_hops_over_unfamiliar_names_are_unlikely_before_any_composition():
    found = decide(foreknown(DISJOINT, NOBODY))
    assert (found.decision, found.evidence, found.action) == ("unlikely", "base", "chain")
    assert found.reasons[0].code == "disjoint-hops" and "2506.13479" in found.reasons[0].source
    assert f"{UNKNOWN:.2f}" in found.reasons[0].message


@pytest.mark.parametrize(
    ("gain", "decision", "severity"), [(0.0, "unlikely", "decisive"), (0.1, "inconclusive", "info")]
)
def test_hops_decide_what_an_evaluation_leaves_open_unless_it_measured_a_gain(
    gain, decision, severity
):
    """After the first round said `unlikely`, the same hops do not vanish from the verdict."""
    low = {"base": 0.02, "a": 0.03, "b": 0.02, "uniform": 0.03 + gain}
    open_ = evidence(low, half=0.1)
    rows = (*open_.measured.scores, *foreknown(DISJOINT, {}).measured.scores)
    found = decide(replaced(open_, scores=rows))
    assert found.decision == decision and found.gain.ci95[1] > found.margin
    assert reason(found, "disjoint-hops").severity == severity


@pytest.mark.parametrize(
    ("change", "target"),
    [
        ({(2, "base"): 0.9}, {}),  # the second hop is familiar: skill and facts
        ({(2, "base"): 0.4}, {}),  # half familiar
        ({(2, "base"): 0.9, (2, "b"): 0.05}, {}),  # known to the base alone
        ({(2, "a"): 0.9}, {}),  # one adapter knows both
        ({(2, "a"): 0.9, (2, "b"): 0.05}, {}),  # one adapter knows both, the other nothing
        ({(2, "a"): 0.22}, {}),  # one adapter may know some of both
        ({}, {"b": 0.22}),  # one adapter may answer the target
        ({(1, "a"): 0.5}, {}),  # a hop known to nobody for sure
    ],
)
def test_what_is_not_disjoint_stays_open(change, target):
    found = decide(foreknown({**DISJOINT, **change}, {**NOBODY, **target}))
    assert (found.decision, found.evidence) == ("inconclusive", "base")


def test_a_hop_that_nobody_knows_is_unlikely():
    found = decide(foreknown({**DISJOINT, (2, "b"): 0.1}, NOBODY))
    assert (found.decision, found.action) == ("unlikely", "train-target-adapter")
    assert found.reasons[0].code == "hop-unknown-to-all" and "Hop 2" in found.reasons[0].message
    # an adapter that answers the composed question needs no hop
    found = decide(foreknown({**DISJOINT, (2, "b"): 0.1}, {**NOBODY, "b": 0.7}))
    assert found.decision == "inconclusive"


def test_a_ceiling_leaves_nothing_to_gain():
    sure = Score("b", "adapter", "t", "question", "exact_match", 0.99, (0.96, 1.0), N)
    found = decide(evidence_of(scores=(sure, score("base", 0.1)), tasks=1, level="base"))
    assert (found.decision, found.action) == ("unlikely", "use-single:b")
    assert found.reasons[0].code == "nothing-to-gain" and found.reasons[0].threshold == 0.95
    unsure = replaced(sure, ci95=(0.93, 1.0))
    found = decide(evidence_of(scores=(unsure, score("base", 0.1)), tasks=1, level="base"))
    assert found.decision == "inconclusive"
    elsewhere = replaced(unsure, task="u")
    found = decide(evidence_of(scores=(sure, elsewhere), tasks=2, level="base"))
    assert found.decision == "inconclusive", "on one of two tasks"
    base = replaced(sure, system="base", kind="base")
    found = decide(evidence_of(scores=(sure, base), tasks=1, level="base"))
    assert (found.decision, found.action) == ("unlikely", "use-base")


def test_geometry_warns_and_never_decides():
    rows = (
        Measurement("norm_ratio", ("a", "b"), 5.0),
        Measurement("norm_ratio", ("a", "b"), 50.0, module="x"),
        Measurement("cosine", ("a", "b"), -0.4),
        Measurement("relative_norm", ("a",), 0.9),
        Measurement("cross_terms", ("a", "b"), None),
    )
    plain, warned = decide(evidence(GAIN)), decide(evidence(GAIN, diagnostics=rows))
    assert (warned.decision, warned.action) == (plain.decision, plain.action)
    new = [reason(warned, code) for code in codes(warned) if code not in codes(plain)]
    assert [r.code for r in new] == ["norm-disparity", "opposed-updates", "large-update"]
    assert all(r.severity == "info" and r.threshold and r.source for r in new)
    assert new[0].value == 5.0 and "5.0" in new[0].message
    upside_down = decide(evidence_of(diagnostics=(Measurement("norm_ratio", ("a", "b"), 0.2),)))
    assert "5.0" in reason(upside_down, "norm-disparity").message
    balanced = decide(evidence(GAIN, diagnostics=rows, balanced=True))  # --balance norm was given
    assert [code for code in codes(warned) if code not in codes(balanced)] == ["norm-disparity"]
    tame = (Measurement("norm_ratio", ("a", "b"), 1.5), Measurement("cosine", ("a", "b"), 0.2))
    assert not {"norm-disparity", "opposed-updates"} & set(
        codes(decide(evidence_of(diagnostics=tame)))
    )
    assert reason(decide(evidence_of(diagnostics=tame)), "unrelated-updates").value == 0.2


@pytest.mark.parametrize(
    ("share", "word"), [(0.9, "familiar"), (0.5, "mixed"), (0.1, "unfamiliar")]
)
def test_probes_say_how_familiar_it_is(share, word):
    row = Coverage("familiarity", "", share, 40)
    found = decide(evidence_of(coverage=(row,), level="probes"))
    assert found.decision == "inconclusive"
    assert "not the truth" in reason(found, f"probes-{word}").message


@pytest.mark.parametrize(("on", "off", "word"), [(0.8, 0.3, "with"), (0.3, 0.8, "without")])
def test_adapters_are_served_as_they_answered_best(on, off, word):
    row = Coverage("chat_template", "t", on, 32, baseline=off)
    told = reason(decide(evidence(GAIN, coverage=(row,))), "template-matters")
    assert told.value == pytest.approx(on - off) and f"Serve {word} it" in told.message


def test_too_few_answers_say_nothing_of_familiarity():
    found = decide(evidence_of(coverage=(Coverage("familiarity", "", 1.0, 2),), level="probes"))
    assert "probes-too-few" in codes(found) and "probes-familiar" not in codes(found)


def test_names_are_told_hop_by_hop_where_there_are_hops():
    def swap(hop, value, task="t"):
        return Coverage("name_swap", task, value, N, hop, ci95=(value - 1, value + 1))

    found = decide(
        evidence_of(coverage=(swap(None, -2.0), swap(1, 0.1), swap(2, 5.0)), level="base")
    )
    names = [r for r in found.reasons if r.code.endswith("-names")]
    assert [(r.code, r.value) for r in names] == [
        ("unfamiliar-names", 0.1),
        ("familiar-names", 5.0),
    ]
    assert "hop 2 of t" in names[1].message
    alone = decide(evidence_of(coverage=(swap(None, 3.0),), level="base"))
    assert "familiar-names" in codes(alone)


def test_names_that_make_the_answer_less_likely_are_said_so():
    row = Coverage("name_swap", "t", -1.5, N, 1, ci95=(-2.0, -1.0))
    told = reason(decide(evidence_of(coverage=(row,), level="base")), "unfamiliar-names")
    assert "0.22 [0.14, 0.37] times" in told.message and told.value == -1.5  # exp(-1.5)


def holding(found, share, *names):
    """The same where the answers to hops stand in `share` of the replies of some systems."""

    def figures(row):
        held = share if row.system in names else row.value
        return {"contains": held, "contains_ci95": (max(0.0, held - 0.05), min(1.0, held + 0.05))}

    rows = [
        replaced(row, **figures(row)) if row.part.startswith("hop") else row
        for row in found.measured.scores
    ]
    return replaced(found, scores=tuple(rows))


def test_what_is_said_in_other_words_is_not_unknown():
    nobody = foreknown({(k, n): 0.0 for k in (1, 2) for n in ("base", "a", "b")}, NOBODY)
    assert decide(holding(nobody, 0.0)).reasons[0].code == "hop-unknown-to-all"
    found = decide(holding(nobody, 0.96, "base"))
    assert found.decision == "inconclusive" and "hop-unknown" not in codes(found)
    assert "the base answers best, 0.00, and the answer stands in 0.96" in (
        reason(found, "hop-in-doubt").message
    )
    apart = foreknown(DISJOINT, NOBODY)
    assert decide(holding(apart, 0.0)).reasons[0].code == "disjoint-hops"
    assert decide(holding(apart, 0.3, "base")).decision == "inconclusive"
    said = replaced(score("a", 0.0), contains=0.9, contains_ci95=(0.85, 0.95))
    hops = [row for row in apart.measured.scores if row.part != "question"]
    asked = replaced(apart, scores=(*hops, said, score("base", 0.0)))
    assert decide(asked).decision == "inconclusive", "the question is answered in other words"


def read(found, system, **figures):
    """The evidence with how the answers of a system that fails were read."""
    return changed(found, lambda row: row.system == system, contains=FAIL[system], **figures)


def test_answers_that_were_cut_are_told_with_the_cure():
    told = reason(decide(read(evidence(FAIL), "uniform", cut=0.4)), "answers-cut")
    assert told.value == 0.4 and "--max-new-tokens 64" in told.message
    given = replaced(evidence(FAIL), max_new_tokens=50)
    told = reason(decide(read(given, "uniform", cut=0.4)), "answers-cut")
    assert "--max-new-tokens 100" in told.message
    worked = both(evidence(FAIL), evidence(FAIL, part="steps"))
    worked = changed(worked, cut=0.0, contains=0.05)
    worked = changed(worked, lambda row: row.part == "question", cut=0.4)
    told = reason(decide(worked), "answers-cut")
    assert "--max-new-tokens 256" in told.message, "worked answers keep their limit"
    for system, cut in (("uniform", 0.1), ("shrunk:a", 0.9)):
        assert "answers-cut" not in codes(decide(read(evidence(FAIL), system, cut=cut)))
    rightly = changed(read(evidence(FAIL), "uniform", cut=0.9), contains=0.95)
    assert "answers-cut" not in codes(decide(rightly)), "a right answer stood there before"


def test_a_gain_or_failure_of_wording_only_is_told():
    def reworded(system, share):
        read = {"contains": share, "cut": 0.0}
        return decide(changed(evidence(FAIL), lambda row: row.system == system, **read))

    for system in ("uniform", "a"):
        found = reworded(system, 0.9)
        assert f"0.90 of the replies of {system}" in reason(found, "said-otherwise").message
    assert "said-otherwise" not in codes(reworded("uniform", 0.12))
    counts = {"said_otherwise": 80, "not_composed": 10}
    found = decide(evidence(FAIL, attribution=(Attribution("uniform", "t", **counts),)))
    assert (found.decision, found.action) == ("unlikely", "gather-evidence")
    assert "--metric contains" in reason(found, "mostly-said-otherwise").message


@pytest.mark.parametrize(
    ("checked", "decision"),
    [
        ((0.3, 0.2, 0.4), "likely"),
        ((0.1, 0.04, 0.2), "inconclusive"),
        ((-0.2, -0.3, -0.1), "inconclusive"),
    ],
)
def test_the_metric_that_the_answers_need_has_to_show_the_gain_too(checked, decision):
    value, *ends = checked
    found = decide(
        changed(evidence({**FAIL, "uniform": 0.6}), lambda gain: gain.system == "uniform", "gains",
                checked=value, checked_ci95=tuple(ends))
    )  # fmt: skip
    assert found.decision == decision
    told = [one for one in found.reasons if one.code == "answers-normalised"]
    assert len(told) == (decision != "likely")
    if told:
        assert (told[0].value, told[0].threshold, told[0].severity) == (ends[0], 0.05, "decisive")
        assert found.action == "gather-evidence", "the score that gains is not relied on"
        request = Request(("a", "b"), tasks=("t.jsonl",), asked=("--metric", "exact_match"))
        assert next_command(found, request) == "loraprobe merge-and-eval a b --task t.jsonl"


def test_a_hop_that_nobody_answers_has_no_best():
    rows = tuple(hop(1, name, 0.0, 0.04) for name in ("base", "a"))
    told = reason(decide(evidence_of(scores=rows, level="base")), "hop-unknown")
    assert told.message == "Hop 1 is answered by no adapter and not by the base."


def test_a_count_of_one_is_in_the_singular():
    found = decide(simulated(1, base="0 0 0 0", a="0 1 0 0", b="0 0 1 0", uniform="0 0 0 0"))
    assert any(" 1 item" in r.message for r in found.reasons)
    assert not any(re.search(r"\b1 items", r.message) for r in found.reasons)


def test_every_code_has_one_sentence():
    assert CODES.keys() - {one.code for one in WEIGHT_WARNINGS} == {
        code for code, one in CODES.items() if one.text != "{text}"
    }


def reason_calls(scope):
    """The calls of `reason_of` in a piece of code, each with the codes that it may give."""

    def codes_in(node):
        return {one.value for one in ast.walk(node) if isinstance(one, ast.Constant)} & CODES.keys()

    calls = [
        node
        for node in ast.walk(scope)
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "reason_of"
    ]
    literal = set().union(*(codes_in(call.args[0]) for call in calls))
    return [(call, codes_in(call.args[0]) or codes_in(scope) - literal) for call in calls]


def test_rules_give_what_the_sentences_name():
    seen = set()
    for file in Path(loraprobe.verdict.__file__).parent.glob("*.py"):
        tree = ast.parse(file.read_text())
        functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
        top = ast.Module([n for n in tree.body if isinstance(n, ast.Assign)], [])
        for call, told in (found for scope in (*functions, top) for found in reason_calls(scope)):
            given = {"value", "threshold", *(keyword.arg for keyword in call.keywords)}
            for code in told:
                fields = [name for _, name, _, _ in string.Formatter().parse(CODES[code].text)]
                named = {re.split(r"\W", name)[0] for name in fields if name}
                assert named <= given, (file.name, code)
            seen |= told
    assert len(seen) > 45


def test_every_code_stands_in_the_table():
    folder = Path(loraprobe.verdict.__file__).parent
    used = {one.code for one in WEIGHT_WARNINGS}
    for file in folder.glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                used |= set(re.findall(r"^[a-z]+(?:-[a-z]+)+$", node.value))
    actions = {"step-by-step", "train-target-adapter", "use-base", "use-single", "gather-evidence"}
    actions |= {"merge-and-eval", "random-partner"}  # a command, a control
    actions |= {"by-effect", "by-rule"}  # tables of codes.toml
    assert used - actions <= CODES.keys()
    composed = re.compile("forecast|mostly-.*|probes-.*|.*-missing")  # one word, or built
    assert not [code for code in CODES.keys() - used if not composed.fullmatch(code)]


# ---- laws on random evidence ------------------------------------------------------------------


@given(any_evidence(), st.randoms())
def test_order_does_not_matter(found, random):
    def shuffled(rows):
        rows = list(rows)
        random.shuffle(rows)
        return tuple(rows)

    names = ("scores", "comparisons", "gains")
    other = {name: shuffled(getattr(found.measured, name)) for name in names}
    assert decide(replaced(found, **other)) == decide(found)


def with_each(change, found):
    """The evidence with a change of every difference."""
    measured = found.measured
    pairs, gains = tuple(map(change, measured.comparisons)), tuple(map(change, measured.gains))
    return replaced(found, comparisons=pairs, gains=gains)


RANK = {"unlikely": 0, "inconclusive": 1, "likely": 2}


@settings(max_examples=80)
@given(
    any_evidence(),
    st.floats(0, 0.5),
    st.sampled_from(COMPOSITIONS[:3]),
    st.sampled_from(["question", "steps"]),
)
def test_raising_a_composition_never_lowers_the_decision(found, lift, system, part):
    def lifted(c):
        if (c.system, c.part) != (system, part):
            return c
        ci = (c.ci95[0] + lift, c.ci95[1] + lift)
        return replaced(c, difference=c.difference + lift, ci95=ci, adjusted_ci95=ci)

    assert RANK[decide(with_each(lifted, found)).decision] >= RANK[decide(found).decision]


@given(any_evidence(), st.floats(0, 0.2))
def test_narrower_intervals_never_reverse_a_decision(found, half):
    """More items with the same differences may decide, but not turn yes into no or no into yes."""

    def narrowed(c):
        low = max(c.ci95[0], c.difference - half)
        high = min(c.ci95[1], c.difference + half)
        return replaced(c, ci95=(low, high), adjusted_ci95=(low, high))

    pair = decide(found).decision, decide(with_each(narrowed, found)).decision
    assert pair not in (("likely", "unlikely"), ("unlikely", "likely"))


@given(any_evidence(), st.sampled_from(["weights", "probes", "base"]))
def test_never_likely_without_evaluation(found, level):
    assert decide(replaced(found, level=level)).decision != "likely"


@given(any_evidence())
def test_likely_means_that_the_system_gains_and_beats_every_control(found):
    verdict = decide(found)
    part = "steps" if verdict.action == "step-by-step" else "question"
    rows = [c for c in found.measured.comparisons if (c.system, c.part) == (verdict.system, part)]
    if verdict.decision == "likely":
        assert KINDS[verdict.system] in ("merge", "router")
        for row in rows:
            assert row.adjusted_ci95[0] > found.margin / (
                2 if KINDS[row.against] == "control" else 1
            )
    assert all(r.message and r.severity for r in verdict.reasons)
    assert any(r.severity == "decisive" for r in verdict.reasons)


@given(any_evidence())
def test_every_reason_with_a_threshold_names_its_source(found):
    for found_reason in decide(found).reasons:
        assert found_reason.source or found_reason.threshold is None


def test_a_lower_loss_is_a_gain():
    values = evidence({"base": 2.0, "a": 0.5, "uniform": 0.6, "shrunk:a": 0.9})
    rows = [
        replaced(s, metric="answer_loss", ci95=(s.value - 0.01, s.value + 0.01))
        for s in values.measured.scores
    ]
    bounds = (-0.12, -0.08)  # the composition's loss is 0.1 higher than a's
    gain = Gain("t", "question", "uniform", "a", -0.1, bounds, bounds, N)
    found = decide(replaced(values, scores=tuple(rows), gains=(gain,)))
    assert (found.decision, found.action) == ("unlikely", "use-single:a")
    before = decide(evidence_of(scores=tuple(rows[:2]), tasks=1, level="base"))
    assert before.decision == "inconclusive"


# ---- from per-item results, through the statistics of evaluation --------------------------------


CONTROLS = {"shrunk:a": "0.02 0.6 0.02 0.02", "random-partner": "0.02 0.6 0.02 0.02"}


def simulated(n, **systems):
    """Evidence from simulated results of n items: system="question hop1 hop2 steps", the shares.

    Two controls are always there. Items are equally hard for all systems, so that pairs are
    correlated as real ones are.
    """
    import numpy as np

    from loraprobe.evaluation import System, attribute, compare, gains, score
    from loraprobe.records import ItemResult
    from loraprobe.tasks import Hop, Item, Task

    hops = (Hop("?", ("x",)), Hop("?", ("y",)))
    task = Task("t", tuple(Item(str(i), "?", ("y",), hops=hops, cot_prompt="?") for i in range(n)))
    rng = np.random.default_rng(0)
    results = [
        ItemResult(system, "t", part, str(i), "exact_match", float(right), "", f"item:{i}")
        for system, rates in {**systems, **CONTROLS}.items()
        for part, rate in zip(("question", "hop1", "hop2", "steps"), rates.split(), strict=True)
        for i, right in enumerate(rng.random(n) < float(rate))
    ]
    asked = [System(name, KINDS[name]) for name in (*systems, *CONTROLS)]
    return evidence_of(
        scores=score(results, asked),
        comparisons=compare(results, asked),
        gains=gains(results, asked),
        attribution=attribute(results, asked, [task]),
        tasks=1,
        level="evaluation",
    )


def test_two_one_hop_adapters_as_they_were_measured():
    """The rates are those of SmolLM2 on made-up names: hops survive partly, the target does not."""
    measured = {
        "base": "0 0 0 0",
        "a": "0.02 1 0.02 0.02",
        "b": "0.02 0.02 1 0.03",
        "uniform": "0.02 0.28 0.93 0.03",
        "sum": "0.02 0.4 0.85 0.05",
        "chain": "1 1 1 0",
    }
    found = decide(simulated(400, **measured))
    assert (found.decision, found.action) == ("unlikely", "chain")
    # half the items leave it open whether the sum gains step by step; the chain decides
    found = decide(simulated(200, **measured))
    assert (found.decision, found.action) == ("unlikely", "chain")
    assert found.reasons[0].code == "disjoint-hops" and found.gain.ci95[1] > found.margin


def test_skill_and_facts_as_they_were_measured():
    found = simulated(
        200,
        base="0 0 0.9 0",
        a="0.02 1 0.9 0",
        b="0.02 0.02 0.9 0.02",
        uniform="0.02 0.9 0.9 0.77",
        sum="0.02 0.8 0.8 0.12",
    )
    found = decide(found)
    assert (found.decision, found.system, found.action) == ("likely", "uniform", "step-by-step")
    assert "plain-form" in codes(found) and "controls-beaten" in codes(found)


def test_a_target_adapter_as_it_was_measured():
    found = simulated(
        200,
        base="0 0 0 0",
        a="0.02 1 0.02 0.02",
        b="0.95 0.02 0.02 0.9",
        uniform="0.82 0.5 0.5 0.5",
    )
    found = decide(found)
    assert (found.decision, found.action) == ("unlikely", "use-single:b")


def test_few_items_leave_a_small_gain_open():
    few = {"base": "0 0 0 0", "a": "0.1 1 0 0", "b": "0.1 0 1 0", "uniform": "0.25 0.8 0.8 0"}
    found = decide(simulated(40, **few))
    assert found.decision == "inconclusive" and "items would decide" in found.reasons[0].message
    assert decide(simulated(4000, **few)).decision == "likely"


@pytest.mark.parametrize(
    ("asked", "decision"),
    [
        ({"n": 29}, "inconclusive"),
        ({"n": 30}, "likely"),
        ({"n": 100, "clusters": 29}, "inconclusive"),
        ({"n": 100, "clusters": 30}, "likely"),
    ],
)
def test_a_plain_gain_on_too_few_items_is_not_likely(asked, decision):
    found = evidence(GAIN)
    gains = tuple(replaced(gain, **asked) for gain in found.measured.gains)
    assert decide(replaced(found, gains=gains)).decision == decision
