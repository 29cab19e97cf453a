"""Tasks of lm-evaluation-harness: metrics, groups, limits, refusals, and runs that ask them."""

import dataclasses
import importlib.util
import sys

import making
import pytest
from fake_scorer import FakeScorer
from harness_tasks import WORLD, write_tasks

import loraprobe
from loraprobe.errors import LoraprobeError, TaskError, UsageError
from loraprobe.evaluation.asking import item_result
from loraprobe.extensions.harness.tasks import HarnessTask, load_harness
from loraprobe.options import Options
from loraprobe.pipeline.task_files import open_tasks
from loraprobe.records import ItemResult

needs = pytest.mark.skipif(importlib.util.find_spec("lm_eval") is None, reason="needs lm-eval")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_tasks(tmp_path_factory.mktemp("tasks"), items=8)


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


@pytest.mark.parametrize("line", ["run-unsafe-code: true", "log-to: logs"])
def test_no_file_of_options_lets_code_run_or_writes(tmp_path, line):
    (tmp_path / "run.yaml").write_text(line)
    done = making.call("merge-and-eval", "a", "b", "--config", tmp_path / "run.yaml")
    assert done.exit_code == 2 and f"--{line.partition(':')[0]}" in done.stderr


def test_a_guard_of_an_unknown_name_is_refused_before_anything_is_written(tmp_path, monkeypatch):
    manager = pytest.importorskip("lm_eval.tasks.manager", reason="needs lm-eval")
    monkeypatch.chdir(tmp_path)
    # Where lm-eval lists its own tasks, which takes some seconds: here are none.
    monkeypatch.setattr(manager, "__file__", str(tmp_path / "tasks" / "manager.py"))
    making.random_adapter("local", seed=3).save(tmp_path / "local")
    (tmp_path / "task.jsonl").write_text('{"prompt": "Who?", "answer": "Bo"}\n')
    before = {*tmp_path.iterdir()}
    given = ["--task", "task.jsonl", "--guard", "lm_eval:no_such_task", "-o", "out"]
    done = making.call("merge-and-eval", "local", "again=local", *given)
    assert done.exit_code == 2 and "no_such_task" in done.stderr
    assert {*tmp_path.iterdir()} == before


@pytest.mark.parametrize(
    "text",
    [
        "{{{{ cycler.__init__.__globals__.os.mkdir('{marker}') }}}}",
        "{{% for a in range(100000) %}}{{% for b in range(100000) %}}{{% endfor %}}{{% endfor %}}",
    ],
    ids=["code", "loop"],
)
def test_the_yaml_of_a_stranger_does_not_run(tmp_path, text):
    folder = tmp_path / "t"
    folder.mkdir()
    (tmp_path / "d.jsonl").write_text('{"prompt": "p", "answer": "a"}\n')
    (folder / "t.yaml").write_text(
        "task: t\ndataset_path: json\n"
        f"dataset_kwargs: {{data_files: {{test: {tmp_path}/d.jsonl}}}}\n"
        "test_split: test\noutput_type: generate_until\n"
        f'doc_to_text: "{text.format(marker=tmp_path / "ran")}"\ndoc_to_target: "{{{{answer}}}}"\n'
    )
    done = making.call("task", "check", f"lm_eval:t@{folder}")
    assert done.exit_code == 2 and "--run-unsafe-code" in done.stderr
    assert not (tmp_path / "ran").exists()


PAIR = [WORLD / "adapters/newcomers", WORLD / "adapters/steps"]
ALONE = ("base", "newcomers", "steps")


def run(folder, names, command=loraprobe.merge_and_eval, **options):
    tasks = f"lm_eval:{names}@{folder}"
    return command(PAIR, base=WORLD / "base", tasks=tasks, run_unsafe_code=True, **options)


def means(audit, task):
    return {row.system: row.value for row in audit.evaluation.scores if row.task == task}


@needs
def test_several_tasks_are_scored_compared_and_resumed(folder, tmp_path, monkeypatch):
    options = {"systems": ("uniform",), "state": tmp_path, "resume": True}
    audit = run(folder, "both_choices,spouse_written", **options)
    rows = {(row.task, row.metric, row.n) for row in audit.evaluation.scores}
    assert rows == {
        ("both_choices", "lm_eval:acc", 16),
        ("spouse_written", "lm_eval:exact_match", 8),
    }
    choices = means(audit, "both_choices")
    controls = {"shrunk:newcomers", "random-partner"}
    assert set(choices) == {*ALONE, "uniform", *controls} and choices["newcomers"] == 1.0
    assert {row.against for row in audit.evaluation.comparisons} >= {*ALONE, *controls}
    assert audit.evaluation.gains and audit.verdict.decision != "likely"
    assert any("exact_match of filter whole" in note for note in audit.notes)
    guess = {row.task: row.value for row in audit.evaluation.coverage if row.name == "guessing"}
    assert guess == {"both_choices": 0.25}

    monkeypatch.setattr(HarnessTask, "ask", lambda *_: pytest.fail("asked again"))
    again = run(folder, "both_choices,spouse_written", **options)
    assert again.evaluation.scores == audit.evaluation.scores


@needs
def test_a_task_of_the_harness_is_a_guard(folder, tmp_path):
    options = {"systems": ("uniform",), "state": tmp_path}
    audit = run(folder, "spouse_written", guards=[f"lm_eval:both_choices@{folder}"], **options)
    (row,) = [row for row in audit.evaluation.guards if row.system == "uniform"]
    alone = run(folder, "both_choices", **options)
    choices = means(alone, "both_choices")
    assert row.difference == pytest.approx(choices["uniform"] - choices["base"])
    assert (row.task, row.n, row.metric) == ("both_choices", 16, "lm_eval:acc")


@needs
def test_a_loss_gains_where_it_falls(folder, tmp_path):
    audit = run(folder, "facts_text", margin=0.1, systems=("sum",), state=tmp_path)
    (gain,) = [row for row in audit.evaluation.gains if row.system == "sum"]
    losses = means(audit, "facts_text")
    lowest = min(losses[name] for name in ALONE)
    assert gain.difference == pytest.approx(lowest - losses["sum"])
    assert {row.metric for row in audit.evaluation.scores} == {"answer_loss"}


@needs
def test_inspect_asks_a_sample(folder, tmp_path):
    audit = run(folder, "spouse_choice", loraprobe.inspect, limit=5, state=tmp_path)
    assert audit.verdict.evidence == "pilot"
    assert {row.n for row in audit.evaluation.scores} == {5}
    assert "--run-unsafe-code" in audit.verdict.next.words  # else it would be refused
