"""One base under several names: what proves it online, and what is said without a proof."""

import json
from pathlib import Path

import pytest
from hubs import use
from making import call, random_adapter

from loraprobe.hub import one_base

BASE, COPY, OLD = "google/gemma-3-4b-it", "unsloth/gemma-3-4b-it", "google/Meta-gemma-3-4b-it"
PACKED = "unsloth/gemma-3-4b-it-unsloth-bnb-4bit"
OTHER = "google/gemma-3-4b-pt"
SUMS = ["a" * 64, "b" * 64]


@pytest.fixture(autouse=True)
def described(hub):
    card = {"base_model": COPY, "base_model_relation": "quantized"}
    of_copy = {"cardData": {"base_model": BASE}}
    hub.described = {BASE: {}, COPY: of_copy, PACKED: {"cardData": card}, OTHER: {}}
    hub.shards = {BASE: SUMS, COPY: SUMS[::-1], PACKED: ["c" * 64], OTHER: ["d" * 64]}
    hub.moved = {OLD: BASE}


def pair(place: Path, one: str, other: str) -> tuple[Path, Path]:
    for seed, (name, base) in enumerate((("one", one), ("two", other))):
        random_adapter(name, seed=seed, base_model=base).save(place / name)
    return place / "one", place / "two"


def issues(*arguments: object) -> tuple[int, dict[str, str]]:
    """The exit code, and code -> severity of the findings about bases."""
    ended = call(*arguments, "--json")
    found = json.loads(ended.stdout).get("compatibility", {}).get("issues", [])
    return ended.exit_code, {i["code"]: i["severity"] for i in found if "base" in i["code"]}


# Names -> words of the proof.
PROVEN = {
    (BASE, OLD): "redirects",
    (BASE, COPY): "same sha256",
    (COPY, PACKED): "card of",
    (PACKED, OLD): "same sha256",
}


@pytest.mark.parametrize("names", PROVEN)
def test_two_names_of_one_base_are_proven(hub, tmp_path, names):
    refs = pair(tmp_path, *names)
    code, found = issues("inspect", *refs)
    assert code == 0 and found["same-base"] == "note" and "base-mismatch" not in found
    shown = call("inspect", *refs, "--json")
    told = [i["message"] for i in json.loads(shown.stdout)["compatibility"]["issues"]]
    assert any(PROVEN[names] in message for message in told)
    merged = call("merge", *refs, "-o", tmp_path / "merged", "--json")
    assert merged.exit_code == 0
    config = json.loads((tmp_path / "merged" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] in (BASE, COPY)  # not an old name, not packed
    assert not hub.fetched()  # nothing was downloaded


def test_the_base_that_is_given_names_all(hub):
    adapters = [random_adapter("a", base_model=PACKED), random_adapter("b", base_model=OLD)]
    assert [a.base_model for a in one_base(adapters, COPY)] == [COPY, COPY]
    assert len({a.base_model for a in one_base(adapters)}) == 1
    assert one_base(adapters[:1]) == adapters[:1]


@pytest.mark.parametrize("names", [(BASE, OTHER), (PACKED, OTHER), (BASE, "other/gone")])
def test_without_a_proof_another_base_stays_another(hub, tmp_path, names):
    code, found = issues("inspect", *pair(tmp_path, *names))
    assert code == 1 and found["base-mismatch"] == "error" and "same-base" not in found


SPOILED = {
    "a server that is down": {"GET /api/models/": (503, {})},
    "a gated repository": {f"GET /api/models/{COPY}": (403, {"X-Error-Code": "GatedRepo"})},
    "no tree": {f"GET /api/models/{BASE}/tree": (404, {})},
}


@pytest.mark.parametrize("how", [*SPOILED, "offline"])
def test_where_the_hub_cannot_tell_similar_names_are_a_warning(hub, tmp_path, monkeypatch, how):
    hub.fail = SPOILED.get(how, {})
    if how == "offline":
        use(monkeypatch, hub.url, tmp_path / "cache", offline=True)
    for copy in (COPY, PACKED):
        refs = pair(tmp_path / copy, BASE, copy)
        code, found = issues("inspect", *refs)
        assert code == 0 and found["base-mismatch"] == "warning"
        made = ["-o", tmp_path / copy / "made"]
        refused = call("merge", *refs, *made)
        assert refused.exit_code == 2 and "--allow base-mismatch" in refused.stderr
        assert call("merge", *refs, *made, "--allow", "base-mismatch").exit_code == 0
    assert how != "offline" or not hub.requests


def test_adapters_of_one_name_ask_nothing(hub, tmp_path):
    assert issues("inspect", *pair(tmp_path, BASE, BASE))[0] == 0
    assert not hub.requests
