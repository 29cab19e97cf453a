"""Guards: texts, which are cut into windows, and tasks beside the others."""

import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from taskfiles import WORKED, line, write

from loraprobe.errors import TaskError, UsageError
from loraprobe.options import Options
from loraprobe.pipeline.task_files import open_tasks_and_guards
from loraprobe.tasks import is_text, load_text
from loraprobe.tasks.reading import WINDOW


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
    task = write(tmp_path, WORKED, name="task.jsonl")
    guard = write(tmp_path, {"prompt": "P?", "answer": "7"}, name="own.jsonl")
    (text := tmp_path / "notes.txt").write_text("Once upon a time. " * 80)
    read = {"fields": "prompt=question,after=####"}
    tasks, guards = open_tasks_and_guards([task], Options.of({"guards": [guard, text], **read}))
    assert [one.items[0].answers for one in tasks] == [("42",)]
    metrics = [(one.name, {item.metric for item in one.items}) for one in guards]
    assert metrics == [("own", {"numeric"}), ("notes", {"answer_loss"})]
    each = Options.of({"guards": text, "fields": ["prompt=question,after=####", ""]})
    assert open_tasks_and_guards([task], each)[1] == guards[1:], (
        "a guard may have a layout of its own"
    )


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
