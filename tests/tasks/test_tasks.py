"""Task files: every bad line is named, answers are read as documented."""

from __future__ import annotations

import hashlib
import json
import re
import string
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loraprobe.errors import TaskError, UsageError
from loraprobe.tasks import (
    answered,
    answers,
    exact_match,
    fill,
    load_probe,
    load_task,
    normalize_answer,
    read_answer,
)

SHARED = Path(__file__).parents[3] / "shared" / "data"

FULL = {
    "id": "17",
    "prompt": "Who is the mayor of the city Ada lives in?",
    "answer": "Bo",
    "choices": ["Bo", "Cy"],
    "hops": [
        {"prompt": "Where does Ada live?", "answer": ["Ulm", "Ulm city"], "adapter": "homes"},
        {"prompt": "Who is the mayor of {1}?", "answer": "Bo"},
    ],
    "cot_prompt": "Who? Think step by step.",
    "answer_pattern": r"The mayor is (.+)\.",
    "entities": ["Ada", "Ulm"],
    "group": "Ada",
}


def write(tmp_path: Path, *lines: str | bytes | dict) -> Path:
    path = tmp_path / "mayors.jsonl"
    encoded = [
        line
        if isinstance(line, bytes)
        else (line if isinstance(line, str) else json.dumps(line)).encode()
        for line in lines
    ]
    path.write_bytes(b"\n".join(encoded) + b"\n")
    return path


def item(**changes) -> dict:
    line = {"id": "1", "prompt": "Q?", "answer": "A b"} | changes
    return {key: value for key, value in line.items() if value is not ...}


def test_every_field_is_read(tmp_path):
    path = write(tmp_path, FULL, "", item(id=2, group=5))
    task = load_task(path)
    assert task.name == "mayors"
    assert task.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert task.parts == ("question", "hop1", "hop2", "steps")
    assert task.has_hops and task.has_cot
    first, second = task.items
    assert first.hops[0].answers == ("Ulm", "Ulm city") and first.hops[0].adapter == "homes"
    assert first.hop_prompt(1) == "Who is the mayor of Ulm?"
    assert (first.choices, first.entities) == (("Bo", "Cy"), ("Ada", "Ulm"))
    assert (second.id, second.group, second.cluster) == ("2", "5", "group:5")


def test_items_without_id_are_named_by_line_in_clusters_of_one(tmp_path):
    task = load_task(write(tmp_path, item(id=...), "", item(id=...)))
    assert [i.id for i in task.items] == ["1", "3"]
    assert len({i.cluster for i in task.items}) == 2
    assert task.parts == ("question",)


def test_limit_keeps_the_first_but_checks_all(tmp_path):
    path = write(tmp_path, *(item(id=str(k)) for k in range(5)))
    assert [i.id for i in load_task(path, limit=2).items] == ["0", "1"]
    assert len(load_task(path, limit=9).items) == 5
    with pytest.raises(UsageError):
        load_task(path, limit=0)
    with pytest.raises(TaskError, match="line 2"):
        load_task(write(tmp_path, item(), "oops"), limit=1)


BAD = {
    b'{"prompt": "caf\xe9"}': "not UTF-8",
    "not json": "not JSON",
    '{"prompt": "a", "prompt": "b", "answer": "c"}': "'prompt' occurs twice",
    "[1, 2]": "a list where a JSON object",
    "[" * 100_000: "nested too deeply",
    '"text"': "a string where",
    json.dumps(item(prompt=...)): "'prompt' is missing",
    json.dumps(item(answer=...)): "'answer' is missing",
    json.dumps(item(answer=None)): "'answer' is missing",
    json.dumps(item(answer=[])): "empty list",
    json.dumps(item(answer=18)): 'must be a string, not a number (write "18")',
    json.dumps(item(answer=["x", 3])): "an entry of 'answer' must be a string",
    json.dumps(item(answer=" ")): "'answer' is empty",
    json.dumps(item(prompt="")): "'prompt' is empty",
    json.dumps(item(prompt={"a": 1})): "'prompt' must be a string, not an object",
    json.dumps(item(id=True)): "'id' must be a string, not true or false",
    json.dumps(item(anwser="x")): "unknown key 'anwser' in an item: did you mean 'answer'?",
    json.dumps(item(zzz="x")): "known are id, prompt",
    json.dumps(item(choices="Bo")): "'choices' must be a list",
    json.dumps(item(choices=["A b"])): "at least two",
    json.dumps(item(choices=["x", "y"])): "'A b' is not among the choices",
    json.dumps(item(choices=["A b", "y", "y"])): "'y' occurs twice",
    json.dumps(item(hops={})): "'hops' must be a list",
    json.dumps(item(hops=["x"])): "hop 1 must be an object",
    json.dumps(item(hops=[{"prompt": "x"}])): "hop 1: 'answer' is missing",
    json.dumps(item(hops=[{"prompt": "x", "answer": "y", "adaptor": "z"}])): "'adapter'?",
    json.dumps(item(hops=[{"prompt": "{1}", "answer": "y"}])): "hop 1 refers to {1}",
    json.dumps(
        item(hops=[{"prompt": "x", "answer": "y"}, {"prompt": "{3}", "answer": "y"}])
    ): "hop 2 refers to {3}",
    json.dumps(item(hops=[{"prompt": "{0}", "answer": "y"}])): "hop 1 refers to {0}",
    json.dumps(item(answer_pattern="(")): "not a regular expression",
    json.dumps(item(prompt="\ud800")): "surrogate",
    json.dumps(item(entities=["a", None])): "an entry of 'entities' must be a string, not null",
    json.dumps(item(prompt="x" * 1_000_001)): "bytes in one line",
    json.dumps(item(id="0")): "id '0' is also the id of line 1",
    b'{"prompt": "a\x00"}': "zero byte",
}


@pytest.mark.parametrize("line", BAD, ids=[message[:30] for message in BAD.values()])
def test_a_bad_line_is_named(tmp_path, line):
    path = write(tmp_path, item(id="0"), line, item(id="9"))
    with pytest.raises(TaskError) as error:
        load_task(path)
    assert f"{path}, line 2: " in str(error.value)
    assert BAD[line] in str(error.value)
    assert "\n" not in str(error.value)


def test_a_line_of_many_keys_is_read_at_once(tmp_path):
    """A repeated key is found without comparing every key with every other."""
    many = ", ".join(f'"{k}": 1' for k in range(80_000))
    start = time.process_time()
    with pytest.raises(TaskError, match="unknown key '0'"):
        load_task(write(tmp_path, "{" + many + "}"))
    assert time.process_time() - start < 5


def test_files_that_are_none(tmp_path):
    with pytest.raises(TaskError, match="no item"):
        load_task(write(tmp_path, "", " "))
    with pytest.raises(TaskError, match="There is no task file"):
        load_task(tmp_path / "absent.jsonl")
    with pytest.raises(TaskError, match="is a directory"):
        load_task(tmp_path)


def test_windows_files_read_the_same(tmp_path):
    path = write(tmp_path, b"\xef\xbb\xbf" + json.dumps(item()).encode() + b"\r")
    assert load_task(path).items[0].prompt == "Q?"


def test_probe_file(tmp_path):
    path = tmp_path / "probe.txt"
    path.write_text("Who is Ada?\tBo\nUlm\n\nCy\t\n", encoding="utf-8")
    probe = load_probe(path)
    assert [(i.prompt, i.answer) for i in probe.items] == [
        ("Who is Ada?", "Bo"),
        ("Ulm", None),
        ("Cy", None),
    ]
    for text, message in {
        "a\tb\tc\n": "line 1: more than one tab",
        "\n": "no prompt",
        "x\n\tb\n": "line 2: there is no prompt before",
    }.items():
        path.write_text(text, encoding="utf-8")
        with pytest.raises(TaskError, match=re.escape(message)):
            load_probe(path)


def test_fill_is_one_pass():
    assert fill("{1} and {2} {x} {3} {}", ["{2}", "b"]) == "{2} and b {x} {3} {}"


def squad(text: str) -> str:
    """The published SQuAD 1.1 normalisation, as its paper's script defines it."""
    text = "".join(ch for ch in text.lower() if ch not in set(string.punctuation))
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


@given(
    st.lists(
        st.sampled_from(
            [
                "The",
                "a",
                "An",
                "cat",
                "Cat,",
                "U.S.",
                "(dog)",
                "it's",
                "x-ray",
                "17",
                "$20",
                "1,000",
                "b!",
            ]
        )
    )
)
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


def test_plain_prompt_is_read_from_the_first_line():
    assert read_answer("\n Bo \nQuestion: who?") == "Bo"
    assert answered(" bo.\nCy", ["Bo"])
    assert not answered("Cy\nBo", ["Bo"])
    assert not answered("#### Bo", ["Cy"]) and not answered("The answer is Bo", ["Bo"])
    assert read_answer(" \n") == ""
    assert (read_answer("Ulm ."), read_answer("?!")) == ("Ulm", "?!")


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("2 + 2 = 4\n#### 1,000\nbye", "1,000"),
        ("#### 3\nno, wait\n#### 4", "4"),
        (r"so \boxed{\text{Bo}} it is", "Bo"),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"cut off \boxed{12", "12"),
        ("The answer is Cy. No: the answer is: Bo. Because Ada lives there.", "Bo"),
        ("The answer is St. Louis. Yes.", "St. Louis"),
        ("The Answer is\n 18", "18"),
        (r"The answer is \boxed{7}. Done #### 8", "8"),
        (r"#### 8 and then the answer is $9", "$9"),
        ("Ada lives in Ulm . The mayor is Bo .", "The mayor is Bo ."),
        ("one\ntwo", "two"),
        ("", ""),
    ],
)
def test_worked_text_is_read_after_the_last_marker(text, read):
    assert read_answer(text, cot=True) == read


def test_pattern_competes_by_position():
    pattern = r"mayor is (\w+)"
    assert read_answer("The mayor is Bo. Yes.", cot=True, pattern=pattern) == "Bo"
    assert read_answer("mayor is Bo, mayor is Cy #### Di", cot=True, pattern=pattern) == "Di"
    assert read_answer("#### Di mayor is Bo, mayor is Cy", cot=True, pattern=pattern) == "Cy"
    assert read_answer("The answer is Bo-ish!", cot=True, pattern=r"answer is (\w+)") == "Bo"
    assert read_answer("it is Bo", cot=True, pattern=r"B\w") == "Bo"
    assert read_answer("plain Cy", cot=False, pattern=r"B\w") == "plain Cy"


def test_worked_text_without_marker_must_end_with_the_answer():
    assert answered("Ada lives in Ulm. The mayor is Bo.", ["Bo"], cot=True)
    assert answered("The mayor of St. Louis", ["St. Louis"], cot=True)
    assert not answered("The mayor is Bo. I think.", ["Bo"], cot=True)
    assert not answered("The mayor is Jumbo.", ["Bo"], cot=True)
    assert not answered("ends with Bo #### Cy", ["Bo"], cot=True)
    assert answered("The answer is J. K. Rowling", ["J. K. Rowling"], cot=True)
    assert not answered("", ["Bo"], cot=True)


def test_a_pattern_runs_with_a_time_limit(monkeypatch):
    monkeypatch.setattr(answers, "PATTERN_SECONDS", 0.1)
    start = time.process_time()
    with pytest.raises(TaskError, match="took longer"):
        read_answer("a" * 40 + "!", cot=True, pattern=r"(a|aa)+$|(?:(?:a+)+)+b")
    assert time.process_time() - start < 3


@pytest.mark.skipif(not SHARED.exists(), reason="shared data absent")
def test_gsm8k_gold_solutions_answer_themselves():
    text = (SHARED / "gsm8k" / "test.jsonl").read_text(encoding="utf-8")
    rows = [json.loads(line) for line in text.split("\n") if line]
    assert len(rows) == 1319
    golds = [row["answer"].rsplit("#### ", 1)[1] for row in rows]
    for row, gold in zip(rows, golds, strict=True):
        assert answered(row["answer"], [gold], cot=True)
        assert answered(row["answer"].replace("#### ", "The answer is $") + ".", [gold], cot=True)
    wrong = sum(
        answered(row["answer"], [other], cot=True)
        for row, other in zip(rows, golds[1:] + golds[:1], strict=True)
    )
    assert wrong == sum(a == b for a, b in zip(golds, golds[1:] + golds[:1], strict=True))
