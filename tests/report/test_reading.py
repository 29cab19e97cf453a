"""A saved audit is read strictly, and its report is that of the run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from planting import changed
from test_report import HOSTILE, an_audit, rendered
from typer.testing import CliRunner

from loraprobe.cli import app
from loraprobe.errors import UsageError
from loraprobe.report.documents import audit_from, read_audit
from loraprobe.report.markdown import markdown


@pytest.mark.parametrize("name", ["a", HOSTILE, "\ufffe ü"])
def test_what_was_written_is_read_again(name):
    audit = an_audit(name)
    read = audit_from(json.loads(audit.to_json()))
    assert read.to_json() == audit.to_json()
    assert rendered(read) == rendered(audit)
    assert markdown(read) == markdown(audit)


def test_explained_wrong_answers_are_shown():
    lines = [line.split() for line in rendered(an_audit()).splitlines()]
    title = lines.index("t, item a: Who is a? (right: a or x)".split())
    assert lines[title + 3] == ["uniform", "a", "wrong", "interference"]


WRONG = [
    (("schema_version",), 1, "schema_version"),
    (("command",), 3, "command"),
    (("verdict", "decision"), "perhaps", "verdict.decision"),
    (("verdict", "extra"), 1, "extra"),
    (("evaluation", 0, "ci95"), [0.1], "evaluation[0].ci95"),
    (("evaluation", 0, "n"), 1.5, "evaluation[0].n"),
    (("evaluation", 0, "n"), True, "evaluation[0].n"),
    (("evaluation", 0, "value"), "0.1", "evaluation[0].value"),
    (("adapters", 0, "modules"), 10**400, "adapters[0].modules"),
    (("adapters", 0, "rank"), {"min": 1}, "rank"),
    (("adapters", 0, "norm"), 10**400, "adapters[0].norm"),
    (("gates",), {}, "gates"),
    (("gates", 0, "share"), [], "gates[0].share"),
    (("samples", 0, "replies", 0, "right"), 0, "samples[0].replies[0].right"),
    (("compatibility", "compatible"), False, "compatible"),
    (("provenance",), None, "provenance"),
]


@pytest.mark.parametrize(("path", "value", "named"), WRONG)
def test_what_is_wrong_is_named(path, value, named):
    document = json.loads(an_audit().to_json())
    changed(document, path, value)
    with pytest.raises(ValueError, match=named.replace("[", r"\[").replace("]", r"\]")):
        audit_from(document)


@pytest.mark.parametrize("missing", ["schema_version", "verdict", "samples", "compatibility"])
def test_every_field_has_to_be_there(missing):
    document = json.loads(an_audit().to_json())
    del document[missing]
    with pytest.raises(ValueError, match=missing):
        audit_from(document)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda held: st.lists(held) | st.dictionaries(st.text(), held),
)


@given(JSON, st.sampled_from(sorted(json.loads(an_audit().to_json()))))
def test_any_other_document_is_a_value_error(value, key):
    for document in (value, {**json.loads(an_audit().to_json()), key: value}):
        try:
            audit = audit_from(document)
        except ValueError:
            continue
        assert audit.to_dict() == document


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"\xff\xfe", b"[" * 100_000, b'{"schema_version": 2}', b"1" * 5000],
)
def test_a_wrong_file_is_one_sentence(tmp_path, content):
    file = tmp_path / "audit.json"
    file.write_bytes(content)
    page = tmp_path / "page.html"
    for options in ([], ["--markdown"], ["--html", str(page)]):
        result = CliRunner().invoke(app, ["report", str(file), *options])
        assert result.exit_code == 2 and not page.exists()
        assert result.stdout == "" and len(result.stderr.strip().splitlines()) == 1


def test_a_missing_file_is_named():
    with pytest.raises(UsageError, match=r"nowhere\.json"):
        read_audit(Path("nowhere.json"))


def test_the_report_of_a_saved_audit(tmp_path):
    file, page = tmp_path / "audit.json", tmp_path / "page.html"
    file.write_text(an_audit().to_json() + "\n", encoding="utf-8")
    result = CliRunner().invoke(app, ["report", str(file), "--html", str(page), "--markdown"])
    assert result.exit_code == 0, "the verdict is unlikely, and the report did its job"
    assert result.stdout == markdown(an_audit()) + "\n"
    assert "<!DOCTYPE html>" in page.read_text(encoding="utf-8")
