"""Tasks of lm-evaluation-harness as tasks with items: metrics, groups, limits and refusals."""

import dataclasses
import importlib.util
import sys

import pytest
from fake_scorer import FakeScorer
from harness_tasks import write_tasks

from loraprobe.errors import LoraprobeError, TaskError, UsageError
from loraprobe.evaluation.asking import item_result
from loraprobe.extensions.harness.tasks import HarnessTask, load_harness
from loraprobe.options import Options
from loraprobe.pipeline.task_files import open_tasks
from loraprobe.records import ItemResult

needs = pytest.mark.skipif(importlib.util.find_spec("lm_eval") is None, reason="needs lm-eval")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_tasks(tmp_path_factory.mktemp("tasks"), items=6)


def load(folder, names, limit=None, **options):
    return load_harness(f"lm_eval:{names}@{folder}", limit, run_unsafe_code=True, **options)


@needs
def test_a_task_has_its_documents_as_items(folder):
    (task,) = load(folder, "spouse_choice", limit=4)
    assert (task.name, len(task.items)) == ("spouse_choice", 4)
    assert task.path == f"lm_eval:spouse_choice@{folder.name}"
    item = task.items[2]
    assert item.metric == "lm_eval:acc" and item.answers == (item.choices[2],)
    assert item.prompt.startswith("Who is the spouse of")


@needs
def test_a_group_with_one_score_is_one_task_and_another_is_its_subtasks(folder):
    (one,) = load(folder, "both_choices", limit=2)
    ids = [f"{part}_choice/{doc}" for part in ("spouse", "town") for doc in (0, 1)]
    assert [item.id for item in one.items] == ids
    assert [task.name for task in load(folder, "both_apart")] == ["spouse_choice", "town_choice"]


@needs
def test_shares_come_before_losses_and_metric_names_another(folder):
    def judged(**options):
        return [task.items[0] for task in load(folder, "last_word,spouse_written", **options)]

    assert [item.metric for item in judged()] == ["lm_eval:acc", "lm_eval:exact_match"]
    loss, written = judged(metric="last_word=perplexity,spouse_written=exact_match:name")
    assert (loss.metric, written.examiner.key) == ("answer_loss", ("exact_match", "name"))


@needs
def test_items_with_other_metrics_or_limits_are_other_items(folder):
    """The identity of a run, by which results are kept, differs."""
    texts = {
        str(load(folder, "spouse_written", **options)[0].items[0].examiner)
        for options in ({}, {"metric": "exact_match:name"}, {"max_new_tokens": 3})
    }
    assert len(texts) == 3


@needs
@pytest.mark.parametrize(
    ("reference", "options", "error", "said"),
    [
        ("spouse_choce", {}, UsageError, "spouse_choice"),
        ("translated", {}, TaskError, "bleu"),
        ("spouse_choice", {"run_unsafe_code": False}, UsageError, "--run-unsafe-code"),
        ("spouse_choice", {"metric": "acc_nrm"}, UsageError, "acc_norm"),
        ("facts_text", {}, UsageError, "--margin"),
        ("facts_text,spouse_choice", {"margin": 0.1}, UsageError, "two runs"),
        ("spouse_choice", {"weights": "learn"}, UsageError, "--weights learn"),
        ("broken", {}, TaskError, "broken"),
        ("", {}, UsageError, "lm_eval:TASK"),
    ],
)
def test_what_cannot_be_asked_is_said_with_the_cure(folder, reference, options, error, said):
    (folder / "broken.yaml").write_text(
        "task: broken\ndataset_path: json\ntest_split: test\n"
        "dataset_kwargs: {data_files: {test: missing.json}}\n"
    )
    with pytest.raises(error) as raised:
        open_tasks(f"lm_eval:{reference}@{folder}", Options.of({"run_unsafe_code": True} | options))
    assert said in str(raised.value) and raised.value.cure


@needs
def test_what_a_model_writes_runs_where_it_is_confirmed(folder):
    assert load(folder, "coded")[0].items
    task = load(folder, "coded")[0].items[0].examiner.task
    with pytest.raises(UsageError, match="--run-unsafe-code"):
        HarnessTask(task, None, None, unsafe=False)


@needs
def test_a_value_may_be_any_share_and_nothing_else(folder):
    source = load(folder, "graded")[0].items[0].examiner

    def judged(reply):
        (request,) = source.requests(["0"])
        request.resps = [reply]
        return source.values([request])

    assert judged("abc") == [(0.75, "abc")]
    with pytest.raises(TaskError, match="grade of task graded is 2 ") as raised:
        judged("12345678")
    assert raised.value.cure


@pytest.mark.parametrize(("value", "kept"), [(0.0, True), (0.37, True), (1.2, False)])
def test_kept_results_of_the_harness_are_shares(value, kept):
    made = ItemResult("a", "t", "question", "0", "lm_eval:f1", value, "", "item:0")
    row = dataclasses.asdict(made)
    if kept:
        assert item_result(row) == made
    else:
        with pytest.raises(ValueError):
            item_result(row)


def test_without_lm_eval_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval.tasks", None)
    with pytest.raises(LoraprobeError) as raised:
        load_harness("lm_eval:arc_easy")
    assert 'pip install "loraprobe[lm-eval]"' in str(raised.value)


@needs
def test_no_other_engine_is_asked(folder):
    (task,) = load(folder, "spouse_choice", limit=1)
    with pytest.raises(UsageError, match="need transformers"):
        HarnessTask.ask(FakeScorer({}), task.items)
