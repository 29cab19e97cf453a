"""Which modules a config names: peft's own rule is the oracle."""

import dataclasses
import json
import math
import re
import time
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import making
import pytest
import torch
from core.adapters.test_adapter_reading import Q, codes, pair, peft_deltas
from hypothesis import given, settings
from hypothesis import strategies as st
from making import ABSENT, random_adapter, write_adapter
from peft import LoraConfig, PeftModel
from peft.tuners.tuners_utils import check_target_module_exists
from peft.utils.other import get_pattern_key

from loraprobe.adapters import read_adapter
from loraprobe.adapters.config import (
    DESCRIPTIVE,
    VARIANTS,
    config_issues,
    judge_config,
    unknown_keys,
    untargeted_paths,
)
from loraprobe.errors import AdapterError, UnsupportedAdapter
from loraprobe.patterns import PatternError, first_matches

PATHS = """
model.layers.0.self_attn.q_proj model.layers.1.self_attn.q_proj model.layers.10.mlp.up_proj
model.layers.1.experts.0.up_proj lm_head h.2.attn.c_attn encoder.block.1.layer.0.q q_proj
model.xq_proj a+b
""".split()
NAMES = """
q_proj up_proj lm_head c_attn q layers.1.self_attn.q_proj proj model.layers.0.self_attn.q_proj
""".split()
PATTERNS = [r".*q_proj", r"model\.layers\.\d\..*", r".*", "lm_head", "q_proj"]
SAVED = ["lm_head", "layers", "mlp", "q"]

listed = st.lists(st.sampled_from(NAMES), min_size=1, max_size=3)
layers = st.none() | st.integers(0, 2) | st.lists(st.integers(0, 10), max_size=3)


@settings(max_examples=60)
@given(
    targets=listed | st.sampled_from(PATTERNS),
    exclude=st.none() | listed | st.sampled_from(PATTERNS),
    chosen=layers,
    pattern=st.sampled_from([None, "layers", "h", "block", "bl.ck", ["layers", "h"]]),
    saved=st.none() | st.lists(st.sampled_from(SAVED), max_size=2),
)
def test_it_is_pefts_rule(targets, exclude, chosen, pattern, saved):
    if isinstance(targets, str):
        chosen = pattern = None  # peft refuses them beside a regular expression
    if chosen is None:
        pattern = None
    raw = {"target_modules": targets, "exclude_modules": exclude, "modules_to_save": saved}
    raw |= {"layers_to_transform": chosen, "layers_pattern": pattern}
    config = LoraConfig(**raw)
    theirs = [path for path in PATHS if not bool(check_target_module_exists(config, path))]
    assert untargeted_paths(PATHS, raw) == theirs


@pytest.mark.parametrize("targets", [None, "all-linear", [], 3])
def test_what_cannot_be_judged_is_not_judged(targets):
    assert untargeted_paths(["a"], {"target_modules": targets}) == []


# Expressions that other engines read otherwise, or not at all.
ODD = r"""
.*[[:alpha:]]_proj  (?:.*q_proj){e<=1}  .*q_pro{1}j  (?i:.*Q_PROJ)  (?i).*Q_PROJ  .*(q_proj
.*[[a-z]--[q]]_proj  .*+q_proj  (?>.*\.)q_proj  (?:(?P<a>l)|m).*(?(a)head|proj)  .*\p{L}_proj
\m.*  .*\.\X
""".split()
ODD.append(r"(?x) .* q_proj # end")


@pytest.mark.parametrize("expression", ODD)
def test_odd_expressions_are_read_as_peft_reads_them(expression):
    config = LoraConfig(target_modules=expression)
    try:
        theirs = [p for p in PATHS if not check_target_module_exists(config, p)]
    except re.error:
        with pytest.raises(PatternError, match="no regular expression"):
            untargeted_paths(PATHS, {"target_modules": expression})
    else:
        assert untargeted_paths(PATHS, {"target_modules": expression}) == theirs


IN_PATTERNS = r"""
[[:alpha:]]_proj  (?i)Q_PROJ  (?:xx){e<=1}  q_proj|up_proj  model\.layers\.1  ^q_proj
^model.xq_proj  a)|(lm_head
""".split()


@pytest.mark.parametrize("key", IN_PATTERNS)
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
    assert untargeted_paths(paths, {"target_modules": paths[1:]}) == [paths[0]]
    adapter = random_adapter("a", {"model.layers.0.x": (4, 4)})
    found = config_issues(replace(adapter, config={"target_modules": ["x", *paths]}))
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
        except PatternError:
            ours = None
    assert ours is theirs


KINDS = {  # of configurations: peft's class -> its options
    "lora": ("LoraConfig", {}),
    "rslora": ("LoraConfig", {"use_rslora": True}),
    "dora": ("LoraConfig", {"use_dora": True}),
    "patterns": ("LoraConfig", {"rank_pattern": {"k_proj": 2}, "alpha_pattern": {"k_proj": 3}}),
    "saved": ("LoraConfig", {"modules_to_save": ["lm_head"]}),
    "adalora": ("AdaLoraConfig", {"total_step": 9}),
    "ia3": ("IA3Config", {"feedforward_modules": []}),
    "loha": ("LoHaConfig", {}),
    "prefix": ("PrefixTuningConfig", {"num_virtual_tokens": 4}),
    "vera": ("VeraConfig", {}),
}
# Published configurations, and kinds of which peft writes one.
CONFIGS = [*sorted((making.SHARED / "peft-configs").rglob("*.json")), *KINDS]


def config_of(given: Path | str, place: Path) -> dict[str, Any]:
    """One of CONFIGS as it stands in its file."""
    if isinstance(given, str):
        import peft

        kind, options = KINDS[given]
        if given != "prefix":
            options = {"target_modules": ["q_proj", "v_proj"], **options}
        getattr(peft, kind)(task_type="CAUSAL_LM", **options).save_pretrained(str(place))
        given = place / "adapter_config.json"
    return json.loads(given.read_text(encoding="utf-8"))


@pytest.mark.parametrize("given", CONFIGS, ids=lambda given: Path(given).stem)
def test_every_config_is_accepted_or_refused_by_name(given, tmp_path):
    raw, name = config_of(given, tmp_path), str(given)
    variants = {"kasa_config", "use_bdlora"} & {k for k, v in raw.items() if v}
    refused = raw["peft_type"] if raw["peft_type"] != "LORA" else min(variants, default=None)
    if refused:
        with pytest.raises(UnsupportedAdapter, match=refused):
            judge_config(raw, name)
    else:
        config = judge_config(raw, name)
        assert not unknown_keys(raw)
        root = raw["r"] ** (0.5 if raw.get("use_rslora") else 1)
        path = "model.q_proj"
        scaling = config.ranks_and_scalings([path])[path][1]
        assert math.isclose(scaling, raw["lora_alpha"] / root)


def test_the_table_knows_every_key_of_the_installed_peft():
    known = {field.name for field in dataclasses.fields(LoraConfig)}
    assert known <= DESCRIPTIVE | set(VARIANTS)
    defaults = LoraConfig(task_type="CAUSAL_LM").to_dict()
    judge_config(defaults, "defaults")
    assert not unknown_keys(defaults)


@pytest.mark.parametrize("key", VARIANTS)
def test_variants_are_refused_by_name(tmp_path, key):
    with pytest.raises(UnsupportedAdapter, match=key):
        read_adapter(write_adapter(tmp_path, pair(), **{key: [1]}))
    assert not read_adapter(write_adapter(tmp_path, pair(), **{key: None})).issues


def test_missing_alpha_is_what_peft_takes_and_an_error(tmp_path, llama):
    write_adapter(tmp_path, pair(), lora_alpha=ABSENT)
    adapter = read_adapter(tmp_path)
    expected = peft_deltas(PeftModel.from_pretrained(llama, str(tmp_path)))[Q]
    torch.testing.assert_close(adapter.modules[Q].delta(), expected)
    assert codes(adapter) == {"missing-alpha"}


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("r", 2.5),
        ("rank_pattern", {"q": 0}),
        ("rank_pattern", {"[": 4}),
        ("alpha_pattern", {"(": 2}),
        ("alpha_pattern", {r"(a|aa)+c": 3}),  # without end
    ],
)
def test_values_that_make_no_sense(tmp_path, monkeypatch, key, value):
    monkeypatch.setattr("loraprobe.patterns.SECONDS", 0.2)
    write_adapter(tmp_path, pair("a" * 60), **{key: value})
    with pytest.raises(AdapterError, match=f"{key}|rank") as caught:
        read_adapter(tmp_path)
    assert "adapter_config.json" in str(caught.value) and "\n" not in str(caught.value)
