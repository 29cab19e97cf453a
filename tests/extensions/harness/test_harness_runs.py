"""merge-and-eval and inspect on tasks of lm-evaluation-harness, with the demo's adapters."""

import pytest
from harness_tasks import WORLD, write_tasks

import loraprobe
from loraprobe.extensions.harness.tasks import HarnessTask

pytest.importorskip("lm_eval", reason="needs lm-eval")
ADAPTERS = [WORLD / "adapters/newcomers", WORLD / "adapters/steps"]
ALONE = ("base", "newcomers", "steps")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_tasks(tmp_path_factory.mktemp("tasks"), items=8)


def run(folder, names, command=loraprobe.merge_and_eval, **options):
    tasks = f"lm_eval:{names}@{folder}"
    return command(ADAPTERS, base=WORLD / "base", tasks=tasks, run_unsafe_code=True, **options)


def means(audit, task):
    return {row.system: row.value for row in audit.evaluation.scores if row.task == task}


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


def test_a_task_of_the_harness_is_a_guard(folder, tmp_path):
    options = {"systems": ("uniform",), "state": tmp_path}
    audit = run(folder, "spouse_written", guards=[f"lm_eval:both_choices@{folder}"], **options)
    (row,) = [row for row in audit.evaluation.guards if row.system == "uniform"]
    alone = run(folder, "both_choices", **options)
    choices = means(alone, "both_choices")
    assert row.difference == pytest.approx(choices["uniform"] - choices["base"])
    assert (row.task, row.n, row.metric) == ("both_choices", 16, "lm_eval:acc")


def test_a_loss_gains_where_it_falls(folder, tmp_path):
    audit = run(folder, "facts_text", margin=0.1, systems=("sum",), state=tmp_path)
    (gain,) = [row for row in audit.evaluation.gains if row.system == "sum"]
    losses = means(audit, "facts_text")
    lowest = min(losses[name] for name in ALONE)
    assert gain.difference == pytest.approx(lowest - losses["sum"])
    assert {row.metric for row in audit.evaluation.scores} == {"answer_loss"}


def test_inspect_asks_a_sample(folder, tmp_path):
    audit = run(folder, "spouse_choice", loraprobe.inspect, limit=5, state=tmp_path)
    assert audit.verdict.evidence == "pilot"
    assert {row.n for row in audit.evaluation.scores} == {5}
    assert "--run-unsafe-code" in audit.verdict.next.words  # else it would be refused
