"""The examples for continuous integration and for notebooks run as they stand."""

import json
import os
import re
import stat
import subprocess
from pathlib import Path
from typing import Any

import making
import pytest
import sessions
import yaml

from loraprobe.demo import shipped_world
from loraprobe.report.documents import read_audit

ROOT = Path(__file__).parents[1]
WORKFLOW = ROOT / "examples" / "ci" / "loraprobe.yml"
MARKS = pytest.mark.slow  # of sessions; the shortest one is asked by each run of the tests


def program(folder: Path, name: str, script: str) -> None:
    """An executable shell script."""
    folder.mkdir(exist_ok=True)
    file = folder / name
    file.write_text(f"#!/bin/sh\n{script}\n")
    file.chmod(file.stat().st_mode | stat.S_IXUSR)


# Keeps the words of a call, and ends as `answer` tells, which calls loraprobe in this process.
LORAPROBE = """printf '%s\\n' "$@" > asked-$1
cat said-$1; exit $(cat code-$1)"""


def answer(place: Path, command: str) -> None:
    """What loraprobe says to the words that the program `loraprobe` was given."""
    ended = making.call(*(place / f"asked-{command}").read_text().splitlines())
    (place / f"said-{command}").write_text(ended.stdout, encoding="utf-8")
    (place / f"code-{command}").write_text(str(ended.exit_code))


class Job:
    """The job of the workflow on this machine: its shell steps, with `gh` and `pip` played."""

    def __init__(self, place: Path, command: str = LORAPROBE, **settings: str) -> None:
        found = yaml.safe_load(WORKFLOW.read_text(encoding="utf-8"))
        self.steps = {step.get("name"): step for step in found["jobs"]["compose"]["steps"]}
        self.place, tools = place, place / "tools"
        program(tools, "loraprobe", command)
        program(tools, "pip", "exit 0")
        # The comments so far are in the file `comments`, an id a line.
        program(tools, "gh", 'case "$*" in *--paginate*) cat comments;; *) echo "$@" > call;; esac')
        self.environment = {
            **os.environ,
            **found["env"],
            **settings,
            "PATH": f"{tools}{os.pathsep}{os.environ['PATH']}",
            "GITHUB_REPOSITORY": "o/n",
            "GITHUB_OUTPUT": str(place / "outputs"),
            "GITHUB_STEP_SUMMARY": str(place / "summary"),
        }

    def outputs(self) -> dict[str, str]:
        lines = (self.place / "outputs").read_text().splitlines()
        return dict(line.split("=", 1) for line in lines)

    def run(self, name: str) -> int:
        """Exit code of a step, run as the runner runs it."""
        step = self.steps[name]
        values = {k: self._filled(v) for k, v in step.get("env", {}).items()}
        ended = subprocess.run(
            ["bash", "-e", "-c", step["run"]],
            cwd=self.place,
            env={**self.environment, **values},
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert "Traceback" not in ended.stderr, ended.stderr
        return ended.returncode

    def _filled(self, value: Any) -> str:
        known = {"steps.judge.outputs.code": lambda: self.outputs()["code"]}
        expression = re.compile(r"\$\{\{ ([\w.]+) \}\}")
        return expression.sub(lambda m: known.get(m[1], lambda: "1")(), str(value))


@pytest.fixture
def questions(tmp_path) -> Path:
    """A few questions of the shipped world in a file of their own."""
    (task,) = shipped_world().scenario("disjoint").tasks
    file = tmp_path / "questions.jsonl"
    lines = task.read_text(encoding="utf-8").splitlines()[:3]
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return file


def test_the_pipeline_gates_and_comments(tmp_path, questions, monkeypatch):
    monkeypatch.chdir(tmp_path)
    world = shipped_world()
    first, second = map(str, world.scenario("disjoint").adapters.values())
    base = str(world.path / "base")
    job = Job(tmp_path, BASE=base, FIRST=first, SECOND=second, QUESTIONS=str(questions))
    assert job.run("Install") == 0
    for command in ("merge-and-eval", "report"):
        job.run("Judge")
        answer(tmp_path, command)
    (tmp_path / "outputs").unlink()
    assert job.run("Judge") == 0
    audit = read_audit(tmp_path / "audit.json")
    code = {"likely": 0, "unlikely": 1, "inconclusive": 3}[audit.verdict.decision]
    assert job.outputs() == {"code": str(code), "report": "yes"}
    report = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert audit.verdict.decision.upper() in report.splitlines()[0]
    assert (tmp_path / "summary").read_text(encoding="utf-8") == report
    assert len((tmp_path / "samples.jsonl").read_text().splitlines()) == 3 * 4
    assert "<svg" in (tmp_path / "report.html").read_text(encoding="utf-8")
    for before, call in {
        "": "POST repos/o/n/issues/1/comments",
        "7\n9\n": "PATCH repos/o/n/issues/comments/7",
    }.items():
        (tmp_path / "comments").write_text(before)
        assert job.run("Comment") == 0
        assert call in (tmp_path / "call").read_text()
    assert (tmp_path / "comment.md").read_text().splitlines()[1:] == report.splitlines()
    assert job.run("Gate") == code


def test_wrong_input_ends_the_pipeline_without_a_report(tmp_path):
    job = Job(tmp_path, command="exit 2")  # as loraprobe ends then, which other tests show
    assert job.run("Judge") == 0
    assert job.outputs() == {"code": "2"}
    assert not (tmp_path / "report.md").exists() and job.run("Gate") == 2


def test_steps_that_need_a_report_ask_for_it():
    found = yaml.safe_load(WORKFLOW.read_text(encoding="utf-8"))
    steps = found["jobs"]["compose"]["steps"]
    after = steps[[step.get("id") for step in steps].index("judge") + 1 : -1]
    assert after and all("steps.judge.outputs.report" in step["if"] for step in after)
    assert "if" not in steps[-1], "the gate always runs"


@pytest.mark.needs("--prior")
@pytest.mark.needs("--serve")
def test_the_notebook_shows_what_its_cells_print_and_saves_what_is_advised(tmp_path, monkeypatch):
    held = json.loads(sessions.NOTEBOOK.read_text(encoding="utf-8"))
    monkeypatch.chdir(tmp_path)
    made, names = sessions.run_notebook()
    audit = names["audit"]
    assert audit.verdict.decision == "likely"
    assert read_audit(tmp_path / "audit.json").verdict == audit.verdict
    assert (tmp_path / "report.html").stat().st_size < 1_000_000
    merged = {row.system: row.kind for row in audit.evaluation.scores}[audit.verdict.system]
    saved = "adapter_config.json" if merged == "merge" else "composition.json"
    assert (tmp_path / "composed" / saved).is_file()
    told, stale = sessions.shown_by(made), "run python tests/sessions.py"
    assert sessions.words(sessions.shown_by(held)) == sessions.words(told), stale


@pytest.mark.needs("--prior")
@pytest.mark.needs("--serve")
@pytest.mark.needs("screen")
@pytest.mark.needs("verify")
@pytest.mark.parametrize("page", sessions.TUTORIALS, ids=lambda page: page.stem)
def test_tutorials_show_what_is_printed(page):
    shown, printed = page.read_text(encoding="utf-8"), sessions.retold(page)
    assert sessions.words(shown) == sessions.words(printed), "run python tests/sessions.py"


BLOCKS = {block: page for page in sessions.PAGES for block in sessions.sessions(page.read_text())}


@pytest.mark.needs("--prior")  # the probability stands in what was printed, as servers do
@pytest.mark.needs("--serve")
@pytest.mark.parametrize(
    "block",
    [
        pytest.param(block, id=block.split("\n")[0], marks=() if "eight" in block else MARKS)
        for block in BLOCKS
    ],
)
def test_sessions_of_the_documentation_show_what_is_printed(block):
    with sessions.world() as here:
        made = sessions.rerun(block, here)
    assert sessions.words(block) == sessions.words(made), "run python tests/sessions.py"
