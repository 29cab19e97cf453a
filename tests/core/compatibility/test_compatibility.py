"""Every finding of compatibility: raised where it should be, and silent where it should be."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from making import LLAMA, call, edit, random_adapter, regauged, skip_without, tiny_gpt2, tiny_llama
from pathologies.specimens import SPECIMENS
from pathologies.table import SLOW, behaviour, rows
from safetensors.torch import save_file

import loraprobe
from loraprobe.adapters import Adapter, Extra, Source, adapter_of
from loraprobe.adapters.names import relation
from loraprobe.base import Base, open_base
from loraprobe.compatibility import TensorChecks, check, check_headers, with_contents
from loraprobe.compatibility.licences import licence_issues, licence_of_merge
from loraprobe.diagnostics import diagnose
from loraprobe.errors import UsageError
from loraprobe.findings import CODES, SUBJECTS, finding
from loraprobe.front_matter import declared_licence
from loraprobe.lora.lowrank import LowRank
from loraprobe.records import Issue, Severity

PACKAGE = Path(__file__).parents[3] / "loraprobe"
PURPOSES = ("inspect", "merge", "route")


def found(*adapters: Adapter, base: Base | None = None, **options) -> dict[str, Issue]:
    """Code -> its last issue."""
    return {issue.code: issue for issue in check(adapters, base, **options).issues}


def severities(*adapters: Adapter, **options) -> dict[str, str]:
    return {code: issue.severity for code, issue in found(*adapters, **options).items()}


def with_config(adapter: Adapter, **config) -> Adapter:
    return replace(adapter, config={**adapter.config, **config})


def with_extra(adapter: Adapter, kind: str, module: str | None = "lm_head") -> Adapter:
    extra = Extra(kind, f"base_model.model.{module}.weight", module, (4, 4), "float32")
    return replace(adapter, extras=(*adapter.extras, extra))


def another(shapes=LLAMA, name="b", **options) -> Adapter:
    return random_adapter(name, shapes, **{"seed": 2, **options})


def rewritten(adapter: Adapter, change, name="c") -> Adapter:
    """The adapter with a change of its updates: path, update -> update."""
    modules = {path: change(path, update) for path, update in adapter.modules.items()}
    return adapter_of(name, modules, base_model="owner/base")


def table(name: str, vocab: int, path: str = "model.embed_tokens") -> Adapter:
    """An adapter that changes the embedding or the head too."""
    embedding = path == "model.embed_tokens"
    shape = (16, vocab) if embedding else (vocab, 16)
    kinds = {path: "embedding"} if embedding else None
    return another({**LLAMA, path: shape}, name, seed=ord(name), kinds=kinds)


def emptied(path: str, update: LowRank) -> LowRank:
    return LowRank(update.A, torch.zeros_like(update.B), update.scaling)


A, B = random_adapter("a", seed=1), random_adapter("b", seed=2)
PATH = next(iter(LLAMA))
QUANTISED = another(base_model="other/base-bnb-4bit")
BITTER, CHAT = (another(base_model=f"owner/base-{end}") for end in ("4bitter", "chat"))
WIDE = another({p: (o, i + 2) for p, (o, i) in LLAMA.items()}, base_model="owner/base-chat")
FIRST_LAYER = {p: s for p, s in LLAMA.items() if ".0." in p}
SHALLOW = another(FIRST_LAYER, base_model="owner/base-chat")
V1, V2 = with_config(A, revision="v1"), with_config(B, revision="v2")
IN_X = another(base_model="/x/base"), another(base_model="base", seed=3)
IN_X_Y = IN_X[0], another(base_model="/y/base", seed=3)
CAUSAL, LABELS = with_config(A, task_type="CAUSAL_LM"), with_config(B, task_type="SEQ_CLS")
PREFIXED = another({f"language_model.{p}": s for p, s in LLAMA.items()})
C_ATTN = {f"transformer.h.{i}.attn.c_attn": (48, 16) for i in range(2)}
GPT2 = another(C_ATTN)
HALVES = [another({p: s for p, s in LLAMA.items() if n in p}, n) for n in ("attn", "mlp")]
ATTENTION, ELSEWHERE = "m.layers.0.self_attn", {"m.layers.0.x": (4, 4)}
FUSED = another({f"{ATTENTION}.qkv_proj": (48, 16), **ELSEWHERE})
HALF = another(FIRST_LAYER, rank=2)
PARTLY = {"targets-differ": "note", "ranks-differ": "note"}
SPOILED = rewritten(A, lambda p, u: LowRank(u.A, u.B / (p != PATH), u.scaling))
IDLE = rewritten(B, emptied)
HEADS = table("a", 40, "lm_head"), table("b", 41, "lm_head")
AN_EMBEDDING = another(kinds={PATH: "embedding"})
PARTLY_IDLE = rewritten(B, lambda path, u: emptied(path, u) if path == PATH else u)
REGAUGED = rewritten(A, lambda _, u: regauged(u.to(torch.float64), 3))
FIT = {
    "two": ((A, B), {}),
    "one": ((A,), {}),
    # of which base they are
    "a quantised copy": ((A, QUANTISED), {"base-mismatch": "warning", "quantised-base": "note"}),
    "no quantised copy": ((A, BITTER), {"base-mismatch": "error"}),
    "a path and its last part": (IN_X, {"base-unverified": "note", "base-is-a-path": "note"}),
    "paths of one last part": (IN_X_Y, {"base-unverified": "warning", "base-is-a-path": "note"}),
    "two revisions": ((V1, V2), {"revision-mismatch": "warning"}),
    "one revision": ((V1, with_config(B, revision="v1")), {}),
    "one unknown revision": ((V1, B), {}),
    "revisions of two bases": ((V1, replace(V2, base_model="a/b")), {"base-mismatch": "error"}),
    "two types of task": ((CAUSAL, LABELS), {"task-type-mismatch": "error"}),
    "one type of task": ((CAUSAL, B), {}),
    # which modules they change
    "two vocabularies": ((table("a", 40), table("b", 41)), {"vocabulary-mismatch": "error"}),
    "of a head": (HEADS, {"vocabulary-mismatch": "error"}),
    "one vocabulary": ((table("a", 40), table("b", 40)), {}),
    "an embedding and a linear layer": ((A, AN_EMBEDDING), {"kinds-differ": "error"}),
    "a Conv1D": ((A, another(kinds={PATH: "conv1d"})), {}),
    "another prefix": ((A, PREFIXED), {"prefix-mismatch": "error"}),
    "another architecture": ((A, GPT2), {"architecture-mismatch": "error"}),
    "other modules": (HALVES, {"targets-disjoint": "note"}),
    "no layer that is fused": ((FUSED, another(ELSEWHERE, "c")), {"targets-differ": "note"}),
    "half of the layers": ((A, HALF), {**PARTLY, "depth-differs": "warning"}),
    "half of them, as stated": ((A, with_config(HALF, layers_to_transform=[0])), PARTLY),
    "rsLoRA": ((with_config(A, use_rslora=True), B), {}),
    # what their factors hold
    "not finite": ((SPOILED, B), {"not-finite": "error"}),
    "no effect": ((A, IDLE), {"no-effect": "error"}),
    "modules without effect": ((A, PARTLY_IDLE), {"modules-without-effect": "note"}),
    "the same in another basis": ((A, B, REGAUGED), {"duplicate": "warning"}),
    "nearly the same": ((A, rewritten(A, lambda _, u: u.to(torch.bfloat16))), {}),
    "the same at another scale": ((A, rewritten(A, lambda _, u: u.scaled(2.0))), {}),
}  # fmt: skip


@pytest.mark.parametrize("name", FIT)
def test_adapters_beside_each_other_have_these_findings(name):
    adapters, expected = FIT[name]
    assert severities(*adapters) == severities(*adapters[::-1]) == expected
    assert check(adapters).compatible == ("error" not in expected.values())
    told = found(*adapters).values()
    assert all(issue.cure for issue in told if issue.severity == "error")


OF_PURPOSES = {  # the severities for inspect, merge and route
    "another base of the same shapes": ((A, CHAT), "base-mismatch", "error error warning"),
    "another base of other shapes": ((A, WIDE), "base-mismatch", "error error error"),
    "another base of fewer layers": ((A, SHALLOW), "base-mismatch", "error error error"),
    "a quantised copy": ((A, QUANTISED), "base-mismatch", "warning error warning"),
    "a classifier": ((LABELS,), "task-type-unsupported", "- - error"),
    **{
        f"an extra: {kind}": ((with_extra(A, kind),), kind.replace("_", "-"), "warning error error")
        for kind in ("target_parameter", "unclear_tokens", "convolution", "unknown")
    },
}


def test_weights_that_peft_ignores_are_an_error_wherever_adapters_are_composed():
    ignored = finding("weights-untargeted", ("a",), "It has more.")
    a = replace(A, issues=(*A.issues, ignored))
    for purpose in (*PURPOSES, "measure"):
        assert severities(a, B, purpose=purpose)["weights-untargeted"] == "error"
    assert severities(a)["weights-untargeted"] == "warning"


def test_shapes_that_adapters_share_are_said_once_about_a_base(tmp_path):
    tiny_llama().save_pretrained(tmp_path)
    wide = {**LLAMA, UP: (25, 16)}
    adapters = [another(wide, name) for name in "ab"] + [another({**LLAMA, UP: (26, 16)}, "c")]
    issues = check(adapters, open_base(tmp_path, "base")).errors
    assert {(issue.code, issue.module) for issue in issues} == {("shapes-differ", UP)}
    pairs = [("a", "c"), ("b", "c")]
    assert [issue.adapters for issue in issues] == [*pairs, ("a", "b"), ("c",)]


@pytest.mark.parametrize("name", OF_PURPOSES)
def test_some_findings_depend_on_the_purpose(name):
    adapters, code, expected = OF_PURPOSES[name]
    told = [severities(*adapters, purpose=purpose).get(code, "-") for purpose in PURPOSES]
    assert " ".join(told) == expected


def test_findings_name_the_adapters_and_the_module():
    shapes = {p: (o, i + 1) if "q_proj" in p else (o, i) for p, (o, i) in LLAMA.items()}
    issue = found(A, another(shapes))["shapes-differ"]
    assert issue.module == PATH and "[16, 16]" in issue.message and "[16, 17]" in issue.message
    assert found(A, CHAT)["base-mismatch"].adapters == ("a", "b")
    assert found(A, QUANTISED)["quantised-base"].adapters == ("b",)
    assert "b lacks 7" in found(A, HALF)["targets-differ"].message
    issue = found(SPOILED, B)["not-finite"]
    assert (issue.adapters, issue.module) == (("c",), PATH)
    assert found(A, B, REGAUGED)["duplicate"].adapters == ("a", "c")
    assert "duplicate" not in severities(IDLE, replace(IDLE, name="d"))
    narrow = another({"lm_head": (12, 8)})
    assert "shapes-differ" in severities(table("a", 40, "lm_head"), narrow)


def test_every_code_in_the_source_stands_in_the_table_and_the_other_way_round():
    rooms = ("adapters", "base", "hub", "compatibility", "merging")
    files = [p for room in rooms for p in (PACKAGE / room).glob("*.py") if p.name != "codes.py"]
    files += [PACKAGE / "errors.py", *(PACKAGE / "extensions").rglob("*.py")]
    text = "".join(p.read_text() for p in files)
    given = set(re.findall(r'(?:Issue\(\s*[^,()]+,|finding\()\s*"([a-z-]+)"', text))
    assert len(given) > 40 and given <= set(CODES)
    for code in set(CODES) - set(SUBJECTS["Tensors other than factors"]):
        assert f'"{code}"' in text, code
    for row in CODES.values():
        assert row.meaning and row.severity in get_args(Severity)


NAMED = {
    "same": ["meta/llama-7b", "meta/llama-7b/"],
    "unverified": ["meta/Llama-7B", "llama-7b", "./llama-7b", "/disk/models/llama-7b"],
    "different": ["meta/llama-7b-chat", "meta/llama", "other/llama-7b", "llama-7b-chat", "meta"],
}


@pytest.mark.parametrize(("expected", "other"), [(r, name) for r in NAMED for name in NAMED[r]])
def test_base_names_are_never_compared_by_substring(other, expected):
    assert relation("meta/llama-7b", other) == expected
    assert relation(other, "meta/llama-7b") == expected


@settings(max_examples=60)
@given(st.text(min_size=1, max_size=12), st.text(min_size=1, max_size=12))
def test_relation_is_symmetric_and_a_name_is_itself(one, other):
    assert relation(one, one) == "same"
    assert relation(one, other) == relation(other, one)


@pytest.mark.parametrize(
    ("one_path", "other_path", "same_base", "code"),
    [
        ("model.layers.0.q_proj", "model.embed_tokens", False, "targets-disjoint"),
        ("model.layers.0.q_proj", "lm_head", False, "targets-disjoint"),
        ("encoder.block.0.q", "decoder.block.0.q", False, "targets-disjoint"),
        ("model.encoder.layers.0.fc1", "model.decoder.layers.0.fc2", True, "targets-disjoint"),
        ("transformer.wte", "model.embed_tokens", True, "architecture-mismatch"),
        ("transformer.h.0.c_attn", "model.layers.0.q_proj", True, "architecture-mismatch"),
    ],
)
def test_other_places_of_one_model_are_no_other_architecture(one_path, other_path, same_base, code):
    a = another({one_path: (8, 8)}, "a")
    b = another({other_path: (8, 8)}, base_model="owner/base" if same_base else None)
    severity = {"targets-disjoint": "note", "architecture-mismatch": "error"}[code]
    assert severities(a, b)[code] == severities(b, a)[code] == severity


def test_contents_of_another_pass_give_the_same_findings():
    adapters = [A, replace(SPOILED, name="b"), replace(A, name="c")]
    contents = TensorChecks(adapters)
    diagnose(adapters, observe=contents.take)
    assert with_contents(check_headers(adapters), contents) == check(adapters)
    before = check_headers(adapters, allow=["not-finite"])
    assert not before.issues
    both = with_contents(before, contents, ["not-finite"])
    assert both == check(adapters, allow=["not-finite"]) and both.compatible
    assert {i.code for i in check(adapters).issues} == {"not-finite", "duplicate"}


def test_allow_turns_named_errors_into_warnings_and_nothing_else():
    other = with_extra(another(base_model="owner/other"), "convolution")
    issues = severities(A, other, allow=["base-mismatch"])
    assert issues == {"base-mismatch": "warning", "convolution": "error"}
    assert check([A, other], allow=["base-mismatch", "convolution"]).compatible
    assert severities(A, another(rank=2), allow=["ranks-differ"]) == {"ranks-differ": "note"}
    assert check([A, B], allow=CODES).compatible, "one --allow may serve for many adapters"
    with pytest.raises(UsageError, match="did you mean 'base-mismatch'"):
        check([A, B], allow=["base-missmatch"])


def test_errors_come_first():
    other = with_extra(another(rank=2, base_model="/local"), "convolution")
    order = [issue.severity for issue in check([A, other]).issues]
    assert order == sorted(order, key=["error", "warning", "note"].index)
    assert len(set(order)) == 3


# --- with a base ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    """(a directory, the base there) of a Llama, a GPT-2, and the Llama as if quantised."""
    root = tmp_path_factory.mktemp("bases")
    tiny_llama().save_pretrained(root / "llama")
    tiny_gpt2().save_pretrained(root / "gpt2")
    shutil.copytree(root / "llama", root / "packed")
    packed = {"quant_method": "gptq", "bits": 4}
    edit(root / "packed" / "config.json", quantization_config=packed)
    made = {name: open_base(root / name, "owner/base") for name in ("llama", "gpt2", "packed")}
    made["other"] = open_base(root / "llama", "owner/other")
    made["local"] = open_base(root / "llama")
    made["at main"] = open_base(root / "llama", "owner/base@main")
    made["at a commit"] = open_base(root / "llama", "owner/base", commit="a" * 40)
    return made


UP, TABLE = "model.layers.1.mlp.up_proj", "model.embed_tokens"
BARE = another({p.removeprefix("model."): s for p, s in LLAMA.items()})
BOTH = another({TABLE: (16, 40), "lm_head": (40, 16)}, kinds={TABLE: "embedding"})
TIED, RESIZED = {"tied-embeddings": "warning"}, {"vocabulary-mismatch": "error"}
AT_A, AT_B, AT_MAIN = (with_config(A, revision=at) for at in ("a" * 40, "b" * 40, "main"))
PACKED = another({**LLAMA, "model.layers.0.packed": (4, 4)})
IN_A_BASE = {
    "two that fit": ((A, B), "llama", {}),
    "Conv1D in a GPT-2": ((another(C_ATTN, kinds=dict.fromkeys(C_ATTN, "conv1d")),), "gpt2", {}),
    "of another architecture": ((A,), "gpt2", {"module-not-in-base": "error"}),
    "another shape": ((another({**LLAMA, UP: (25, 16)}),), "llama", {"shapes-differ": "error"}),
    "the names of its body": ((BARE,), "llama", {"modules-renamed": "note"}),
    "another prefix": ((PREFIXED,), "llama", {"prefix-mismatch": "error"}),
    "another name": ((A, B), "other", {"base-mismatch": "warning"}),
    "a directory": ((A, B), "local", {"base-unverified": "note"}),
    "a revision": ((A,), "at main", {}),
    "another commit": ((AT_B,), "at a commit", {"revision-mismatch": "warning"}),
    "this commit": ((AT_A,), "at a commit", {}),
    "a branch, perhaps at it": ((AT_MAIN,), "at a commit", {}),
    "a tied embedding": ((table("a", 40),), "llama", TIED),
    "a resized one": ((table("a", 41),), "llama", {**TIED, **RESIZED}),
    "embedding and head": ((BOTH,), "llama", {}),
    "packed weights": ((PACKED,), "packed", {"quantised-base": "warning"}),
}  # fmt: skip


@pytest.mark.parametrize("name", IN_A_BASE)
def test_adapters_in_a_base_have_these_findings(bases, name):
    adapters, base, expected = IN_A_BASE[name]
    assert severities(*adapters, base=bases[base]) == expected


def test_a_directory_given_by_two_names_is_no_hub_id(bases, monkeypatch):
    place = bases["llama"].path
    monkeypatch.chdir(place.parent.parent)
    near = open_base(f"{place.parent.name}/{place.name}")
    assert near.reference.count("/") == 1
    assert severities(A, B, base=near) == {"base-unverified": "note"}


def test_the_directory_that_the_adapters_name_is_their_base(bases, monkeypatch):
    place = bases["llama"].path
    a, b = (replace(one, base_model=str(place)) for one in (A, B))
    monkeypatch.chdir(place.parent)
    assert severities(a, b, base=open_base(place.name)) == {"base-is-a-path": "note"}


def test_a_copy_of_a_base_weight_is_compared(bases, tmp_path):
    llama, file = bases["llama"], tmp_path / "adapter_model.safetensors"
    weight = llama.weight("model.embed_tokens").mT.contiguous()  # stored [vocab, dim]
    key = "base_model.model.model.embed_tokens.base_layer.weight"
    for copy, base, severity in (
        (weight, None, "warning"),
        (weight, llama, "note"),
        (weight.bfloat16(), llama, "note"),
        (weight + 1e-3, llama, "error"),
        (torch.cat([weight, weight[:1]]), llama, "error"),
    ):
        save_file({key: copy}, file)
        extra = Extra("base_copy", key, "model.embed_tokens", tuple(copy.shape), str(copy.dtype))
        adapter = replace(A, extras=(extra,), weights_file=file)
        assert severities(adapter, B, base=base)["base-copy"] == severity


def with_tokenizer(adapter: Adapter, folder: Path, size: int) -> Adapter:
    folder.mkdir()
    vocab = {f"t{i}": i for i in range(size - 1)}
    added = [{"id": size - 1, "content": "<new>"}]
    content = {"model": {"type": "WordLevel", "vocab": vocab}, "added_tokens": added}
    (folder / "tokenizer.json").write_text(json.dumps(content))
    return replace(adapter, source=Source(str(folder), folder))


def test_tokenizers_saved_with_adapters(bases, tmp_path):
    first, second = (with_tokenizer(x, tmp_path / x.name, 40) for x in (A, B))
    larger = with_tokenizer(B, tmp_path / "larger", 43)
    assert severities(first, second) == severities(first, base=bases["llama"]) == {}
    assert severities(larger, base=bases["llama"]) == {"vocabulary-mismatch": "warning"}
    assert "a 40, b 43" in found(first, larger)["tokenizer-mismatch"].message
    for damage in ("no json", "[]", '{"model": {"vocab": {"x": "5"}}}', '{"added_tokens": [5]}'):
        (tmp_path / "larger" / "tokenizer.json").write_text(damage)
        issue = found(first, larger)["tokenizer-unreadable"]
        assert issue.severity == "note" and issue.adapters == ("b",)


def test_adapters_as_people_publish_them(shelf):
    legal, medical, godspeed = shelf.adapters("legal", "medical", "godspeed")
    assert check([legal, medical, godspeed]).compatible
    distil, classifier = shelf.adapters("distil", "classifier")
    issues = severities(legal, distil)
    assert issues["base-mismatch"] == "error" and "depth-differs" in issues
    assert {"task-type-mismatch", "modules-to-save"} <= set(severities(legal, classifier))
    assert not check([legal, classifier]).compatible
    twin = found(legal, replace(legal, name="twin"))["duplicate"]
    assert twin.adapters == ("legal", "twin")


ROWS = rows()


def test_every_specimen_stands_on_the_page():
    assert sorted(ROWS) == sorted(SPECIMENS)


@pytest.mark.parametrize(
    "case", [pytest.param(c, marks=pytest.mark.slow) if c in SLOW else c for c in SPECIMENS]
)
def test_every_row_of_the_page_is_reproduced(tmp_path, case):
    for command in re.findall(r"; loraprobe ([a-z-]+) ", ROWS[case][2]):
        skip_without(command)
    assert behaviour(case, tmp_path) == ROWS[case][2:]


def test_what_is_merged_is_never_silent_about_a_wrong_adapter():
    """Cases that are merged without a word are sound: exactly these."""
    silent = {case for case, cells in ROWS.items() if cells[-2:] == ["merged", "0"]}
    assert silent == {"two-files-that-agree", "subnormal", "float8", "rslora"}


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
