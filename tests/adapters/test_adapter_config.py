"""Which modules a config names: peft's own rule is the oracle."""

from __future__ import annotations

import re
import time
import warnings
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from making import random_adapter
from peft import LoraConfig
from peft.tuners.tuners_utils import check_target_module_exists
from peft.utils.other import get_pattern_key

from loraprobe.adapters.config import ExpressionError, first_matches, judge_config, untargeted
from loraprobe.adapters.issues import incompleteness
from loraprobe.errors import AdapterError

PATHS = [
    "model.layers.0.self_attn.q_proj",
    "model.layers.1.self_attn.q_proj",
    "model.layers.10.mlp.up_proj",
    "model.layers.1.experts.0.up_proj",
    "lm_head",
    "h.2.attn.c_attn",
    "encoder.block.1.layer.0.q",
    "q_proj",
    "model.xq_proj",
    "a+b",
]
NAMES = [
    "q_proj",
    "up_proj",
    "lm_head",
    "c_attn",
    "q",
    "layers.1.self_attn.q_proj",
    "proj",
    "model.layers.0.self_attn.q_proj",
]
PATTERNS = [r".*q_proj", r"model\.layers\.\d\..*", r".*", "lm_head", "q_proj"]
SAVED = ["lm_head", "layers", "mlp", "q"]

listed = st.lists(st.sampled_from(NAMES), min_size=1, max_size=3)
layers = st.none() | st.integers(0, 2) | st.lists(st.integers(0, 10), max_size=3)


@settings(max_examples=60)
@given(
    targets=listed | st.sampled_from(PATTERNS),
    exclude=st.none() | listed | st.sampled_from(PATTERNS),
    chosen=layers,
    pattern=st.none()
    | st.sampled_from(["layers", "h", "block", "bl.ck"])
    | st.just(["layers", "h"]),
    saved=st.none() | st.lists(st.sampled_from(SAVED), max_size=2),
)
def test_it_is_pefts_rule(targets, exclude, chosen, pattern, saved):
    if isinstance(targets, str):
        chosen = pattern = None  # peft refuses them beside a regular expression
    if chosen is None:
        pattern = None
    raw = {
        "target_modules": targets,
        "exclude_modules": exclude,
        "layers_to_transform": chosen,
        "layers_pattern": pattern,
        "modules_to_save": saved,
    }
    config = LoraConfig(**raw)
    theirs = [path for path in PATHS if not bool(check_target_module_exists(config, path))]
    assert untargeted(PATHS, raw) == theirs


@pytest.mark.parametrize("targets", [None, "all-linear", [], 3])
def test_what_cannot_be_judged_is_not_judged(targets):
    assert untargeted(["a"], {"target_modules": targets}) == []


# Expressions that other engines read otherwise, or not at all.
ODD = [
    r".*[[:alpha:]]_proj",
    r"(?:.*q_proj){e<=1}",
    r".*q_pro{1}j",
    r"(?i:.*Q_PROJ)",
    r"(?i).*Q_PROJ",
    r".*[[a-z]--[q]]_proj",
    r".*+q_proj",
    r"(?>.*\.)q_proj",
    r"(?x) .* q_proj # end",
    r"(?:(?P<a>l)|m).*(?(a)head|proj)",
    r".*\p{L}_proj",
    r"\m.*",
    r".*(q_proj",
    r".*\.\X",
]


@pytest.mark.parametrize("expression", ODD)
def test_odd_expressions_are_read_as_peft_reads_them(expression):
    config = LoraConfig(target_modules=expression)
    try:
        theirs = [p for p in PATHS if not check_target_module_exists(config, p)]
    except re.error:
        with pytest.raises(ExpressionError, match="no regular expression"):
            untargeted(PATHS, {"target_modules": expression})
    else:
        assert untargeted(PATHS, {"target_modules": expression}) == theirs


@pytest.mark.parametrize(
    "key",
    [
        "[[:alpha:]]_proj",
        "(?i)Q_PROJ",
        "(?:xx){e<=1}",
        "q_proj|up_proj",
        r"model\.layers\.1",
        "^q_proj",
        "^model.xq_proj",
        "a)|(lm_head",
    ],
)
def test_keys_of_patterns_are_read_as_peft_reads_them(key):
    config = {"peft_type": "LORA", "rank_pattern": {key: 3}}
    try:
        ranks = {key: 3}
        theirs = [ranks.get(get_pattern_key([key, ".*"], path), 8) for path in PATHS]
    except re.error:
        with pytest.raises(AdapterError, match="no regular expression"):
            judge_config(config, "x").ranks_and_scalings(PATHS)
    else:
        ours = judge_config(config, "x").ranks_and_scalings(PATHS)
        assert [ours[path][0] for path in PATHS] == theirs


def test_a_hundred_thousand_names_for_as_many_modules_are_no_square():
    """The config of a merge of modules without a common ending names each of them."""
    paths = [f"model.layers.{i}.x{i}" for i in range(100_000)]
    start = time.process_time()
    assert untargeted(paths, {"target_modules": paths[1:]}) == [paths[0]]
    adapter = random_adapter("a", {"model.layers.0.x": (4, 4)})
    found = incompleteness(replace(adapter, config={"target_modules": ["x", *paths]}))
    assert "targets-without-weights" in {issue.code for issue in found}
    assert time.process_time() - start < 10


@given(st.text("ab.:[]{}(),1e<=|*+?^$\\-idx", max_size=10), st.text("ab:[{}1e", max_size=4))
@settings(max_examples=400)
def test_random_expressions_are_read_as_re_reads_them(expression, text):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            theirs = re.fullmatch(expression, text) is not None
        except re.error:
            theirs = None
        try:
            ours = first_matches([expression], "{}", [text], whole=True) != [None]
        except ExpressionError:
            ours = None
    assert ours is theirs
