"""The verdict's rules, each on evidence planted for it, and its laws on random evidence."""

import pytest
from evidences import (
    COMPOSITIONS,
    KINDS,
    N,
    any_evidence,
    case,
    changed,
    check,
    codes,
    evidence,
    evidence_of,
    forms,
    guards,
    known,
    reason,
    replaced,
    score,
    versus,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from loraprobe.records import (
    QUESTION,
    Comparison,
    Compatibility,
    Coverage,
    Gain,
    Issue,
    ItemPart,
    Measurement,
    Rounds,
    Score,
)
from loraprobe.verdict import decide
from loraprobe.verdict.reasons import about_other_form
from loraprobe.verdict.rules import candidates

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
NOT_DECIDED = {**FAIL, "uniform": 0.12}


def without(values, *kinds):
    return {name: value for name, value in values.items() if KINDS[name] not in kinds}


def lossy(values):
    return known(changed(evidence(values), lambda s: s.kind == "merge", compression_error=0.3))


def partner(value, half, **rest):
    """A composition that gains, with a random partner that scores so much."""
    return evidence({**GAIN, "random-partner": value, **rest}, half=half)


UNDEFINED = {"retention": None, "retention_ci95": None}


def two_tasks(retention, gain=0.4, ci=0.05, control=0.3, half=0.04, everywhere=None, asked=0.8):
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
    mean = Gain(None, QUESTION, "uniform", "a", gain, bounds, bounds, 2 * N)
    measured = {"scores": tuple(scores), "comparisons": tuple(pairs), "gains": (mean,)}
    return evidence_of(tasks=2, level="evaluation", retention=asked, **measured)


def on_t2(found, **figures):
    return changed(found, lambda row: row.task == "t2", **figures)


CEILING = {"base": 1.0, "a": 1.0, "b": 0.2, "uniform": 1.0, "random-partner": 1.0}

DECIDED = {
    "a gain": (evidence(GAIN), "likely", "merge", "uniform", "gain-beyond-margin"),
    "of a router": (evidence({**FAIL, "arrow": 0.6}), "likely", "route", "arrow"),
    "below the margin that is set": (evidence(GAIN, margin=0.6), "unlikely"),
    "around the margin that is set": (evidence(GAIN, margin=0.42), "inconclusive"),
    "no gain is known": (
        replaced(evidence(GAIN), gains=()), "inconclusive", None, None, "no-comparison"
    ),
    "open": (evidence({**FAIL, "uniform": 0.15}, half=0.1), "inconclusive", "gather-evidence"),
    # controls: the other one stays open, 0.5 - 0.47 +- 0.02 holds both 0.02 and half the margin
    "a control is as good": (partner(0.5, 0.02, **{"shrunk:a": 0.47}), "unlikely"),
    "a control is not beaten": (partner(0.5, 0.06), "inconclusive"),
    "a control beaten by half": (partner(0.47, 0.001), "likely"),
    "not shown to be, by half": (partner(0.47, 0.02), "inconclusive"),
    "a control worse by 0.02": (partner(0.48, 0.001), "unlikely"),
    "perhaps by 0.02": (partner(0.48, 0.02), "inconclusive"),
    "by anything": (partner(0.48, 0.08), "inconclusive"),
    "controls were not scored": (evidence(without(GAIN, "control")), "inconclusive", "merge"),
    "nor of what fails": (known(evidence(without(FAIL, "control"))), "unlikely"),
    # the two forms of the question
    "only step by step": (
        forms(FAIL, {**FAIL, "uniform": 0.7}), "likely", "step-by-step", "uniform"
    ),
    "both, steps gain more": (forms(GAIN, {**FAIL, "uniform": 0.7}), "likely", "step-by-step"),
    "both, about as much": (forms(GAIN, {**FAIL, "uniform": 0.54}), "likely", "merge"),
    "steps promise": (forms(FAIL, {**FAIL, "uniform": 0.2}, half=0.12), "inconclusive"),
    # a true gain of 0.06 was called unlikely in a quarter of all runs
    "steps promise a little": (forms(FAIL, {**FAIL, "uniform": 0.09}, half=0.12), "inconclusive"),
    "steps promise nothing": (known(forms(FAIL, {**FAIL, "uniform": 0.03}, half=0.01)), "unlikely"),
    # chains
    "a chain gains": (evidence({**FAIL, "chain": 0.95}), "unlikely", "chain", "uniform"),
    "a chain may gain": (evidence({**FAIL, "chain": 0.15}, half=0.12), "inconclusive", "chain"),
    # single adapters and the base
    "a target adapter": (evidence({**FAIL, "b": 0.9, "uniform": 0.6}), "unlikely", "use-single:b"),
    "a little": (known(evidence({**FAIL, "b": 0.09})), "unlikely", "use-single:b"),
    "one step by step": (
        forms(FAIL, {**FAIL, "a": 0.8, "uniform": 0.5}), "unlikely", "use-single:a"
    ),
    "base at the ceiling": (
        changed(evidence(CEILING), lambda s: s.value == 1, ci95=(0.97, 1.0)), "unlikely", "use-base"
    ),
    # compression
    "all were compressed": (lossy(without(FAIL, "router")), "inconclusive"),
    "one was not": (lossy(FAIL), "unlikely"),
}  # fmt: skip


@pytest.mark.parametrize("name", DECIDED)
def test_the_decision_on_compositions(name):
    check(*DECIDED[name])


STEPS = forms(FAIL, {**FAIL, "uniform": 0.2}, half=0.12)
# which was tested, and gains
LOSES = "uniform lost 0.30 of its delta to its rank, more than 0.10."
HIGHER = LOSES.replace("0.10.", "0.10: give a higher --rank.")
QUOTED = [  # a code of the verdict and what its reason has
    (evidence(GAIN), "controls-beaten", {}),
    (evidence(GAIN), "gain-beyond-margin", {"threshold": 0.05, "severity": "decisive"}),
    (evidence(GAIN), "gain-beyond-margin", {"value": pytest.approx(0.5 - 0.05 - 0.04)}),
    (partner(0.5, 0.06), "gain-with-reservation", {}),
    (partner(0.5, 0.06), "partner-adds-nothing", {"severity": "decisive"}),
    (evidence(without(GAIN, "control")), "controls-not-run", {"severity": "decisive"}),
    (known(evidence(without(FAIL, "control"))), "controls-not-run", {"severity": "warning"}),
    (DECIDED["only step by step"][0], "plain-form", {"value": pytest.approx(0.0)}),
    (STEPS, "gain-undecided", {"severity": "decisive"}),
    (evidence({**FAIL, "chain": 0.95}), "chain-gains", {}),
    (known(evidence({**FAIL, "chain": 0.06})), "chain-fails", {}),
    (DECIDED["all were compressed"][0], "compression-lost", {"severity": "decisive"}),
    (DECIDED["all were compressed"][0], "compression-lost", {"threshold": 0.1}),
    (lossy(FAIL), "compression-lost", {"severity": "warning"}),
    (lossy(GAIN), "compression-lost", {"severity": "warning", "message": LOSES}),
    (lossy(FAIL), "compression-lost", {"message": LOSES}),  # at auto
    (replaced(lossy(FAIL), rank_given=True), "compression-lost", {"message": HIGHER}),
    (replaced(lossy(GAIN), rank_given=True), "compression-lost", {"message": LOSES}),
    (DECIDED["base at the ceiling"][0], "base-suffices", {}),
    # difference 0.10, margin 0.05: the half-width has to halve, so four times the items
    (evidence({**FAIL, "uniform": 0.15}, half=0.1), "gain-undecided", "about 400 items"),
    # 0.00 +- 0.06 has to become 0.00 +- 0.025, and smaller for the power
    (partner(0.5, 0.06), "partner-adds-nothing", "about 1,177 items"),
    (partner(0.38, 0.12), "partner-adds-nothing", "about 327 items"),
    # retentions: 0.82 +- 0.05 has to become 0.82 +- 0.02, and smaller for the power
    (two_tasks(0.82), "retention-undecided", "about 1,278 items"),
    (two_tasks(0.6), "retention-lost", {"threshold": 0.8, "value": pytest.approx(0.65)}),
    (on_t2(two_tasks(0.95), **UNDEFINED), "retention-undefined", {"severity": "decisive"}),
    (changed(two_tasks(0.95), rows="gains", task="t1"), "no-comparison", {}),
    (
        changed(evidence(GAIN), rows="gains", n=8),
        "few-items",
        {"value": 8.0, "severity": "decisive"},
    ),
]


@pytest.mark.parametrize(("asked", "code", "told"), QUOTED)
def test_the_reasons_quote_what_was_measured_and_the_items_that_would_decide(asked, code, told):
    found = reason(decide(asked), code)
    if isinstance(told, str):
        assert told in found.message
    else:
        assert told == {name: getattr(found, name) for name in told}


def test_controls_are_missing_only_where_every_skill_is_kept():
    """They are not asked before: more items come first."""
    for retention, missing in ((0.82, None), (0.95, "controls")):
        found = two_tasks(retention)
        asked = decide(replaced(found, measured=replaced(found.measured, comparisons=())))
        assert (asked.decision, asked.missing) == ("inconclusive", missing)


@pytest.mark.parametrize("value", [0.45, 0.48, 0.53])
def test_a_base_that_is_worse_as_good_or_not_shown_to_be_better_is_used(value):
    base = evidence({"base": 0.5, "a": 0.3, "uniform": value})
    check(base, None, "use-base", has=["base-is-better"])


@pytest.mark.parametrize(
    ("value", "half", "decision"),
    [(0.5, 0.25, "inconclusive"), (0.5, 0.24, "likely"), (0.0, 0.25, "inconclusive"),
     (0.0, 0.24, "unlikely")],
)  # fmt: skip
def test_bounds_at_the_margin_do_not_decide(value, half, decision):
    """Numbers that binary floats hold: the bounds are the margin, to the last bit."""
    values = {"base": 0.0, "a": 0.0, "uniform": value, "shrunk:a": 0.0}
    check(known(evidence(values, half=half, margin=0.25)), decision)
    exactly = {"base": 0.0, "uniform": 0.75, "random-partner": 0.375}  # [0.125, 0.625]
    check(evidence(exactly, half=0.25, margin=0.25), "inconclusive")


@pytest.mark.parametrize(
    ("value", "plain", "ends", "decision"),
    [(0.3, 0.05, (0.2, 0.3), "likely"), (0.3, 0.05, (0.04, 0.3), "inconclusive"),
     (0.05, 0.02, (-0.03, 0.04), "unlikely"), (0.05, 0.02, (-0.03, 0.06), "inconclusive")],
)  # fmt: skip
def test_the_interval_that_covers_the_choice_among_compositions_decides(
    value, plain, ends, decision
):
    made = evidence({"base": 0.0, "a": 0.05, "uniform": value, "shrunk:a": 0.0}, half=plain)
    check(changed(known(made), rows="gains", adjusted_ci95=ends), decision)
    unsure = changed(evidence(GAIN), rows="comparisons", adjusted_ci95=(-0.01, 0.9))
    check(unsure, "inconclusive")  # and that of the controls


def test_the_second_best_wins_where_the_best_does_not_beat_a_control():
    ends = {"difference": 0.0, "ci95": (-0.1, 0.1), "adjusted_ci95": (-0.1, 0.1)}
    found = changed(
        evidence({**GAIN, "sum": 0.45}),
        lambda c: (c.system, c.against) == ("uniform", "random-partner"),
        "comparisons",
        **ends,
    )
    check(found, "likely", None, "sum")


@pytest.mark.parametrize(
    ("asked", "decision"),
    [({"n": 29}, "inconclusive"), ({"n": 30}, "likely"),
     ({"n": 100, "clusters": 29}, "inconclusive"), ({"n": 100, "clusters": 30}, "likely")],
)  # fmt: skip
def test_a_plain_gain_on_too_few_items_is_not_likely(asked, decision):
    check(changed(evidence(GAIN), rows="gains", **asked), decision)


@pytest.mark.parametrize(
    ("checked", "decision"),
    [((0.3, 0.2, 0.4), "likely"), ((0.1, 0.04, 0.2), "inconclusive"),
     ((-0.2, -0.3, -0.1), "inconclusive")],
)  # fmt: skip
def test_the_metric_that_the_answers_need_has_to_show_the_gain_too(checked, decision):
    value, *ends = checked
    gains = {"rows": "gains", "checked": value, "checked_ci95": tuple(ends)}
    made = evidence({**FAIL, "uniform": 0.6})
    found = check(changed(made, lambda gain: gain.system == "uniform", **gains), decision)
    told = [one for one in found.reasons if one.code == "answers-normalised"]
    assert len(told) == (decision != "likely")
    for one in told:
        assert (one.value, one.threshold, one.severity) == (ends[0], 0.05, "decisive")
        assert found.action.kind == "gather-evidence", "the score that gains is not relied on"


# ---- before compositions are asked ---------------------------------------------------------------


def test_structural_conflict_decides_alone_and_gives_the_cure():
    issue = Issue("error", "base-mismatch", ("a", "b"), "a wants gpt2, b wants llama.", "Take one.")
    note = Issue("warning", "partial-targets", ("a",), "only a touches x.", "")
    found = check(evidence(GAIN, compatibility=Compatibility((note, issue))), "incompatible", "fix")
    assert (found.evidence, codes(found)) == ("weights", ["structural-conflict"])
    assert "base-mismatch" in found.reasons[0].message and "Take one." in found.reasons[0].message
    check(evidence(GAIN, compatibility=Compatibility((note,))), "likely")


@pytest.mark.parametrize("level", ["weights", "probes", "base"])
def test_without_evaluation_the_next_evidence_is_named(level):
    found = check(evidence_of(level=level), "inconclusive", has=["next-evidence"])
    assert (found.evidence, found.system) == (level, None)
    assert decide(case(level="pilot")).evidence == "base"  # without a round


def hop(k, name, value, spread=0.05):
    ci = (max(0.0, value - spread), min(1.0, value + spread))
    kind = "base" if name == "base" else "adapter"
    return Score(name, kind, "t", ItemPart(f"hop{k}"), "exact_match", value, ci, N)


def foreknown(hops, target):
    rows = tuple(hop(k, name, value) for (k, name), value in hops.items())
    scores = tuple(score(name, value) for name, value in target.items())
    return evidence_of(scores=(*scores, *rows), tasks=1, level="base")


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


DISJOINT = {
    (1, "base"): 0.0,
    (1, "a"): 1.0,
    (1, "b"): 0.05,
    (2, "base"): 0.04,
    (2, "a"): 0.03,
    (2, "b"): 0.9,
}
NOBODY = {"base": 0.0, "a": 0.04, "b": 0.03}
UNKNOWN = {(k, name): 0.0 for k in (1, 2) for name in NOBODY}


def apart(change=(), target=()):
    """Disjoint hops but for this change, and what the systems score on the target."""
    return foreknown({**DISJOINT, **dict(change)}, {**NOBODY, **dict(target)})


def alike(*names):
    """Measurements of two adapters that are the same."""
    figures = (("cosine", 1.0), ("norm_ratio", 1.0))
    return tuple(Measurement(name, names, value) for name, value in figures)


THREE = foreknown({**DISJOINT, (1, "c"): 1.0, (2, "c"): 0.03}, NOBODY)
SAID = replaced(score("a", 0.0), contains=0.9, contains_ci95=(0.85, 0.95))
OTHERWISE = (*foreknown(DISJOINT, {}).measured.scores, SAID, score("base", 0.0))
HOPS = {
    "disjoint": (apart(), "unlikely", "chain", None, "disjoint-hops"),
    "with no answer said": (holding(apart(), 0.0), "unlikely", "chain", None, "disjoint-hops"),
    "half unknown": (
        apart({(2, "b"): 0.1}), "unlikely", "train-target-adapter", None, "hop-unknown-to-all"
    ),
    "unknown": (
        holding(foreknown(UNKNOWN, NOBODY), 0.0), "inconclusive", None, None, "nothing-answers"
    ),
    # an adapter that answers the composed question needs no hop
    "the target is known": (apart({(2, "b"): 0.1}, {"b": 0.7}), "inconclusive"),
    # what is said in other words is not unknown
    "said by the base": (holding(foreknown(UNKNOWN, NOBODY), 0.96, "base"), "inconclusive"),
    "said at times": (holding(apart(), 0.3, "base"), "inconclusive"),
    "the target is said": (replaced(apart(), scores=OTHERWISE), "inconclusive"),
    "skill and facts": (apart({(2, "base"): 0.9}), "inconclusive"),
    "half familiar": (apart({(2, "base"): 0.4}), "inconclusive"),
    "known to the base alone": (apart({(2, "base"): 0.9, (2, "b"): 0.05}), "inconclusive"),
    "one adapter knows both": (apart({(2, "a"): 0.9}), "inconclusive"),
    "the other nothing": (apart({(2, "a"): 0.9, (2, "b"): 0.05}), "inconclusive"),
    "one may know some of both": (apart({(2, "a"): 0.22}), "inconclusive"),
    "one may answer the target": (apart((), {"b": 0.22}), "inconclusive"),
    "known to nobody for sure": (apart({(1, "a"): 0.5}), "inconclusive"),
    # an adapter that is given twice
    "known to two": (THREE, "inconclusive"),
    "the same": (
        replaced(THREE, diagnostics=alike("a", "c")), "unlikely", None, None, "disjoint-hops"
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", HOPS)
def test_hops_decide_before_any_composition_only_where_they_are_disjoint_or_unknown(name):
    assert check(*HOPS[name]).evidence == "base"


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
    found = check(replaced(open_, scores=rows), decision, disjoint_hops=severity)
    assert found.gain.ci95[1] > found.margin


def test_a_gain_in_the_other_form_leaves_what_hops_decide_open_too():
    """The decision is about the plain question, which gains about as much."""
    low = {"base": 0.02, "a": 0.03, "b": 0.02}
    two = forms({**low, "uniform": 0.07}, {**low, "uniform": 0.11}, half=0.1)
    rows = (*two.measured.scores, *foreknown(DISJOINT, {}).measured.scores)
    check(replaced(two, scores=rows), "inconclusive")


def test_a_router_is_not_replaced_by_a_merge_that_is_worse_than_the_base():
    """Only a merge that is the best without routers takes the place of one."""
    values = {"base": 0.49, "a": 0.3, "b": 0.3, "uniform": 0.47, "arrow": 0.6}
    for merge, best in ((0.47, "arrow"), (0.56, "uniform")):
        found = evidence({**values, "uniform": merge}, half=0.2)
        assert found.leader(found.scored(values, [QUESTION])).system == best


def test_a_ceiling_leaves_nothing_to_gain():
    sure = replaced(score("b", 0.99), ci95=(0.96, 1.0))
    unsure, low = replaced(sure, ci95=(0.93, 1.0)), score("base", 0.1)
    base = replaced(sure, system="base", kind="base")
    steps = (
        replaced(sure, part=ItemPart("steps")),
        score("base", 0.0, "steps"),
        score("b", 0.02),
        low,
    )
    for rows, action in (
        ((sure, low), "use-single:b"),
        ((sure, base), "use-base"),
        (steps, "use-single:b"),
        ((unsure, low), None),
        ((sure, replaced(unsure, task="u")), None),  # on one of two tasks
    ):
        asked = evidence_of(scores=rows, tasks=len({row.task for row in rows}), level="base")
        if action is None:
            check(asked, "inconclusive")
        else:
            found = check(asked, "unlikely", action, first="nothing-to-gain")
            assert found.reasons[0].threshold == 0.95


@pytest.mark.parametrize(
    ("scores", "half", "action", "decided"),
    [
        ({"chain": 0.95}, 0.04, "chain", True),
        ({"chain": 0.6, "a": 0.5}, 0.12, "use-single:a", False),  # +0.10 [-0.02, 0.22]
        ({"chain": 0.30, "a": 0.5}, 0.04, "use-single:a", True),
        ({"chain": 0.40, "base": 0.4}, 0.04, "use-base", True),
        ({"a": 0.5}, 0.04, "use-single:a", True),
        ({"base": 0.5}, 0.04, "use-base", True),
        ({"chain": 0.5}, 0.6, "chain", False),  # which answers, whatever is shown of its gain
    ],
)
def test_without_a_merge_or_router_the_action_is_the_best_of_what_was_asked(
    scores, half, action, decided
):
    """Nothing is decided about compositions, which were not asked, and no probability is given."""
    asked = evidence({"base": 0.0, "a": 0.05, "b": 0.04, **scores}, half=half)
    found = check(asked, "inconclusive", action, first="compositions-not-asked")
    assert found.evidence == "base" and found.compositions_not_asked == decided
    assert (found.gain.system if found.gain else None) == ("chain" if "chain" in scores else None)
    assert found.probability is None and (found.gain is None or found.gain.probability is None)


def test_what_base_and_adapters_decide_stands_where_only_a_chain_was_asked():
    ceiling = evidence({"base": 0.99, "a": 0.9, "b": 0.9, "chain": 0.99}, half=0.01)
    asked = changed(ceiling, ci95=(0.96, 1.0))
    check(asked, "unlikely", "use-base", lacks=["compositions-not-asked"])


NOTHING = {**FAIL, "a": 0.03, "uniform": 0.02}
STILL = {"contains": 0.0, "contains_ci95": (0.0, 0.04), "cut": 0.0}
OF_CHOICES = (Coverage("guessing", "t", 0.25, N),)
# Evidence where nothing answers, and what the scores show of the cause.
UNANSWERED = {
    "open": (evidence(NOTHING), "replies-differ"),
    "a gain is excluded": (evidence(NOTHING, half=0.001), "replies-differ"),
    "by --system": (evidence(without(NOTHING, "merge", "router")), "replies-differ"),
    "a control does": (evidence({**NOTHING, "shrunk:a": 0.2}), "only-shrunk-answers"),
    "in other words": (
        changed(evidence(NOTHING), **{**STILL, "contains": 0.9}), "right-without-form"
    ),
    "all are cut": (changed(evidence(NOTHING), **{**STILL, "cut": 1.0}), "answers-cut"),
    "half are cut": (changed(evidence(NOTHING), **{**STILL, "cut": 0.5}), "replies-differ"),
    "chance": (evidence(dict.fromkeys(FAIL, 0.28), coverage=OF_CHOICES), "replies-differ"),
    "a first round": (replaced(evidence(NOTHING), level="pilot"), "replies-differ"),
}  # fmt: skip
ANSWERED = {
    "more than chance": evidence({**dict.fromkeys(FAIL, 0.28), "b": 0.4}, coverage=OF_CHOICES),
    "a hop": known(evidence(NOTHING)),
    "step by step": forms(NOTHING, {**NOTHING, "b": 0.2}),
    # not shown to answer, nor that nothing does
    "2 of 20": changed(evidence({**NOTHING, "b": 0.1}), n=20),
    "a tenth of a first round": replaced(evidence({**NOTHING, "b": 0.1}, half=0.1), level="pilot"),
}


@pytest.mark.parametrize("name", UNANSWERED)
def test_where_nothing_answers_nothing_is_decided(name):
    asked, cause = UNANSWERED[name]
    found = check(asked, "inconclusive", "gather-evidence", first="nothing-answers", has=[cause])
    assert found.missing == "answers" and not found.composes
    assert found.probability is found.gain is None
    assert found.system == ("shrunk:a" if cause == "only-shrunk-answers" else None)


@pytest.mark.parametrize("name", ANSWERED)
def test_where_something_answers_the_rules_stay(name):
    found = decide(ANSWERED[name])
    assert found.missing != "answers" and found.gain is not None


# ---- a first round of compositions on a few items ------------------------------------------------

FIRST = 30
FULL = tuple(
    replaced(score(name, value), ci95=(low, 1.0))
    for name, value, low in (("base", 0.1, 0.0), ("a", 1.0, 0.96))
)


def piloted(difference, low, high, baselines=None, control=True, **rest):
    """The verdict on a first round of `sum`: its gain over `a`, its interval, perhaps a control."""
    known = case().measured.scores if baselines is None else baselines
    ends = (low, high)
    one = replaced(score("sum", 0.5), n=FIRST)
    gain = Gain("t", QUESTION, "sum", "a", difference, ends, ends, FIRST, 200)
    made = {"scores": (*known, one), "gains": (gain,), "level": "pilot"}
    if low > 0.05 and control:  # it was asked, and is worse
        made["scores"] += (replaced(score("random-partner", 0.0), n=FIRST),)
        worse = Comparison("sum", "random-partner", "t", QUESTION, difference, ends, FIRST, ends)
        made["comparisons"] = (worse,)
    return decide(case(**{**made, **rest}))


FIRST_ROUNDS = {
    "a gain": (piloted(0.7, 0.4, 0.9), "likely"),
    "without controls": (piloted(0.5, 0.3, 0.7, control=False), "inconclusive", "controls-not-run"),
    "around the margin": (piloted(0.4, 0.04, 0.7), "inconclusive"),
    "no gain": (piloted(-0.4, -0.7, -0.1), "unlikely"),
    "open": (piloted(0.0, -0.2, 0.2), "inconclusive"),
    # base and single adapters decide what it leaves open
    "open below the ceiling": (piloted(-0.05, -0.3, 0.2, FULL), "unlikely", "nothing-to-gain"),
    "no gain below the ceiling": (piloted(-0.4, -0.7, -0.1, FULL), "unlikely"),
    # what compositions do outranks what is expected of them
    "a gain above the ceiling": (piloted(0.6, 0.3, 0.9, FULL), "likely"),
    "perhaps a gain above it": (piloted(0.3, 0.0, 0.6, FULL), "inconclusive"),
}


@pytest.mark.parametrize("name", FIRST_ROUNDS)
def test_a_first_round_decides_only_where_its_interval_or_the_ceiling_does(name):
    found, decision, *first = FIRST_ROUNDS[name]
    assert (found.decision, found.evidence) == (decision, "pilot")
    assert (found.gain.n, found.gain.system) == (FIRST, "sum") and "first-round" in codes(found)
    assert ("next-evidence" in codes(found)) == (decision == "inconclusive")
    assert first in ([], codes(found)[:1]) and found.reasons[0].severity == "decisive"
    if "ceiling" in name and decision == "unlikely":
        assert found.action.adapter == "a"
    if name == "perhaps a gain above it":
        assert reason(found, "nothing-to-gain").severity == "info"
    if name == "open":  # no more items than a round has, and controls are no matter
        assert not {"few-items", "controls-not-run"} & {*codes(found)}
    if name == "open below the ceiling":
        assert "gain-undecided" in codes(found)


# ---- several tasks -------------------------------------------------------------------------------

KEPT = {
    "both are kept": (two_tasks(0.95), "likely"),
    "perhaps": (two_tasks(0.82), "inconclusive"),
    "no single adapter keeps both": (two_tasks(0.6), "unlikely", "switch-adapters"),
    "enough of both for the user": (two_tasks(0.6, asked=0.5), "likely"),
    "from the threshold": (two_tasks(1.0, ci=0.25, asked=0.75), "likely"),
    "from below it": (two_tasks(0.99, ci=0.25, asked=0.75), "inconclusive"),
    "up to it": (two_tasks(0.5, ci=0.25, asked=0.75), "inconclusive"),
    "all below it": (two_tasks(0.49, ci=0.25, asked=0.75), "unlikely"),
    "the mean does not gain": (
        two_tasks(0.95, gain=0.0, everywhere=0.48), "unlikely", "use-single:a"
    ),
    "nothing to keep on one": (on_t2(two_tasks(0.95), **UNDEFINED), "inconclusive"),
    "a gain of one task": (changed(two_tasks(0.95), rows="gains", task="t1"), "inconclusive"),
    # on each task the control may be as good; the mean of two is told from it
    "controls in the mean": (two_tasks(0.95, control=0.15, half=0.12), "likely"),
    "nor in the mean": (two_tasks(0.95, control=0.15, half=0.18), "inconclusive"),
}  # fmt: skip


@pytest.mark.parametrize("name", KEPT)
def test_several_tasks_need_the_mean_and_every_retention(name):
    check(*KEPT[name])


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
    part = "steps" if verdict.action.kind == "step-by-step" else "question"
    rows = [c for c in found.measured.comparisons if (c.system, c.part) == (verdict.system, part)]
    if verdict.decision == "likely":
        assert KINDS[verdict.system] in ("merge", "router")
        for row in rows:
            control = KINDS[row.against] == "control"
            assert row.adjusted_ci95[0] > found.margin / (2 if control else 1)
    assert any(r.severity == "decisive" for r in verdict.reasons)
    assert all(r.message and (r.source or r.threshold is None) for r in verdict.reasons)


def test_a_lower_loss_is_a_gain():
    values = evidence({"base": 2.0, "a": 0.5, "uniform": 0.6, "shrunk:a": 0.9})
    rows = tuple(
        replaced(s, metric="answer_loss", ci95=(s.value - 0.01, s.value + 0.01))
        for s in values.measured.scores
    )
    bounds = (-0.12, -0.08)  # the composition's loss is 0.1 higher than a's
    gain = Gain("t", QUESTION, "uniform", "a", -0.1, bounds, bounds, N)
    check(replaced(values, scores=rows, gains=(gain,)), "unlikely", "use-single:a")
    check(evidence_of(scores=rows[:2], tasks=1, level="base"), "inconclusive")


@pytest.mark.parametrize(
    ("values", "decision"), [(NOT_DECIDED, "inconclusive"), (FAIL, "unlikely")]
)
def test_rounds_that_ended_early_leave_out_nothing_that_decides(values, decision):
    asked = known(evidence(values, half=0.1 if values is NOT_DECIDED else 0.02))
    found = check(
        replaced(asked, rounds=Rounds(1, 3, N, 120, 0.99)), decision, has=["stopped-early"]
    )
    assert found.missing != "time"


UNSAFE = {**GAIN, "arrow": 0.9, "sum": 0.76, "chain": 1.0}


@pytest.mark.parametrize(
    ("lost", "action", "told"),
    [
        ({}, "route", []),
        ({"arrow": -0.3}, "merge", ["arrow"]),
        ({"arrow": -0.3, "sum": -0.3}, "merge", ["arrow", "sum"]),
        ({"arrow": -0.3, "sum": -0.3, "uniform": -0.3}, "use-base", ["arrow", "sum"]),
        ({"chain": -0.3, "a": -0.3}, "route", ["chain"]),
        ({"b": -0.3}, "route", []),  # what scores less is no better choice
    ],
)
def test_what_would_be_better_is_named_with_the_guard_that_it_loses(lost, action, told):
    rows = guards(**(dict.fromkeys(("uniform", "sum", "arrow"), 0.0) | lost))
    values = {name: value for name, value in UNSAFE.items() if name != "chain" or name in lost}
    values |= {"base": 0.2} if action == "use-base" else {}
    found = check(evidence(values, guard_names=("g",), guards=rows), None, action)
    (reasons,) = [[r for r in found.reasons if r.code == "better-is-unsafe"]]
    assert len(reasons) == bool(told)
    assert all(name in reasons[0].message.lower() for name in told)


def test_a_guard_of_which_the_base_knows_nothing_is_told():
    known, idle = guards(uniform=0.0), guards(uniform=0.0, task="idle")
    idle = tuple(replaced(row, base=0.04, value=0.04) for row in idle)
    found = check(evidence(GAIN, guard_names=("g", "idle"), guards=known + idle), "likely")
    (told,) = [reason for reason in found.reasons if reason.code == "guard-idle"]
    assert (told.value, told.threshold, told.severity) == (0.04, 0.05, "warning")
    assert "idle" in told.message


@pytest.mark.parametrize(
    ("steps", "half", "lost", "said", "unsaid"),
    [
        (0.17, 0.13, {"sum": -0.3}, ["leaves open", "loses a guard"], ["below"]),  # [0.04, 0.30]
        (0.03, 0.01, {}, ["below 0.05"], ["loses", "leaves open"]),
        (0.17, 0.13, {}, ["leaves open", "would decide"], ["below", "loses"]),
    ],
)
def test_the_other_form_says_no_more_than_its_interval(steps, half, lost, said, unsaid):
    """A guard that is lost makes a gain worth nothing, and does not make it small."""
    rows = guards(**({"uniform": 0.0, "sum": 0.0} | lost))
    other = evidence(
        {"base": 0.0, "a": 0.0, "b": 0.0, "uniform": 0.0, "sum": steps}, part="steps", half=half
    )
    found = candidates(replaced(other, guard_names=("g",), guards=rows), ItemPart("steps"))
    best = next(one for one in found if one.system == "sum")
    told = about_other_form(best).message
    assert all(part in told for part in said) and not any(part in told for part in unsaid)


LOST, OPEN, SAME = -0.3, -0.05, 0.0
BETTER_ALONE = {**GAIN, "a": 0.6}


@pytest.mark.parametrize(
    ("values", "asked", "decision", "action", "codes"),
    [
        (GAIN, {"uniform": SAME}, "likely", "merge", {"guard_kept": "info"}),
        (GAIN, {"uniform": OPEN}, "inconclusive", "merge", {"guard_open": "decisive"}),
        (GAIN, {}, "inconclusive", "merge", {}),  # nobody was asked
        (GAIN, {"uniform": LOST}, "unlikely", None, {"guard_lost": "decisive"}),
        # What fails anyway is not about the guard; what loses it is not advised.
        (FAIL, {"uniform": LOST, "a": LOST}, "unlikely", None, {"guard_lost": "warning"}),
        (BETTER_ALONE, {"uniform": LOST, "a": SAME}, "unlikely", "use-single:a", {}),
        (BETTER_ALONE, {"uniform": SAME, "a": LOST}, "unlikely", "merge", {}),
    ],
)
def test_guards(values, asked, decision, action, codes):
    found = check(
        known(evidence(values, guard_names=("g",), guards=guards(**asked))),
        decision,
        action,
        **codes,
    )
    lost = {name for name, gap in asked.items() if gap == LOST}
    assert found.action.adapter not in lost
    assert not (found.composes and found.system in lost)
