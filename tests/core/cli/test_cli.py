"""The command line as a user types it: results, errors, exit codes, progress, smaller commands."""

import io
import json
import os
import re
import subprocess
import sys
import time
import tomllib
from dataclasses import fields
from datetime import datetime
from pathlib import Path
from unittest import mock

import making
import pytest

import loraprobe
from loraprobe.adapters import read_adapter
from loraprobe.cli import COMMANDS, command_of, parameters
from loraprobe.cli import running as module
from loraprobe.cli.running import Output, ProgressLine, spoken
from loraprobe.demo import shipped_world
from loraprobe.errors import UsageError
from loraprobe.options import MachineOptions, options_of
from loraprobe.options import read_auto_or_count as auto_or_count


def call(*arguments: object, columns: int = 160, **environment: str) -> object:
    """One call in this process; `result.stdout` and `result.stderr` are apart."""
    given = {"COLUMNS": str(columns), **environment}
    return making.call(*arguments, catch_exceptions=False, env=given)


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
        pytest.param("cache", set(), marks=pytest.mark.needs("cache")),
        pytest.param("env", set(), marks=pytest.mark.needs("env")),
        ("--json-schema", set()),
        pytest.param("task new q.jsonl", set(), marks=pytest.mark.needs("task new")),
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
import loraprobe.report.sections
from loraprobe.base import open_base
from loraprobe.demo import shipped_world

base = open_base(shipped_world().base)
base.weight(next(path for path in base.shapes if "embed" in path))
heavy = {"transformers", "peft", "scipy", "matplotlib"} & set(sys.modules)
assert not heavy, heavy
"""


def test_inspect_merge_and_a_base_import_nothing_heavy_and_the_seconds_add_up(pair):
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
    with mock.patch(where, side_effect=KeyboardInterrupt):
        result = call(*arguments)
    assert result.exit_code == 130 and result.stdout == ""
    assert "--resume" in result.stderr and result.stderr.count("\n") == 1


BUILD = "loraprobe_lab.build.build_world", ("lab", "build", "keep-both", "-o", "x", "--debug")


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
    with mock.patch(where, side_effect=ValueError("the token is hf_secretsecret")):
        result = call(*arguments)
    assert result.exit_code == 2 and result.stdout == ""
    assert "Traceback" in result.stderr and "ValueError" in result.stderr
    assert "hf_secretsecret" not in result.stderr
    assert result.stderr.strip().splitlines()[-1].startswith("error: ")


def test_debug_shows_what_a_sentence_stands_for(tmp_path):
    (tmp_path / "adapter_config.json").write_text("{")
    result = call("inspect", tmp_path, "--debug")
    assert result.exit_code == 2 and "JSONDecodeError" in result.stderr
    assert "JSONDecodeError" not in one_sentence(call("inspect", tmp_path))


@pytest.mark.parametrize(
    ("field", "incomplete", "found"),
    [
        ("methods", "ti", {"ties"}),
        ("methods", "ties:de", {"ties:density="}),
        ("methods", "ties:density=0.3,lam", {"ties:density=0.3,lambda="}),
        ("methods", "tise:de", set()),
        ("routers", "arrow:top", {"arrow:top_k="}),
        ("systems", "cent", {"centroid"}),
        ("systems", "ch", {"chain"}),
        ("systems", "rand", {"random-partner"}),
        ("allow", "base-mis", {"base-mismatch"}),
        ("diagnostics", "intr", {"intruder_dimensions"}),
    ],
)
def test_names_are_completed(field, incomplete, found):
    command = command_of("inspect" if field == "diagnostics" else "merge-and-eval")
    (option,) = (one for one in command.params if one.name == field)
    words = {one.value for one in option.shell_complete(command.context_class(command), incomplete)}
    assert words == found


@pytest.mark.parametrize(
    ("shell", "typed"),
    [
        ("bash", {"COMP_WORDS": "loraprobe demo --scenario ke", "COMP_CWORD": "3"}),
        ("zsh", {"_TYPER_COMPLETE_ARGS": "loraprobe demo --scenario ke"}),
        (
            "fish",
            {
                "_TYPER_COMPLETE_ARGS": "loraprobe demo --scenario ke",
                "_TYPER_COMPLETE_FISH_ACTION": "get-args",
            },
        ),
    ],
)
def test_a_shell_is_given_completions(shell, typed):
    assert set(parameters.scenarios("")) == set(shipped_world().scenarios)
    done = subprocess.run(
        [sys.executable, "-c", "from loraprobe.cli import app; app(prog_name='loraprobe')"],
        capture_output=True,
        text=True,
        env={**os.environ, "_LORAPROBE_COMPLETE": f"complete_{shell}", **typed},
    )
    found = re.findall(r"[a-z]+(?:-[a-z]+)+", done.stdout)
    assert found == ["keep-both"], done.stderr


def test_version():
    assert call("--version").stdout == f"loraprobe {loraprobe.__version__}\n"
    assert "--version  " in call("--help").stdout  # without another name


def test_options_of_the_machine_have_a_default_in_the_environment(pair, tmp_path, monkeypatch):
    run = ["merge", *pair, "-o", tmp_path / "out", "--overwrite"]
    monkeypatch.setenv("LORAPROBE_DEVICE", "abacus")
    shown = call(*run)
    assert shown.exit_code == 2 and "abacus" in shown.stderr
    file = tmp_path / "run.yaml"
    file.write_text("device: sundial\n")
    shown = call(*run, "--config", file)
    assert shown.exit_code == 2 and "sundial" in shown.stderr
    assert call(*run, "--device", "cpu", "--config", file).exit_code == 0
    # --dtype of merge is that of a file, and so no option of the machine.
    monkeypatch.delenv("LORAPROBE_DEVICE")
    monkeypatch.setenv("LORAPROBE_DTYPE", "nonsense")
    assert call(*run).exit_code == 0


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_only_the_machine_is_taken_from_the_environment(command):
    """What a result is about, what runs code and what is written is typed."""
    known = {one.name for one in fields(MachineOptions)} - {"trust_remote_code"}
    taken = known.intersection(options_of(command)) - {*COMMANDS[command].changed}
    given = {one.name: one.envvar for one in making.command(command).params if one.envvar}
    assert given == {name: f"LORAPROBE_{name.upper()}" for name in taken}


def test_the_config_file_stands_for_its_directory_and_a_link_has_its_name(pair, tmp_path):
    (tmp_path / "mine").symlink_to(pair[0])
    assert making.document("inspect", tmp_path / "mine")["adapters"][0]["name"] == "mine"
    named = [f"x={pair[0]}", pair[1]]
    by_file = [f"x={pair[0] / 'adapter_config.json'}", pair[1] / "adapter_config.json"]
    documents = [making.document("inspect", *refs) for refs in (named, by_file)]
    for document in documents:
        document.pop("provenance")
    assert documents[0] == documents[1]


def test_merge_tells_the_norm_of_what_it_made(pair, tmp_path):
    document = making.document("merge", *pair, "-o", tmp_path / "out")
    merged = read_adapter(tmp_path / "out")
    true = sum(float(making.dense(u).square().sum()) for u in merged.modules.values()) ** 0.5
    rows = [row for row in document["diagnostics"] if row["name"] == "norm"]
    told = {row["adapters"][0]: row["value"] for row in rows}
    assert told["uniform"] == pytest.approx(true, rel=1e-5)
    assert f"{true:.4g}" in document["notes"][-1]


def test_a_base_that_the_adapters_name_can_be_given_as_a_directory(pair, monkeypatch):
    monkeypatch.setattr("loraprobe.hub.common_base", lambda adapters: "owner/base")
    result = call("inspect", *pair, "--base", "auto", "--probe", "auto", HF_HUB_OFFLINE="1")
    assert result.exit_code == 2
    assert "owner/base" in result.stderr and "--base DIR" in result.stderr


def test_hf_runs_the_command_as_its_extension(tmp_path, monkeypatch):
    """By huggingface_hub's own loader, from the entry point that pyproject.toml declares."""
    extensions = pytest.importorskip("huggingface_hub.cli.extensions")
    root = Path(loraprobe.__file__).parents[1]
    project = tomllib.loads((root / "pyproject.toml").read_text("utf-8"))["project"]
    module, _, function = project["scripts"]["hf-loraprobe"].partition(":")
    folder = tmp_path / "hf-loraprobe"
    folder.mkdir()
    script = folder / "hf-loraprobe"
    script.write_text(f"#!{sys.executable}\nfrom {module} import {function}\n{function}()\n")
    script.chmod(0o755)
    made = datetime(2026, 1, 1)
    of = ("owner", "hf-loraprobe", "owner/hf-loraprobe", "loraprobe", str(script), "python", made)
    extensions.ExtensionManifest(*of).save(folder)
    monkeypatch.setattr(extensions, "EXTENSIONS_ROOT", tmp_path)
    monkeypatch.setattr(extensions.constants, "HF_HUB_DISABLE_UPDATE_CHECK", True)
    for call, code in ((["--version"], 0), (["inspect", str(tmp_path / "nothing")], 2)):
        assert extensions.dispatch_unknown_top_level_extension(["loraprobe", *call], set()) == code


FILE = "adapter_model.safetensors"
CASES = {  # what the Hub does -> its status or what is wrong with the file, and the sentence
    "GatedRepo": (403, "is gated"),
    "RepoNotFound": (404, "no repository acme/math"),
    "RevisionNotFound": (404, "no revision 'v7'"),
    "": (429, "rate of requests"),
    "cut short": ("truncate", "broke off"),
    "altered": ("flip", "hash"),
    "no weights": (None, "no weights"),
}


@pytest.mark.parametrize("command", ["inspect", "merge", "merge-and-eval"])
@pytest.mark.parametrize("case", CASES)
def test_a_refusal_of_the_hub(hub, tmp_path, caplog, case, command):
    how, wanted = CASES[case]
    if isinstance(how, int):
        reply = (how, {"X-Error-Code": case} if case else {})
        hub.fail["GET /api/"] = hub.fail["HEAD /acme"] = reply
    elif how:
        hub.spoil[FILE] = how
    else:
        del hub.files[FILE]
    making.random_adapter("local", seed=3).save(tmp_path / "local")
    task = tmp_path / "task.jsonl"
    task.write_text('{"id": "1", "prompt": "Who?", "answer": "Bo"}\n')
    rest = () if command == "inspect" else ("-o", tmp_path / "out")
    rest += ("--task", task) if command == "merge-and-eval" else ()
    before = {*tmp_path.iterdir(), tmp_path / "cache"}
    said = one_sentence(call(command, tmp_path / "local", "acme/math@v7", *rest))
    assert not caplog.records, "what the Hub's client has to say is in the sentence"
    assert wanted in said and {*tmp_path.iterdir()} <= before


@pytest.mark.parametrize("text", ["0", "-1", "2.5", "\u00b2", "", "1" + "0" * 400, "9" * 5000])
def test_a_count_is_a_count_or_one_sentence(text):
    with pytest.raises(UsageError, match="takes auto or a positive whole number"):
        auto_or_count(text, "--rank")
    assert auto_or_count("12", "--rank") == 12


@pytest.mark.parametrize(
    ("guard", "more", "said"),
    [
        ("task.jsonl", (), "also given by --task"),
        ("missing.txt", (), "no task file"),
        ("empty.txt", (), "0 characters"),
        ("binary.txt", (), "zero byte"),
        ("words.jsonl", (), "not JSON"),
        ("text.txt", ("--guard-margin", "2"), "between 0.001 and 1"),
        (None, ("--guard-margin", "0.1"), "goes with --guard"),
    ],
)
def test_a_guard_that_cannot_be_one(tmp_path, monkeypatch, guard, more, said):
    monkeypatch.chdir(tmp_path)
    making.random_adapter("local", seed=3).save(tmp_path / "local")
    texts = {"empty.txt": "", "binary.txt": "\0" * 2000, "text.txt": "word " * 400}
    texts |= {"words.jsonl": "only words", "task.jsonl": '{"prompt": "Who?", "answer": "Bo"}\n'}
    for name, content in texts.items():
        (tmp_path / name).write_text(content)
    call_ = ["merge-and-eval", "local", "again=local", "--task", "task.jsonl", "-o", "out", *more]
    before = {*tmp_path.iterdir()}
    assert said in one_sentence(call(*call_, *(("--guard", guard) if guard else ())))
    assert {*tmp_path.iterdir()} == before


class Clock:
    """A clock that a test moves."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize("on_terminal", [True, False])
def test_a_remark_breaks_between_words_on_a_terminal_alone(monkeypatch, on_terminal):
    stream = io.StringIO()
    stream.isatty = lambda: on_terminal
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setenv("TERM", "xterm")
    place = "/a-long-name" * 5
    message = f"Wrote what this command was asked for, a merge of two adapters, to {place}."
    Output().say(message)
    lines = re.sub(r"\x1b\[[0-9;]*m", "", stream.getvalue()).splitlines()
    assert " ".join(line.strip() for line in lines) == message and (len(lines) > 1) == on_terminal


def test_a_line_says_what_is_done_how_far_and_the_time_left():
    clock = Clock()
    line = ProgressLine(clock=clock)
    assert line.text()  # at once, before anything is reported
    line("load", 0, 0)
    assert line.text() == "load the base"
    for stage in ("evaluate base, system 1 of 2", "evaluate sum, system 2 of 2"):
        line(stage, 0, 20)
        assert line.text() == f"{stage}, 0 of 20"  # nothing was measured yet
        clock.now += 5.0
        line(stage, 10, 20)
        assert line.text() == f"{stage}, 10 of 20, about 5 s left"
    line("evaluate more, system 2 of 2", 15, 20)  # measured over all systems
    assert line.text() == "evaluate more, system 2 of 2, 15 of 20, about 2 s left"
    line("merge", 0, 4)
    assert line.text() == "merge, 0 of 4"


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0.2, "1 s"), (89, "89 s"), (90, "2 min"), (5340, "89 min"), (9e3, "2.5 h")],
)
def test_durations_have_the_unit_that_suits_them(seconds, said):
    assert spoken(seconds) == said


def test_a_terminal_shows_names_as_they_stand_and_one_line(monkeypatch):
    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "60")
    with Output().progress() as progress:
        progress("evaluate [/x]\x1b]0;title\x07", 1, 2)
    assert "evaluate [/x]" in terminal.getvalue() and "\x1b]0;" not in terminal.getvalue()


def test_without_a_terminal_a_plain_line_comes_now_and_then(monkeypatch, capsys):
    monkeypatch.setattr(module, "INTERVAL", 0.05)
    said, end = "", time.monotonic() + 60
    with Output().progress() as line:
        for _ in range(1000):
            line("load", 0, 0)
        while not said and time.monotonic() < end:  # a busy machine prints late
            time.sleep(0.01)
            said = capsys.readouterr().err
    lines = (said + capsys.readouterr().err).splitlines()
    assert 1 <= len(lines) < 1000 and set(lines) == {"load the base"}
    time.sleep(0.1)
    assert capsys.readouterr().err == ""  # nothing after the end
    with Output(quiet=True).progress() as progress:
        assert progress is None
