"""`find`: what the Hub lists for a base model, ready to pipe."""

import importlib
import json

import pytest
from evidences import evidence_of
from making import call, edit, random_adapter

from loraprobe.extensions.find.command import show_adapters
from loraprobe.extensions.find.search import find_adapters
from loraprobe.records import Command, Compatibility, Issue
from loraprobe.verdict import Request, decide, next_command
from loraprobe.verdict.next_command import Conflict

BASE, COPY = "google/gemma-3-4b-it", "unsloth/gemma-3-4b-it"
PACKED, OTHER = f"{COPY}-unsloth-bnb-4bit", "google/gemma-3-4b-pt"
NAMESAKE = "stranger/gemma-3-4b-it"


def row(name: str, base: str, *tags: str, kind: str = "adapter", **more: object) -> dict:
    tagged = [f"base_model:{kind}:{base}", *(["peft"] if kind == "adapter" else []), *tags]
    counted = {"downloads": 1234, "likes": 5, "lastModified": "2026-01-02T03:04:05.000Z"}
    return {"id": name, "tags": tagged, "private": False} | counted | more


@pytest.fixture(autouse=True)
def listed(hub):
    hub.listed = [
        row("owner/one", "meta/base", "license:mit"),
        row("owner/two", "meta/base", downloads=7, likes=None),
        row("owner/other", "meta/other"),
        row("owner/whole", "meta/base", kind="finetune"),
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
    show_adapters("meta/base", find_adapters("meta/base"))
    text = capsys.readouterr().out
    assert "owner/one" in text and "1.2k" in text and "mit" in text
    show_adapters("meta/none", find_adapters("meta/none"))
    assert "No PEFT adapter" in capsys.readouterr().out


def test_offline_it_says_so_at_once(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    result = call("find", "gpt2")
    assert result.exit_code == 2 and "HF_HUB_OFFLINE" in result.stderr


def test_adapters_of_proven_copies_are_listed(hub):
    card = {"base_model": COPY, "base_model_relation": "quantized"}
    packed, of_copy = {"cardData": card}, {"cardData": {"base_model": BASE}}
    hub.described = {BASE: {}, COPY: of_copy, PACKED: packed, OTHER: {}, NAMESAKE: {}}
    sums = ["a" * 64, "b" * 64]
    hub.shards = {BASE: sums, COPY: sums[::-1], PACKED: ["c" * 64], OTHER: ["d" * 64]}
    hub.listed = [
        row("owner/of-base", BASE, downloads=3),
        row("owner/of-copy", COPY, downloads=9),
        row("owner/of-packed", PACKED, downloads=5),
        row("owner/of-other", OTHER, downloads=7),
        row(COPY, BASE, kind="finetune"),
        row(PACKED, BASE, kind="quantized"),
        row(NAMESAKE, BASE, kind="finetune"),  # other weights under this name
        row("owner/of-stranger", NAMESAKE, downloads=8),
    ]
    found = call("find", BASE, "--json")
    rows = json.loads(found.stdout)["adapters"]
    assert [(r["reference"], r["base"]) for r in rows] == [
        ("owner/of-copy", COPY),
        ("owner/of-packed", PACKED),
        ("owner/of-base", BASE),
    ]
    assert call("find", BASE, "--limit", "1").stdout == "owner/of-copy\n"


def test_copies_are_left_out_where_they_cannot_be_asked_for(hub):
    hub.listed = [row("owner/of-base", BASE, downloads=3)]
    hub.fail = {f"GET /api/models/{BASE}": (500, {})}
    assert call("find", BASE).stdout == "owner/of-base\n"


@pytest.mark.parametrize("base", ["meta/base", "/cache/models--meta--base/snapshots/1"])
def test_what_is_run_after_one_adapter_of_a_base_on_the_hub(base, tmp_path):
    random_adapter("a").save(tmp_path / "a")
    edit(tmp_path / "a" / "adapter_config.json", base_model_name_or_path=base)
    assert "loraprobe find meta/base" in call("inspect", tmp_path / "a").stdout


UNFIT = Compatibility((Issue("error", "x-y", ("c",), "No.", "Mend."),))


@pytest.mark.parametrize(
    ("known", "base"),
    [
        ({"bases": ("p/x", "p/y")}, "p/x"),
        ({"bases": ("p/x",), "conflict": Conflict("unlike", ("a",))}, "p/x"),
        ({"conflict": Conflict("unlike", ("a",))}, "BASE"),
    ],
)
def test_what_is_run_after_adapters_that_no_change_of_files_makes_fit(known, base):
    verdict = decide(evidence_of(compatibility=UNFIT), [])
    asked = Request(adapters=("a", "b", "c"), tasks=("t.jsonl",), **known)
    assert next_command(verdict, asked) == Command("find", (base,))


def test_without_a_command_that_lists_adapters_the_next_one_names_what_is_needed(monkeypatch):
    module = importlib.import_module("loraprobe.verdict.next_command")
    monkeypatch.setattr(module, "commands", dict)
    asked = Request(adapters=("a", "b"), bases=("p/x", "p/y"))
    command = next_command(decide(evidence_of(compatibility=UNFIT), []), asked)
    assert command == Command("inspect", ("a", "OTHER"))
