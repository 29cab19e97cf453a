"""The file of --save-samples, and that no form in which a result is written changes it."""

import json

import making
import pytest

from loraprobe.errors import OutputError
from loraprobe.extensions.reports.samples import check, write
from loraprobe.records import QUESTION, Reply, Sample


@pytest.fixture
def samples():
    replies = (
        Reply("base", "", False),
        Reply("m", "x", True, "solved", contains=True),
        Reply("n", "w" * 1000, False, "interference"),
    )
    return [Sample("t", QUESTION, f"{k}", f"{k}?", ("x", "z"), replies) for k in range(12)]


def test_the_file_has_a_question_a_line(samples, tmp_path):
    file = tmp_path / "samples.jsonl"
    write(None, samples, file)
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    assert len(rows) == 12
    assert rows[0]["replies"][1] == {
        "system": "m",
        "text": "x",
        "right": True,
        "cause": "solved",
        "contains": True,
        "cut": False,
    }
    assert len(rows[3]["replies"][2]["text"]) == 1000, "whole texts"
    write(None, samples, file)  # samples of an earlier run are replaced
    assert len(file.read_text(encoding="utf-8").splitlines()) == 12


@pytest.mark.parametrize("content", ["years of work\n", "[]\n", '{"prompt": "x"}\n', "[" * 9999])
def test_nothing_else_is_replaced(content, tmp_path, samples):
    file = tmp_path / "samples.jsonl"
    file.write_text(content)
    for refuse in (lambda: check(file), lambda: write(None, samples, file)):
        with pytest.raises(OutputError):
            refuse()
    assert file.read_text() == content
    with pytest.raises(OutputError):
        check(tmp_path)


def test_other_forms_change_neither_the_verdict_nor_its_next_command(tmp_path):
    few = ["--limit", "2", "--max-new-tokens", "4", "--chat-template", "off", "--system", "sum"]
    call = ["merge-and-eval", *making.shipped("disjoint"), *few]
    files = {"--html": tmp_path / "page.html", "--save-samples": tmp_path / "samples.jsonl"}
    plain = making.answered(*call)
    code, written = making.answered(*call, *(word for pair in files.items() for word in pair))
    assert (code, written["verdict"]) == (plain[0], plain[1]["verdict"])
    assert all(file.is_file() for file in files.values())
    printed = making.call(*call, "--markdown")
    assert printed.exit_code == code and f"`{written['verdict']['next']}`" in printed.stdout
