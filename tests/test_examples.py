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
WORKFLOW, ACTION = ROOT / "examples" / "ci" / "loraprobe.yml", ROOT / "action.yml"
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
    """The action on this machine, used by a workflow with these inputs: its shell steps, with `gh`
    and pip played."""

    def __init__(self, place: Path, command: str = LORAPROBE, **given: str) -> None:
        action = yaml.safe_load(ACTION.read_text(encoding="utf-8"))
        self.steps = {step.get("name"): step for step in action["runs"]["steps"]}
        defaults = {name: one.get("default") for name, one in action["inputs"].items()}
        inputs = {**defaults, **{name.replace("_", "-"): value for name, value in given.items()}}
        self.known = {f"inputs.{name}": value for name, value in inputs.items()}
        self.known |= {"runner.temp": str(place), "github.event.pull_request.number": "1"}
        self.known["github.action_path"] = str(ROOT)
        self.place, tools = place / "loraprobe", place / "tools"
        self.place.mkdir()
        program(tools, "loraprobe", command)
        # python -m pip; what it was asked is kept.
        program(tools, "python", f'echo "$@" > {place}/installed')
        # The comments so far are in the file `comments`, an id a line.
        program(tools, "gh", 'case "$*" in *--paginate*) cat comments;; *) echo "$@" > call;; esac')
        self.environment = {
            **os.environ,
            "PATH": f"{tools}{os.pathsep}{os.environ['PATH']}",
            "GITHUB_REPOSITORY": "o/n",
            "GITHUB_OUTPUT": str(place / "outputs"),
            "GITHUB_STEP_SUMMARY": str(place / "summary"),
        }

    def outputs(self) -> dict[str, str]:
        lines = (self.place.parent / "outputs").read_text().splitlines()
        return dict(line.split("=", 1) for line in lines)

    def run(self, name: str, cwd: Path | None = None) -> int:
        """Exit code of a step, run as the runner runs it."""
        step = self.steps[name]
        assert step["shell"] == "bash"
        values = {k: self._filled(v) for k, v in step.get("env", {}).items()}
        ended = subprocess.run(
            ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", step["run"]],
            cwd=cwd or self.place,
            env={**self.environment, **values},
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert "Traceback" not in ended.stderr, ended.stderr
        return ended.returncode

    def _filled(self, value: Any) -> str:
        known = {**self.known}
        if "steps.judge" in str(value):
            known |= {f"steps.judge.outputs.{name}": one for name, one in self.outputs().items()}
        return re.sub(r"\$\{\{ ([\w.-]+) \}\}", lambda m: known[m[1]], str(value))


@pytest.fixture
def questions(tmp_path) -> Path:
    """A few questions of the shipped world in a file of their own."""
    (task,) = shipped_world().scenario("disjoint").tasks
    file = tmp_path / "questions.jsonl"
    lines = task.read_text(encoding="utf-8").splitlines()[:3]
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return file


@pytest.mark.needs("--html")
def test_the_action_gates_and_comments(tmp_path, questions, monkeypatch):
    world = shipped_world()
    first, second = map(str, world.scenario("disjoint").adapters.values())
    job = Job(
        tmp_path,
        adapters=f"{first}\n{second}\n",
        tasks=str(questions),
        base=str(world.path / "base"),
        options="--margin 0.06",
    )
    made = job.place
    monkeypatch.chdir(made)
    assert job.run("Install") == 0
    assert (tmp_path / "installed").read_text() == f"-m pip install {ROOT}\n"
    for command in ("merge-and-eval", "report"):
        job.run("Judge")
        answer(made, command)
    (tmp_path / "outputs").unlink()
    assert job.run("Judge") == 0
    audit = read_audit(made / "audit.json")
    code = {"likely": 0, "unlikely": 1, "inconclusive": 3}[audit.verdict.decision]
    assert job.outputs() == {"code": str(code), "audit": str(made / "audit.json")}
    assert "--margin" in (made / "asked-merge-and-eval").read_text().splitlines()
    report = (made / "report.md").read_text(encoding="utf-8")
    assert audit.verdict.decision.upper() in report.splitlines()[0]
    assert (tmp_path / "summary").read_text(encoding="utf-8") == report
    assert len((made / "samples.jsonl").read_text().splitlines()) == 3 * 4
    assert "<svg" in (made / "report.html").read_text(encoding="utf-8")
    for before, call in {
        "": "POST repos/o/n/issues/1/comments",
        "7\n9\n": "PATCH repos/o/n/issues/comments/7",
    }.items():
        (made / "comments").write_text(before)
        assert job.run("Comment") == 0
        assert call in (made / "call").read_text()
    assert (made / "comment.md").read_text().splitlines()[1:] == report.splitlines()
    assert job.run("Gate") == code


@pytest.mark.parametrize(
    ("fail_on", "ends"),
    [
        ("inconclusive", {0: 0, 1: 1, 2: 2, 3: 3, 130: 130}),
        ("unlikely", {0: 0, 1: 1, 2: 2, 3: 0, 130: 130}),
        ("never", {0: 0, 1: 0, 2: 2, 3: 0, 130: 130}),
    ],
)
def test_what_fails_the_job_can_be_chosen(tmp_path, fail_on, ends):
    job = Job(tmp_path, fail_on=fail_on)
    for code, end in ends.items():
        (tmp_path / "outputs").write_text(f"code={code}\n")
        assert job.run("Gate") == end


def test_wrong_input_ends_the_action_without_a_report(tmp_path):
    job = Job(tmp_path, command="exit 2", adapters="a b", tasks="t")  # as loraprobe ends then
    assert job.run("Judge") == 0
    assert job.outputs() == {"code": "2"}
    assert not (job.place / "report.md").exists() and job.run("Gate") == 2


def test_a_wrong_fail_on_ends_the_action_before_it_asks(tmp_path):
    job = Job(tmp_path, adapters="a b", tasks="t", fail_on="always")
    assert job.run("Judge") == 2 and not (tmp_path / "outputs").exists()


def test_steps_that_need_a_report_ask_for_it():
    steps = yaml.safe_load(ACTION.read_text(encoding="utf-8"))["runs"]["steps"]
    after = steps[[step.get("id") for step in steps].index("judge") + 1 : -1]
    assert after and all("steps.judge.outputs.audit" in step["if"] for step in after)
    assert "if" not in steps[-1], "the gate always runs"


def test_the_workflow_is_short_and_gives_only_inputs_of_the_action():
    text = WORKFLOW.read_text(encoding="utf-8")
    (job,) = yaml.safe_load(text)["jobs"].values()
    inputs = yaml.safe_load(ACTION.read_text(encoding="utf-8"))["inputs"]
    given = job["steps"][-1]["with"]
    assert len(text.splitlines()) <= 10 and given.keys() <= inputs.keys()
    assert {name for name, one in inputs.items() if one.get("required")} <= given.keys()


@pytest.mark.needs("--html")
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
