"""Which modules a config names: peft's own rule is the oracle."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from making import random_adapter
from peft import LoraConfig
from peft.tuners.tuners_utils import check_target_module_exists

from loraprobe.adapter import read_adapter
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
