"""Questions of a task: their metrics, how much of a reply counts, and what guessing scores."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from loraprobe.evaluation import guessing
from loraprobe.evaluation.plan import questions
from loraprobe.tasks import Hop, Item, Task

HOP = "exact_match"


@pytest.mark.parametrize(
    ("given", "found"),
    [
        (None, ["numeric", HOP, "numeric", "exact_match", HOP, "exact_match"]),
        ("strict", ["numeric", HOP, "numeric", "strict", HOP, "strict"]),
        ("strict,t=json", ["numeric", HOP, "numeric", "json", HOP, "json"]),
        ("u=json", ["numeric", HOP, "numeric", "exact_match", HOP, "exact_match"]),
        ("answer_loss", ["answer_loss"] * 4),  # never mixed with shares
    ],
)
def test_metrics_of_items_come_before_those_of_tasks_and_of_all(given, found):
    hops = (Hop("h?", ("x",)),)
    own = Item("own", "a?", ("1",), hops=hops, cot_prompt="b", metric="numeric")
    plain = Item("plain", "c?", ("1",), hops=hops, cot_prompt="d")
    assert [q.metric for q in questions([Task("t", (own, plain))], given)] == found


def worked(cot_prompt: str):
    item = Item("1", "q?", ("5",), cot_prompt=cot_prompt)
    (question,) = (q for q in questions([Task("t", (item,))]) if q.part == "steps")
    return question


def test_what_follows_the_answer_that_was_asked_for_is_not_read():
    text = "2 + 3 = 5\n#### 5\n\nQuestion: 3 + 4?\n#### 7\n"
    marked, plain = worked("Think. End with #### and the answer."), worked("Think.")
    for said in (text, "2 + 3 = 5\n#### 5\n"):
        assert marked.judged("base", said).value == 1.0
    assert plain.judged("base", text).value == 0.0, "without the mark the last answer counts"
    assert marked.ended is not None and plain.ended is None


PIECES = ["#### ", "5", "\\boxed{7}", "\\boxed{", "}", "The answer is ", ".", "\n", " x", "Bo"]


@given(st.lists(st.sampled_from(PIECES), max_size=12))
@example(["\\boxed{", "\\boxed{7}", "\n", "#### ", "}", "\n"])
def test_a_text_is_read_alike_whether_or_not_writing_stopped(pieces):
    """Writing stops at some line end where `ended` is true; the rest must not matter."""
    text = "".join(pieces)
    question = worked("End with #### x, \\boxed{x} or: the answer is x.")
    whole = question.judged("base", text)
    for at in (k + 1 for k, sign in enumerate(text) if sign == "\n"):
        if question.ended(text[:at]):
            assert question.judged("base", text[:at]) == whole


def test_guessing_takes_a_random_choice_or_the_commonest_answer():
    choices = [Item(str(i), "?", ("x",), choices=("x", "y", "z", "w")) for i in range(3)]
    (row,) = guessing([Task("t", tuple(choices))])
    assert (row.name, row.value, row.n) == ("guessing", 0.25, 3)
    golds = ["Bo", "bo.", "Cy", "Di"]
    written = Task("u", tuple(Item(str(i), "?", (gold,)) for i, gold in enumerate(golds)))
    (row,) = guessing([written])
    assert row.value == 0.5  # "Bo" and "bo." are one answer
    assert guessing([written], "answer_loss") == ()
