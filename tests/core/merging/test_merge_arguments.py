"""A merge refuses bad input in one sentence with the cure, and reports everything it drops."""

import re

import pytest
import torch
from making import LLAMA, random_adapter, random_update, write_adapter

from loraprobe.adapters import adapter_of, read_adapter
from loraprobe.errors import (
    AdapterError,
    CompatibilityError,
    OutputError,
    UnsupportedAdapter,
    UsageError,
)
from loraprobe.lora.lowrank import LowRank
from loraprobe.merging import METHODS, merge
from loraprobe.merging._method import ELSEWHERE

UP = "model.layers.0.mlp.up_proj"


def one(name="a", rank=2, seed=0, **options):
    return random_adapter(name, {UP: (12, 10)}, rank, seed, **options)


PAIR = [one("a"), one("b", seed=1)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "tie"}, r"Unknown merge method 'tie': did you mean 'ties'"),
        # Names of peft, mergekit and papers, with the method that computes that.
        ({"method": "linear"}, r"factor_average:variant=peft.*mergekit.*task_arithmetic"),
        ({"method": "average"}, r"deltas is uniform.*factor_average"),
        ({"method": "mean"}, r"deltas is uniform.*factor_average"),
        ({"method": "cat"}, r"task_arithmetic"),
        ({"method": "svd"}, r"task_arithmetic with --rank N"),
        ({"method": "weighted"}, r"--weights.*task_arithmetic"),
        ({"method": "dare-ties-svd:density=0.3"}, r"take dare_ties"),
        ({"method": "ties:densty=0.3"}, r"no option 'densty=0.3': did you mean 'density'"),
        ({"method": "ties:density=0"}, r"'ties:density=0': density.*above 0 and at most 1"),
        ({"method": "dare_ties:density=1.1"}, r"density.*not 1.1"),
        ({"method": "ties:variant=mine"}, r"must be 'peft' or 'mergekit', not 'mine'"),
        ({"method": "factor_average", "space": "core"}, r"has no space to choose; leave it"),
        # Weights that leave nothing to write.
        *(({"method": name, "weights": [0, 0]},
            r"zero in every module") for name in ("task_arithmetic", "ties", "factor_average")),
        ({"adapters": [one(), adapter_of("twin", dict(one().modules))], "method": "task_arithmetic",
            "weights": [1, -1]}, r"zero in every module"),
    ],
)  # fmt: skip
def test_invalid_arguments_are_refused(options, message):
    with pytest.raises(UsageError, match=message):
        merge(**{"adapters": PAIR, **options})


@pytest.mark.parametrize(
    "adapters, method, said",
    [
        ([one(), random_adapter("wide", {UP: (12, 11)}, 2)], "uniform",
            rf"{UP} is \[12, 10\] in a and \[12, 11\] in wide"),
        ([one(), one("table", seed=1, kinds={UP: "embedding"})], "uniform",
            r"of kind linear in a and embedding in table"),
        ([one(), one("b", rank=3)], "factor_average", r"rank 2 in a and 3 in b.*use uniform"),
        (
            [
                random_adapter("a"),
                random_adapter("b", {p: s for p, s in LLAMA.items() if "up" not in p}),
            ],
            "factor_average",
            r"b leaves module .*up_proj alone.*use uniform",
        ),
    ],
)  # fmt: skip
def test_modules_that_do_not_correspond_are_named(adapters, method, said):
    with pytest.raises(CompatibilityError, match=said):
        merge(adapters, method)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("factor", ["A", "B"])
@pytest.mark.parametrize("method", ["uniform", "ties"])
def test_nan_and_inf_are_named(value, factor, method):
    update = random_update(12, 10, 2, 1)
    getattr(update, factor)[1, 1] = value
    with pytest.raises(AdapterError, match=rf"Adapter bad has NaN or Inf in module {UP}"):
        merge([one(), adapter_of("bad", {UP: update})], method)


def test_an_adapter_without_effect_is_refused_or_allowed_by_name():
    update = random_update(12, 10, 2, 1)
    idle = adapter_of("idle", {UP: LowRank(update.A, update.B * 0, 1.0)})
    with pytest.raises(UnsupportedAdapter, match=r"Adapter idle has no effect.*leave it out"):
        merge([one(), idle])
    merged = merge([one(), idle], allow=["no-effect"])
    assert [i.code for i in merged.issues] == ["no-effect"]


def test_twins_and_modules_that_cancel():
    twin = adapter_of("twin", {UP: one().modules[UP]})
    half = adapter_of("half", {UP: one().modules[UP], "other": random_update(12, 10, 2, 9)})
    merged = merge([half, twin], "task_arithmetic", weights=[1, -1]).adapter
    assert merged.layout[UP].rank == 1 and not merged.modules[UP].delta().any()
    for adapters, found in (([one(), twin], ["duplicate"]), (PAIR, [])):
        assert [i.code for i in merge(adapters).issues] == found


def test_a_dtype_that_is_too_small_is_an_error_not_an_infinity():
    large = adapter_of("large", {UP: random_update(12, 10, 2, 1, 1e12)})
    with pytest.raises(OutputError, match=r"does not fit into float16.*float32"):
        merge([large], dtype=torch.float16)


def test_equal_copies_of_base_weights_are_dropped_with_a_note(tmp_path):
    """peft saves an embedding that has a LoRA with it."""
    update, prefix = random_update(16, 40, 2, 3), "base_model.model.model.embed_tokens"
    factors = {f"{prefix}.lora_embedding_A": update.A, f"{prefix}.lora_embedding_B": update.B / 10}
    copy = torch.arange(640.0).reshape(40, 16)
    a, b, rounded, other = (
        read_adapter(
            write_adapter(tmp_path / n, {**factors, f"{prefix}.base_layer.weight": own}, r=2), n
        )
        for n, own in (("a", copy), ("b", copy), ("rounded", copy.bfloat16()), ("c", copy + 1))
    )
    for same in (b, rounded):
        merged = merge([a, same])
        assert [(i.severity, i.code) for i in merged.issues] == [
            ("note", "base-copy"),
            ("warning", "duplicate"),
        ]
        assert merged.adapter.layout["model.embed_tokens"].kind == "embedding"
    with pytest.raises(UnsupportedAdapter, match=r"a and c hold different copies.*embed_tokens"):
        merge([a, other])
    allowed = merge([a, other], allow=["base-copy"])
    assert ("warning", "base-copy") in [(i.severity, i.code) for i in allowed.issues]


def test_errors_found_on_reading_stop_a_merge(tmp_path):
    update, prefix = random_update(16, 16, 2, 3), "base_model.model.model.layers.0.self_attn"
    tensors = {
        f"{prefix}.q_proj.lora_A.weight": update.A,
        f"{prefix}.q_proj.lora_B.weight": update.B,
        f"{prefix}.k_proj.lora_A.weight": update.A.clone(),
    }
    adapter = read_adapter(write_adapter(tmp_path / "half", tensors, r=2))
    codes = [i.code for i in adapter.issues if i.severity == "error"]
    with pytest.raises(UnsupportedAdapter, match=r"Adapter half: .*k_proj"):
        merge([adapter])
    with pytest.raises(UnsupportedAdapter, match=r"holds unknown"):
        merge([adapter], allow=codes)  # one named issue accepts that one only
    merged = merge([adapter], allow=[*codes, "unknown"])
    assert {i.severity for i in merged.issues} == {"warning"}


def test_unused_weights_and_different_bases_are_reported():
    other = one("b", seed=1, base_model="owner/other")
    merged = merge([one(), other], "uniform", weights=[0.9, 0.1])
    assert [i.code for i in merged.issues] == ["weights-ignored", "base-mismatch"]
    assert merged.weights == (0.5, 0.5)
    merged = merge([one(base_model="/x/base"), one("b", seed=1, base_model="base")], "uniform")
    assert not merged.issues


def test_every_name_of_other_tools_leads_to_methods_that_exist():
    for name, told in ELSEWHERE.items():
        assert name not in METHODS
        named = re.findall(r"\b(?:is|as|take|or|than) ([a-z_]+_?[a-z]+(?::variant=peft)?)\b", told)
        known = [spec for spec in named if spec in METHODS]
        assert known and all(METHODS.make(spec) for spec in known), name
