"""The options of tasks of lm-evaluation-harness, and such a task as a guard that cannot be one."""

import making
import pytest
from repeats import check_repeated

from loraprobe.records import Verdict


def test_the_next_command_confirms_code_again_where_it_asks_tasks():
    evaluated = Verdict("inconclusive", "evaluation", missing="items")
    check_repeated({"run_unsafe_code": True}, evaluated)
    check_repeated(
        {"run_unsafe_code": True}, Verdict("inconclusive", "weights"), ["run_unsafe_code"]
    )


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
