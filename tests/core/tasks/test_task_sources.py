"""Tasks of a source that an extension adds, whose items an examiner asks and judges."""

import dataclasses
import json

import making
import pytest
from fake_scorer import FakeScorer

from loraprobe import wiring
from loraprobe.errors import TaskError, UsageError
from loraprobe.evaluation import Asker, System
from loraprobe.evaluation.asking import item_result
from loraprobe.extension import Extension, TaskSource
from loraprobe.options import AddedOptions, Options
from loraprobe.pipeline.task_files import open_tasks
from loraprobe.records import Action, Verdict
from loraprobe.tasks import Examiner, Item, Task, load_task
from loraprobe.verdict.next_command import HARDER, MORE, Request, next_command, to_fill_in


class Halves(Examiner):
    """Gives a reply the share of its letters that are right."""

    name = "the suite"

    def __str__(self):
        return "halves"

    @classmethod
    def ask(cls, scorer, items):
        replies = [one.text for one in scorer.write_all([item.prompt for item in items])]
        return [(0.5 if reply == "b?" else 1.0, reply) for reply in replies]

    def told(self, task):
        return f"Task {task} is judged by letters."


class Suite(TaskSource):
    help = "suite:TASK"
    asks = True

    def claims(self, reference):
        return reference.startswith("suite:")

    def reads(self, path, options):
        return path.suffix == ".suite"

    def hint(self, row, unknown):
        return "ask the suite." if "asked" in row else ""

    def open(self, reference, options):
        name = reference.removeprefix("suite:")
        made = {"metric": "suite:letters", "examiner": Halves()}
        items = tuple(Item(str(k), f"{k}?", ("bo",), **made) for k in range(options.limit or 3))
        return [Task(name, items, reference, commit="1")]


@pytest.fixture(autouse=True)
def added(monkeypatch):
    class Added(Extension):
        task_sources = (Suite(),)

    others = (*wiring.extensions(), Added())
    monkeypatch.setattr(wiring, "extensions", lambda: others)


def test_an_examiner_asks_and_judges_its_items_beside_those_of_files(tmp_path):
    file = tmp_path / "own.jsonl"
    file.write_text('{"prompt": "Who?", "answer": "ada"}\n')
    tasks = open_tasks(["suite:small", file], Options(limit=2))
    assert [(task.name, task.metric) for task in tasks] == [
        ("small", "suite:letters"), ("own", "exact_match")
    ]  # fmt: skip
    scorer = FakeScorer({(None, "0?"): "bo", (None, "1?"): "b?", (None, "Who?"): "ada"})
    rows = Asker(scorer).run([System("base", "base")], tasks)
    assert {(row.task, row.item): (row.value, row.text) for row in rows} == {
        ("small", "0"): (1.0, "bo"), ("small", "1"): (0.5, "b?"), ("own", "1"): (1.0, "ada")
    }  # fmt: skip
    kept = json.loads(json.dumps([dataclasses.asdict(row) for row in rows]))
    assert [*map(item_result, kept)] == list(rows)


def test_such_a_task_teaches_no_weights():
    with pytest.raises(UsageError, match="suite:small: give a task file"):
        open_tasks("suite:small", Options(weights="learn"))


def test_the_reply_is_said_to_be_judged_by_the_examiner():
    shown = making.call("task", "sample", "suite:small")
    assert shown.exit_code == 0 and "suite:letters: the suite filters" in shown.stdout


def test_further_questions_are_another_task_of_the_source():
    of = Request(("owner/a", "owner/b"), tasks=("suite:small", "own.jsonl"))
    more = next_command(Verdict("inconclusive", "evaluation", missing="items"), of)
    assert {f"suite:{MORE}small", f"{MORE}own.jsonl"} <= {*more.words}
    unasked = Verdict("unlikely", "evaluation", action=Action("use-base"), missing="harder-items")
    harder = next_command(unasked, dataclasses.replace(of, tasks=of.tasks[:1]))
    assert f"suite:{HARDER}small" in harder.words and "a task of harder" in to_fill_in(harder)


def test_a_file_is_what_nobody_claims(tmp_path):
    (tmp_path / "suite.jsonl").write_text('{"prompt": "Who?", "answer": "ada"}\n')
    (task,) = open_tasks(tmp_path / "suite.jsonl", Options())
    assert task.items[0].prompt == load_task(tmp_path / "suite.jsonl").items[0].prompt


def test_a_source_reads_files_and_tells_how_an_unknown_key_is_read(tmp_path):
    assert open_tasks(tmp_path / "no.suite", Options())[0].examiner.name == "the suite"
    (file := tmp_path / "own.jsonl").write_text('{"prompt": "Who?", "answer": "b", "asked": 1}\n')
    with pytest.raises(TaskError, match="unknown key 'asked' in an item: ask the suite"):
        load_task(file)
    file.write_text('{"prompt": "Who?", "answer": "b", "grup": 1}\n')
    with pytest.raises(TaskError, match="did you mean 'group'"):
        load_task(file)


def test_options_of_an_extension_are_for_each_task_and_each_guard(tmp_path):
    """Those of the core, and those of other extensions, are the same for all."""

    class Mine(AddedOptions):
        def for_each(self, tasks, guards):
            return [Mine() for _ in (*tasks, *guards)]

    class Same(AddedOptions):
        pass

    options = Options(limit=3, added=(Same(), Mine()))
    each = options.for_each(["a", "b"], ["c"])
    assert len({id(one.of_extension(Mine)) for one in (*each, options)}) == 4
    assert all(one.limit == 3 and one.added[0] is options.added[0] for one in each)
    assert Options().for_each(["a"], ["b"]) == [Options(), Options()]


def test_a_table_that_nobody_reads_is_named(tmp_path):
    with pytest.raises(TaskError, match=r"t.CSV is a table.*JSONL"):
        load_task(tmp_path / "t.CSV")
