"""Every finding of compatibility: raised where it should be, and silent where it should be."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from making import LLAMA, random_adapter, regauged, tiny_llama
from safetensors.torch import save_file

from loraprobe.adapters import Adapter, Extra, Source, adapter_of
from loraprobe.base import Base, open_base
from loraprobe.compatibility import CODES, TensorChecks, check, with_contents
from loraprobe.compatibility.contents import KINDS
from loraprobe.compatibility.identity import relation
from loraprobe.compatibility.serving import FEATURES
from loraprobe.diagnostics import diagnose
from loraprobe.errors import UsageError
from loraprobe.findings import CODES as FINDING_CODES
from loraprobe.lora.lowrank import LowRank
from loraprobe.records import Severity

PACKAGE = Path(__file__).parents[2] / "loraprobe"


def found(*adapters: Adapter, base: Base | None = None, **keywords) -> dict[str, list]:
    """Code -> issues."""
    codes: dict[str, list] = {}
    for issue in check(adapters, base, **keywords).issues:
        codes.setdefault(issue.code, []).append(issue)
    return codes


def one(issues: dict[str, list], code: str):
    """The only issue of a code."""
    (issue,) = issues[code]
    return issue


def with_config(adapter: Adapter, **config) -> Adapter:
    return replace(adapter, config={**adapter.config, **config})


def with_extra(adapter: Adapter, kind: str, module: str | None = "lm_head") -> Adapter:
    extra = Extra(kind, f"base_model.model.{module}.weight", module, (4, 4), "float32")
    return replace(adapter, extras=(*adapter.extras, extra))


A = random_adapter("a", seed=1)
B = random_adapter("b", seed=2)


def test_adapters_that_fit_have_no_findings():
    assert found(A, B) == {}
    assert check([A, B]).compatible
    assert found(A) == {}


def test_every_code_in_the_source_stands_in_the_table_and_the_other_way_round():
    rooms = ("adapters", "base", "hub", "compatibility", "library", "merging")
    files = [p for room in rooms for p in (PACKAGE / room).glob("*.py") if p.name != "codes.py"]
    files.append(PACKAGE / "errors.py")  # of an adapter of a library
    text = "".join(p.read_text() for p in files)
    given = set(re.findall(r'(?:Issue\(\s*[^,()]+,|finding\()\s*"([a-z-]+)"', text))
    assert len(given) > 40 and given <= set(CODES)
    kinds = {kind.replace("_", "-") for group in ("kept", "dropped") for kind in KINDS[group]}
    marked = {f"serve-{name}" for name, feature in FEATURES.items() if feature.marks}
    for code in set(CODES) - kinds - marked:
        assert f'"{code.removeprefix("serve-")}"' in text or f'"{code}"' in text, code


def test_every_code_has_a_meaning_and_one_of_three_severities():
    for row in FINDING_CODES.values():
        assert row.meaning and row.severity in get_args(Severity)


def test_codes_of_reading_may_be_allowed_where_they_do_not_occur():
    """A script may pass one --allow for many adapters."""
    assert check([A, B], allow=CODES).compatible


# --- base names -----------------------------------------------------------------------------


NAMED = {
    "same": ["meta/llama-7b", "meta/llama-7b/"],
    "unclear": ["meta/Llama-7B", "llama-7b", "./llama-7b", "/disk/models/llama-7b"],
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


def test_another_base_of_the_same_shapes_is_said():
    other = random_adapter("b", seed=2, base_model="owner/base-chat")
    for purpose, severity in (("inspect", "error"), ("merge", "error"), ("route", "warning")):
        issue = one(found(A, other, purpose=purpose), "base-mismatch")
        assert issue.severity == severity
        assert issue.adapters == ("a", "b")
        assert "another base with the same shapes" in issue.message
        assert issue.cure
    wide = {path: (o, i + 2) for path, (o, i) in LLAMA.items()}
    shallow = {p: s for p, s in LLAMA.items() if ".0." in p}
    for shapes in (wide, shallow):
        other = random_adapter("b", shapes, base_model="owner/base-chat")
        for purpose in ("inspect", "merge", "route"):
            issue = one(found(A, other, purpose=purpose), "base-mismatch")
            assert issue.severity == "error" and "same shapes" not in issue.message


def test_a_quantised_copy_is_recognised_but_not_taken_for_the_same():
    quantised = random_adapter("b", base_model="other/base-bnb-4bit")
    issues = found(A, quantised)
    similar = one(issues, "base-mismatch")
    assert similar.severity == "warning" and "may be a copy" in similar.message
    assert one(found(A, quantised, purpose="merge"), "base-mismatch").severity == "error"
    assert one(issues, "quantised-base").message.startswith("b was trained on other/base-bnb-4bit")
    assert one(issues, "quantised-base").adapters == ("b",)
    assert "quantised-base" not in found(A, random_adapter("b", base_model="owner/base-4bitter"))


def test_revisions_are_compared_within_one_base():
    first, second = with_config(A, revision="v1"), with_config(B, revision="v2")
    assert one(found(first, second), "revision-mismatch").severity == "warning"
    for other in (with_config(B, revision="v1"), B, replace(second, base_model="owner/other")):
        assert "revision-mismatch" not in found(first, other)


def test_task_types():
    causal, classifier = with_config(A, task_type="CAUSAL_LM"), with_config(B, task_type="SEQ_CLS")
    issue = one(found(causal, classifier), "task-type-mismatch")
    assert issue.severity == "error" and "SEQ_CLS" in issue.message
    assert "task-type-mismatch" not in found(causal, B)
    assert one(found(classifier, purpose="route"), "task-type-unsupported").severity == "error"
    assert "task-type-unsupported" not in found(classifier)


# --- modules --------------------------------------------------------------------------------


def test_shapes_that_differ_are_named_once():
    shapes = {p: (o, i + 1) if "q_proj" in p else (o, i) for p, (o, i) in LLAMA.items()}
    issue = one(found(A, random_adapter("b", shapes)), "shapes-differ")
    assert issue.severity == "error" and "shapes of 2 modules differ" in issue.message
    assert issue.module == "model.layers.0.self_attn.q_proj"
    assert "[16, 16]" in issue.message and "[16, 17]" in issue.message


@pytest.mark.parametrize("path, kind", [("model.embed_tokens", "embedding"), ("lm_head", "linear")])
def test_resized_vocabulary_is_called_that(path, kind):
    def adapter(name, vocab):
        shape = (16, vocab) if kind == "embedding" else (vocab, 16)
        return random_adapter(name, {**LLAMA, path: shape}, kinds={path: kind})

    issues = found(adapter("a", 40), adapter("b", 41))
    assert one(issues, "vocabulary-mismatch").module == path
    assert "shapes-differ" not in issues
    assert "vocabulary-mismatch" not in found(adapter("a", 40), adapter("b", 40))
    narrow = random_adapter("b", {path: (12, 8)}, kinds={path: kind})
    assert "shapes-differ" in found(adapter("a", 40), narrow)


def test_an_embedding_is_no_linear_layer_but_conv1d_is_a_flag():
    path = next(iter(LLAMA))
    issue = one(found(A, random_adapter("b", kinds={path: "embedding"})), "kinds-differ")
    assert issue.severity == "error" and issue.module == path
    issue = one(found(A, random_adapter("b", kinds={path: "conv1d"})), "kinds-differ")
    assert issue.severity == "note" and "fan_in_fan_out" in issue.message


def test_prefix_architecture_and_disjoint_targets_are_told_apart():
    prefixed = random_adapter("b", {f"language_model.{p}": s for p, s in LLAMA.items()})
    issue = one(found(A, prefixed), "prefix-mismatch")
    assert issue.severity == "error" and "language_model.model.layers" in issue.message
    assert "prefix-mismatch" in found(prefixed, A)
    other = random_adapter("b", {f"transformer.h.{i}.attn.c_attn": (48, 16) for i in range(2)})
    assert one(found(A, other), "architecture-mismatch").severity == "error"
    parts = ({p: s for p, s in LLAMA.items() if part in p} for part in ("attn", "mlp"))
    issues = found(*(random_adapter(n, shapes) for n, shapes in zip("ab", parts, strict=True)))
    assert one(issues, "targets-disjoint").severity == "note"
    assert set(issues) == {"targets-disjoint"}


@pytest.mark.parametrize(
    ("one_path", "other_path", "same_base", "code"),
    [
        ("model.layers.0.q_proj", "model.embed_tokens", False, "targets-disjoint"),
        ("model.layers.0.q_proj", "lm_head", False, "targets-disjoint"),
        ("encoder.block.0.q", "decoder.block.0.q", False, "targets-disjoint"),
        ("model.encoder.layers.0.fc1", "model.decoder.layers.0.fc2", True, "targets-disjoint"),
        ("model.encoder.layers.0.fc1", "model.layers.0.q_proj", False, "architecture-mismatch"),
        ("transformer.wte", "model.embed_tokens", True, "architecture-mismatch"),
        ("transformer.h.0.c_attn", "model.layers.0.q_proj", True, "architecture-mismatch"),
    ],
)
def test_other_places_of_one_model_are_no_other_architecture(one_path, other_path, same_base, code):
    a = random_adapter("a", {one_path: (8, 8)})
    b = random_adapter("b", {other_path: (8, 8)}, base_model="owner/base" if same_base else None)
    for issues in (found(a, b), found(b, a)):
        severity = {"targets-disjoint": "note", "architecture-mismatch": "error"}[code]
        assert one(issues, code).severity == severity


def test_fused_projections_do_not_fit_single_ones():
    single = random_adapter("a", {"m.layers.0.self_attn.q_proj": (16, 16), "m.layers.0.x": (4, 4)})
    fused = random_adapter("b", {"m.layers.0.self_attn.qkv_proj": (48, 16), "m.layers.0.x": (4, 4)})
    issue = one(found(single, fused), "fused-targets")
    assert issue.severity == "error" and issue.module == "m.layers.0.self_attn.qkv_proj"
    assert "fused-targets" in found(fused, single)
    assert "fused-targets" not in found(fused, random_adapter("c", {"m.layers.0.x": (4, 4)}))


def test_partial_targets_ranks_and_depths_are_noted():
    half = random_adapter("b", {p: s for p, s in LLAMA.items() if ".0." in p}, rank=2)
    issues = found(A, half)
    assert one(issues, "targets-differ").severity == "note"
    assert "b lacks 7" in one(issues, "targets-differ").message
    # True of merges, where its delta is zero, and of routers, which share its gate among the rest.
    assert "adds nothing where it lacks" in one(issues, "targets-differ").message
    assert one(issues, "ranks-differ").severity == "note"
    assert one(issues, "depth-differs").severity == "warning"
    assert "depth-differs" not in found(A, with_config(half, layers_to_transform=[0]))


def test_rslora_is_noted_and_a_large_rank_only_for_merges():
    assert one(found(with_config(A, use_rslora=True), B), "rslora").adapters == ("a",)
    shapes = {"m.0.x": (100, 100)}
    pair = [random_adapter(n, shapes, rank=40) for n in "ab"]
    assert "rank-large" in found(*pair, purpose="merge")
    assert "rank-large" not in found(*pair)
    assert "rank-large" not in found(random_adapter("a", shapes, rank=80), purpose="merge")
    assert "rank-large" not in found(A, B, purpose="merge")


# --- extras and contents of factors ----------------------------------------------------------


@pytest.mark.parametrize("kind", ["target_parameter", "unclear_tokens", "convolution", "unknown"])
def test_extras_that_would_be_lost_are_named_with_a_cure_and_stop_compositions_only(kind):
    adapter = with_extra(A, kind)
    code = kind.replace("_", "-")
    assert code in CODES
    issue = one(found(adapter, B), code)
    assert issue.severity == "error" and issue.adapters == ("a",) and issue.cure
    assert adapter.extras[0].key in issue.message
    for purpose, severity in (("inspect", "warning"), ("merge", "error"), ("route", "error")):
        assert one(found(adapter, purpose=purpose), code).severity == severity


def test_not_finite_no_effect_and_partly_no_effect():
    modules = dict(random_adapter("a", seed=5).modules)
    path = list(modules)[4]
    modules[path].B[3, 1] = float("inf")
    issue = one(found(adapter_of("a", modules, base_model="owner/base"), B), "not-finite")
    assert issue.severity == "error" and issue.module == path and issue.adapters == ("a",)
    untrained = {p: LowRank(u.A, torch.zeros_like(u.B), u.scaling) for p, u in B.modules.items()}
    issue = one(found(A, adapter_of("b", untrained, base_model="owner/base")), "no-effect")
    assert issue.severity == "error" and issue.adapters == ("b",)
    nothing = adapter_of("c", untrained, base_model="owner/base")
    assert "duplicate" not in found(nothing, replace(nothing, name="d"))
    partly = {**B.modules, path: untrained[path]}
    issues = found(A, adapter_of("b", partly, base_model="owner/base"))
    issue = one(issues, "modules-without-effect")
    assert issue.severity == "note" and issue.module == path


def test_duplicates_are_found_in_any_basis_and_near_ones_are_not():
    def changed(change) -> Adapter:
        modules = {path: change(update) for path, update in A.modules.items()}
        return adapter_of("c", modules, base_model="owner/base")

    issue = one(found(A, B, changed(lambda u: regauged(u.to(torch.float64), 3))), "duplicate")
    assert issue.adapters == ("a", "c") and issue.severity == "warning"
    for near in (lambda u: u.to(torch.bfloat16), lambda u: u.scaled(2.0)):
        assert "duplicate" not in found(A, changed(near))


def test_contents_of_another_pass_give_the_same_findings():
    modules = dict(random_adapter("b", seed=5).modules)
    modules[next(iter(modules))].A[0, 0] = float("nan")
    adapters = [A, adapter_of("b", modules, base_model="owner/base"), replace(A, name="c")]
    contents = TensorChecks(adapters)
    diagnose(adapters, observe=contents.take)
    assert check(adapters, contents=contents) == check(adapters)
    before = check(adapters, contents=TensorChecks(adapters), allow=["not-finite"])
    assert not before.issues
    both = with_contents(before, contents, ["not-finite"])
    assert both == check(adapters, allow=["not-finite"]) and both.compatible
    assert {i.code for i in check(adapters).issues} == {"not-finite", "duplicate"}


def test_allow_turns_named_errors_into_warnings_and_nothing_else():
    other = with_extra(random_adapter("b", seed=2, base_model="owner/other"), "convolution")
    issues = found(A, other, allow=["base-mismatch"])
    allowed = one(issues, "base-mismatch")
    assert allowed.severity == "warning" and allowed.message.startswith("Allowed: ")
    assert one(issues, "convolution").severity == "error"
    assert check([A, other], allow=["base-mismatch", "convolution"]).compatible
    issues = found(A, random_adapter("b", rank=2), allow=["ranks-differ"])
    assert one(issues, "ranks-differ").message.startswith("Ranks")
    with pytest.raises(UsageError, match="did you mean 'base-mismatch'"):
        check([A, B], allow=["base-missmatch"])


def test_errors_come_first():
    other = with_extra(random_adapter("b", rank=2, base_model="/local"), "convolution")
    order = [issue.severity for issue in check([A, other]).issues]
    assert order == sorted(order, key=["error", "warning", "note"].index)
    assert len(set(order)) == 3


# --- with a base ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def llama_dir(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("llama")
    tiny_llama().save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def llama(llama_dir) -> Base:
    return open_base(llama_dir, "owner/base")


def test_adapters_that_fit_a_base_and_one_of_another_architecture(llama, tmp_path, gpt2):
    gpt2.save_pretrained(tmp_path)
    base = open_base(tmp_path, "owner/base")
    assert found(A, B, base=llama) == {}
    conv = {f"transformer.h.{i}.attn.c_attn": (48, 16) for i in range(2)}
    assert found(random_adapter("a", conv, kinds=dict.fromkeys(conv, "conv1d")), base=base) == {}
    issue = one(found(A, base=base), "module-not-in-base")
    assert issue.severity == "error" and "14 of the 14" in issue.message


def test_shapes_and_prefixes_against_a_base(llama):
    wide = random_adapter("a", {**LLAMA, "model.layers.1.mlp.up_proj": (25, 16)})
    issue = one(found(wide, base=llama), "shapes-differ")
    assert "[25, 16]" in issue.message and "[24, 16]" in issue.message
    bare = random_adapter("a", {p.removeprefix("model."): s for p, s in LLAMA.items()})
    assert one(found(bare, base=llama), "modules-renamed").severity == "note"  # of LlamaModel
    other = random_adapter("a", {f"language_model.{p}": s for p, s in LLAMA.items()})
    issue = one(found(other, base=llama), "prefix-mismatch")
    assert issue.severity == "error" and "are model.layers" in issue.message


def test_a_base_that_the_user_chose_may_have_another_name(llama_dir):
    base = open_base(llama_dir, "owner/other")
    for purpose in ("inspect", "route"):
        issues = found(A, B, base=base, purpose=purpose)
        assert one(issues, "base-mismatch").severity == "warning"
        assert check([A, B], base, purpose=purpose).compatible
    local = open_base(llama_dir)
    assert one(found(A, B, base=local), "base-unclear").severity == "note"


def test_a_directory_given_by_two_names_is_no_hub_id(llama_dir, monkeypatch):
    monkeypatch.chdir(llama_dir.parent.parent)
    near = open_base(f"{llama_dir.parent.name}/{llama_dir.name}")
    assert near.reference.count("/") == 1
    assert one(found(A, B, base=near), "base-unclear").severity == "note"
    assert found(A, base=open_base(llama_dir, "owner/base@main")) == {}


def test_revision_against_the_commit_of_the_base(llama_dir):
    base = open_base(llama_dir, "owner/base", commit="a" * 40)
    for revision, differs in (("b" * 40, True), ("a" * 40, False), ("main", False)):
        issues = found(with_config(A, revision=revision), base=base)
        assert ("revision-mismatch" in issues) is differs


def test_vocabulary_and_tied_embeddings_against_a_base(llama):
    table, head = "model.embed_tokens", {"lm_head": (40, 16)}
    for more, codes in (
        ({table: (16, 40)}, {"tied-embeddings": "warning"}),
        ({table: (16, 41)}, {"tied-embeddings": "warning", "vocabulary-mismatch": "error"}),
        ({table: (16, 40), **head}, {}),
    ):
        shapes = more if "lm_head" in more else {**LLAMA, **more}
        issues = found(random_adapter("a", shapes, kinds={table: "embedding"}), base=llama)
        told = {code: one(issues, code).severity for code in issues}
        assert {
            c: told[c] for c in told if c in ("tied-embeddings", "vocabulary-mismatch")
        } == codes


def test_a_quantised_base_is_said_and_its_packed_weights_are_no_error(llama_dir, tmp_path):
    place = shutil.copytree(llama_dir, tmp_path / "base")
    config = json.loads((place / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "gptq", "bits": 4}
    (place / "config.json").write_text(json.dumps(config))
    more = random_adapter("a", {**LLAMA, "model.layers.0.packed": (4, 4)})
    issues = found(more, base=open_base(place, "owner/base"))
    assert one(issues, "quantised-base").severity == "warning"
    assert "module-not-in-base" not in issues


def test_a_copy_of_a_base_weight_is_compared(llama, tmp_path):
    weight = llama.weight("model.embed_tokens").mT.contiguous()  # stored [vocab, dim]
    key = "base_model.model.model.embed_tokens.base_layer.weight"
    for copy, base, severity in (
        (weight, None, "warning"),
        (weight, llama, "note"),
        (weight.bfloat16(), llama, "note"),
        (weight + 1e-3, llama, "error"),
        (torch.cat([weight, weight[:1]]), llama, "error"),
    ):
        save_file({key: copy}, tmp_path / "adapter_model.safetensors")
        extra = Extra("base_copy", key, "model.embed_tokens", tuple(copy.shape), str(copy.dtype))
        file = tmp_path / "adapter_model.safetensors"
        adapter = replace(A, extras=(extra,), weights_file=file)
        assert one(found(adapter, B, base=base), "base-copy").severity == severity


def with_tokenizer(adapter: Adapter, folder: Path, size: int) -> Adapter:
    folder.mkdir()
    vocab = {f"t{i}": i for i in range(size - 1)}
    added = [{"id": size - 1, "content": "<new>"}]
    content = {"model": {"type": "WordLevel", "vocab": vocab}, "added_tokens": added}
    (folder / "tokenizer.json").write_text(json.dumps(content))
    return replace(adapter, source=Source(str(folder), folder))


def test_tokenizers_saved_with_adapters(tmp_path, llama):
    first, second = (with_tokenizer(x, tmp_path / x.name, 40) for x in (A, B))
    assert found(first, second) == {}
    larger = with_tokenizer(B, tmp_path / "larger", 43)
    issue = one(found(first, larger), "tokenizer-mismatch")
    assert "a 40, b 43" in issue.message
    assert one(found(larger, base=llama), "vocabulary-mismatch").severity == "warning"
    assert found(first, base=llama) == {}
    for damage in ("no json", "[]", '{"model": {"vocab": {"x": "5"}}}', '{"added_tokens": [5]}'):
        (tmp_path / "larger" / "tokenizer.json").write_text(damage)
        issue = one(found(first, larger), "tokenizer-unreadable")
        assert issue.severity == "note" and issue.adapters == ("b",)


def test_adapters_as_people_publish_them(shelf):
    legal, medical, godspeed = shelf.adapters("legal", "medical", "godspeed")
    assert check([legal, medical, godspeed]).compatible
    distil, classifier = shelf.adapters("distil", "classifier")
    issues = found(legal, distil)
    assert one(issues, "base-mismatch").severity == "error"
    assert "depth-differs" in issues
    issues = found(legal, classifier)
    assert {"task-type-mismatch", "modules-to-save"} <= set(issues)
    assert not check([legal, classifier]).compatible
    assert one(found(legal, replace(legal, name="twin")), "duplicate").adapters == ("legal", "twin")
