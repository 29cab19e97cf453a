"""Metrics: what each counts as right, what stands in a reply, and which metric an item has."""

from __future__ import annotations

import json
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loraprobe.errors import TaskError, UsageError
from loraprobe.tasks import (
    Item,
    Task,
    answers,
    check_metrics,
    check_task,
    contains,
    exact_match,
    judge,
    load_task,
    with_metric,
)
from loraprobe.tasks.answers import answer_end, asked_marks
from loraprobe.tasks.metrics import TOLERANCE, json_ended

RIGHT = [
    ("strict", " Bo. \nmore", "Bo."),
    ("strict", "a\n b\nc", "a\n b"),
    ("numeric", "-$12", "-12.00"),
    ("numeric", "$5-$12", "12"),
    ("numeric", "5600", "5,600"),
    ("numeric", "It costs 12 dollars", "$12"),
    ("numeric", "3", "3.0"),
    ("contains", "It is a blend of Chinese and Mandarin.", "mandarin"),
    ("contains", "Thai/Lao", "Lao"),
    ("contains", "Paris's mayor", "Paris"),
    ("contains", "U.S. army", "US"),
    ("contains", "It is A", "A"),
    ("contains", "a + b", "+"),
    ("contains", "首都是北京。", "北京"),
    ("json", '{"b": [1, 2.0],\n "a": null}\nmore', '{"a": null, "b": [1.0, 2]}'),
    ("json", '```json\n{"a": "x"}\n```', '{"a": "x"}'),
    ("json", "3\nmore", "3"),
    ("numeric", "from 7 to $1,234.50 in all", "1234.5"),
    ("numeric", "10-3", "3"),
    ("numeric", "x = \u22124", "-4"),
    ("numeric", "3/4", "0.75"),
    ("numeric", "1.5e3", "1,500 km"),
    ("numeric", "0.33333333", "1/3"),
    ("regex", "AB12", r"[A-Z]+\d+"),
]
WRONG = [
    ("strict", "bo.", "Bo."),
    ("strict", "the Bo", "Bo"),
    ("contains", "3.5", "3"),
    ("contains", "Boston", "Bo"),
    ("contains", "It is a B", "A"),
    ("json", '{"a": true}', '{"a": 1}'),
    ("json", '{"a": 1, "b": 2}', '{"a": 1}'),
    ("json", "[1, 2]", "[2, 1]"),
    ("json", '{"a": 1} and more', '{"a": 1}'),
    ("json", "{'a': 1}", '{"a": 1}'),
    ("json", "NaN", "null"),
    ("json", "[" * 100_000, "[]"),
    ("numeric", "5 of 7", "5"),
    ("numeric", "It costs $12", "-$12"),
    ("numeric", "30", "3.0"),
    ("numeric", "1234568", "1234567"),
    ("numeric", "0.3333", "1/3"),
    ("numeric", "-3", "3"),
    ("numeric", "none", "0"),
    ("numeric", "1" * 5000, "1"),
    ("regex", "so AB12", r"[A-Z]+\d+"),
]


@pytest.mark.parametrize(("metric", "text", "gold"), RIGHT)
def test_right(metric, text, gold):
    found = judge(metric, text, ["nothing 0" if metric == "strict" else gold, gold])
    assert found.right and found.contains


@pytest.mark.parametrize(("metric", "text", "gold"), WRONG)
def test_wrong(metric, text, gold):
    assert not judge(metric, text, [gold]).right


def test_worked_texts_are_judged_by_the_answer_in_them():
    def right(metric, text, gold, pattern=None):
        return judge(metric, text, [gold], cot=True, pattern=pattern).right

    assert right("numeric", "3 and 4.\nThe answer is 7. It took 2 steps.", "7")
    assert not right("numeric", "3 and 4.\nThe answer is 7. It took 2 steps.", "2")
    assert right("numeric", "First 3, then 4.\nSo in all 7 apples.\nDone", "7")
    assert right("strict", "So\n#### The Bo", "The Bo") and not right("strict", "#### Bo", "The Bo")
    assert right("json", 'Thus\n#### {"a": 1}', '{ "a":1 }')
    assert right("regex", "So \\boxed{AB12}", r"[A-Z]+\d+")
    assert right("regex", "It is AB12", "unused", pattern=r".*AB\d+")
    assert right("contains", "Ulm first.\nThe mayor is Bo of Ulm.", "Bo")
    assert not right("contains", "Bo first.\nThe mayor is Cy.", "Bo"), "steps are no answer"


def test_a_right_answer_in_other_words_is_told_from_a_lost_one():
    assert judge("exact_match", "It is Bo, I think", ["Bo"]).contains
    assert judge("strict", "bo", ["Bo"]).contains
    assert judge("numeric", "5 of 7", ["5"]).contains
    assert judge("regex", "so AB12", [r"[A-Z]+\d+"]).contains
    assert judge("json", 'It is {"a": 1}, see', ['{"a": 1}']).contains
    for metric, gold in [("exact_match", "Bo"), ("numeric", "6"), ("json", "[1]"), ("regex", "Bo")]:
        assert not judge(metric, "Cy lives at 5", [gold]).contains


SIGNS = "abTheX1. ,-'/"


@given(st.text(SIGNS), st.text(SIGNS, min_size=1), st.text(SIGNS))
def test_what_is_right_by_exact_match_stands_in_the_reply(before, gold, after):
    if exact_match(before, [gold]):
        assert contains(before, [gold])
    if gold.strip():
        assert contains(f"{before} {gold} {after}", [gold])


@given(st.integers(-999_999, 999_998), st.integers(0, 6))
def test_numbers_of_six_digits_are_told_apart(n, places):
    one, other = (f"{Decimal(k).scaleb(-places):f}" for k in (n, n + 1))
    assert judge("numeric", one, [one]).right
    assert not judge("numeric", other, [one]).right
    near = f"{Decimal(n) * (1 + Decimal(TOLERANCE) / 2):f}"
    assert judge("numeric", near, [str(n)]).right, "a rounding error"


def test_answers_that_a_metric_cannot_use_are_named(tmp_path):
    for metric, gold in [
        ("json", "{a: 1}"),
        ("json", "1 2"),
        ("numeric", "none"),
        ("numeric", "3 to 5"),
        ("numeric", "12/25/2020"),
        ("regex", "("),
    ]:
        task = Task("t", (Item("i", "q?", (gold,)),))
        with pytest.raises(TaskError, match="Task t, item 'i'"):
            check_metrics([task], metric)
        path = tmp_path / "t.jsonl"
        path.write_text(json.dumps({"prompt": "q?", "answer": gold, "metric": metric}) + "\n")
        with pytest.raises(TaskError, match="line 1"):
            load_task(path)
    path.write_text(json.dumps({"prompt": "q?", "answer": "1", "metric": "numeric"}) + "\n")
    assert load_task(path).items[0].metric == "numeric"
    for metric, told in [
        ("numerc", "numeric"),
        ("answer_loss", "known"),
        ("choice", "choices"),
    ]:
        path.write_text(json.dumps({"prompt": "q?", "answer": "1", "metric": metric}) + "\n")
        with pytest.raises(TaskError, match=told):
            load_task(path)


def test_metrics_that_fit_no_task_are_refused():
    task = Task("people", (Item("i", "q?", ("1",)),))
    check_metrics([task], "strict,people=numeric")
    for metric, told in [
        ("peple=json", "people"),
        ("people=jsn", "json"),
        ("people=answer_loss", "all tasks"),
        ("people=choice", "needs choices"),
        ("strict,json", "two metrics"),
        ("people=strict,people=json", "two metrics"),
        ("people=json,answer_loss", "all tasks"),
        ("", None),
    ]:
        if told is None:
            check_metrics([task], metric)
            continue
        with pytest.raises(UsageError, match=told):
            check_metrics([task], metric)


def test_an_item_made_by_hand_has_a_known_metric():
    for metric in ("numerc", "answer_loss"):
        with pytest.raises(UsageError, match="Unknown metric"):
            check_metrics([Task("t", (Item("i", "q?", ("1",), metric=metric),))], None)


def test_a_greedy_pattern_runs_with_a_time_limit(monkeypatch):
    monkeypatch.setattr(answers, "PATTERN_SECONDS", 0.05)
    with pytest.raises(TaskError, match="took longer"):
        judge("regex", "a" * 40 + "!", [r"(a|aa)+$|(?:(?:a+)+)+b"])


def chosen(*golds, metric=None, **item) -> Task:
    items = (Item(str(k), "q?", (g,), **item) for k, g in enumerate(golds))
    return with_metric(Task("t", tuple(items)), metric)


AUTO = [
    ("json", '{"a": 1}', "[]", ' {"b": [1,\n 2]} '),
    ("strict", '{"a": 1}', "Ulm"),
    ("strict", "{name}", "{other}"),
    ("exact_match", '"a"', "true"),  # JSON, but neither object nor list
    (
        "numeric",
        "5,600",
        "$12",
        "3.0",
        "-$1,000.50",
        "\u22123",
        "50%",
        "1/2",
        ".5",
        "12 \u20ac",
        "7.",
    ),
    ("exact_match", "5", "six"),
    ("exact_match", "007", "12"),  # what a number names has its zeros
    ("exact_match", "5 km", "C4", "12:30", "10.0.0.1"),  # more than a number
    ("strict", "C#", "Java"),
    ("strict", "US", "us"),
    ("strict", "The Who", "Who"),
    ("strict", "yes", "yes!"),
    ("exact_match", "Ulm", "New York", "The Hague", "$1,000", "it's 5 o'clock.", "3.5", "Ulm"),
    ("exact_match", *(f"x{k}" for k in range(19)), "C#"),  # a twentieth makes no gain
    ("strict", *(f"x{k}" for k in range(18)), "C#"),
    ("exact_match", *["yes"] * 19, "Yes"),
    ("strict", *["yes"] * 18, "Yes", "YES"),
]


@pytest.mark.parametrize(("metric", "golds"), [(metric, golds) for metric, *golds in AUTO])
def test_gold_answers_choose_the_metric(metric, golds):
    task = chosen(*golds)
    assert (task.metric, task.needs) == (metric, metric)
    assert {item.metric for item in task.items} == {metric}
    assert with_metric(task, "auto") == task == chosen(*golds, metric="auto")
    found = check_task(Task("t", task.items), None, 0.05)
    assert set(found.metrics) == {metric} and check_task(task, "auto", 0.05).metric == metric
    assert (task.summary().metric_why is None) is (metric == "exact_match")


def test_a_given_metric_is_kept_and_what_the_answers_need_is_known():
    golds = '{"a": 1}', '{"a": 2}'
    for said, metric in (("exact_match", "exact_match"), ("t=contains", "contains")):
        task = chosen(*golds, metric=said)
        assert (task.metric, task.needs) == (metric, "json")
    assert chosen(*golds, metric="u=contains").metric == "json"
    assert chosen(*golds, metric="contains,t=auto").metric == "json"
    assert chosen(*golds, metric="answer_loss").metric == "answer_loss"
    own = chosen("x", "5", metric="numeric,t=auto", choices=("x", "5"))
    assert (own.metric, own.needs) == ("choice", "exact_match")
    items = (*(Item(g, "q?", (g,)) for g in golds), Item("s", "q?", ("C",), metric="contains"))
    mixed = with_metric(Task("t", items), None)
    assert mixed.metric == "contains+json", "the key of an item wins"
    own = with_metric(
        Task("t", tuple(Item(g, "q?", (g,), metric="exact_match") for g in golds)), None
    )
    assert (own.metric, own.needs) == ("exact_match", "json")


def test_what_exact_match_spoils_is_a_finding():
    def found(*golds, metric=None):
        told = check_task(chosen(*golds, metric=metric), metric, 0.05).findings
        return {one.code: one.cure for one in told}.get("normalised-answers")

    assert found('{"a": 1}', metric="exact_match") == "Take --metric json."
    assert found("1.5", "15", metric="exact_match") == "Take --metric numeric."
    assert found("US", "us", metric="exact_match") == "Take --metric strict."
    assert found("US", "us") is None and found("Ulm", metric="exact_match") is None
    assert found(*(f"x{k}" for k in range(30)), "C#") == "Take --metric strict."


def test_an_answer_ends_with_the_line_of_a_mark_that_the_prompt_asks_for():
    assert asked_marks("Where? Think step by step.") == ()
    assert asked_marks("End with #### and the answer, the answer is ...") == ("####", "answer is")
    assert asked_marks(r"Put it into \boxed{}.") == ("boxed",)
    every = ("####", "boxed", "answer is")
    for text, rest in [
        ("so\n#### 5\n", "Question"),
        ("so\n#### \n\n5\n", "\n#### 7\n"),
        ("thus \\boxed{\\frac{1}{2}}.\n", "more"),
        ("The answer is:\n\n5\n", "The answer is 7.\n"),
    ]:
        assert answer_end(text + rest, every) == len(text)
        assert answer_end(text[:-1], every) is None, "the line has not ended"
        assert answer_end(text + rest, ()) is None
    for text in ("#### \n", "The answer is:\n", "\\boxed{\n1\n", "5\n"):
        assert answer_end(text, every) is None


def test_json_ends_with_the_line_of_its_value():
    assert not json_ended("\n") and not json_ended('{"a":\n') and not json_ended("```json\n")
    assert json_ended('{"a":\n1}\n') and json_ended('```json\n{"a": 1}\n')
    assert json_ended("Sure, here it is:\n"), "no value begins here"
