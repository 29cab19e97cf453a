"""How an answer is read, what each metric counts as right, and which metric an item has."""

import json
import random
import re
import string
import time
from decimal import Decimal

import pytest
import regex
from hypothesis import given, settings
from hypothesis import strategies as st

from loraprobe.errors import TaskError, UsageError
from loraprobe.evaluation.questions import Question
from loraprobe.tasks import (
    METRICS,
    Item,
    Task,
    answered,
    contains,
    exact_match,
    load_task,
    metrics,
    normalize_answer,
    with_metrics,
)
from loraprobe.tasks.metrics import TOLERANCE, answer_end, asked_marks, json_ended


def judge(metric, *reply, **how):
    return METRICS[metric].judge(*reply, **how)


def squad(text: str) -> str:
    """The published SQuAD 1.1 normalisation, as its paper's script defines it."""
    text = "".join(ch for ch in text.lower() if ch not in set(string.punctuation))
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


WORDS = "The a An cat Cat, U.S. (dog) it's x-ray 17 $20 1,000 b!".split()


@given(st.lists(st.sampled_from(WORDS)))
@settings(max_examples=200)
def test_normalisation_is_that_of_squad(words):
    text = " ".join(words)
    if squad(text):
        assert normalize_answer(text) == squad(text)


@pytest.mark.parametrize(
    ("said", "gold", "same"),
    [
        ("1,000", "1000", True),
        ("$18.", "18", True),
        ("18.00", "18", True),
        ("3.5", "35", False),
        ("-5", "5", False),
        ("\u22125", "-5", True),
        ("+5", "5", True),
        (".5", "0.50", True),
        ("-$1,234.50", "-1234.5", True),
        ("20%", "20", True),
        ("-0.0", "0", True),
        ("007", "7", False),
        ("A", "B", False),
        ("A", "a", True),
        ("The", "A", False),
        ("“Ulm”.", "ulm", True),
        ("", "x", False),
        ("", "", False),
        ("(A)", "A", True),
        ("?", "!", False),
        ("the Ulm", "Ulm", True),
    ],
)
def test_equal_answers(said, gold, same):
    assert exact_match(said, ["never", gold]) is same


MAYOR, BOISH, BO = r"mayor is (\w+)", r"answer is (\w+)", r"B\w"
READ = [  # a text, the answer in it, whether it is a worked text, a pattern
    ("\n Bo \nQuestion: who?", "Bo", False, None),
    (" \n", "", False, None),
    ("Ulm .", "Ulm", False, None),
    ("?!", "?!", False, None),
    ("plain Cy", "plain Cy", False, BO),
    ("2 + 2 = 4\n#### 1,000\nbye", "1,000", True, None),
    ("#### 3\nno, wait\n#### 4", "4", True, None),
    (r"so \boxed{\text{Bo}} it is", "Bo", True, None),
    (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}", True, None),
    (r"cut off \boxed{12", "12", True, None),
    ("The answer is Cy. No: the answer is: Bo. Because Ada lives there.", "Bo", True, None),
    ("The answer is St. Louis. Yes.", "St. Louis", True, None),
    ("The Answer is\n 18", "18", True, None),
    (r"The answer is \boxed{7}. Done #### 8", "8", True, None),
    (r"#### 8 and then the answer is $9", "$9", True, None),
    ("Ada lives in Ulm . The mayor is Bo .", "The mayor is Bo .", True, None),
    ("one\ntwo", "two", True, None),
    ("", "", True, None),
    ("The mayor is Bo. Yes.", "Bo", True, MAYOR),
    ("mayor is Bo, mayor is Cy #### Di", "Di", True, MAYOR),
    ("#### Di mayor is Bo, mayor is Cy", "Cy", True, MAYOR),
    ("The answer is Bo-ish!", "Bo", True, BOISH),
    ("it is Bo", "Bo", True, BO),
]


@pytest.mark.parametrize(("text", "read", "cot", "pattern"), READ)
def test_the_answer_in_a_text_is_read(text, read, cot, pattern):
    assert judge("exact_match", text, ["?"], cot=cot, pattern=pattern).text == read


@pytest.mark.parametrize(
    ("text", "gold", "cot", "right"),
    [
        (" bo.\nCy", "Bo", False, True),
        ("Cy\nBo", "Bo", False, False),
        ("#### Bo", "Cy", False, False),
        ("The answer is Bo", "Bo", False, False),
        ("Ada lives in Ulm. The mayor is Bo.", "Bo", True, True),
        ("The mayor of St. Louis", "St. Louis", True, True),
        ("The mayor is Bo. I think.", "Bo", True, False),
        ("The mayor is Jumbo.", "Bo", True, False),
        ("ends with Bo #### Cy", "Bo", True, False),
        ("The answer is J. K. Rowling", "J. K. Rowling", True, True),
        ("2 + 4 = 6\n#### 6", "6", True, True),
        ("2 + 4 = 6\nThe answer is $6.", "6", True, True),
        ("2 + 4 = 6\n#### 6", "4", True, False),
        ("", "Bo", True, False),
    ],
)
def test_an_answer_is_right_where_it_is_read(text, gold, cot, right):
    assert answered(text, [gold], cot=cot) is right


def test_a_pattern_runs_with_a_time_limit(monkeypatch):
    monkeypatch.setattr(metrics, "PATTERN_SECONDS", 0.05)
    start, greedy, text = time.process_time(), r"(a|aa)+$|(?:(?:a+)+)+b", "a" * 40 + "!"
    with pytest.raises(TaskError, match="took longer"):
        judge("exact_match", text, ["Bo"], cot=True, pattern=greedy)
    with pytest.raises(TaskError, match="took longer"):
        judge("regex", text, [greedy])
    assert time.process_time() - start < 3


RIGHT = [
    ("strict", " Bo. \nmore", "Bo."),
    ("strict", "a\n b\nc", "a\n b"),
    ("numeric", "-$12", "-12.00"),
    ("numeric", "$5-$12", "12"),
    ("numeric", "5600", "5,600"),
    ("numeric", "It costs 12 dollars", "$12"),
    ("numeric", "3", "3.0"),
    ("numeric", "from 7 to $1,234.50 in all", "1234.5"),
    ("numeric", "10-3", "3"),
    ("numeric", "x = \u22124", "-4"),
    ("numeric", "3/4", "0.75"),
    ("numeric", "1.5e3", "1,500 km"),
    ("numeric", "0.33333333", "1/3"),
    ("contains", "It is a blend of Chinese and Mandarin.", "mandarin"),
    ("contains", "Thai/Lao", "Lao"),
    ("contains", "Paris's mayor", "Paris"),
    ("contains", "U.S. army", "US"),
    ("contains", "It is A", "A"),
    ("contains", "a + b", "+"),
    ("contains", "首都是北京。", "北京"),
    ("contains", "Russia", '{"answer": "Russia"}'),
    ("contains", '{"answer":\n  "russia"\n}', '{"answer": "Russia"}'),
    ("contains", "Bo, and 3 of them", '{"who": ["Bo"], "n": 3, "note": null}'),
    ("json", '{"b": [1, 2.0],\n "a": null}\nmore', '{"a": null, "b": [1.0, 2]}'),
    ("json", '```json\n{"a": "x"}\n```', '{"a": "x"}'),
    ("json", "3\nmore", "3"),
    ("json", '{"answer": " russia "}', '{"answer": "Russia"}'),
    ("json", '["New  york", ["b"]]', '["new York", [" B"]]'),
    ("regex", "AB12", r"[A-Z]+\d+"),
]
WRONG = [
    ("strict", "bo.", "Bo."),
    ("strict", "the Bo", "Bo"),
    ("contains", "3.5", "3"),
    ("contains", "Boston", "Bo"),
    ("contains", "It is a B", "A"),
    ("contains", "Russian", '{"answer": "Russia"}'),
    ("contains", "Bo", '{"who": "Bo", "n": 3}'),
    ("contains", "Bo is found: false", '{"who": "Bo", "found": true}'),
    ("json", '{"a": true}', '{"a": 1}'),
    ("json", '{"a": 1, "b": 2}', '{"a": 1}'),
    ("json", "[1, 2]", "[2, 1]"),
    ("json", '{"a": 1} and more', '{"a": 1}'),
    ("json", "{'a': 1}", '{"a": 1}'),
    ("json", "NaN", "null"),
    ("json", '{"answer": "US"}', '{"answer": "us"}'),
    ("json", '{"answer": "CO"}', '{"answer": "Co"}'),
    ("json", '{"answer": "X_1"}', '{"answer": "x_1"}'),
    ("json", '{"Answer": "x"}', '{"answer": "x"}'),
    ("json", '{"answer": "1"}', '{"answer": 1}'),
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
WORKED = [  # metric, text, gold, pattern, whether it is right
    ("numeric", "3 and 4.\nThe answer is 7. It took 2 steps.", "7", None, True),
    ("numeric", "3 and 4.\nThe answer is 7. It took 2 steps.", "2", None, False),
    ("numeric", "First 3, then 4.\nSo in all 7 apples.\nDone", "7", None, True),
    ("strict", "So\n#### The Bo", "The Bo", None, True),
    ("strict", "#### Bo", "The Bo", None, False),
    ("json", 'Thus\n#### {"a": 1}', '{ "a":1 }', None, True),
    ("regex", "So \\boxed{AB12}", r"[A-Z]+\d+", None, True),
    ("regex", "It is AB12", "unused", r".*AB\d+", True),
    ("contains", "Ulm first.\nThe mayor is Bo of Ulm.", "Bo", None, True),
    ("contains", "Bo first.\nThe mayor is Cy.", "Bo", None, False),  # steps are no answer
]


def test_what_is_right_and_what_is_wrong():
    for metric, text, gold in RIGHT:
        found = judge(metric, text, ["nothing 0" if metric == "strict" else gold, gold])
        assert found.right and found.contains, (metric, text)
    for metric, text, gold in WRONG:
        assert not judge(metric, text, [gold]).right, (metric, text)
    for metric, text, gold, pattern, right in WORKED:
        found = judge(metric, text, [gold], cot=True, pattern=pattern)
        assert found.right is right, (metric, text)


def test_a_right_answer_in_other_words_is_told_from_a_lost_one():
    for metric, text, gold in [
        ("exact_match", "It is Bo, I think", "Bo"),
        ("strict", "bo", "Bo"),
        ("numeric", "5 of 7", "5"),
        ("regex", "so AB12", r"[A-Z]+\d+"),
        ("json", 'It is {"a": 1}, see', '{"a": 1}'),
        ("json", "Russia", '{"answer": "Russia"}'),
        ("json", '{"a": "Bo", "b": 3}', '{"b": [3], "a": {"c": "Bo"}}'),
    ]:
        assert judge(metric, text, [gold]).contains
    for metric, gold in [("exact_match", "Bo"), ("numeric", "6"), ("json", "[1]"), ("regex", "Bo")]:
        assert not judge(metric, "Cy lives at 5", [gold]).contains
    for gold in ('{"a": "Cy", "b": 3}', "{}", '{"a": true}'):
        assert not judge("json", "Cy lives at 5", [gold]).contains


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


UNUSABLE = [("numeric", gold) for gold in ("none", "3 to 5", "12/25/2020")]
UNUSABLE += [("json", "{a: 1}"), ("json", "1 2"), ("regex", "(")]


@pytest.mark.parametrize(("metric", "gold"), UNUSABLE)
def test_answers_that_a_metric_cannot_use_are_named(tmp_path, metric, gold):
    with pytest.raises(TaskError, match="Task t, item 'i'"):
        with_metrics([Task("t", (Item("i", "q?", (gold,)),))], metric)
    path = tmp_path / "t.jsonl"
    path.write_text(json.dumps({"prompt": "q?", "answer": gold, "metric": metric}) + "\n")
    with pytest.raises(TaskError, match="line 1"):
        load_task(path)
    path.write_text(json.dumps({"prompt": "q?", "answer": "1", "metric": metric}) + "\n")
    assert load_task(path).items[0].metric == metric


def test_metrics_that_fit_no_task_are_refused():
    task = Task("people", (Item("i", "q?", ("1",)),))
    for metric in ("strict,people=numeric", ""):
        with_metrics([task], metric)
    for metric, told in [
        ("peple=json", "people"),
        ("people=jsn", "json"),
        ("jsn", "json"),
        ("people=answer_loss", "all tasks"),
        ("people=choice", "needs choices"),
        ("strict,json", "two metrics"),
        ("people=strict,people=json", "two metrics"),
        ("people=json,answer_loss", "all tasks"),
    ]:
        with pytest.raises(UsageError, match=told):
            with_metrics([task], metric)
    for metric in ("numerc", "answer_loss"):  # of an item that is made by hand
        with pytest.raises(UsageError, match="Unknown metric"):
            with_metrics([Task("t", (Item("i", "q?", ("1",), metric=metric),))], None)


def chosen(*golds, metric=None, **item) -> Task:
    items = (Item(str(k), "q?", (g,), **item) for k, g in enumerate(golds))
    (task,) = with_metrics([Task("t", tuple(items))], metric)
    return task


AMOUNTS = ["5,600", "$12", "3.0", "-$1,000.50", "\u22123", "50%", "1/2", ".5", "12 \u20ac", "7."]
AUTO = [
    ("json", '{"a": 1}', "[]", ' {"b": [1,\n 2]} '),
    ("strict", '{"a": 1}', "Ulm"),
    ("strict", "{name}", "{other}"),
    ("exact_match", '"a"', "true"),  # JSON, but neither object nor list
    ("numeric", *AMOUNTS),
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
    assert with_metrics([task], "auto") == [task] == [chosen(*golds, metric="auto")]
    assert {item.judge for item in task.items} == {metric} and task.summary().metric == metric
    assert (task.summary().metric_why is None) is (metric == "exact_match")


def test_a_given_metric_is_kept_and_what_the_answers_need_is_known():
    golds = '{"a": 1}', '{"a": 2}'
    for said, metric in [
        ("exact_match", "exact_match"),
        ("t=contains", "contains"),
        ("contains,t=auto", "json"),
        ("answer_loss", "answer_loss"),
    ]:
        task = chosen(*golds, metric=said)
        assert (task.metric, task.needs) == (metric, "json")
    exact = tuple(Item(gold, "q?", (gold,), metric="exact_match") for gold in golds)
    (own,) = with_metrics([Task("t", exact)], None)
    assert (own.metric, own.needs) == ("exact_match", "json")
    own = chosen("x", "5", metric="numeric,t=auto", choices=("x", "5"))
    assert (own.metric, own.needs) == ("choice", "exact_match")
    items = (*(Item(g, "q?", (g,)) for g in golds), Item("s", "q?", ("C",), metric="contains"))
    (mixed,) = with_metrics([Task("t", items)], None)
    assert mixed.metric == "contains+json", "the key of an item wins"


# What ends a line with an answer, as expressions, whose time grows with the square of a text.
ENDS = {
    "####": r"####\s*+\S[^\n]*+\n",
    "boxed": r"\\boxed(\{(?:[^{}\n]++|(?1))*+\})[^\n]*+\n",
    "answer is": r"(?i)\banswer\s+is\b[\s:=]*+\S[^\n]*+\n",
}
PARTS = [
    "####",
    "#",
    "\\boxed{",
    "\\boxed",
    *"{}\n x",
    "answer is",
    "Answer  IS",
    ":=",
    "\r\n",
    "\u2028",
]


@pytest.mark.parametrize("mark", ENDS)
def test_the_end_of_an_answer_is_that_of_its_expression(mark):
    drawn = random.Random(0)
    for _ in range(3000):
        text = "".join(drawn.choices(PARTS, k=drawn.randint(0, 14)))
        found = regex.search(ENDS[mark], text)
        assert answer_end(text, (mark,)) == (found and found.end()), repr(text)


@pytest.mark.parametrize("unit", ["\\boxed{", "####", "answer is ", "\\boxed{}", "1,", "\n", "'"])
def test_a_long_reply_is_judged_soon(unit):
    """80,000 characters took 60 s; of a reply of 10 MB only the beginning counts."""
    item = Item("1", "p", ("5",), cot_prompt="p #### \\boxed{} answer is")
    begun = time.process_time()
    for metric in ("exact_match", "numeric", "json"):
        asked = Question("t", "steps", item, item.cot_prompt, ("5",), metric)
        assert asked.judged("s", unit * (10_000_000 // len(unit))).value == 0
        assert asked.judged("s", "#### 5\n" + unit * 1_000_000).value == 1
    assert time.process_time() - begun < 60


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
