"""Which modules a config names: peft's own rule is the oracle."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from making import random_adapter
from peft import LoraConfig
from peft.tuners.tuners_utils import check_target_module_exists

from loraprobe.adapter import read_adapter
from loraprobe.adapter.promises import completeness
from loraprobe.adapter.targeting import untargeted

PATHS = [
    "model.layers.0.self_attn.q_proj", "model.layers.1.self_attn.q_proj",
    "model.layers.10.mlp.up_proj", "model.layers.1.experts.0.up_proj", "lm_head", "h.2.attn.c_attn",
    "encoder.block.1.layer.0.q", "q_proj", "model.xq_proj",
]  # fmt: skip
NAMES = ["q_proj", "up_proj", "lm_head", "c_attn", "q", "layers.1.self_attn.q_proj", "proj",
         "model.layers.0.self_attn.q_proj"]  # fmt: skip
PATTERNS = [r".*q_proj", r"model\.layers\.\d\..*", r".*", "lm_head", "q_proj"]

listed = st.lists(st.sampled_from(NAMES), min_size=1, max_size=3)
layers = st.none() | st.integers(0, 2) | st.lists(st.integers(0, 10), max_size=3)


@settings(max_examples=300, deadline=None)
@given(
    targets=listed | st.sampled_from(PATTERNS),
    exclude=st.none() | listed | st.sampled_from(PATTERNS),
    chosen=layers,
    pattern=st.none() | st.sampled_from(["layers", "h", "block"]) | st.just(["layers", "h"]),
)
def test_it_is_pefts_rule(targets, exclude, chosen, pattern):
    if isinstance(targets, str):
        chosen = pattern = None  # peft refuses them beside a regular expression
    if chosen is None:
        pattern = None
    raw = {
        "target_modules": targets, "exclude_modules": exclude, "layers_to_transform": chosen,
        "layers_pattern": pattern,
    }  # fmt: skip
    config = LoraConfig(**raw)
    theirs = [path for path in PATHS if not bool(check_target_module_exists(config, path))]
    assert untargeted(PATHS, raw) == theirs


@pytest.mark.parametrize("targets", [None, "all-linear", [], "(", 3, "(a|aa)+$" * 3])
def test_what_cannot_be_judged_is_not_judged(targets):
    path = "a" * 40 + "!"
    assert untargeted([path], {"target_modules": targets}) in ([], [path])


def test_weights_that_peft_would_leave_out_are_named(tmp_path):
    import json

    tmp_path = tmp_path / "a"
    random_adapter("a").save(tmp_path)
    config = tmp_path / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"target_modules": ["q_proj"]}))
    issue = next(i for i in read_adapter(tmp_path).issues if i.code == "weights-untargeted")
    assert issue.severity == "warning" and "12 modules" in issue.message


def test_a_hundred_thousand_names_for_as_many_modules_are_no_square():
    """The config of a merge of modules without a common ending names each of them."""
    paths = [f"model.layers.{i}.x{i}" for i in range(100_000)]
    start = time.process_time()
    assert untargeted(paths, {"target_modules": paths[1:]}) == [paths[0]]
    infos = random_adapter("a", {"model.layers.0.x": (4, 4)}).layout
    lost = completeness("a", infos, {"target_modules": ["x", *paths]}, ())
    assert "targets-without-weights" in {issue.code for issue in lost}
    assert time.process_time() - start < 10


def test_a_pattern_without_end_has_a_second_for_all_paths():
    paths = [f"model.layers.{i}." + "a" * 40 + "!" for i in range(50)]
    start = time.monotonic()
    assert untargeted(paths, {"target_modules": r".*?((a|aa)+)+$"}) == []
    assert time.monotonic() - start < 10
