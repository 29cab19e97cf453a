"""Logs as lm-evaluation-harness writes them, read by its own functions and types."""

import dataclasses
import json
from pathlib import Path

import making
import pytest
from audits import an_audit

from loraprobe.errors import OutputError
from loraprobe.extensions.harness.logs import write_logs
from loraprobe.records import TaskSummary

lm_eval = pytest.importorskip("lm_eval")


@pytest.fixture(scope="module")
def logged(tmp_path_factory):
    """A run of the shipped world that wrote logs: its document, samples and the logs' folder."""
    making.skip_without("--save-samples")
    place = tmp_path_factory.mktemp("logs")
    call = ["merge-and-eval", *making.shipped("disjoint"), "--limit", "12", "--system", "uniform"]
    files = ["--save-samples", place / "samples.jsonl", "--log-to", place / "logs"]
    result = making.call(*call, *files, "--json", "--quiet")
    assert result.exit_code in (0, 1, 3), result.stderr
    return json.loads(result.stdout), rows_of(place / "samples.jsonl"), place / "logs"


def rows_of(file: Path) -> list[dict]:
    return [json.loads(line) for line in file.read_text("utf-8").splitlines()]


def log_of(logs: Path, system: str) -> tuple[dict, dict[str, list[dict]]]:
    """The results of a system and its samples by task, found as the harness finds them."""
    from lm_eval import utils

    names = [str(file) for file in (logs / utils.sanitize_model_name(system)).iterdir()]
    (results,) = utils.get_results_filenames(names)
    samples = {
        utils.get_file_task_name(Path(name).name): rows_of(Path(name))
        for name in utils.get_sample_results_filenames(names)
    }
    return json.loads(Path(results).read_text("utf-8")), samples


def test_every_score_is_in_the_results_of_its_system(logged):
    from lm_eval.result_schema import EvalResults
    from lm_eval.utils import make_table

    document, _, logs = logged
    assert len({score["part"] for score in document["evaluation"]}) == 4
    assert "--log-to" not in json.dumps(document["verdict"]["next"]), "it decides nothing"
    for score in document["evaluation"]:
        results, _ = log_of(logs, score["system"])
        assert results.keys() <= EvalResults.__annotations__.keys()
        task = score["task"] + ("" if score["part"] == "question" else f"_{score['part']}")
        row = results["results"][task]
        assert row[f"{score['metric']},none"] == score["value"] and row["sample_len"] == score["n"]
        half = (score["ci95"][1] - score["ci95"][0]) / 2
        assert row[f"{score['metric']}_stderr,none"] * 1.96 == pytest.approx(half, rel=1e-4)
        assert make_table(results).count("exact_match") == len(results["results"])


def test_every_reply_is_a_sample(logged):
    document, samples, logs = logged
    for system in {score["system"] for score in document["evaluation"]}:
        _, logged_samples = log_of(logs, system)
        told = {
            (task, row["doc"]["id"]): (row["filtered_resps"][0], row["exact_match"])
            for task, rows in logged_samples.items()
            for row in rows
        }
        wanted = {
            (row["task"] + ("" if row["part"] == "question" else f"_{row['part']}"), row["item"]): (
                reply["text"],
                float(reply["right"]),
            )
            for row in samples
            for reply in row["replies"]
            if reply["system"] == system
        }
        assert told == wanted and wanted


def test_a_second_run_keeps_the_first_and_a_file_is_refused(tmp_path):
    audit = an_audit()
    task = TaskSummary(audit.evaluation.scores[0].task, "t.jsonl", None, "0" * 64, 10)
    ran = dataclasses.replace(audit.provenance, tasks=(task,))
    audit = dataclasses.replace(audit, provenance=ran)
    for _ in range(2):
        write_logs(audit, (), tmp_path / "logs")
    systems = {score.system for score in audit.evaluation.scores}
    assert len(list((tmp_path / "logs").rglob("results_*.json"))) == 2 * len(systems)
    (tmp_path / "file").write_text("mine")
    result = making.call("demo", "--log-to", tmp_path / "file")
    assert result.exit_code == 2 and (tmp_path / "file").read_text() == "mine"


def test_nothing_is_written_through_the_folder_of_a_system(tmp_path):
    audit = an_audit()
    (tmp_path / "logs").mkdir()
    (tmp_path / "mine").mkdir()
    system = audit.evaluation.scores[0].system
    (tmp_path / "logs" / system).symlink_to(tmp_path / "mine")
    with pytest.raises(OutputError, match="link"):
        write_logs(audit, (), tmp_path / "logs")
    assert not list((tmp_path / "mine").iterdir())


def test_no_log_is_written_into_what_is_read(tmp_path):
    making.saved_pair(tmp_path)
    before = {*tmp_path.rglob("*")}
    pair = ["merge-and-eval", tmp_path / "a", tmp_path / "b", "--task", tmp_path / "t.jsonl"]
    ended = making.call(*pair, "--log-to", tmp_path / "a" / "logs")
    assert ended.exit_code == 2 and "which is read" in ended.stderr
    assert {*tmp_path.rglob("*")} == before
