"""--config: options of every command from a YAML file; the command line wins."""

import json
import random
import re
import time
from typing import Any

import making
import pytest
from mutations import mutated
from test_cli import one_sentence

from loraprobe.cli import COMMANDS
from loraprobe.cli.parameters import Configured, _names
from loraprobe.options import commands, table
from loraprobe.pipeline.outcome import public_arguments
from loraprobe.secrets import public_text


def arguments(shown) -> list[str]:
    assert shown.exit_code == 0, shown.stderr
    return json.loads(shown.stdout)["provenance"]["arguments"]


def yaml(place, text: str) -> str:
    (place / "run.yaml").write_text(text, encoding="utf-8")
    return "run.yaml"


def test_a_file_gives_what_the_command_line_does_not(place):
    file = yaml(
        place,
        "adapters: [one, b=two]\nmethod: task_arithmetic\nweights: [0.5, 0.25]\n"
        "seed: 3\njson: true\nexplain: false\nspace: null\n",
    )
    shown = making.call("merge", "--config", file, "-o", "out")
    words = (
        "merge one b=two --method task_arithmetic --weights 0.5,0.25 --seed 3 --json "
        "--config run.yaml -o out"
    )
    assert arguments(shown) == words.split()
    assert (place / "out" / "adapter_model.safetensors").is_file()
    shown = making.call(
        "merge", "one", "two", "-o", "other", f"--config={file}", "--weights", "1,1"
    )
    words = (
        "merge --method task_arithmetic --seed 3 --json one two -o other --config=run.yaml "
        "--weights 1,1"
    )
    assert arguments(shown) == words.split()
    assert json.loads(shown.stdout)["provenance"]["seed"] == 3


def test_lists_replace_and_do_not_add(place):
    file = yaml(place, "adapters: [one, two]\nallow: [duplicate, base-mismatch]\njson: true\n")
    words = "--allow duplicate --allow base-mismatch --json --config run.yaml"
    assert arguments(making.call("inspect", "--config", file))[3:] == words.split()
    shown = making.call("inspect", "--allow", "base-mismatch", "--config", file)
    assert arguments(shown)[3:6] == ["--json", "--allow", "base-mismatch"]


# What a stranger's file may set: neither does it send, run, write or overwrite anything. A new
# option belongs here, or its declaration says `typed=True`.
HARMLESS = set(
    """adapters base task probe allow balance subtract method router system
    router-prompts weights space rank limit all-items items keep budget max-new-tokens metric
    margin guard guard-margin retention chat-template diagnostic per-module seed device dtype
    quantize device-map batch-size threads resume json explain dry-run quiet exit-zero
    debug scenario ref like keep-energy portable directory sources model file files names
    older expert-layout to base-model port""".split()
)
TYPED = set(
    """output full-model overwrite trust-remote-code
    served server host clear file""".split()
)


def parameters(name: str) -> tuple[Configured, dict[str, Any]]:
    """A command and its parameters, by the names of a file."""
    command = making.command(name)
    own = {*commands()[name].options.split()}
    core = [one for one in command.params if one.name in own or one.name not in table()]
    return command, {n: one for one in core for n in _names(one) if n != "config"}


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_says_whether_a_file_may_set_it(name):
    command, known = parameters(name)
    typed = {n for n, one in known.items() if one.name in command.typed()}
    assert typed <= TYPED and known.keys() - typed <= HARMLESS
    assert not typed & (HARMLESS - {"file"}) and ("file" in typed) == (name == "task new")


def typed_options() -> list[tuple[str, str]]:
    """(command, option) that the command line alone gives."""
    return [
        (name, n)
        for name in COMMANDS
        for command, known in [parameters(name)]
        for n, one in known.items()
        if one.name in command.typed()
    ]


@pytest.mark.parametrize(("name", "option"), typed_options())
def test_no_file_sends_runs_writes_or_overwrites(place, name, option):
    before = sorted(place.rglob("*"))
    for value in ("true", "x/y", "http://127.0.0.1:9"):
        file = yaml(place, f"{option.replace('-', '_')}: {value}\n")
        shown = making.call(*name.split(), "--config", file)
        assert "command line" in one_sentence(shown) and option in shown.stderr
    assert sorted(place.rglob("*")) == sorted([*before, place / "run.yaml"])


INJECTED = {
    "a flag's list": "adapters: [one]\njson: [--trust-remote-code]",
    "the end of options": "adapters: [one, --, two]",
    "a number": "adapters: [one, two]\nmargin: --engine=http://127.0.0.1:9",
    "a value that is missing": "adapters: [one, two]\nmargin: true",
    "another file": "config: other.yaml",
}


@pytest.mark.parametrize("kind", INJECTED)
def test_no_value_of_a_file_becomes_an_option(place, kind):
    (place / "other.yaml").write_text("engine: http://127.0.0.1:9\n")
    shown = making.call("inspect", "--config", yaml(place, INJECTED[kind]))
    assert re.search("config|margin", one_sentence(shown))


BOMBS = {
    "an alias": "method: &a ties\nrouter: *a",
    "a key twice, written otherwise": "max-new-tokens: 1\nmax_new_tokens: 2",
    "nested": "task: " + "[" * 90_000,
    "long": "task: " + "x" * 300_000,
    "a number": "seed: " + "9" * 100_000,
    "sixties": "seed: " + "1:" * 90_000 + "1",
    "no date": "seed: !!timestamp x",
    "no truth": "seed: !!bool x",
    "Python": "seed: !!python/object/apply:os.getcwd []",
    "no text": "seed: \0",
}


@pytest.mark.parametrize("kind", BOMBS)
def test_a_file_of_a_stranger_ends_soon(place, kind):
    begun = time.process_time()
    shown = making.call("inspect", "one", "two", "--config", yaml(place, BOMBS[kind]))
    assert one_sentence(shown) and shown.exit_code == 2
    assert time.process_time() - begun < 10


@pytest.mark.parametrize("where", ["/dev/zero", "."], ids=["device", "directory"])
def test_what_is_no_file_is_an_error_at_once(place, where):
    assert "is no file" in one_sentence(making.call("inspect", "one", "--config", where))


OPTIONS = {
    "adapters": ["one", "two"], "serve": ["vllm"], "fields": {"prompt": "q"}, "allow": ["base"],
    "margin": 0.1, "seed": 1, "quiet": True, "limit": 3, "metric": ["json"], "diagnostic": ["x"],
    "chat-template": "on", "base": "auto", "prior": 0.2, "batch-size": "auto", "task": ["t.jsonl"],
}  # fmt: skip


def test_whatever_a_file_holds_is_one_sentence(place):
    drawn = random.Random(0)
    for _ in range(150):
        some = {key: OPTIONS[key] for key in drawn.sample([*OPTIONS], 3)}
        (place / "run.yaml").write_bytes(mutated(some, drawn))
        shown = making.call("inspect", "--config", "run.yaml")
        assert shown.exit_code in (0, 1, 3) or one_sentence(shown)
        assert "defect" not in shown.stderr, (place / "run.yaml").read_bytes()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("sede: 3", "'sede': did you mean 'seed'?"),
        ("fields: {a: {b: c}}", "fields"),
        ("seed: three", "--seed"),
        ("seed: true", "seed takes a value"),
        ("chat-template: odd", "--chat-template must be one of"),
        ("- a\n- b", "by name"),
        ("a: [", "no YAML"),
        ('{"a": 1', "no YAML"),
    ],
)
def test_a_wrong_file_is_one_sentence(place, content, said):
    shown = making.call("inspect", "one", "--config", yaml(place, content))
    assert said in one_sentence(shown)


def test_a_missing_file_and_json_errors(place):
    assert "cannot be read" in one_sentence(making.call("inspect", "one", "--config", "absent"))
    file = yaml(place, "json: true\nadapters: absent/\n")
    shown = making.call("inspect", "--config", file)
    assert shown.exit_code == 2 and json.loads(shown.stdout)["error"]["code"] == "reference"


@pytest.mark.needs("--fields")
def test_fields_are_a_mapping(place):
    (place / "q.csv").write_text("land,a,b,right\nPeru,Lima,Rome,A\n", encoding="utf-8")
    fields = "fields: {prompt: 'Well, {land}:', choices: [a, b], answer: right}\n"
    shown = making.call(
        "task", "sample", "--config", yaml(place, f"files: q.csv\n{fields}json: true")
    )
    (row,) = json.loads(shown.stdout)["previews"]
    assert (row["prompt"], row["answers"]) == ("Well, Peru:", ["Lima"])


@pytest.mark.parametrize("command", ["methods", "task sample"])
def test_every_command_takes_it(place, command):
    (place / "q.jsonl").write_text('{"prompt": "a", "answer": "b"}\n', encoding="utf-8")
    files = "files: q.jsonl\n" if command == "task sample" else ""
    shown = making.call(*command.split(), "--config", yaml(place, f"{files}json: true"))
    assert shown.exit_code == 0
    start = {"schema_version": 1, "command": command}
    assert list(json.loads(shown.stdout).items())[:2] == list(start.items())


@pytest.mark.needs("--fields")
def test_a_report_keeps_texts_that_only_look_like_paths(place):
    """Folders above the working directory are private and leave a report, those below it stay;
    templates and patterns are no folders."""
    (place / "folder").mkdir()
    (place / "folder" / "q.jsonl").write_text('{"q": "a", "answer": "b"}\n' * 2, encoding="utf-8")
    (place / "base").mkdir()
    given = ["--base", str(place / "base"), "--task", str(place / "folder/q.jsonl")]
    given += ["--fields", "prompt=a/b: {q}"]
    given += ["--guard", "folder/q.jsonl", "--router-prompts", "a=folder/q.jsonl", "@folder/refs"]
    given += ["--output=new/out/merged", "../other/adapter", "--engine", "http://host/v1"]
    words = ["inspect", "one", *given, "--allow", "no-effect", "--json"]
    told = public_arguments(words, lambda text: public_text(text, {"folder/q.jsonl": "q.jsonl"}))
    private = {
        str(place / "base"): "base",
        str(place / "folder/q.jsonl"): "folder/q.jsonl",
        "../other/adapter": "adapter",
        "http://host/v1": "v1",
    }
    assert list(told) == [private.get(word, word) for word in words]
