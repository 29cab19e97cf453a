"""JSON: an audit and its schema, what of a saved one is wrong, and its report again."""

import json
import re
from pathlib import Path

import jsonschema
import making
import pytest
from audits import HOSTILE, an_audit, changed, rendered
from hypothesis import given
from hypothesis import strategies as st

from loraprobe.errors import UsageError
from loraprobe.records import Command, Verdict
from loraprobe.report.documents import audit_from, json_schema, read_audit


@pytest.mark.parametrize("name", ["a", HOSTILE, "\ufffe ü"])
def test_what_was_written_is_read_again(name):
    audit = an_audit(name)
    read = audit_from(json.loads(audit.to_json()))
    assert read.to_json() == audit.to_json()
    assert rendered(read) == rendered(audit)


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
    (("adapters", 1, "modules"), "many", "adapters[1].modules"),
    (("adapters", 0, "rank"), {"min": 1}, "rank"),
    (("adapters", 0, "norm"), 10**400, "adapters[0].norm"),
    (("evaluation",), {}, "evaluation"),
    (("samples", 0, "replies", 0, "right"), 0, "samples[0].replies[0].right"),
    (("compatibility", "compatible"), False, "compatible"),
    (("provenance",), None, "provenance"),
]


# A schema compares no fields and does not tell 1.0 from 1.
OVER_THE_SCHEMA = [("compatibility", "compatible"), ("adapters", 0, "modules")]
OVER_THE_SCHEMA += [("adapters", 0, "norm"), ("adapters", 0, "rank")]


@pytest.mark.parametrize(("path", "value", "named"), WRONG)
def test_what_is_wrong_is_named(path, value, named):
    document = json.loads(an_audit().to_json())
    changed(document, path, value)
    with pytest.raises(ValueError, match=re.escape(named)):
        audit_from(document)
    if path not in OVER_THE_SCHEMA:
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(document, json_schema())


def test_an_audit_without_what_follows_from_its_next_command_is_read():
    """As earlier versions wrote them."""
    document = json.loads(an_audit().to_json())
    assert "next_in" in document["verdict"]
    del document["verdict"]["next_in"]
    assert audit_from(document).to_json() == an_audit().to_json()


@pytest.mark.parametrize("missing", ["schema_version", "verdict", "samples", "compatibility"])
def test_every_field_has_to_be_there(missing):
    document = json.loads(an_audit().to_json())
    del document[missing]
    with pytest.raises(ValueError, match=missing):
        audit_from(document)


def test_document_satisfies_its_schema_and_holds_no_nan():
    schema = json_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    document = json.loads(an_audit().to_json())
    jsonschema.validate(document, schema)
    assert document["schema_version"] == 2
    assert document["compatibility"]["compatible"] is True
    assert document["diagnostics"][2]["value"] is None


def test_json_on_a_terminal_drives_nothing_and_loses_nothing():
    odd = "ev\x1b[31mil\x9b31m\u202e\u2066\x7f"
    text = an_audit(odd).to_json()
    assert not set(odd) & set("\x1b\x9b\u202e\u2066\x7f") & set(text)
    assert json.loads(text)["adapters"][0]["name"] == odd


@pytest.mark.parametrize(
    "command",
    [
        Command("merge", ("a b", "n=o/x@v"), (("--weights", "-0.5,1"), ("--resume",), ("-o", "D"))),
        Command("merge", ("a",), (("--fields", "prompt=- so: {q}"), ("--seed", "-1"))),
        Command("screen", ("@list.txt", "-"), (("--task", "t's.jsonl"),)),
        Command("python", text="model.set_adapter('a')"),
        Command("python", text="loraprobe 'not closed"),
        Command("shell", text="vllm serve '(base)' --enable-lora"),
        Command(""),
    ],
)
def test_a_command_is_read_as_it_was_written(command):
    assert Command.read(str(command)) == command
    language = "python" if command.in_python else "shell" if command else None
    assert Verdict("likely", "weights", next=Command.read(str(command))).next_in == language


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
    [
        b"",
        b"{",
        b"[]",
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"schema_version": 2}',
        b"1" * 5000,
        b'{"a": 1, "a": 1}',
    ],
)
def test_a_wrong_file_is_one_sentence(tmp_path, content):
    file = tmp_path / "audit.json"
    file.write_bytes(content)
    result = making.call("report", str(file))
    assert result.exit_code == 2 and result.stdout == ""
    assert len(result.stderr.strip().splitlines()) == 1


def test_a_missing_file_is_named():
    with pytest.raises(UsageError, match=r"nowhere\.json"):
        read_audit(Path("nowhere.json"))


def test_the_report_of_a_saved_audit(tmp_path):
    file = tmp_path / "audit.json"
    file.write_text(an_audit().to_json() + "\n", encoding="utf-8")
    result = making.call("report", str(file))
    assert result.exit_code == 0, "the verdict is unlikely, and the report did its job"
    assert an_audit().verdict.decision.upper() in result.stdout
