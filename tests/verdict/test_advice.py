"""The action is the best measured option, on evidence that once led to wrong advice."""

from __future__ import annotations

import pytest
from evidences import (
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
    skills,
)
from hypothesis import given, settings

from loraprobe.records import (
    Attribution,
    Comparison,
    Coverage,
    Forecast,
    Measurement,
    Reason,
    Verdict,
)
from loraprobe.verdict import Request, decide, next_command
from loraprobe.verdict import formatting as fmt
from loraprobe.verdict.advice import difference, option, settled
from loraprobe.verdict.rules import candidates, chain_candidate

FAIL = {"base": 0.0, "a": 0.05, "b": 0.04, "uniform": 0.05, "shrunk:a": 0.04}


def asked(verdict, tasks=("t.jsonl",), limited=False):
    return next_command(verdict, Request(("./a", "owner/b"), tasks=tasks), limited)


def test_the_next_command_reads_and_judges_the_tasks_in_the_same_way():
    words = ("--fields", "prompt=question", "--metric", "numeric", "--margin", "0.1")
    request = Request(("./a", "owner/b"), tasks=("hf://datasets/o/n@c0:main/test",), asked=words)
    reworded = (Reason("mostly-said-otherwise", ""),)
    found = [
        next_command(Verdict("inconclusive", "evaluation", (), action="gather-evidence"), request),
        next_command(
            Verdict("unlikely", "evaluation", reworded, action="gather-evidence"), request
        ),
    ]
    assert "--task MORE-test --fields prompt=question --metric numeric --margin 0.1" in found[0]
    assert found[1].count("--metric") == 1 and found[1].endswith("--margin 0.1 --metric contains")
    assert "--task hf://datasets/o/n@c0:main/test" in found[1]


def test_where_only_clusters_are_missing_other_questions_come_next():
    values = {**FAIL, "uniform": 0.6}
    few = changed(evidence(values), lambda gain: True, "gains", clusters=24)
    found = decide(replaced(few, level="pilot"))
    assert found.decision == "inconclusive" and found.reasons[0].code == "few-items"
    assert "MORE-t.jsonl" in asked(found) and "--resume" not in asked(found)
    assert "--resume" in asked(found, limited=True)  # the task has others
    open_ = decide(replaced(evidence({**FAIL, "uniform": 0.1}), level="pilot"))
    assert open_.decision == "inconclusive" and "--resume" in asked(open_)


# ---- every option in both forms ------------------------------------------------------------------


def test_a_single_adapter_asked_step_by_step_is_better_than_a_chain():
    plain = evidence({**FAIL, "chain": 0.93})
    steps = evidence(
        {"base": 0.0, "a": 0.02, "b": 1.0, "uniform": 0.4, "shrunk:a": 0.3}, part="steps"
    )
    found = both(plain, steps)
    # the chain's gain counts the adapters in their better form
    better = {"against": "b", "against_part": "steps"}
    better |= {"difference": -0.07, "adjusted_ci95": (-0.12, -0.02)}
    found = decide(changed(found, lambda gain: gain.system == "chain", "gains", **better))
    assert (found.decision, found.action) == ("unlikely", "use-single:b")
    assert "step by step" in reason(found, "single-suffices").message


def test_an_adapter_at_its_ceiling_step_by_step_leaves_nothing_to_gain():
    sure = replaced(score("b", 1.0, "steps"), ci95=(0.96, 1.0))
    rows = (score("base", 0.0), score("b", 0.02), sure, score("base", 0.0, "steps"))
    found = decide(evidence_of(scores=rows, tasks=1, level="base"))
    assert (found.decision, found.action) == ("unlikely", "use-single:b")
    assert "step by step" in reason(found, "nothing-to-gain").message


def test_a_merge_is_taken_before_a_router_of_the_same_score():
    values = {"base": 0.0, "a": 0.05, "sum": 0.6, "arrow": 0.6, "shrunk:a": 0.04}
    found = decide(evidence(values))
    assert (found.decision, found.system, found.action) == ("likely", "sum", "merge")
    found = decide(evidence({**values, "arrow": 0.66}))  # +0.06, and the intervals overlap
    assert (found.system, found.action) == ("sum", "merge")
    assert reason(found, "not-told-apart").message.startswith("arrow")
    found = decide(evidence({**values, "arrow": 0.71}))
    assert (found.system, found.action) == ("arrow", "route")
    assert "not-told-apart" not in codes(found)


def test_of_merges_of_the_same_score_the_one_is_used_that_changes_the_base_less():
    """After 68 of 150 questions the average and the sum had both answered 62."""
    values = {"base": 0.0, "a": 0.05, "shrunk:a": 0.04}
    for right in (0.6, 0.12):
        found = decide(evidence({**values, "sum": right, "uniform": right}, half=0.045))
        assert (found.system, found.action, found.gain.system) == ("uniform", "merge", "uniform")
    found = decide(evidence({**values, "sum": 0.61, "uniform": 0.6}))
    assert found.system == "sum", "the better score wins among merges"


def test_a_base_that_answers_step_by_step_is_used():
    plain = evidence({"base": 0.1, "a": 0.05, "uniform": 0.1, "shrunk:a": 0.1})
    steps = {"base": 0.9, "a": 0.1, "uniform": 0.6, "shrunk:a": 0.1}
    found = decide(both(plain, evidence(steps, part="steps")))
    assert (found.decision, found.action) == ("unlikely", "use-base")
    assert "step by step" in reason(found, "base-is-better").message


def test_the_plain_question_is_taken_before_steps_that_are_as_good():
    plain = evidence({**FAIL, "b": 0.9, "uniform": 0.5})
    steps = evidence({**FAIL, "b": 0.92, "uniform": 0.5}, part="steps")
    told = reason(decide(both(plain, steps)), "single-suffices")
    assert told.value == 0.9 and fmt.PART["question"] in told.message


def test_the_best_measured_option_is_used_though_it_gains_less_than_was_asked():
    """With a margin of 0.9 the plain form decided, and steps were advised that had been scored."""
    plain = evidence({"base": 0.01, "a": 0.05, "sum": 0.06, "shrunk:a": 0.04}, margin=0.9)
    steps = evidence(
        {"base": 0.0, "a": 0.02, "sum": 0.8, "shrunk:a": 0.02}, part="steps", margin=0.9
    )
    found = decide(both(plain, steps))
    assert (found.decision, found.system, found.action) == ("unlikely", "sum", "step-by-step")
    assert (found.gain.form, found.gain.difference) == ("steps", pytest.approx(0.78))
    assert "best-measured" in codes(found) and "partner-adds-nothing" not in codes(found)
    assert asked(found).startswith("loraprobe merge ") and "-o DIR" in asked(found)
    assert "cot_prompt" not in " ".join(r.message for r in found.reasons)
    # where nothing answers, worked steps that were scored are not advised again
    attribution = (Attribution("sum", "t", step_by_step=80),)
    failing = both(evidence(FAIL, attribution=attribution), evidence(FAIL, part="steps"))
    assert decide(failing).action != "step-by-step"


def test_an_option_that_scored_more_and_is_not_shown_to_be_better_is_named():
    found = decide(evidence({**FAIL, "b": 0.88, "uniform": 0.9}))
    assert found.action == "use-single:b"
    assert "uniform" in reason(found, "not-told-apart").message
    found = decide(evidence({**FAIL, "b": 0.9, "uniform": 0.88}))
    assert found.action == "use-single:b" and "not-told-apart" not in codes(found)


def best_against(found, half, top=("arrow", "question"), against=("sum", "question")):
    """The evidence with the paired difference of its best option to another one."""
    values = {(row.system, row.part): row.value for row in found.measured.scores}
    gap = values[top] - values[against]
    ends = (gap - half, gap + half)
    row = Comparison(top[0], against[0], "t", top[1], gap, ends, N, ends, against[1])
    return replaced(found, comparisons=(*found.measured.comparisons, row))


def test_a_paired_difference_tells_options_apart_that_their_intervals_do_not():
    values = {"base": 0.0, "a": 0.05, "sum": 0.6, "arrow": 0.66, "shrunk:a": 0.04}
    assert decide(best_against(evidence(values), 0.055)).system == "arrow"
    assert decide(best_against(evidence(values), 0.065)).system == "sum"
    assert decide(best_against(evidence({**values, "arrow": 0.64}), 0.005)).system == "sum"
    both_forms = both(evidence(values), evidence({**values, "sum": 0.65}, part="steps"))
    far = best_against(both_forms, 0.03, ("arrow", "question"), ("sum", "steps"))
    assert decide(far).system == "sum", "the plain sum ties with the router too"


# ---- chains --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("one_call", "chain", "action"),
    [(0.5, 0.98, "use-single:a"), (0.4, 0.98, "chain"), (0.02, 0.04, "train-target-adapter")],
)
def test_a_chain_is_the_action_where_one_call_reaches_less_than_half_of_it(one_call, chain, action):
    values = {"base": 0.0, "a": one_call, "uniform": one_call / 2, "chain": chain}
    found = decide(evidence({**values, "shrunk:a": 0.0}))
    assert (found.decision, found.action) == ("unlikely", action)


def test_a_chain_beside_a_composition_that_works():
    values = {"base": 0.0, "a": 0.05, "uniform": 0.5, "chain": 1.0, "shrunk:a": 0.04}
    found = decide(evidence(values))
    assert (found.decision, found.action) == ("likely", "merge")
    far = decide(evidence({**values, "uniform": 0.29}))  # step by step 0.29 was advised beside 1.00
    assert (far.decision, far.action, far.gain.system) == ("likely", "chain", "uniform")


def test_a_chain_that_outdoes_everything_ends_what_a_small_gain_leaves_open():
    values = {"base": 0.0, "a": 0.03, "uniform": 0.06, "chain": 0.8, "shrunk:a": 0.02}
    found = decide(evidence(values, half=0.1))
    assert (found.decision, found.action) == ("unlikely", "chain")
    assert found.reasons[0].code == "chain-outdoes" and found.gain.ci95[1] > found.margin
    without = {name: value for name, value in values.items() if name != "chain"}
    assert decide(evidence(without, half=0.1)).decision == "inconclusive"
    assert decide(evidence({**values, "b": 0.76}, half=0.1)).action == "use-single:b"
    # 0.37 on the first 30 questions was not shown to gain, and is 0.40 on all of them
    assert decide(evidence({**values, "uniform": 0.4}, half=0.36)).decision == "inconclusive"
    few = with_items(evidence(values, half=0.1), 29)
    assert decide(few).decision == "inconclusive"
    shown = decide(evidence({**values, "uniform": 0.45}, half=0.1))  # a gain that controls confirm
    assert (shown.decision, shown.action) == ("likely", "merge")


# ---- what is not yet shown is not absent ---------------------------------------------------------


def test_three_skills_that_the_adapters_have_are_switched():
    """After 226 of 520 questions one specialist was not shown to beat the base: train, it said."""
    table = {"base": (0.05, 0.47), "a": (0.79, 0.1), "b": (0.05, 0.64), "uniform": (0.2, 0.2)}
    found = skills(table)
    unknown = {"retention": None, "retention_ci95": None}
    found = changed(found, lambda row: row.task == "t2", **unknown)
    assert decide(found).action == "switch-adapters"


@pytest.mark.parametrize(("high", "sure"), [(0.12, False), (0.09, True)])
def test_that_nothing_answers_is_settled_only_where_intervals_say_so(high, sure):
    found = changed(evidence(FAIL), ci95=(0.0, high))
    verdict = decide(found)
    assert (verdict.decision, verdict.action) == ("unlikely", "train-target-adapter")
    assert settled(found, verdict) == sure
    used = decide(evidence({**FAIL, "b": 0.9}))
    assert settled(evidence({**FAIL, "b": 0.9}), used)


def test_the_partner_is_judged_in_the_decisive_form():
    plain = evidence({"base": 0.3, "a": 0.3, "sum": 0.3, "random-partner": 0.3})
    steps = evidence({"base": 0.0, "a": 0.02, "sum": 0.8, "random-partner": 0.02}, part="steps")
    found = decide(both(plain, steps))
    assert (found.decision, found.action) == ("likely", "step-by-step")
    assert "partner-adds-nothing" not in codes(found)


def test_a_single_adapter_near_chance_does_not_suffice():
    guess = Coverage("guessing", "t", 0.25, N)
    values = {"base": 0.05, "a": 0.28, "b": 0.1, "uniform": 0.18, "shrunk:a": 0.2}
    found = decide(evidence(values, coverage=(guess,)))
    assert (found.decision, found.action) == ("unlikely", "train-target-adapter")
    assert "single-suffices" not in codes(found)
    far = decide(evidence({**values, "a": 0.6}, coverage=(guess,)))
    assert far.action == "use-single:a"


def test_the_forecast_names_the_composition_that_gains():
    rows = (
        Forecast("uniform", 0.1, (0.0, 0.2), 60, "question", "a"),
        Forecast("sum", 0.5, (0.4, 0.6), 60, "question", "a"),
    )
    found = decide(evidence(FAIL, forecasts=rows))
    assert found.forecast.system == "sum"


# ---- several tasks -------------------------------------------------------------------------------


def test_one_adapter_is_used_only_where_it_suffices_on_every_task():
    lopsided = {"base": (0.05, 0.05), "a": (1.0, 0.08), "b": (0.05, 0.9), "arrow": (0.4, 0.4)}
    found = decide(skills(lopsided))
    assert (found.decision, found.action) == ("unlikely", "switch-adapters")
    nearly = {**lopsided, "a": (1.0, 0.82)}  # the mean is 0.04 lower, t2 0.08
    assert decide(skills(nearly)).action == "switch-adapters"
    able = {**lopsided, "a": (1.0, 0.88)}
    found = decide(skills(able))
    assert found.action == "use-single:a"
    assert "every task" in reason(found, "single-suffices").message


# ---- a router by prompt --------------------------------------------------------------------------


def test_a_router_by_prompt_is_an_option_like_others_and_advised_only_where_it_was_measured(
    monkeypatch,
):
    halves = {"base": 0.02, "a": 0.55, "b": 0.5, "uniform": 0.5, "shrunk:a": 0.4}
    found = decide(evidence(halves))
    assert (found.decision, found.action) == ("unlikely", "use-single:a")
    assert "centroid" not in " ".join(r.message for r in found.reasons) + asked(found)
    monkeypatch.setitem(KINDS, "centroid:per=sequence", "router")
    found = decide(evidence({**halves, "centroid:per=sequence": 0.52}))
    assert found.action == "use-single:a"
    found = decide(evidence({**halves, "centroid:per=sequence": 0.95}))
    assert (found.decision, found.action) == ("likely", "route")


# ---- one adapter given twice ---------------------------------------------------------------------

TWICE = (
    Measurement("cosine", ("a", "b"), 1.0),
    Measurement("norm_ratio", ("a", "b"), 1.0),
)


def test_one_adapter_given_twice_is_called_one():
    found = decide(evidence_of(diagnostics=TWICE))
    assert "given twice" in reason(found, "same-adapter").message
    assert "nearly-equal-updates" not in codes(found)
    scaled = (TWICE[0], replaced(TWICE[1], value=2.0))
    assert "nearly-equal-updates" in codes(decide(evidence_of(diagnostics=scaled)))


def test_a_hop_known_to_one_adapter_given_twice_is_known_to_one():
    from test_verdict import DISJOINT, NOBODY, foreknown

    rows = {**DISJOINT, (1, "c"): 1.0, (2, "c"): 0.03}
    twice = tuple(replaced(row, adapters=("a", "c")) for row in TWICE)
    same = replaced(foreknown(rows, NOBODY), diagnostics=twice)
    assert decide(same).reasons[0].code == "disjoint-hops"
    assert decide(foreknown(rows, NOBODY)).decision == "inconclusive"


# ---- items ---------------------------------------------------------------------------------------


def with_items(found, n, clusters=None, needed=None):
    """The evidence as if it came from so many items and clusters."""
    found = changed(found, n=n, clusters=clusters)
    return changed(found, rows="gains", n=n, clusters=clusters, n_needed=needed)


def test_eight_items_are_never_likely():
    gains = evidence({**FAIL, "uniform": 0.9})
    assert decide(with_items(gains, 30)).decision == "likely"
    found = decide(with_items(gains, 8))
    assert (found.decision, found.action) == ("inconclusive", "merge")  # the best so far
    assert (
        reason(found, "few-items").severity == "decisive" and codes(found).count("few-items") == 1
    )
    assert "8 questions" in reason(found, "gain-with-reservation").message
    few_clusters = decide(with_items(gains, 200, clusters=8))
    assert few_clusters.decision == "inconclusive"
    assert "8 clusters" in reason(few_clusters, "few-items").message


def test_a_run_without_controls_is_asked_again_with_them():
    found = decide(evidence({"base": 0.0, "a": 0.05, "sum": 0.9}))
    assert found.decision == "inconclusive"
    assert asked(found) == "loraprobe merge-and-eval ./a owner/b --task t.jsonl"


def test_missing_clusters_are_called_clusters():
    open_ = evidence({**FAIL, "uniform": 0.15}, half=0.1)
    found = decide(with_items(open_, 100, clusters=20, needed=340))
    assert "about 48 more clusters" in reason(found, "gain-undecided").message
    assert "340" not in reason(found, "gain-undecided").message


def test_a_margin_that_the_items_decide_is_named_where_nobody_has_enough():
    open_ = evidence({**FAIL, "uniform": 0.11}, half=0.1)  # +0.06 [-0.04, 0.16]
    message = reason(decide(with_items(open_, 100)), "gain-undecided").message
    assert "more than 5,000 items" in message and "--margin 0.17 or more" in message
    assert "or less" not in message
    open_ = evidence({**FAIL, "uniform": 0.13}, half=0.06)  # +0.08 [0.02, 0.14]
    message = reason(decide(with_items(open_, 100)), "gain-undecided").message
    assert "--margin 0.15 or more" in message and "0.01 or less" in message
    for text, margin in (("0.15", "unlikely"), ("0.01", "likely")):
        values = {**FAIL, "uniform": 0.13}
        assert decide(evidence(values, half=0.0599, margin=float(text))).decision == margin


def test_a_ceiling_that_so_few_items_cannot_show_is_said():
    full = replaced(score("b", 1.0), ci95=(0.94, 1.0))
    found = evidence_of(scores=(full, score("base", 0.1)), tasks=1, level="base")
    told = reason(decide(with_items(found, 60)), "ceiling-out-of-reach")
    assert (told.value, told.threshold) == (60, 73)
    assert "ceiling-out-of-reach" not in codes(decide(with_items(found, 80)))
    grouped = decide(with_items(found, 200, clusters=40))
    assert "40 given" in reason(grouped, "ceiling-out-of-reach").message


# ---- laws ----------------------------------------------------------------------------------------


def used(found, verdict):
    """The option that the action uses, or None if it uses nothing that was measured."""
    head, _, single = verdict.action.partition(":")
    if head in ("use-single", "use-base"):
        options = [option(found, single or "base", part) for part in ("question", "steps")]
        return max(filter(None, options), key=lambda one: one.score.value)
    if head == "chain":
        return option(found, "chain", "question") if chain_candidate(found) else None
    if verdict.composes:
        return option(found, verdict.system, "steps" if head == "step-by-step" else "question")
    return None


@settings(max_examples=150)
@given(any_evidence())
def test_no_action_is_worse_than_a_measured_option_beyond_what_intervals_allow(found):
    verdict = decide(found)
    chosen = used(found, verdict)
    if chosen is None or chosen.kind == "chain":
        return
    kinds = ("base", "adapter", "merge", "router")
    if verdict.decision == "likely":  # a decision on compositions that beat all their controls
        good = {c.system for c in candidates(found, chosen.part) if c.outcome == "likely"}
        names = [name for name in found.systems(kinds) if KINDS[name] in kinds[:2] or name in good]
    else:
        names = list(found.systems(kinds))
    for name in names:
        other = option(found, name, chosen.part)
        if other is not None and name != chosen.system:
            assert difference(found, other, chosen).low <= found.tie, (name, chosen)
