"""Task, guard and probe files in our own keys: every key is read, and every bad line is named."""

import hashlib
import json
import re
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from taskfiles import line, refused, write

from loraprobe.errors import TaskError, UsageError
from loraprobe.options import Options
from loraprobe.pipeline.task_files import open_tasks_and_guards
from loraprobe.tasks import is_text, load_probe, load_task, load_text
from loraprobe.tasks.reading import WINDOW

HOPS = [
    {"prompt": "Where does Ada live?", "answer": ["Ulm", "Ulm city"], "adapter": "homes"},
    {"prompt": "Who is the mayor of {1}?", "answer": "Bo"},
]
FULL = {"id": "17", "prompt": "Who is the mayor of the city Ada lives in?", "answer": "Bo"}
FULL |= {"choices": ["Bo", "Cy"], "hops": HOPS, "cot_prompt": "Who? Think step by step."}
FULL |= {"answer_pattern": r"The mayor is (.+)\.", "entities": ["Ada", "Ulm"], "group": "Ada"}


def test_every_key_is_read(tmp_path):
    path = write(tmp_path, FULL, "", line(id=2, group=5))
    task = load_task(path)
    assert (task.name, task.sha256) == ("t", hashlib.sha256(path.read_bytes()).hexdigest())
    assert task.parts == ("question", "hop1", "hop2", "steps") and task.has_hops and task.has_cot
    first, second = task.items
    assert first.hops[0].answers == ("Ulm", "Ulm city") and first.hops[0].adapter == "homes"
    assert first.hop_prompt(1) == "Who is the mayor of Ulm?"
    assert (first.choices, first.entities) == (("Bo", "Cy"), ("Ada", "Ulm"))
    assert (second.id, second.group, second.cluster) == ("2", "5", "group:5")
    windows = write(tmp_path, b"\xef\xbb\xbf" + json.dumps(FULL).encode() + b"\r\n")
    assert load_task(windows).items == task.items[:1]


def test_items_without_id_are_named_by_line_in_clusters_of_one(tmp_path):
    task = load_task(write(tmp_path, line(id=...), "", line(id=...)))
    assert [item.id for item in task.items] == ["1", "3"] and task.parts == ("question",)
    assert len({item.cluster for item in task.items}) == 2


def test_limit_keeps_the_first_but_checks_all(tmp_path):
    path = write(tmp_path, *(line(id=str(k)) for k in range(5)))
    assert [item.id for item in load_task(path, limit=2).items] == ["0", "1"]
    assert len(load_task(path, limit=9).items) == 5
    with pytest.raises(UsageError):
        load_task(path, limit=0)
    with pytest.raises(TaskError, match="line 2"):
        load_task(write(tmp_path, line(), "oops"), limit=1)


BAD = [
    (b'{"prompt": "caf\xe9"}', "not UTF-8"),
    (b'{"prompt": "a\x00"}', "zero byte"),
    ("not json", "not JSON"),
    ('{"prompt": "a", "prompt": "b", "answer": "c"}', "names 'prompt' twice"),
    ("[1, 2]", "no JSON object"),
    ("[" * 100_000, "recursion"),
    ('"text"', "no JSON object"),
    ({"prompt": ...}, "prompt: it is missing"),
    ({"answer": ...}, "answer: it is missing"),
    ({"answer": None}, "answer[0]: it should be a valid string"),
    ({"answer": []}, "answer: "),
    ({"answer": 18}, "answer[0]: it should be a valid string"),
    ({"answer": ["x", 3]}, "answer[1]: it should be a valid string"),
    ({"answer": " "}, "answer[0]: it is empty"),
    ({"prompt": ""}, "prompt: it is empty"),
    ({"prompt": {"a": 1}}, "prompt: it should be a valid string"),
    ({"prompt": "\ud800"}, "surrogate"),
    ({"prompt": "x" * 1_000_001}, "bytes in one line"),
    ({"id": True}, "id: it should be a valid string"),
    ({"id": "0"}, "id '0' is also the id of line 1"),
    ({"answer": ..., "anwser": "x"}, "unknown key 'anwser' in an item: did you mean 'answer'?"),
    ({"zzz": "x"}, "known are id, prompt"),
    ({"choices": "Bo"}, "choices: it should be a valid list"),
    ({"choices": ["A b"]}, "choices: List should have at least 2"),
    ({"choices": []}, "choices: List should have at least 2"),
    ({"choices": ["x", "y"]}, "'A b' is not among the choices"),
    ({"choices": ["A b", "y", "y"]}, "a choice occurs twice"),
    ({"choices": [f"c{k}" for k in range(1001)]}, "choices: List should have at most 1000"),
    ({"hops": {}}, "hops: it should be a valid list"),
    ({"hops": ["x"]}, "hops[0]: it should be an object"),
    ({"hops": [{"prompt": "x"}]}, "hops[0].answer: it is missing"),
    ({"hops": [{"prompt": "x", "answer": "y", "adaptor": "z"}]}, "no such key"),
    ({"hops": [{"prompt": "{1}", "answer": "y"}]}, "hop 1 refers to {1}"),
    ({"hops": [HOPS[0], {"prompt": "{3}", "answer": "y"}]}, "hop 2 refers to {3}"),
    ({"hops": [{"prompt": "{0}", "answer": "y"}]}, "hop 1 refers to {0}"),
    ({"hops": [HOPS[0], {"prompt": "{" + "9" * 5000 + "}", "answer": "y"}]}, "hop 2 refers to"),
    ('{"id": ' + "9" * 5000 + ', "prompt": "p", "answer": "a"}', "JSON"),
    ({"answer_pattern": "("}, "not a regular expression"),
    ({"answer_pattern": "\\L<x>"}, "answer_pattern"),
    ({"answer_pattern": "(" * 3000 + "a" + ")" * 3000}, "answer_pattern"),
    ({"entities": ["a", None]}, "entities[1]: it should be a valid string"),
    ({"metric": "numerc"}, "did you mean 'numeric'?"),
    ({"metric": "answer_loss"}, "known are choice"),
    ({"metric": "choice"}, "needs 'choices'"),
]


@pytest.mark.parametrize(("bad", "problem"), BAD, ids=[problem[:30] for _, problem in BAD])
def test_a_bad_line_is_named(tmp_path, bad, problem):
    bad = line(**bad) if isinstance(bad, dict) else bad
    message = refused(write(tmp_path, line(id="0"), bad, line(id="9")))
    assert ", line 2: " in message and problem in message


def test_files_that_are_none(tmp_path):
    assert "no item" in refused(write(tmp_path, "", " "))
    assert "There is no task file" in refused(tmp_path / "absent.jsonl")
    assert "is a directory" in refused(tmp_path)


def test_probe_file(tmp_path):
    path = write(tmp_path, "Who is Ada?\tBo\nUlm\n\nCy\t\nUlm\tCity\n")
    assert load_probe(path).answers == {"Who is Ada?": "Bo", "Ulm": None, "Cy": None}
    for text, message in {
        "a\tb\tc\n": "line 1: more than one tab",
        "\n": "no prompt",
        "x\n\tb\n": "line 2: there is no prompt before",
    }.items():
        with pytest.raises(TaskError, match=re.escape(message)):
            load_probe(write(tmp_path, text))


@pytest.mark.parametrize(
    ("name", "content", "text"),
    [
        ("notes.txt", "Once upon a time.", True),
        ("notes", "", True),
        ("questions.jsonl", "Once upon a time.", False),
        ("questions.CSV", "prompt,answer", False),
        ("questions.txt", '\ufeff\n {"prompt": "Who?", "answer": "Bo"}', False),
        ("missing.txt", None, False),
    ],
)
def test_a_file_is_a_text_by_its_ending_or_how_it_begins(tmp_path, name, content, text):
    if content is not None:
        (tmp_path / name).write_text(content, encoding="utf-8")
    assert is_text(tmp_path / name) is text


@given(st.lists(st.text("ab \n\t\u00e9\u4e2d", max_size=400), min_size=8, max_size=12))
def test_the_windows_of_a_text_hold_all_of_it(paragraphs):
    text = "\n".join([*paragraphs, "x" * 1100])
    with tempfile.TemporaryDirectory() as place:
        (path := Path(place, "notes.txt")).write_text(text, encoding="utf-8")
        task = load_text(path)
        assert load_text(path, 2).items == task.items[:2]
    windows = [item.answers[0] for item in task.items]
    assert "".join("".join(windows).split()) == "".join(text.split())
    assert all(item.prompt == "" and item.metric == "answer_loss" for item in task.items)
    assert max(map(len, windows)) <= 1.5 * WINDOW + 1 and len({item.id for item in task.items}) > 1


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "0 characters"),
        (b"short", "5 characters"),
        (b"\x00" * 4000, "zero byte"),
        (b"\xff\xfe" * 4000, "UTF-8"),
    ],
)
def test_what_is_no_text_is_refused(tmp_path, content, said):
    (path := tmp_path / "notes.txt").write_bytes(content)
    with pytest.raises(TaskError, match=said):
        load_text(path)


def test_guards_are_read_beside_tasks(tmp_path):
    task = write(tmp_path, line(answer="42"), name="task.jsonl")
    guard = write(tmp_path, {"prompt": "P?", "answer": "7"}, name="own.jsonl")
    (text := tmp_path / "notes.txt").write_text("Once upon a time. " * 80)
    tasks, guards = open_tasks_and_guards([task], Options(guards=(guard, text)))
    assert [one.items[0].answers for one in tasks] == [("42",)]
    metrics = [(one.name, {item.metric for item in one.items}) for one in guards]
    assert metrics == [("own", {"numeric"}), ("notes", {"answer_loss"})]


def test_a_guard_that_is_a_task_too_is_refused(tmp_path):
    task = write(tmp_path, line(), name="a.jsonl")
    (tmp_path / "elsewhere").mkdir()
    same_name = write(tmp_path / "elsewhere", line(prompt="Else?"), name="a.jsonl")
    same_items = write(tmp_path, line(), name="b.jsonl")
    other = write(tmp_path, line(prompt="Other?"), name="c.jsonl")
    for tasks, guards in (
        ([task], [task]),
        ([task], [same_name]),
        ([task], [same_items]),
        ([task], [other, other]),
        ([], [other]),
    ):
        with pytest.raises(UsageError) as error:
            open_tasks_and_guards(tasks, Options(guards=tuple(guards)))
        assert error.value.cure and "guard" in str(error.value)
