"""Commands over adapters that peft writes as DoRA, with a head of their own, or of a mixture."""

import json
import shutil
import warnings
from functools import partial
from pathlib import Path

import making
import pytest
import torch
from making import call, edit, peft_adapter, tiny_model
from peft import PeftModel
from safetensors.torch import load_file, save_file
from words import word_tokenizer, write_world

import loraprobe
from loraprobe.adapters import read_adapter
from loraprobe.adapters.experts import stacked_factors
from loraprobe.base import open_base
from loraprobe.compatibility import check
from loraprobe.errors import UnsupportedAdapter
from loraprobe.lora.lowrank import LowRank
from loraprobe.pipeline.plan import random_partner

SIZE = max(40, len(word_tokenizer()))
KINDS = {
    "dora": {"target_modules": ["q_proj", "up_proj"], "r": 2, "use_dora": True, "scale": 0.1},
    "dora2": {"target_modules": ["q_proj", "v_proj"], "r": 3, "use_dora": True, "scale": 0.1},
    "plain": {"target_modules": ["q_proj", "v_proj"], "r": 2, "scale": 0.1},
    "headed": {"target_modules": ["q_proj"], "r": 2, "modules_to_save": ["lm_head"], "scale": 0.1},
}
HOPS = [
    {"prompt": "who is the mayor of ulm ?", "answer": "bo"},
    {"prompt": "{1} lives in", "answer": "ulm"},
]
ITEM = {"prompt": "ada lives in", "answer": "ulm"}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A tiny base with a tokenizer, one adapter of each kind, and a task with hops."""
    make = partial(making.tiny_llama, vocab=SIZE, tied=False)
    items = [{"id": str(i), **ITEM, "hops": HOPS} for i in range(3)]
    return write_world(tmp_path_factory.mktemp("experts"), make, KINDS, items)


def judged(root, *names, **options):
    refs = [root / name for name in names]
    options |= {"base": root / "base", "tasks": root / "task.jsonl"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return loraprobe.merge_and_eval(refs, **options)


@pytest.mark.parametrize(
    ("place", "pair", "left_out"),
    [
        ("world", ("dora", "dora2"), None),
        ("world", ("dora", "plain"), None),
        ("world", ("headed", "dora"), "headed replaces lm_head.weight"),
        ("mixture", ("a", "b"), "a changes"),
    ],
)
def test_an_audit_leaves_out_token_routers_that_an_adapter_cannot_have(
    place, pair, left_out, request
):
    root = request.getfixturevalue(place)
    audit = judged(root, *pair)
    assert audit.compatibility.compatible, audit.compatibility.issues
    systems = {row.system for row in audit.evaluation.scores}
    assert {"base", *pair, "uniform", "sum", "random-partner"} <= systems
    assert ("arrow" in systems) == (left_out is None)
    assert (f"arrow is left out: {left_out}" in " ".join(audit.notes)) == (left_out is not None)
    if "headed" in pair:
        with pytest.raises(UnsupportedAdapter, match=r"headed replaces lm_head\.weight whole"):
            judged(root, *pair, systems=("arrow",))


def test_the_random_partner_of_a_dora_moves_each_weight_as_far(world):
    adapter, base = read_adapter(world / "dora"), open_base(world / "base")
    partner = random_partner(adapter, weight=base.weight)
    assert not partner.magnitudes and not partner.extras
    for path, update in adapter.modules.items():
        W0, m = base.weight(path).double(), adapter.magnitudes[path].double()
        V = W0 + update.to(torch.float64).delta()
        change = (m / V.norm(dim=1))[:, None] * V - W0
        found = float(partner.modules[path].to(torch.float64).norm())
        assert found == pytest.approx(float(change.norm()), rel=1e-5)
        assert abs(found / float(update.norm()) - 1) > 0.01  # not that of its factors alone
    blind = random_partner(adapter)
    path = next(iter(adapter.modules))
    assert float(blind.modules[path].norm()) == pytest.approx(
        float(adapter.modules[path].norm()), rel=1e-5
    )


BOTH = {"target_parameters": ["experts.gate_up_proj", "experts.down_proj"]}
WEIGHTS = "adapter_model.safetensors"
mixtral = partial(tiny_model, "Mixtral", vocab_size=SIZE, num_local_experts=3)


@pytest.fixture(scope="module")
def mixture(tmp_path_factory):
    """A tiny Mixtral with a tokenizer, two adapters of its experts, and a task."""
    config = {"r": 2, "target_modules": ["q_proj"], "scale": 0.1, **BOTH}
    pair = {"a": config, "b": config}
    items = [{"id": str(i), **ITEM} for i in range(3)]
    return write_world(tmp_path_factory.mktemp("mixture"), mixtral, pair, items)


def errors(adapter, base) -> dict[str, str]:
    found = check([adapter], base).issues
    return {issue.code: issue.message for issue in found if issue.severity == "error"}


def test_a_base_is_checked_by_its_parameters(mixture, tmp_path):
    """The files of a Mixtral hold each expert's matrices apart."""
    adapter = read_adapter(mixture / "a")
    assert not errors(adapter, open_base(mixture / "base"))
    for name, change, words in (
        ("more", {"num_local_experts": 4}, "has as [4"),
        ("wider", {"intermediate_size": 32}, "32]"),
    ):
        mixtral(**change).save_pretrained(tmp_path / name)
        assert words in errors(adapter, open_base(tmp_path / name))["module-not-in-base"]
    tiny_model("Llama", vocab_size=SIZE).save_pretrained(tmp_path / "llama")
    found = errors(adapter, open_base(tmp_path / "llama"))
    assert "down_proj and gate_up_proj of" in found["module-not-in-base"]


def in_the_other_order(place: Path, out: Path, version: str | None) -> Path:
    """A copy of an adapter with the factors of each expert as peft 0.17.0 to 0.18.1 stored them."""
    adapter, tensors = read_adapter(place), load_file(place / WEIGHTS)
    shutil.copytree(place, out)
    for stack, paths in adapter.stacks.items():
        turned = [LowRank(u.B.mT, u.A.mT, u.scaling) for u in map(adapter.modules.get, paths)]
        for factor, tensor in zip("AB", stacked_factors(turned), strict=True):
            tensors[f"base_model.model.{stack}.lora_{factor}.weight"] = tensor.contiguous()
    save_file(tensors, out / WEIGHTS, metadata={"format": "pt"})
    edit(out / "adapter_config.json", peft_version=version)
    return out


@pytest.mark.needs("--expert-layout")
@pytest.mark.parametrize(
    ("version", "base", "turned", "found"),
    [
        ("0.18.1", None, True, "error"),
        ("0.19.0", None, False, "error"),
        ("0.19.1.dev0", None, False, "error"),
        (None, None, False, "error"),
        ("0.19.1", None, False, None),
        ("0.21.0", None, True, None),  # nothing shows it
        ("0.18.1", "wide", True, None),
        ("0.21.0", "wide", True, None),  # transformers may have had its own order
        ("0.18.1", "wide", False, None),
        (None, "wide", False, None),
        ("0.18.1", "square", True, "error"),
        (None, "square", True, "error"),
        ("0.21.0", "square", False, None),
    ],
)
def test_the_order_of_inputs_and_outputs(tmp_path, version, base, turned, found):
    model = partial(mixtral, intermediate_size=8 if base == "square" else 24)
    up = {"target_modules": [], "target_parameters": ["experts.gate_up_proj"]}
    place = peft_adapter(tmp_path / "new", model(), 1, r=2, **up)
    edit(place / "adapter_config.json", peft_version=version, base_model_name_or_path="base")
    if turned:
        place = in_the_other_order(place, tmp_path / "old", version)
    model().save_pretrained(tmp_path / "base")
    opened = None if base is None else open_base(tmp_path / "base")
    issues = check([read_adapter(place)], opened).issues
    severities = {issue.severity for issue in issues if issue.code == "expert-layout"}
    assert severities == ({found} if found else set())
    codes = {issue.code for issue in issues}
    assert "module-not-in-base" not in codes
    assert ("experts-exchanged" in codes) == (turned and base == "wide")
    merge = ["merge", place, place, "--method", "sum", "-o", tmp_path / "out"]
    merge += [] if base is None else ["--base", tmp_path / "base"]
    done = call(*merge)
    assert done.exit_code == (2 if found else 0), done.output
    if found:
        assert "expert-layout" in done.stderr and not (tmp_path / "out").exists()
        done = call(*merge, "--allow", "expert-layout")
        assert done.exit_code == 0, done.output
    written = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert written["peft_version"] == "0.19.1"
    if turned and not found and base is not None:
        made, new = read_adapter(tmp_path / "out"), read_adapter(tmp_path / "new")
        for path, update in new.modules.items():  # the sum of it and itself
            torch.testing.assert_close(made.modules[path].delta(), 2 * update.delta())


def test_adapters_of_other_parameters_of_a_module_are_an_error_with_a_cure(mixture, tmp_path):
    parameters = {"target_modules": [], "target_parameters": ["experts.down_proj"]}
    other = read_adapter(peft_adapter(tmp_path / "down", mixtral(), 1, r=2, **parameters))
    issues = check([read_adapter(mixture / "a"), other]).issues
    found = next(issue for issue in issues if issue.code == "parameters-differ")
    assert (
        found.severity == "error" and found.cure and "down_proj and gate_up_proj" in found.message
    )


def merged(mixture, out, *options):
    done = call("merge", mixture / "a", mixture / "b", "-o", out, *options)
    assert done.exit_code == 0, done.output
    return out


@pytest.mark.needs("verify")
@pytest.mark.parametrize(
    "options",
    [("--method", "sum"), ("--method", "ties", "--rank", "3")],
)
def test_a_merge_is_verified(mixture, tmp_path, options):
    out = merged(mixture, mixture / tmp_path.name, *options)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # of keys that peft does not use
        PeftModel.from_pretrained(mixtral(), out)
    assert call("verify", out).exit_code == 0
    tensors = load_file(out / WEIGHTS)
    key = next(key for key in tensors if ".experts.base_layer.lora_B" in key)
    tensors[key][:, 1] *= 1.01  # of expert 1
    save_file(tensors, out / WEIGHTS, metadata={"format": "pt"})
    result = call("verify", out, "--json")
    said = {check["name"]: check for check in json.loads(result.stdout)["checks"]}
    assert result.exit_code == 1
    assert "experts.base_layer[1]" in said[WEIGHTS]["message"]


def test_an_expert_in_another_basis_is_the_same_and_another_expert_is_not(mixture, tmp_path):
    """Another library of linear algebra gives an expert's factors another basis."""
    out = merged(mixture, tmp_path / "out", "--method", "sum")
    tensors = load_file(out / WEIGHTS)
    path = "base_model.model.model.layers.0.mlp.experts"
    A, B = (tensors[f"{path}.lora_{factor}.weight"] for factor in "AB")
    experts, rank = 3, len(A) // 3
    turn = torch.linalg.qr(torch.randn(experts, rank, rank, dtype=torch.float64)).Q
    a, b = A.double().reshape(experts, rank, -1), B.double().reshape(len(B), rank, experts)
    turned = torch.einsum("ers,esi->eri", turn, a), torch.einsum("ers,ose->ore", turn, b)

    def file(name, a, b):
        changed = {f"{path}.lora_A.weight": a.reshape(A.shape).to(A.dtype).contiguous()}
        changed[f"{path}.lora_B.weight"] = b.reshape(B.shape).to(B.dtype).contiguous()
        shutil.copytree(out, tmp_path / name)
        save_file(tensors | changed, tmp_path / name / WEIGHTS, metadata={"format": "pt"})
        return tmp_path / name / WEIGHTS

    again = out / WEIGHTS
    verifying = pytest.importorskip("loraprobe.extensions.files.verifying")
    difference_of_tensors = verifying.difference_of_tensors
    assert difference_of_tensors(file("turned", *turned), again) is None
    order = [1, 0, 2]
    swapped = file("swapped", a[order], b[:, :, order])
    assert "mlp.experts[0]" in difference_of_tensors(swapped, again)


@pytest.mark.needs("convert")
@pytest.mark.parametrize("options", [(), ("--compact",)])
def test_a_converted_adapter_is_the_same(mixture, tmp_path, options):
    """Of ranks that differ by parameter, which become one unless they may stay."""
    ranks = {"r": 2, "rank_pattern": {"down_proj": 3}}
    place = peft_adapter(tmp_path / "a", mixtral(), 1, target_modules=["q_proj"], **ranks, **BOTH)
    done = call("convert", place, "-o", tmp_path / "out", *options)
    assert done.exit_code == 0, done.output
    given, made = read_adapter(place), read_adapter(tmp_path / "out")
    assert given.rank_range == (2, 3) and made.rank_range == (3, 3)
    assert made.config["target_modules"] == ["q_proj"]
    for path, update in given.modules.items():
        torch.testing.assert_close(made.modules[path].delta(), update.delta())


@pytest.mark.needs("verify")
def test_a_route_is_constant_or_refused(mixture, tmp_path):
    pair = [str(mixture / "a"), str(mixture / "b")]
    with pytest.raises(UnsupportedAdapter, match=r"experts itself.*router.*constant"):
        loraprobe.compose(pair, router="arrow")
    out = mixture / tmp_path.name
    done = call("route", *pair, "--router", "constant", "-o", out)
    assert done.exit_code == 0, done.output
    assert call("verify", out).exit_code == 0
