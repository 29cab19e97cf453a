"""--config: options of every command from a YAML file; the command line wins."""

import json

import making
import pytest
from test_cli import one_sentence

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
        "adapters: [one, b=two]\noutput: out\nmethod: task_arithmetic\nweights: [0.5, 0.25]\n"
        "seed: 3\njson: true\noverwrite: false\nspace: null\n",
    )
    shown = making.call("merge", "--config", file)
    words = (
        "merge one b=two --output out --method task_arithmetic --weights 0.5,0.25 --seed 3 --json "
        "--config run.yaml"
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
    assert arguments(making.call("inspect", "--config", file))[3:] == [
        "--allow",
        "duplicate",
        "--allow",
        "base-mismatch",
        "--json",
        "--config",
        "run.yaml",
    ]
    shown = making.call("inspect", "--allow", "base-mismatch", "--config", file)
    assert arguments(shown)[3:6] == ["--json", "--allow", "base-mismatch"]


@pytest.mark.parametrize(
    ("command", "words", "options"),
    [
        ("merge-and-eval", ("one", "two"), ("trust-remote-code", "run_unsafe_code")),
        ("merge", ("one", "two", "-o", "out"), ("push", "public")),
    ],
)
def test_no_file_lets_code_run_or_publishes(place, command, words, options):
    for option in options:
        value = "x/y" if option == "push" else "true"
        shown = making.call(command, *words, "--config", yaml(place, f"{option}: {value}"))
        assert "command line" in one_sentence(shown) and shown.exit_code == 2


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("sede: 3", "'sede': did you mean 'seed'?"),
        ("fields: {a: {b: c}}", "fields"),
        ("seed: three", "--seed"),
        ("seed: true", "--seed"),
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


def test_fields_are_a_mapping(place):
    (place / "q.csv").write_text("land,a,b,right\nPeru,Lima,Rome,A\n", encoding="utf-8")
    fields = "fields: {prompt: 'Well, {land}:', choices: [a, b], answer: right}\n"
    shown = making.call(
        "task", "sample", "--config", yaml(place, f"files: q.csv\n{fields}json: true")
    )
    (row,) = json.loads(shown.stdout)["previews"]
    assert (row["prompt"], row["answers"]) == ("Well, Peru:", ["Lima"])


@pytest.mark.parametrize("command", ["methods", "env", "cache", "task check"])
def test_every_command_takes_it(place, command):
    (place / "q.jsonl").write_text('{"prompt": "a", "answer": "b"}\n', encoding="utf-8")
    files = "files: q.jsonl\n" if command == "task check" else ""
    shown = making.call(*command.split(), "--config", yaml(place, f"{files}json: true"))
    assert shown.exit_code == 0
    start = {"schema_version": 1, "command": command}
    assert list(json.loads(shown.stdout).items())[:2] == list(start.items())


def test_a_report_keeps_texts_that_only_look_like_paths(place):
    """Folders are private and leave a report; templates and patterns are no folders."""
    (place / "folder").mkdir()
    (place / "folder" / "q.jsonl").write_text('{"q": "a", "answer": "b"}\n' * 2, encoding="utf-8")
    (place / "base").mkdir()
    given = ["--base", str(place / "base"), "--task", str(place / "folder/q.jsonl")]
    given += ["--fields", "prompt=a/b: {q}"]
    words = ["inspect", "one", *given, "--allow", "no-effect", "--json"]
    told = public_arguments(words, public_text)
    private = {str(place / "base"): "base", str(place / "folder/q.jsonl"): "q.jsonl"}
    assert list(told) == [private.get(word, word) for word in words]
