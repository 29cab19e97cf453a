"""Why a composition's answers fail, and the questions with the answers of all systems."""

from __future__ import annotations

import dataclasses
from collections import defaultdict

import pytest
from fake_scorer import BASE, CUT, adapters, results, single

from loraprobe.evaluation import System, attribute, samples_of, score, wrong_samples
from loraprobe.evaluation.attribution import LONGEST
from loraprobe.records import Attribution, Reply
from loraprobe.tasks import Hop, Item, Task, with_metrics

THREE = [BASE, *adapters("a"), System("m", "merge", single("m"))]


def hopped(names, answers=("x",), **fields) -> Task:
    """A task with an item for each name, each of two hops."""
    items = []
    for name in names:
        hops = (Hop(f"{name} 1", ("x",)), Hop(f"{name} 2", ("x",)))
        items.append(Item(name, f"{name}?", answers, hops=hops, **fields))
    return Task("t", tuple(items))


def test_each_item_falls_to_the_first_cause_that_fits():
    names = ["solved", "step", "unknown", "interference", "lost"]
    items = hopped(names).items
    items = [dataclasses.replace(item, cot_prompt=f"{item.id} think") for item in items]
    task = Task("t", tuple(items))
    # a later cause fits as well, except to the last two
    answers = {("a", f"{name} 1"): "x" for name in names}
    answers |= {(None, f"{name} 2"): "x" for name in names if name not in ("step", "unknown")}
    answers |= {("m", f"{name} 1"): "x" for name in names}
    answers |= {("m", f"{name} 2"): "x" for name in ("solved", "step", "lost")}
    answers |= {("m", f"{name} think"): "so x." for name in ("solved", "step")}
    answers["m", "solved?"] = "x"
    systems = [*THREE, System("c", "control", single("m"))]
    found = results(answers, systems, [task])
    assert attribute(found, systems, [task]) == (Attribution("m", "t", 1, 1, 1, 1, 1),)
    fewer = [r for r in found if (r.system, r.part) != ("a", "hop2")]
    assert attribute(fewer, systems, [task]) == (), "what was not measured is not attributed"
    assert attribute(found, systems[2:], [task]) == ()


@pytest.mark.parametrize(
    ("replies", "cause"),
    [
        ({}, "not_composed"),
        ({"question": "It is x, surely"}, "said_otherwise"),
        ({"question": "It is x, surely", "steps": "so x"}, "step_by_step"),
        ({"alone": "It is x"}, "not_composed"),  # a hop is known in whatever words
        ({"hop1": "It is x, surely"}, "not_composed"),  # no hop is lost by a change of style
        ({"hop1": "y"}, "interference"),
        ({"hop1": "y" + CUT}, "cut_off"),
        ({"question": "y" + CUT}, "cut_off"),
        ({"question": "x" + CUT}, "solved"),
        ({"hop1": "It is x" + CUT}, "not_composed"),  # what stands there was not cut off
        ({"question": "y" + CUT, "hop1": "y"}, "interference"),  # the hop is lost anyway
        ({"alone": "y", "question": "y" + CUT}, "unknown"),
    ],
)
def test_lost_said_otherwise_and_cut_off_are_told_apart(replies, cause):
    said = {"question": "y", "hop1": "x", "steps": "y", "alone": "x"} | replies
    task = hopped("q", cot_prompt="think")
    answers = {("m", "q 1"): said["hop1"], ("m", "q 2"): "x", ("m", "q?"): said["question"]}
    answers |= {("m", "think"): said["steps"]}
    answers |= {("a", "q 1"): said["alone"], ("a", "q 2"): said["alone"]}
    (row,) = attribute(results(answers, THREE, [task]), THREE, [task])
    assert [f.name for f in dataclasses.fields(row)[2:] if getattr(row, f.name)] == [cause]


def test_scores_tell_how_many_answers_hold_the_right_one_and_how_many_were_cut():
    items = tuple(Item(str(k), f"{k}?", ("x",), choices=("x", "y") * (k > 3)) for k in range(5))
    replies = {(None, "0?"): "x", (None, "1?"): "an x" + CUT, (None, "2?"): "so x"}
    likely = {(None, "4?", "x"): -1.0, (None, "4?", "y"): -2.0}
    found = results(replies, [BASE], [Task("t", items)], likelihoods=likely)
    assert [(r.value, r.contains, r.cut) for r in found[:3]] == [
        (1.0, True, False),
        (1.0, True, True),
        (0.0, True, False),
    ]
    (row,) = score(found, [BASE])
    assert (row.metric, row.value, row.contains, row.cut) == ("choice+exact_match", 0.6, 0.75, 0.25)
    assert row.contains_ci95[0] < 0.75 < row.contains_ci95[1]
    (chosen,) = score([r for r in found if r.metric == "choice"], [BASE])
    assert chosen.contains is chosen.contains_ci95 is chosen.cut is None


SEEN = ("solved", "lost", "lost too", "apart")  # one solved, two lose a hop, one is not joined


@pytest.fixture
def samples():
    answers = {("a", f"{name} {k}"): "x" for name in SEEN for k in (1, 2)}
    answers |= {("m", f"{name} {k}"): "x" for name in SEEN for k in (1, 2)}
    answers |= {("m", "lost 2"): "y", ("m", "lost too 2"): "y", ("m", "solved?"): "x"}
    answers |= {("m", "lost?"): "w" * 1000}
    task = hopped(SEEN, ("x", "z"))
    return samples_of(results(answers, THREE, [task]), THREE, [task])


def test_every_question_with_every_answer(samples):
    found = {(sample.item, sample.part): sample for sample in samples}
    assert len(found) == 4 * 3
    solved = found["solved", "question"]
    assert (solved.question, solved.gold) == ("solved?", ("x", "z"))
    assert [reply.system for reply in solved.replies] == ["base", "a", "m"]
    assert solved.replies[2] == Reply("m", "x", True, "solved", contains=True)
    assert [reply.right for reply in solved.replies] == [False, False, True]
    assert found["lost", "hop2"].replies[2] == Reply("m", "y", False, "interference")
    assert found["apart", "question"].replies[2].cause == "not_composed"
    assert found["apart", "question"].replies[0].cause is None


def test_a_few_wrong_answers_show_every_cause(samples):
    wrong = wrong_samples(samples, "m", "question", 2)
    assert [(w.item, w.replies[2].cause) for w in wrong] == [
        ("lost", "interference"),
        ("apart", "not_composed"),
    ]
    assert [w.item for w in wrong_samples(samples, "m", "question", 9)] == [
        "lost",
        "apart",
        "lost too",
    ]
    assert len(wrong[0].replies[2].text) == LONGEST
    assert wrong_samples(samples, "nobody", "question") == ()
    assert {w.part for w in wrong_samples(samples, "base", "hop1")} == {"hop1"}


def test_losses_are_no_answers():
    task, nothing = hopped(SEEN), defaultdict(lambda: -1.0)
    asked = results({}, [BASE], [task], likelihoods=nothing, metric="answer_loss")
    found = samples_of(asked, [BASE], with_metrics([task], "answer_loss"))
    assert found == ()
