"""The verdict on a first round of compositions on a few items."""

from __future__ import annotations

import pytest
from calibrations import calibration, case, score
from evidences import codes, replaced

from loraprobe.records import Audit, Comparison, EvaluationRecords, Gain, Provenance, TaskSummary
from loraprobe.report.answer import answer
from loraprobe.verdict import Request, decide, next_command

N = 30


def piloted(difference, low, high, baselines=None, control=True, **rest):
    """A first round of `sum`: its gain over `a` on N items, its interval, a control if it gains."""
    known = case().measured.scores if baselines is None else baselines
    ends = (low, high)
    one = replaced(score("sum", "merge", 0.5), n=N)
    gain = Gain("t", "question", "sum", "a", difference, ends, ends, N, 200)
    made = {"scores": (*known, one), "gains": (gain,), "level": "pilot", "forecasts": ()}
    if low > 0.05 and control:  # it was asked, and is worse
        made["scores"] += (replaced(score("random-partner", "control", 0.0), n=N),)
        worse = Comparison("sum", "random-partner", "t", "question", difference, ends, N, ends)
        made["comparisons"] = (worse,)
    return decide(case(**{**made, **rest}))


def test_without_controls_a_gain_is_open_and_the_reason_says_so():
    found = piloted(0.5, 0.3, 0.7, control=False)
    assert found.decision == "inconclusive" and found.reasons[0].severity == "decisive"
    assert found.reasons[0].code == "controls-not-run"


@pytest.mark.parametrize(
    ("interval", "decision"),
    [
        ((0.7, 0.4, 0.9), "likely"),
        ((0.4, 0.04, 0.7), "inconclusive"),
        ((-0.4, -0.7, -0.1), "unlikely"),
        ((0.0, -0.2, 0.2), "inconclusive"),
    ],
)
def test_it_decides_only_where_its_interval_does(interval, decision):
    found = piloted(*interval)
    assert (found.decision, found.evidence) == (decision, "pilot")
    assert (found.gain.n, found.system) == (N, "sum") and "first-round" in codes(found)
    assert ("next-evidence" in codes(found)) == (decision == "inconclusive")


CEILING = tuple(
    replaced(score(name, kind, value), ci95=(low, 1.0))
    for name, kind, value, low in (("base", "base", 0.1, 0.0), ("a", "adapter", 1.0, 0.96))
)


def test_where_it_leaves_the_case_open_base_and_single_adapters_decide():
    found = piloted(-0.05, -0.3, 0.2, CEILING)
    assert (found.decision, found.action, found.evidence) == ("unlikely", "use-single:a", "pilot")
    assert found.reasons[0].code == "nothing-to-gain" and "gain-undecided" in codes(found)
    both = piloted(-0.4, -0.7, -0.1, CEILING)
    assert (both.decision, both.action, both.evidence) == ("unlikely", "use-single:a", "pilot")


def test_what_compositions_do_outranks_what_is_expected_of_them():
    assert piloted(0.6, 0.3, 0.9, CEILING).decision == "likely"
    found = piloted(0.3, 0.0, 0.6, CEILING)
    assert (found.decision, found.evidence) == ("inconclusive", "pilot")
    (expected,) = [r for r in found.reasons if r.code == "nothing-to-gain"]
    assert expected.severity == "info"


def test_nobody_is_asked_for_more_items_than_a_round_has():
    assert "few-items" not in codes(piloted(0.0, -0.2, 0.2))


def test_without_a_round_it_is_a_verdict_on_base_and_single_adapters():
    assert decide(case(level="pilot", forecasts=())).evidence == "base"


def test_controls_are_no_matter_where_nothing_gains():
    assert "controls-not-run" not in codes(piloted(0.0, -0.2, 0.2))


def told(verdict):
    made = Provenance("0", "2", ())
    found = answer(Audit("inspect", made, evaluation=case().measured, verdict=verdict))
    return found.headline, dict(found.lines)


def test_the_answer_says_that_it_is_a_first_round():
    """No line asks for more than N items, which are the round's own choice."""
    headline, lines = told(piloted(0.2, -0.1, 0.5))
    assert headline.startswith("INCONCLUSIVE") and "first round on 30 questions" in headline
    assert "first round on 30 questions" in lines["gain"] and "+0.20 [-0.10, 0.50]" in lines["gain"]
    assert "decide" not in lines or not lines["decide"]
    found = piloted(0.2, -0.1, 0.5)
    assert next_command(found, Request(("a", "b"), tasks=("t.jsonl",))).words[-1] == "--resume"


@pytest.mark.parametrize(("items", "warned"), [(199, True), (200, False), (0, False)])
def test_a_first_round_says_that_the_items_at_hand_may_not_decide(items, warned):
    """The gain of this round takes 200 questions to be decided."""
    found = piloted(0.2, -0.1, 0.5)
    request = Request(("a", "b"), tasks=("t.jsonl",))
    found = replaced(found, next=next_command(found, request))
    made = Provenance("0", "2", (), tasks=(TaskSummary("t", "t.jsonl", None, "", items),))
    known = (*case().measured.scores, replaced(score("sum", "merge", 0.5), n=N))
    ends = (-0.1, 0.5)
    gain = Gain("t", "question", "sum", "a", 0.2, ends, ends, N, 200)
    measured = EvaluationRecords(scores=known, gains=(gain,))
    audit = Audit("inspect", made, evaluation=measured, verdict=found)
    told = dict(answer(audit).lines).get("decide", "")
    assert ("199" in told and "200" in told) if warned else not told


def test_the_answer_tells_what_such_sets_gained():
    _, lines = told(decide(case(forecasts=()), calibration()))
    assert "20 adapter sets" in lines["known"] and "30%" in lines["known"]
