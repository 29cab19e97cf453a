"""Fields of other files are mapped, converted and filled into a template; errors name the line and
the options that help."""

import json
import shlex
import sys
from pathlib import Path

import making
import pytest
from taskfiles import WORKED, write
from taskfiles import refused as refused_by

from loraprobe import untrusted, wiring
from loraprobe.errors import UsageError
from loraprobe.extension import Extension, TaskSource
from loraprobe.extensions.data_sets.layouts import FieldMap
from loraprobe.options import Options
from loraprobe.pipeline.task_files import open_reference, open_tasks, open_tasks_and_guards
from loraprobe.tasks import Task, answered

GSM8K = Path(__file__).parents[4] / "shared" / "data" / "gsm8k" / "test.jsonl"
CHOICES = {"text": ["x", "y"], "label": ["1", "2"]}
TALK = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}]
SYSTEM = {"role": "system", "content": "Be brief."}
SHARED = [{"from": "human", "value": "Why?"}, {"from": "gpt", "value": "So."}]


def suggested(message: str) -> str:
    """The mapping that the last words of a message suggest, read as a shell reads them."""
    words = shlex.split(message.partition(": add ")[2].rstrip("."))
    assert words[0] == "--fields"
    return words[1]


def read(path: Path, fields: str = "") -> Task:
    """The task of a file, as `--fields` has it."""
    (task,) = open_reference(path, Options.of({"fields": fields} if fields else {}))
    return task


def refused(path: Path, fields: str = "") -> str:
    return refused_by(path, lambda file: read(file, fields))


@pytest.mark.parametrize(
    ("row", "prompt", "answers"),
    [
        (WORKED, "How many?", ("42",)),
        ({"instruction": "Say a.", "output": "a", "source": 3}, "Say a.", ("a",)),
        ({"Question": "Why?", "Answer": "So."}, "Why?", ("So.",)),
        ({"question": "Who?", "answers": {"text": ["Bo", "B."]}}, "Who?", ("Bo", "B.")),
        ({"question": "?", "choices": CHOICES, "answerKey": "1"}, "?", ("x",)),
        ({"instruction": "Add.", "input": "1 + 1", "output": "2"}, "Add.\n1 + 1", ("2",)),
        ({"instruction": "Say a.", "input": "", "output": "a"}, "Say a.", ("a",)),
        ({"messages": TALK}, "Why?", ("So.",)),
        ({"messages": [SYSTEM, *TALK], "source": 1}, "Be brief.\nWhy?", ("So.",)),
        ({"conversations": SHARED, "id": "7"}, "Why?", ("So.",)),
        ({"prompt": TALK[:1], "completion": TALK[1:]}, "Why?", ("So.",)),
    ],
)
def test_the_suggested_mapping_reads_the_file(tmp_path, row, prompt, answers):
    path = write(tmp_path, row)
    message = refused(path)
    assert "line 1" in message and "unknown key" in message
    (item,) = read(path, suggested(message)).items
    assert (item.prompt, item.answers) == (prompt, answers)


@pytest.mark.parametrize(
    ("header", "answer", "right"),
    [
        ("question,A,B,C,correct", "B", "y"),
        ("question,A,B,C,correct", "y", "y"),
        ("id,Question,option_a,option_b,option_c,Answer", "c", "z"),
        ("question,opt1,opt2,opt3,label", "opt2", "y"),
        ("question,ending0,ending1,ending2,label", "1", "y"),
        ("question,choice1,choice2,choice3,answer", "1", "x"),
    ],
)
def test_columns_that_the_answers_name_are_suggested_as_choices(tmp_path, header, answer, right):
    """Without them a model is asked for a letter that it never sees."""
    cells = dict.fromkeys(header.split(","), "7") | {header.split(",")[-1]: answer}
    cells |= dict(zip([c for c in cells if c[-1] in "ABCabc0123"], "xyz", strict=True))
    path = write(tmp_path, header, ",".join(cells.values()), name="t.csv")
    fields = suggested(refused(path))
    (item,) = read(path, fields).items
    assert (item.choices, item.answers) == (("x", "y", "z"), (right,))
    given = FieldMap.of(fields).fields
    gold = f"answer={given.get('answer', ('answer',))[0]}"
    if answer in cells:
        assert "choices=" in refused(path, f"prompt={given['prompt'][0]},{gold}")
        shown = f"{gold},prompt={{{header.split(',')[0]}}} {{{answer}}}"
        assert read(path, shown).items[0].answers == (answer,)


def test_the_steps_may_be_asked_for_by_a_text_around_a_field(tmp_path):
    path = write(tmp_path, "question,city", "Where?,Ulm", name="t.csv")
    steps = "prompt=question,answer=city,cot_prompt={question} Think, step by step."
    (item,) = read(path, steps).items
    assert (item.prompt, item.cot_prompt) == ("Where?", "Where? Think, step by step.")
    with pytest.raises(UsageError):
        FieldMap.of(f"{steps},cot_prompt={{city}}")


def test_a_choice_whose_column_is_nowhere_is_an_error(tmp_path):
    rows = [
        {"q": "?", "A": "x", "B": "y", "g": "A"},
        {"q": "?", "A": "x", "B": "y", "C": "z", "g": "B"},
    ]
    path = write(tmp_path, *rows)
    assert "'Q'" in refused(path, "prompt=q,choices=A,B,Q,answer=g")
    items = read(path, "prompt=q,choices=A,B,C,answer=g").items
    assert [len(item.choices) for item in items] == [2, 3]


@pytest.mark.skipif(not GSM8K.exists(), reason="shared data absent")
def test_gsm8k_is_read_as_its_error_suggests_and_its_solutions_answer_themselves():
    message = refused(GSM8K)
    assert message.endswith("add --fields prompt=question,after=####.")
    task = read(GSM8K, suggested(message))
    solutions = [json.loads(row)["answer"] for row in GSM8K.read_text("utf-8").splitlines()]
    golds = [solution.rsplit("#### ", 1)[1] for solution in solutions]
    assert len(golds) == 1319 and [item.answers[0] for item in task.items] == golds
    others = golds[1:] + golds[:1]
    for solution, gold, other in zip(solutions, golds, others, strict=True):
        assert answered(solution, [gold], cot=True)
        assert answered(solution.replace("#### ", "The answer is $") + ".", [gold], cot=True)
        assert answered(solution, [other], cot=True) is (gold == other)


def test_one_table_in_every_form_gives_the_same_items(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    rows = [{"q": "1, 2?", "a": 3, "topic": "sums"}, {"q": 'say "x"\nnow', "a": 4, "topic": ""}]
    cells = '"1, 2?"{0}3{0}sums\r\n\r\n"say ""x""\nnow"{0}4{0}\r\n'
    files = [
        write(tmp_path, *rows),
        write(tmp_path, json.dumps(rows, indent=1), name="t.json"),
        write(tmp_path, *rows, name="l.json"),
        write(tmp_path, "\ufeffq,a,topic\r\n" + cells.format(","), name="t.csv"),
        write(tmp_path, "q;a;topic\r\n" + cells.format(";"), name="s.csv"),
        write(tmp_path, "\r\n\r\nq;a;topic\r\n" + cells.format(";"), name="blank.csv"),
        write(tmp_path, "q\ta\ttopic\r\n" + cells.format("\t"), name="t.tsv"),
        tmp_path / "t.parquet",
    ]
    parquet.write_table(pyarrow.Table.from_pylist(rows), files[-1])
    layout = "prompt=q,answer=a,group=topic"
    tasks = [read(file, layout) for file in files]
    found = [[(item.prompt, item.answers, item.group) for item in task.items] for task in tasks]
    assert found[0] == [("1, 2?", ("3",), "sums"), ('say "x"\nnow', ("4",), None)]
    assert found == [found[0]] * len(found)


def test_a_table_in_our_own_keys_needs_no_option(tmp_path):
    path = write(tmp_path, 'prompt,answer,choices\nQ?,7,"[""7"", ""8""]"\n', name="t.csv")
    (item,) = read(path).items
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
    rows = [f"Q?,x,y,z,{answer}" for answer in answers]
    path = write(tmp_path, "q,col_x,col_y,col_z,gold", *rows, name="t.csv")
    layout = "prompt=q,choices=col_x,col_y,col_z,answer=gold"
    items = read(path, layout).items
    assert tuple(item.answers[0] for item in items) == chosen
    assert {item.choices for item in items} == {("x", "y", "z")}


def test_one_reading_of_answers_holds_for_a_whole_file(tmp_path):
    """As in MMLU: choices that are numbers, and answers that count them from 0."""
    rows = [{"q": "?", "c": ["0", "4", "2"], "a": 1}, {"q": "?", "c": ["1", "3", "5"], "a": 0}]
    layout = "prompt=q,choices=c,answer=a"
    items = read(write(tmp_path, *rows), layout).items
    assert [item.answers for item in items] == [("4",), ("1",)]


def test_answers_that_may_count_from_0_or_from_1_are_refused(tmp_path):
    row = {"q": "?", "c": ["x", "y", "z"], "a": 1, "l": [1, 2, 3]}
    path = write(tmp_path, row)
    assert "from 0 or from 1" in refused(path, "prompt=q,choices=c,answer=a")
    for labels, chosen in (("0,1,2", "y"), ("1,2,3", "x"), ("c,1,d", "y"), ("l", "x")):
        layout = f"prompt=q,choices=c,answer=a,labels={labels}"
        assert read(path, layout).items[0].answers == (chosen,)
    none = write(tmp_path, row | {"a": []})
    assert "answer: " in refused(none, "prompt=q,choices=c,answer=a")


def test_a_template_is_filled_once_and_runs_nothing(tmp_path):
    row = {"q": "{a} and {q.__class__}", "c": ["x", "y"], "a": "x", "n": {"m": 3}}
    path = write(tmp_path, row)
    for template, prompt in {
        "Q: {q}\\nA) {c.0} B) {c.1} {{{n.m}}}\\t.": ("Q: {a} and {q.__class__}\nA) x B) y {3}\t."),
        "Well, x=1, so {a}, or {c.1}?": "Well, x=1, so x, or y?",
    }.items():
        for fields in (f"prompt={template},answer=a,choices=c", f"choices=c, prompt={template}"):
            layout = fields if "answer" in fields else f"answer=a,{fields}"
            (item,) = read(path, layout).items
            assert item.prompt == prompt
    assert "no field 'q.__class__'" in refused(path, "prompt={q.__class__}")


@pytest.mark.parametrize(
    ("content", "fields", "place", "problem"),
    [
        ("q,a\nx,y\n", "prompt=quest", "line 2", "no field 'quest'"),
        ("q,a\nx,y\n", "prompt=q,answer=a,group=g", "", "no value in g"),
        ("q,a\nx,y\nx,\n", "prompt=q,answer=a", "line 3", "answer: it is missing"),
        ("q,a\nx,y,z\n", "prompt=q,answer=a", "line 2", "cells"),
        ("q,a\nx\n", "prompt=q,answer=a", "line 2", "cells"),
        ("q,q\nx,y\n", "prompt=q,answer=q", "line 1", "two columns"),
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
    message = refused(write(tmp_path, content, name="t.csv"), fields)
    assert place in message and problem in message


def test_json_that_is_no_list_of_objects(tmp_path):
    assert "line 2" in refused(write(tmp_path, '[{"a": 1},\n{"a" 1}]', name="t.json"))
    bad = '[{"prompt": "a", "answer": "b"}, 3]'
    assert "item 2" in refused(write(tmp_path, bad, name="t.json"))


NAMES = ("promt=q", "question", "question=prompt", "prompt=a,prompt=b", "prompt=a,b")
NAMES += ("prompt=a,promt2=b", "choices=A,B,anser=c")


@pytest.mark.parametrize("fields", NAMES)
def test_fields_that_say_nothing_are_refused(fields):
    with pytest.raises(UsageError) as error:
        FieldMap.of(fields)
    assert error.value.cure


def test_parquet_that_cannot_be_read_or_unpacks_to_too_much(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "pyarrow", None)
        told = refused(write(tmp_path, "x", name="t.parquet"))
        assert "pip install 'loraprobe[datasets]'" in told
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    assert "no Parquet" in refused(write(tmp_path, "x" * 100, name="t.parquet"))
    many = {"prompt": ["same" * 100] * 5000, "answer": ["same"] * 5000}
    parquet.write_table(pyarrow.table(many), tmp_path / "many.parquet")
    assert (tmp_path / "many.parquet").stat().st_size < 10_000
    assert len(read(tmp_path / "many.parquet").items) == 5000
    monkeypatch.setattr(untrusted, "UNPACKED", 100_000)
    assert "unpacks to more" in refused(tmp_path / "many.parquet")


def test_an_option_is_for_all_tasks_or_one_for_each(tmp_path):
    own = write(tmp_path, {"prompt": "P?", "answer": "x"}, name="own.jsonl")
    other = write(tmp_path, WORKED, name="other.jsonl")
    each = Options.of({"fields": ("", "prompt=question,after=####")})
    tasks = open_tasks([own, other], each)
    assert [task.items[0].answers for task in tasks] == [("x",), ("42",)]
    assert [task.layout for task in tasks] == ["", "prompt=question,after=####"]
    same = Options.of({"fields": "prompt=question,after=####"})
    another = write(tmp_path, WORKED | {"answer": "#### 7"}, name="another.jsonl")
    read_alike = open_tasks([other, another], same)
    assert [task.items[0].answers for task in read_alike] == [("42",), ("7",)]
    three = Options.of({"fields": ("", "", "")})
    for tasks, options in (([own, other], three), ([], each), ([], same)):
        with pytest.raises(UsageError) as error:
            open_tasks(tasks, options)
        assert error.value.cure
    made = Options.of({"fields": {"prompt": "q", "choices": ["A", "B"], "after": "####"}})
    assert made.value("fields") == ("prompt=q,choices=A,B,after=####",)


def test_a_merge_without_a_task_has_no_fields(tmp_path):
    refused = making.call("merge", "a", "b", "-o", tmp_path / "out", "--fields", "prompt=q")
    assert refused.exit_code == 2 and "--task" in refused.stderr


def test_guards_follow_the_tasks(tmp_path):
    task = write(tmp_path, WORKED, name="task.jsonl")
    guard = write(tmp_path, {"prompt": "P?", "answer": "7"}, name="own.jsonl")
    (text := tmp_path / "notes.txt").write_text("Once upon a time. " * 80)
    options = {"guards": [guard, text], "fields": "prompt=question,after=####"}
    tasks, guards = open_tasks_and_guards([task], Options.of(options))
    assert [one.items[0].answers for one in tasks] == [("42",)]
    assert [one.name for one in guards] == ["own", "notes"]
    each = Options.of({"guards": text, "fields": ["prompt=question,after=####", ""]})
    assert open_tasks_and_guards([task], each)[1] == guards[1:], (
        "a guard may have a layout of its own"
    )


class Suite(TaskSource):
    def claims(self, reference):
        return reference.startswith("suite:")

    def open(self, reference, options):
        return [Task("small", ())]


def test_a_task_of_another_source_has_no_fields(monkeypatch):
    class Added(Extension):
        task_sources = (Suite(),)

    others = (*wiring.extensions(), Added())
    monkeypatch.setattr(wiring, "extensions", lambda: others)
    assert open_tasks("suite:small", Options())[0].name == "small"
    options = Options.of({"fields": "prompt=q"})
    with pytest.raises(UsageError, match="suite:small: give a task file"):
        open_tasks("suite:small", options)
