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
