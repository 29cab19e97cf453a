"""Licences of sources are carried to a merge's card, and what they ask is reported."""

import json
from pathlib import Path

import pytest
import yaml
from making import call, random_adapter, tiny_llama

import loraprobe
from loraprobe.compatibility.licences import licence_issues, licence_of_merge
from loraprobe.front_matter import declared_licence


@pytest.mark.parametrize(
    ("card", "licence"),
    [
        ("---\nlicense: mit\n---\n# A", "mit"),
        ("---\nlicense: other\nlicense_name: my-own\n---\n", "my-own"),
        ("---\nlicense: [mit, apache-2.0]\n---\n", "mit and apache-2.0"),
        ("---\r\nlicense: mit\r\n---\r\n", "mit"),
        ("---\nlicense: 3\n---\n", None),
        ("---\nlicense:\n---\n", None),
        ("---\n- license: mit\n---\n", None),
        ("---\nlicense: !!python/object/apply:os.system ['true']\n---\n", None),
        ("---\nlicense: [\n---\n", None),
        ("---\nlicense: [mit, 3]\n---\n", None),
        ("---\nx: &a mit\nlicense: *a\n---\n", None),  # an alias can stand for gigabytes
        ("---\nlicense: mit\nlicense: gpl-3.0\n---\n", None),
        (f"---\nlicense: mit\nx: {'[' * 17}{']' * 17}\n---\n", "mit"),
        (f"---\nlicense: mit\nx: {'[' * 5000}{']' * 5000}\n---\n", None),
        (f"---\nlicense: mit\nx: {'y' * 200_000}\n---\n", None),
        ("license: mit", None),
        ("", None),
        (None, None),
        ("---\nlicense: " + "x" * 5000 + "\n---\n", "x" * 100),
    ],
)
def test_what_a_card_declares(card, licence):
    assert declared_licence(card) == licence


@pytest.mark.parametrize(
    ("licences", "codes"),
    [
        ({"a": "mit", "b": "apache-2.0"}, set()),
        ({"a": "mit", "b": None}, {"licence-unknown"}),
        ({"a": "cc-by-nc-4.0", "b": "mit"}, {"licence-noncommercial"}),
        ({"a": "cc-by-nc-sa-4.0", "b": "mit"}, {"licence-noncommercial", "licence-conflict"}),
        ({"a": "cc-by-nd-4.0", "b": "mit"}, {"licence-no-derivatives"}),
        ({"a": "gpl-3.0", "b": "mit"}, {"licence-conflict"}),
        ({"a": "gpl-3.0", "b": "gpl-3.0"}, set()),
        ({"a": "gpl-3.0", "b": None}, {"licence-conflict", "licence-unknown"}),
        ({"a": "agpl-3.0", "b": "gpl-3.0"}, {"licence-conflict"}),
        ({"a": "llama3.1", "b": "mit"}, {"licence-terms"}),
        ({"a": "gemma", "b": "gemma"}, {"licence-terms"}),
        ({"a": "Apache-2.0", "b": "MIT"}, set()),
        ({"a": "fair-noncommercial-research-license", "b": "mit"}, {"licence-noncommercial"}),
    ],
)
def test_what_licences_ask(licences, codes):
    found = list(licence_issues(licences))
    assert {issue.code for issue in found} == codes
    for issue in found:
        assert issue.cure and set(issue.adapters) <= set(licences)
        mild = issue.code in ("licence-unknown", "licence-terms")
        assert issue.severity == ("note" if mild else "warning")


def pair(place: Path, one: str, other: str) -> list[Path]:
    """Two adapters whose cards begin with these lines."""
    for seed, (name, front) in enumerate((("a", one), ("b", other)), 1):
        random_adapter(name, seed=seed).save(place / name, card=f"---\n{front}\n---\n# {name}\n")
    return [place / "a", place / "b"]


@pytest.mark.parametrize("command", ["merge", "route"])
def test_a_gated_source_and_a_gated_base_are_said(tmp_path, command):
    gate = "extra_gated_prompt: accept first"
    refs = pair(tmp_path, f"license: mit\n{gate}", "license: mit")
    tiny_llama().save_pretrained(tmp_path / "base")
    (tmp_path / "base" / "README.md").write_text(f"---\nlicense: llama3\n{gate}\n---\n")
    done = call(command, *refs, "-o", tmp_path / "out", "--base", tmp_path / "base", "--json")
    assert done.exit_code == 0, done.output
    found = {i["code"]: i for i in json.loads(done.stdout)["compatibility"]["issues"]}
    assert found["licence-gated"]["adapters"] == ["a", "the base"]
    assert "the base (llama3)" in found["licence-terms"]["message"]
    assert "licence-gated" in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.parametrize("command", ["inspect", "merge", "route"])
def test_licences_are_told_once_where_something_is_written_and_stand_in_its_card(tmp_path, command):
    refs = pair(tmp_path, "license: cc-by-nc-4.0", "license: mit")
    written = [] if command == "inspect" else ["-o", tmp_path / "out"]
    shown = call(command, *refs, *written, env={"COLUMNS": "120"})
    assert shown.exit_code == 0 and shown.stdout.count("forbids commercial use") == bool(written)
    assert " warning" not in shown.stdout.partition("Whether")[0].splitlines()[-1]
    if written:
        card = (tmp_path / "out" / "README.md").read_text()
        assert yaml.safe_load(card.split("---\n")[1])["license"] == "other"
        assert "| cc-by-nc-4.0 |" in card and "| mit |" in card
        assert "licence-noncommercial" in card and "a (cc-by-nc-4.0)" in shown.output
        again = call(command, *refs, *written, "--overwrite", "--json")
        codes = {i["code"] for i in json.loads(again.stdout)["compatibility"]["issues"]}
        assert "licence-noncommercial" in codes and "licence-noncommercial" in again.stderr
    document = loraprobe.inspect(refs)
    assert [row.license for row in document.adapters] == ["cc-by-nc-4.0", "mit"]
    assert not [i for i in document.compatibility.issues if i.code.startswith("licence")]


def test_what_a_merge_declares():
    assert licence_of_merge({"a": "mit", "b": "mit"}) == "mit"
    assert licence_of_merge({"a": "mit", "b": "gpl-3.0"}) == "other"
    assert licence_of_merge({"a": "mit", "b": None}) == "other"
    assert licence_of_merge({"a": None}) is None
    assert licence_of_merge({"a": "MIT", "b": "mit"}) == "mit"
    assert licence_of_merge({"a": "Do as I say."}) == "other"
