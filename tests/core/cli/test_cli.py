"""The command line as a user types it: results, errors, exit codes, nothing half-written."""

import json
import subprocess
import sys
import time

import making
import pytest


def call(*arguments: object) -> object:
    """One call in this process; `result.stdout` and `result.stderr` are apart."""
    return making.call(*arguments, catch_exceptions=False, env={"COLUMNS": "160"})


def one_sentence(result) -> str:
    """The error of a failed call: exit 2, nothing on standard output, one line beside it."""
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: "), result.stderr
    assert "Traceback" not in result.stderr
    return lines[0]


def imported(*arguments: str) -> set[str]:
    """The modules that a command line in a process of its own has imported when it ends."""
    code = (
        "import contextlib, sys\nfrom loraprobe.__main__ import main\n"
        "with contextlib.suppress(SystemExit):\n    main()\n"
        "print(*sys.modules, file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True
    )
    assert done.stdout
    return set(done.stderr.split())


HEAVY = set("torch transformers peft scipy numpy jinja2".split())


@pytest.mark.parametrize(
    "arguments, others",
    [
        ("--help", {"loraprobe.records"}),
        ("--version", {"loraprobe.records", "rich.console", "pydantic"}),
        ("merge --help", {"loraprobe.records", "loraprobe.cli.measuring", "loraprobe.cli.task"}),
        ("methods", {"loraprobe.records"}),
        ("cache", set()),
        ("env", set()),
        ("--json-schema", set()),
        ("task new questions.jsonl", set()),
    ],
)
def test_what_needs_no_model_imports_nothing_heavy(place, arguments, others):
    assert not (HEAVY | others) & imported(*arguments.split())


LIGHT = """
import contextlib, gc, sys, time
start = time.perf_counter()
import loraprobe
from loraprobe.__main__ import main

with contextlib.suppress(SystemExit):
    main()
print(time.perf_counter() - start, file=sys.stderr)
assert gc.isenabled() and gc.get_freeze_count()
loraprobe.merge(sys.argv[2:4])
asking = {"loraprobe.scoring", "loraprobe.evaluation"} & set(sys.modules)
assert not asking, asking
import loraprobe.report.page, loraprobe.report.sections
from loraprobe.base import open_base
from loraprobe.demo import shipped_world

base = open_base(shipped_world().base)
base.weight(next(path for path in base.shapes if "embed" in path))
heavy = {"transformers", "peft", "scipy", "matplotlib"} & set(sys.modules)
assert not heavy, heavy
"""


def test_inspect_merge_pages_and_a_base_import_nothing_heavy_and_the_seconds_add_up(pair):
    """In one process of its own, which torch's import makes expensive."""
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", LIGHT, "inspect", *map(str, pair), "--json"],
        capture_output=True,
        text=True,
    )
    wall = time.perf_counter() - start
    assert done.returncode == 0, done.stderr
    seconds = json.loads(done.stdout)["provenance"]["seconds"]
    assert 0.5 * float(done.stderr.splitlines()[-1]) < sum(seconds.values()) <= wall
    assert seconds["other"] == max(seconds.values())  # the start-up: torch is imported


def test_inspect_json_is_one_document_that_satisfies_the_schema(pair):
    document = making.document("inspect", f"first={pair[0]}", pair[1])
    assert [a["name"] for a in document["adapters"]] == ["first", "b"]
    wanted = (
        "norm norm_ratio stable_rank dead_rank cosine sign_conflict subspace_overlap energy_ratio "
        "cross_terms truncation_error"
    )
    assert {row["name"] for row in document["diagnostics"]} >= set(wanted.split())
    assert all(row["module"] is None for row in document["diagnostics"])
    assert document["verdict"]["evidence"] == "weights" and document["verdict"]["next"]
    document = making.document("inspect", *pair, "--per-module")
    assert set(making.LLAMA) < {row["module"] for row in document["diagnostics"]}


def test_quiet_says_one_line_and_nothing_else(pair, tmp_path):
    result = call("inspect", *pair, "--quiet")
    assert (result.stdout, result.stderr) == ("compatible\n", "")
    result = call("merge", *pair, "-o", tmp_path / "out", "-q")
    assert result.stdout.count("\n") == 1 and result.stderr == ""
    assert str(tmp_path / "out") in result.stdout and "rank 8" in result.stdout


def test_methods_explains_what_is_named():
    text = call("methods", "ties:density=0.3", "full").stdout
    assert "arrow" not in text
    assert "variant: peft or mergekit" in text and "[out, in]" in text
    rows = making.document("methods", "ties")["methods"]
    assert [row["name"] for row in rows] == ["ties"]
    assert rows[0]["choices"]["variant"] == ["peft", "mergekit"]
    rows = making.document("methods", "SD-LoRA")["methods"]
    assert [row["name"] for row in rows] == ["sd_lora"]


def test_methods_is_a_whole_line_an_entry_in_a_pipe():
    lines = making.call("methods", env={"COLUMNS": "40"}).stdout.splitlines()
    rows = making.document("methods")["methods"]
    assert len(lines) <= len(rows) + len({row["kind"] for row in rows}) + 2
    assert {f" {row['name']:22}{row['summary']}" for row in rows} <= set(lines)
    assert {row["name"] for row in rows} <= {line.split()[0] for line in lines if line}


TASK_FILES = "loraprobe.pipeline.task_files.load_task"


@pytest.mark.parametrize(
    ("arguments", "where"),
    [
        (["merge-and-eval", "a", "b", "--task", "t"], TASK_FILES),
        (["lab", "build", "keep-both", "-o", "c"], "loraprobe_lab.build.build_worlds"),
    ],
)
def test_an_interruption_names_what_goes_on(monkeypatch, tmp_path, arguments, where):
    monkeypatch.chdir(tmp_path)
    failing(monkeypatch, KeyboardInterrupt(), where)
    result = call(*arguments)
    assert result.exit_code == 130 and result.stdout == ""
    assert "--resume" in result.stderr and result.stderr.count("\n") == 1


BUILD = "loraprobe_lab.build.build_world", ("lab", "build", "keep-both", "-o", "x", "--debug")


def failing(monkeypatch, error: BaseException, where: str = "loraprobe.hub.load_all") -> None:
    """Every call of the function `where` ends in this error."""

    def load(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(where, load)


@pytest.mark.parametrize(
    ("where", "arguments"),
    [
        ("loraprobe.hub.load_all", ("--debug", "inspect", "x")),
        ("loraprobe.hub.load_all", ("inspect", "x", "--debug")),
        BUILD,
    ],
)
def test_debug_shows_the_traceback_without_secrets(monkeypatch, where, arguments):
    monkeypatch.setenv("HF_TOKEN", "hf_secretsecret")
    failing(monkeypatch, ValueError("the token is hf_secretsecret"), where)
    result = call(*arguments)
    assert result.exit_code == 2 and result.stdout == ""
    assert "Traceback" in result.stderr and "in load" in result.stderr
    assert "hf_secretsecret" not in result.stderr
    assert result.stderr.strip().splitlines()[-1].startswith("error: ")


def test_debug_shows_what_a_sentence_stands_for(tmp_path):
    (tmp_path / "adapter_config.json").write_text("{")
    result = call("inspect", tmp_path, "--debug")
    assert result.exit_code == 2 and "JSONDecodeError" in result.stderr
    assert "JSONDecodeError" not in one_sentence(call("inspect", tmp_path))
