"""The Hub's refusals on the command line: one sentence, exit 2, nothing written."""

import making
import pytest
from test_cli import call, one_sentence

from loraprobe.errors import UsageError
from loraprobe.options import read_auto_or_count as auto_or_count

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
    (tmp_path / "task.jsonl").write_text('{"prompt": "Who?", "answer": "Bo"}\n')
    for name, content in {
        "empty.txt": "",
        "binary.txt": "\0" * 2000,
        "text.txt": "word " * 400,
    }.items():
        (tmp_path / name).write_text(content)
    (tmp_path / "words.jsonl").write_text("only words")
    call_ = ["merge-and-eval", "local", "again=local", "--task", "task.jsonl", "-o", "out", *more]
    before = {*tmp_path.iterdir()}
    assert said in one_sentence(call(*call_, *(("--guard", guard) if guard else ())))
    assert {*tmp_path.iterdir()} == before
