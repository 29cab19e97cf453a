"""Files of other layouts: fields are mapped, converted and filled into templates; errors name the
line and the options that help."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path

import pytest

from loraprobe import limits
from loraprobe.errors import TaskError, UsageError
from loraprobe.options import Options
from loraprobe.pipeline.inputs import open_tasks
from loraprobe.tasks import Layout, load_task

GSM8K = Path(__file__).parents[3] / "shared" / "data" / "gsm8k" / "test.jsonl"
WORKED = {"question": "How many?", "answer": "6 * 7 = <<6*7=42>>42\n#### 42"}

CHOICES = {"text": ["x", "y"], "label": ["1", "2"]}


def lines(tmp_path: Path, *rows: dict, name: str = "t.jsonl") -> Path:
    path = tmp_path / name
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return path


def text(tmp_path: Path, content: str, name: str = "t.csv") -> Path:
    path = tmp_path / name
    path.write_bytes(content.encode())
    return path


def refused(path: Path, layout: Layout = Layout()) -> str:
    with pytest.raises(TaskError) as error:
        load_task(path, None, layout)
    assert error.value.cure and "\n" not in str(error.value)
    return str(error.value)


def options_in(message: str) -> Layout:
    """The layout that the last words of a message suggest, read as a shell reads them."""
    words = shlex.split(message.partition(": add ")[2].rstrip("."))
    given = dict(zip(words[::2], words[1::2], strict=True))
    return Layout.of(given.pop("--fields"), after=given.pop("--answer-after", ""), **given)


@pytest.mark.parametrize(
    ("row", "prompt", "answers"),
    [
        (WORKED, "How many?", ("42",)),
        ({"instruction": "Say a.", "output": "a", "source": 3}, "Say a.", ("a",)),
        ({"Question": "Why?", "Answer": "So."}, "Why?", ("So.",)),
        ({"question": "Who?", "answers": {"text": ["Bo", "B."]}}, "Who?", ("Bo", "B.")),
        ({"question": "?", "choices": CHOICES, "answerKey": "1"}, "?", ("x",)),
    ],
)
def test_the_suggested_mapping_reads_the_file(tmp_path, row, prompt, answers):
    path = lines(tmp_path, row)
    message = refused(path)
    assert "line 1" in message and "unknown key" in message
    (item,) = load_task(path, None, options_in(message)).items
    assert (item.prompt, item.answers) == (prompt, answers)


@pytest.mark.skipif(not GSM8K.exists(), reason="shared data absent")
def test_gsm8k_is_read_as_its_error_suggests():
    message = refused(GSM8K)
    assert message.endswith("add --fields prompt=question --answer-after '####'.")
    task = load_task(GSM8K, None, options_in(message))
    assert len(task.items) == 1319
    raw = GSM8K.read_text(encoding="utf-8").splitlines()
    assert [item.answers[0] for item in task.items] == [
        json.loads(line)["answer"].rsplit("#### ", 1)[1] for line in raw
    ]
    worked = Layout.of("prompt=question", pattern=r"#### (\S+)")
    assert load_task(GSM8K, None, worked).items == task.items


def test_one_table_in_every_form_gives_the_same_items(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    rows = [{"q": "1, 2?", "a": 3, "topic": "sums"}, {"q": 'say "x"\nnow', "a": 4, "topic": ""}]
    cells = '"1, 2?"{0}3{0}sums\r\n\r\n"say ""x""\nnow"{0}4{0}\r\n'
    files = [
        lines(tmp_path, *rows),
        text(tmp_path, json.dumps(rows, indent=1), "t.json"),
        lines(tmp_path, *rows, name="l.json"),
        text(tmp_path, "\ufeffq,a,topic\r\n" + cells.format(",")),
        text(tmp_path, "q;a;topic\r\n" + cells.format(";"), "s.csv"),
        text(tmp_path, "q\ta\ttopic\r\n" + cells.format("\t"), "t.tsv"),
    ]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "t.parquet")
    found = [
        [(i.prompt, i.answers, i.group) for i in load_task(file, None, Layout.of(FIELDS)).items]
        for file in [*files, tmp_path / "t.parquet"]
    ]
    assert found[0] == [("1, 2?", ("3",), "sums"), ('say "x"\nnow', ("4",), None)]
    assert found == [found[0]] * len(found)


FIELDS = "prompt=q,answer=a,group=topic"


def test_a_table_in_our_own_keys_needs_no_option(tmp_path):
    path = text(tmp_path, 'prompt,answer,choices\nQ?,7,"[""7"", ""8""]"\n')
    (item,) = load_task(path).items
    assert (item.id, item.answers, item.choices) == ("2", ("7",), ("7", "8"))


@pytest.mark.parametrize(
    ("answers", "chosen"),
    [
        (("y", "z"), ("y", "z")),
        (("B", "c"), ("y", "z")),
        (("(A)", "C."), ("x", "z")),
        (("0", "1"), ("x", "y")),
        (("1", "3"), ("x", "z")),
        (("col_x", "col_z"), ("x", "z")),
    ],
)
def test_an_answer_names_a_choice_by_text_letter_number_or_column(tmp_path, answers, chosen):
    rows = "".join(f"Q?,x,y,z,{answer}\n" for answer in answers)
    path = text(tmp_path, "q,col_x,col_y,col_z,gold\n" + rows)
    layout = Layout.of("prompt=q,choices=col_x,col_y,col_z,answer=gold")
    items = load_task(path, None, layout).items
    assert tuple(item.answers[0] for item in items) == chosen
    assert {item.choices for item in items} == {("x", "y", "z")}


def test_one_reading_of_answers_holds_for_a_whole_file(tmp_path):
    """As in MMLU: choices that are numbers, and answers that count them from 0."""
    rows = [{"q": "?", "c": ["0", "4", "2"], "a": 1}, {"q": "?", "c": ["1", "3", "5"], "a": 0}]
    items = load_task(lines(tmp_path, *rows), None, Layout.of("prompt=q,choices=c,answer=a")).items
    assert [item.answers for item in items] == [("4",), ("1",)]


def test_answers_that_may_count_from_0_or_from_1_are_refused(tmp_path):
    path = lines(tmp_path, {"q": "?", "c": ["x", "y", "z"], "a": 1})
    assert "from 0 or from 1" in refused(path, Layout.of("prompt=q,choices=c,answer=a"))
    for labels, chosen in (("0,1,2", "y"), ("1,2,3", "x"), ("c,1,d", "y")):
        layout = Layout.of(f"prompt=q,choices=c,answer=a,labels={labels}")
        assert load_task(path, None, layout).items[0].answers == (chosen,)
    labels = lines(tmp_path, {"q": "?", "c": ["x", "y", "z"], "a": 1, "l": [1, 2, 3]})
    layout = Layout.of("prompt=q,choices=c,answer=a,labels=l")
    assert load_task(labels, None, layout).items[0].answers == ("x",)


def test_templates_are_filled_once_and_run_nothing(tmp_path):
    row = {"q": "{a} and {q.__class__}", "c": ["x", "y"], "a": "x", "n": {"m": 3}}
    layout = Layout.of("answer=a,choices=c", "Q: {q} {a}\\nA) {c.0} B)\\t{c.1} {{{n.m}}}")
    (item,) = load_task(lines(tmp_path, row), None, layout).items
    assert item.prompt == "Q: {a} and {q.__class__} x\nA) x B)\ty {3}"
    file = text(tmp_path, "From a file: {q}\n", "prompt.txt")
    (item,) = load_task(lines(tmp_path, row), None, Layout.of("answer=a", str(file))).items
    assert item.prompt == "From a file: {a} and {q.__class__}"
    assert "no field 'q.__class__'" in refused(lines(tmp_path, row), Layout.of("", "{q.__class__}"))


@pytest.mark.parametrize(
    ("content", "fields", "place", "problem"),
    [
        ("q,a\nx,y\n", "prompt=quest", "line 2", "no field 'quest'"),
        ("q,a\nx,y\n", "prompt=q,answer=a,group=g", "", "no value in g"),
        ("q,a\nx,y\nx,\n", "prompt=q,answer=a", "line 3", "'answer' is missing"),
        ("q,a\nx,y,z\n", "prompt=q,answer=a", "line 2", "3 cells"),
        ("q,a\nx\n", "prompt=q,answer=a", "line 2", "1 cells"),
        ("q,q\nx,y\n", "prompt=q,answer=q", "line 1", "two columns 'q'"),
        ('q,a\n"x"y,z\n', "prompt=q,answer=a", "line 2", "not CSV"),
        ('q,a\nu,v\n"x,z\n', "prompt=q,answer=a", "line 3", "not CSV"),
        ("q,a\nx,\xff\n".encode("latin-1"), "prompt=q,answer=a", "line 2", "not UTF-8"),
        ("q,a,c\nx,y,\"['y']\"\n", "prompt=q,answer=a,choices=c", "line 2", "JSON list"),
        ("q,a,b,c\n?,z,x,y\n", "prompt=q,answer=a,choices=b,c", "line 2", "not among"),
        ("q,a\nx,y\n", "", "line 2", "--fields prompt=FIELD,answer=FIELD"),
        ("q,a\n", "prompt=q,answer=a", "", "no item"),
    ],
)
def test_a_bad_table_is_named_with_its_line(tmp_path, content, fields, place, problem):
    path = tmp_path / "t.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    message = refused(path, Layout.of(fields))
    assert place in message and problem in message and str(path) in message


def test_json_that_is_no_list_of_objects(tmp_path):
    assert "line 2" in refused(text(tmp_path, '[{"a": 1},\n{"a" 1}]', "t.json"))
    assert "item 2" in refused(text(tmp_path, '[{"prompt": "a", "answer": "b"}, 3]', "t.json"))


@pytest.mark.parametrize(
    "given",
    [
        {"fields": "promt=q"},
        {"fields": "question"},
        {"fields": "question=prompt"},
        {"fields": "prompt=a,prompt=b"},
        {"fields": "prompt=a,b"},
        {"fields": "", "prompt": "no such file"},
        {"fields": "", "after": "#", "pattern": "x"},
        {"fields": "", "pattern": "("},
    ],
)
def test_options_that_say_nothing_are_refused(given):
    with pytest.raises(UsageError) as error:
        Layout.of(**given)
    assert error.value.cure


def test_parquet_needs_pyarrow_and_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert "pip install 'loraprobe[datasets]'" in refused(text(tmp_path, "x", "t.parquet"))


def test_what_is_no_parquet_and_what_unpacks_to_too_much(tmp_path, monkeypatch):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    assert "no Parquet" in refused(text(tmp_path, "x" * 100, "t.parquet"))
    many = {"prompt": ["same" * 100] * 5000, "answer": ["same"] * 5000}
    parquet.write_table(pyarrow.table(many), tmp_path / "many.parquet")
    assert (tmp_path / "many.parquet").stat().st_size < 10_000
    assert len(load_task(tmp_path / "many.parquet").items) == 5000
    monkeypatch.setattr(limits, "ITEMS", 100_000)
    assert "unpacks to more" in refused(tmp_path / "many.parquet")


def test_python_takes_a_mapping():
    made = Options.of({"fields": {"prompt": "q", "choices": ["A", "B"]}, "answer_after": "####"})
    assert (made.fields, made.answer_after) == (("prompt=q,choices=A,B",), ("####",))


def test_an_option_is_for_all_tasks_or_one_for_each(tmp_path):
    own = lines(tmp_path, {"prompt": "P?", "answer": "x"}, name="own.jsonl")
    other = lines(tmp_path, WORKED, name="other.jsonl")
    each = Options(fields=("", "prompt=question"), answer_after=("", "####"))
    read = open_tasks([own, other], each)
    assert [task.items[0].answers for task in read] == [("x",), ("42",)]
    three = Options(fields=("", "", ""))
    for tasks, options in (([own, other], three), ([], each)):
        with pytest.raises(UsageError) as error:
            open_tasks(tasks, options)
        assert error.value.cure


@pytest.mark.parametrize("ending", ["csv", "tsv"])
def test_jsonl_with_the_name_of_a_table_is_told_apart(tmp_path, ending):
    told = refused(lines(tmp_path, WORKED, WORKED, name=f"t.{ending}"))
    assert "JSONL" in told and "t.jsonl" in told
