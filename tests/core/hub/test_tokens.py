"""Tokens and passwords: put into every place they could come out of, found in none."""

import json

import pytest
from making import call, saved_pair

from loraprobe.secrets import scrub

TOKEN = "hf_QmFkVG9rZW5Gb3JUZXN0cw"
PLAIN = "a-token-of-another-form"


def test_scrubbing(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", PLAIN)
    text = scrub(f"{TOKEN} and {PLAIN} at https://me:pass@hub.example/x, https://hub.example/a@b")
    assert text == "*** and *** at https://***@hub.example/x, https://hub.example/a@b"
    for head, secret, rest in (
        ("https://", "me:p/w@", "a"),
        ("https://", "me:p@w@", "a"),
        ("https:/", "me:pw@", "a"),  # as pathlib writes it
        ("https://a?token=", "pw", "&b=c"),
    ):
        assert scrub(head + secret + rest) == head + ("***@" if "@" in secret else "***") + rest
    assert scrub("https://hub.example:8000/a@b") == "https://hub.example:8000/a@b"
    assert scrub("shelf_life hf_ hfabc") == "shelf_life hf_ hfabc"
    monkeypatch.setenv("HF_TOKEN", "")
    assert scrub("plain") == "plain"


@pytest.fixture
def pair(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", PLAIN)
    saved_pair(tmp_path / TOKEN, base_model=f"https://me:{PLAIN}@hub/{TOKEN}")
    return [f"{PLAIN}-x={tmp_path / TOKEN / 'a'}", str(tmp_path / TOKEN / "b")]


@pytest.mark.parametrize("form", [["--json"], [], ["--quiet"], ["--per-module"]])
def test_reports_hold_no_token(pair, form):
    result = call("inspect", *pair, *form)
    assert result.exit_code == 0, result.output
    assert TOKEN not in result.output and PLAIN not in result.output
    if form == ["--json"]:
        document = json.loads(result.stdout)
        assert document["provenance"]["arguments"] is not None


def test_the_card_and_the_config_hold_no_token(pair, tmp_path):
    result = call("merge", *pair, "-o", tmp_path / "out", "--json")
    assert result.exit_code == 0, result.output
    assert TOKEN not in result.output and PLAIN not in result.output
    card = (tmp_path / "out" / "README.md").read_text()
    assert "Sources" in card and TOKEN not in card and PLAIN not in card


def test_errors_hold_no_token(pair):
    result = call("inspect", f"./{TOKEN}-{PLAIN}")
    assert result.exit_code == 2 and "***" in result.stderr
    assert TOKEN not in result.output and PLAIN not in result.output
