"""`find`: what the Hub lists for a base model, ready to pipe."""

import json

import pytest
from making import call


def row(name: str, base: str, *tags: str, **more: object) -> dict:
    tagged = {"id": name, "tags": ["peft", f"base_model:adapter:{base}", *tags], "private": False}
    counted = {"downloads": 1234, "likes": 5, "lastModified": "2026-01-02T03:04:05.000Z"}
    return tagged | counted | more


@pytest.fixture(autouse=True)
def listed(hub):
    hub.listed = [
        row("owner/one", "meta/base", "license:mit"),
        row("owner/two", "meta/base", downloads=7, likes=None),
        row("owner/other", "meta/other"),
        row("owner/whole", "meta/base", tags=["base_model:finetune:meta/base"]),
    ]


def test_one_reference_a_line_into_a_pipe(hub):
    for form in ([], ["--quiet"]):
        result = call("find", "meta/base", *form)
        assert result.exit_code == 0, result.output
        assert result.stdout == "owner/one\nowner/two\n"
    asked = [r for r in hub.requests if "/api/models?" in r]
    assert "sort=downloads" in asked[0] and "limit=30" in asked[0]


def test_json(hub):
    document = json.loads(call("find", "meta/base", "--json", "--limit", "5").stdout)
    assert document["command"] == "find" and document["base"] == "meta/base"
    listed = {"reference": "owner/one", "base": "meta/base", "license": "mit"}
    listed |= {"downloads": 1234, "likes": 5, "updated": "2026-01-02"}
    assert document["adapters"][0] == listed


def test_refusals_are_one_sentence(hub, tmp_path):
    for base in (str(tmp_path), "a b", ""):
        result = call("find", base)
        assert result.exit_code == 2 and result.stderr.count("\n") == 1 and not result.stdout
    hub.fail = {"GET /api/models": (429, {"Retry-After": "7"})}
    result = call("find", "meta/base")
    assert result.exit_code == 2 and "7 seconds" in result.stderr


def test_a_table_on_a_terminal(hub, capsys):
    from loraprobe import hub as client
    from loraprobe.cli.information import show_adapters

    show_adapters("meta/base", client.find_adapters("meta/base"))
    text = capsys.readouterr().out
    assert "owner/one" in text and "1.2k" in text and "mit" in text
    show_adapters("meta/none", client.find_adapters("meta/none"))
    assert "No PEFT adapter" in capsys.readouterr().out
