"""`loraprobe screen` without a task, as a user types it: what it says, and what ends it."""

import json
import shutil
from pathlib import Path

import jsonschema
import making
import pytest
from hubs import adapter_files

import loraprobe
from loraprobe.errors import UsageError
from loraprobe.report.documents import json_schema

SHAPES = {"model.layers.0.self_attn.q_proj": (16, 16)}


def call(*arguments: object, columns: int = 80, stdin: str | bytes | None = None):
    return making.call(*arguments, env={"COLUMNS": str(columns)}, input=stdin)


@pytest.fixture
def library(tmp_path) -> Path:
    """A file that names four adapters: two that can be used, a copy, and one that is not there."""
    a, b = making.saved_pair(tmp_path, SHAPES)
    shutil.copytree(a, tmp_path / "copy")
    file = tmp_path / "library.txt"
    file.write_text(f"# mine\n\n{a}  # the first\n\tmine={b}\n{tmp_path / 'copy'}\n./gone\n")
    return file


def test_a_file_of_references_is_described(library):
    shown = call("screen", f"@{library}")
    assert shown.exit_code == 0, shown.output
    answer = shown.stdout.rpartition("\n\n")[2]
    assert answer.startswith("LIBRARY: 2 of 4 adapters")
    used = shown.stdout.partition("Can be used")[2].partition("\n\n")[0].splitlines()
    assert [line.split()[0] for line in used[1:]] == ["adapter", "a", "mine"]
    assert "copy = a" in answer and "gone" in shown.stdout
    assert f"loraprobe screen @{library}" in " ".join(answer.split()).replace(" \\ ", " ")


@pytest.mark.parametrize("columns", [60, 80])
def test_the_answer_of_a_large_library_is_short(library, columns):
    more = [f"./a-name-that-is-rather-long-for-an-adapter-{n}" for n in range(30)]
    shown = call("screen", f"@{library}", *more, columns=columns)
    lines = shown.stdout.splitlines()
    answer = lines[max(i for i, line in enumerate(lines) if not line) + 1 :]
    assert answer[0].startswith("LIBRARY") and len(lines) <= 60
    assert max(len(line) for line in lines if str(library) not in line) <= columns
    assert len(call("screen", f"@{library}", *more, "--explain").stdout) > len(shown.stdout)


def test_the_document_satisfies_its_schema_and_is_reported_again(library, tmp_path):
    shown = call("screen", f"@{library}", "--json")
    document = json.loads(shown.stdout)
    jsonschema.validate(document, json_schema())
    assert document["shortlist"] == [] and document["verdict"] is None
    states = [row["state"] for row in document["library"]["adapters"]]
    assert states == ["usable", "usable", "duplicate", "broken"]
    assert document["provenance"]["arguments"][1] == "@library.txt"
    assert str(tmp_path) not in shown.stdout
    saved = tmp_path / "audit.json"
    saved.write_text(shown.stdout)
    again, first = call("report", saved), call("screen", f"@{library}")
    assert again.exit_code == 0
    told = [shown.stdout.partition("  next ")[0].splitlines() for shown in (again, first)]
    same = [[line for line in lines if " s, cpu, " not in line] for lines in told]
    assert same[0] == same[1] and any(line.startswith("LIBRARY") for line in same[0])


def test_quiet_is_one_line(library):
    assert call("screen", f"@{library}", "-q").stdout == "2 of 4 usable\n"


@pytest.mark.parametrize("content", ["", "\n# nothing\n  \n", b"\xff\xfe\xff"])
def test_a_file_or_pipe_without_references_is_named(tmp_path, content):
    file = tmp_path / "list.txt"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    for given, named in ((f"@{file}", "list.txt"), ("-", "tandard input")):
        shown = call("screen", given, stdin=content)
        assert shown.exit_code == 2 and named in shown.stderr and not shown.stdout


@pytest.mark.needs("--html")
def test_a_page_and_markdown_of_a_library_hold_no_path(library, tmp_path):
    shown = call("screen", f"@{library}", "--markdown", "--html", tmp_path / "page.html")
    assert "LIBRARY" in shown.stdout and str(tmp_path) not in shown.stdout
    page = (tmp_path / "page.html").read_text()
    assert "<table" in page and str(tmp_path) not in page


@pytest.mark.needs("--html")
def test_an_output_never_lands_on_an_adapter(library, tmp_path):
    shown = call("screen", f"@{library}", "--html", tmp_path / "a" / "adapter_config.json")
    assert shown.exit_code == 2
    assert json.loads((tmp_path / "a" / "adapter_config.json").read_text())["peft_type"] == "LORA"


def test_a_base_decides_what_fits(library, tmp_path):
    home = tmp_path / "base"
    making.tiny_llama().save_pretrained(home)
    shown = call("screen", f"@{library}", "--base", home, "--json")
    states = [row["state"] for row in json.loads(shown.stdout)["library"]["adapters"]]
    assert states == ["usable", "usable", "duplicate", "broken"]
    told = " ".join(call("screen", f"@{library}", "--base", home).stdout.replace("\\", "").split())
    assert f"--base {home} --task" in told  # in the next command
    making.tiny_gpt2().save_pretrained(tmp_path / "other")
    shown = call("screen", f"@{library}", "--base", tmp_path / "other", "--json")
    rows = json.loads(shown.stdout)["library"]["adapters"]
    assert [row["state"] for row in rows] == ["unfit", "unfit", "unfit", "broken"]
    assert rows[0]["issues"][0]["code"] == "module-not-in-base" and shown.exit_code == 1


def test_an_adapter_of_which_a_card_guesses_a_parent_can_be_used(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    making.saved_pair(tmp_path, SHAPES)
    (tmp_path / "b" / "README.md").write_text("This is a fine-tuned version of [./a](x) on y.")
    rows = json.loads(call("screen", "a", "b", "--json").stdout)["library"]["adapters"]
    assert [row["state"] for row in rows] == ["usable"] * 2


def test_what_the_hub_lists_is_screened_through_a_pipe(hub, tmp_path):
    hub.files = adapter_files(tmp_path / "adapter")
    hub.fail = {"GET /api/models/owner/gone": (404, {"X-Error-Code": "RepoNotFound"})}
    shown = call("screen", "-", "--json", stdin="owner/one\nowner/two\nowner/gone\n")
    assert shown.exit_code == 0, shown.output
    rows = json.loads(shown.stdout)["library"]["adapters"]
    assert [row["name"] for row in rows] == ["one", "two", "gone"]
    assert [row["state"] for row in rows] == ["usable", "duplicate", "broken"]
    assert rows[0]["reference"] == "owner/one" and rows[0]["commit"] == hub.commit
    assert rows[2]["issues"][0]["code"] == "hub" and rows[2]["issues"][0]["cure"]


def test_python_reads_the_same_references(library):
    audit = loraprobe.screen([f"@{library}"])
    assert [row.state for row in audit.library.adapters][:3] == ["usable", "usable", "duplicate"]
    assert str(audit).startswith("LIBRARY: 2 of 4")
    assert loraprobe.screen(f"@{library}").library == audit.library
    with pytest.raises(UsageError):
        loraprobe.screen([])
    with pytest.raises(UsageError):
        loraprobe.screen("-")


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        ("- --budget 0", "usage", "at least 0.001"),  # before the pipe is read
        ("@no.txt", "usage", "no.txt"),
        ("out", "adapter", "directory"),
        ("out also", "adapter", "2 adapters"),
        ("a --budget 5", "usage", "--task"),
        ("a --budget 0", "usage", "at least 0.001"),
    ],
)
def test_a_wrong_call_is_one_sentence(words, code, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    making.saved_pair(tmp_path)
    done = making.call("screen", *words.split(), "--json")
    assert done.exit_code == 2
    error = json.loads(done.stdout)["error"]
    assert error["code"] == code and said in error["message"] and error["cure"]
