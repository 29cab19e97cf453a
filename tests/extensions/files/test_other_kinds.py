"""Adapters of other PEFT types become LoRA: peft computes the same with both."""

from __future__ import annotations

import inspect
import json
import re

import making
import pytest
import torch
from peft import PeftModel, get_peft_model
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING as CONFIGS
from peft.tuners.tuners_utils import BaseTunerLayer
from transformers import AutoModelForCausalLM

from loraprobe.adapters.config import NO_DELTA
from loraprobe.extensions.files import WITH_DELTA

ENDLESS = r"((\w|\.|\w\w)+)+\d"  # backtracks through every path
TARGETS = ["q_proj", "down_proj"]
SETTINGS = {
    "ADALORA": {"total_step": 10, "init_r": 4, "target_r": 4},
    "C3A": {"block_size": 8},
    "FOURIERFT": {"n_frequency": 20},
    "GRALORA": {"r": 4},
    "MISS": {"r": 8},
    "RANDLORA": {"r": 4},
    "SHIRA": {"r": 2},
    "VBLORA": {"num_vectors": 16, "vector_length": 8},
    "WAVEFT": {"n_frequency": 20},
}


def loaded(base):
    return AutoModelForCausalLM.from_pretrained(base)


def wrapped(kind: str, base, **settings):
    """The base with a new adapter of a type."""
    given = (
        {"target_modules": TARGETS, "task_type": "CAUSAL_LM"} | SETTINGS.get(kind, {}) | settings
    )
    known = inspect.signature(CONFIGS[kind]).parameters
    torch.manual_seed(1)
    config = CONFIGS[kind](**{key: value for key, value in given.items() if key in known})
    return get_peft_model(loaded(base), config)


def saved(kind: str, base, place, **settings):
    """An adapter of a type as peft saves it, with every trained tensor changed."""
    model = wrapped(kind, base, **settings)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(place)
    return place


def logits(base, place) -> torch.Tensor:
    model = loaded(base)
    if place is not None:
        model = PeftModel.from_pretrained(model, str(place))
    with torch.no_grad():
        return model.eval()(torch.arange(1, 30)[None]).logits


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """Sizes that every type takes: widths of 32 and 64."""
    place = tmp_path_factory.mktemp("base")
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_key_value_heads": 4}
    making.tiny_model("Llama", **sizes).save_pretrained(place)
    return place


OTHER_FORMS = [  # in which the change of a weight has another formula
    ("MISS", {"init_weights": "bat", "r": 8}),
    ("MISS", {"init_weights": "mini", "r": 8, "mini_r": 8}),
    ("MISS", {"init_weights": True, "r": 5}),  # no divisor of the layers' widths
]


@pytest.mark.parametrize(
    ("kind", "settings"), [*((kind, {}) for kind in sorted(WITH_DELTA)), *OTHER_FORMS]
)
def test_peft_computes_the_same_with_the_lora(kind, settings, base, tmp_path):
    place = saved(kind, base, tmp_path / "given", **settings)
    out = tmp_path / "out"
    result = making.call("convert", place, "--base", base, "-o", out, "--json")
    assert result.exit_code == 0, result.stderr
    plain, theirs, ours = (logits(base, one) for one in (None, place, out))
    assert (theirs - plain).abs().max() > 1e-3
    assert (ours - theirs).norm() < 0.03 * (theirs - plain).norm()
    rows = [row for row in json.loads(result.stdout)["diagnostics"] if row["name"] == "kept_energy"]
    assert rows and all(row["value"] >= 0.9999 for row in rows)


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        ("LOHA", {"r": 10**7}),
        ("LOKR", {"rank_pattern": {"q_proj": 10**6}}),
        ("LOHA", {"rank_pattern": {"layers.0.*q_proj": 10**6}}),
        ("VERA", {"r": 5 * 10**6}),
        ("LOHA", {"target_modules": ENDLESS}),
        ("LOHA", {"exclude_modules": ENDLESS}),
        ("LOHA", {"layers_to_transform": [0], "layers_pattern": [ENDLESS]}),
        ("LOHA", {"rank_pattern": {ENDLESS: 3}}),
    ],
)
def test_sizes_and_expressions_of_a_config_are_bounded(kind, change, base, tmp_path, monkeypatch):
    monkeypatch.setattr("loraprobe.patterns.SECONDS", 0.5)
    place = saved(kind, base, tmp_path / "given")
    monkeypatch.setattr(PeftModel, "from_pretrained", lambda *_, **__: pytest.fail("peft loads it"))
    making.edit(place / "adapter_config.json", **change)
    result = making.call("convert", place, "--base", base, "-o", tmp_path / "out")
    assert result.exit_code == 2, result.output
    (key,) = change.keys() - {"layers_to_transform"}
    (line,) = result.stderr.splitlines()
    assert "adapter_config.json" in line and ("did not come to an end" in line or key in line)


def test_expressions_of_a_config_match_what_they_match_in_peft(base, tmp_path):
    rules = {"target_modules": r".*\.(q|down)_proj", "rank_pattern": {"layers.0.*q_proj": 3}}
    rules |= {"exclude_modules": r".*\.1\..*down_proj", "r": 4}
    place = saved("LOHA", base, tmp_path / "given", **rules)
    result = making.call("convert", place, "--base", base, "-o", tmp_path / "out")
    assert result.exit_code == 0, result.stderr
    plain, theirs, ours = (logits(base, one) for one in (None, place, tmp_path / "out"))
    assert (ours - theirs).norm() < 0.03 * (theirs - plain).norm()


def test_the_types_are_those_that_peft_converts_and_three_more(base):
    """Beside AdaLoRA, HiRA and SHiRA, whose changes it knows too; each other one has a reason."""
    names = {str(getattr(kind, "value", kind)) for kind in CONFIGS}
    converted = set()
    for name in names:
        try:
            model = wrapped(name, base)
        except (TypeError, ValueError, NotImplementedError):  # types that need other settings
            continue
        layers = [m for m in model.modules() if isinstance(m, BaseTunerLayer)]
        if layers and model.supports_lora_conversion():
            converted.add(name)
    assert WITH_DELTA - {"ADALORA", "HIRA", "SHIRA"} <= converted <= WITH_DELTA | {"LORA"}
    assert names == WITH_DELTA | NO_DELTA.keys() | {"LORA"}


def test_a_rank_that_keeps_too_little_is_refused_with_the_one_that_is_enough(base, tmp_path):
    place = saved("LOHA", base, tmp_path / "given", r=4)
    call = ["convert", place, "--base", base, "-o", tmp_path / "out"]
    refused = making.call(*call, "--rank", "1")
    assert refused.exit_code == 2 and not (tmp_path / "out").exists()
    enough = re.search(r"--rank[ =](\d+)", refused.stderr)[1]
    kept = making.call(*call, "--rank", "1", "--keep-energy", "0.01", "--json")
    assert kept.exit_code == 0, kept.stderr
    shares = [
        r["value"] for r in json.loads(kept.stdout)["diagnostics"] if r["name"] == "kept_energy"
    ]
    assert min(shares) < 0.95
    assert json.loads((tmp_path / "out" / "adapter_config.json").read_text())["r"] == 1
    assert "computes the same" not in (tmp_path / "out" / "README.md").read_text()
    more = (tmp_path / "more", "--json", "--rank")
    assert making.call(*call[:-1], *more, enough).exit_code == 0
    fewer = making.call(*call[:-1], *more, int(enough) - 1, "--overwrite")
    assert fewer.exit_code == 2 and f"--rank {enough}" in fewer.stderr
    all_of_it = making.call(*call, "--keep-energy", "1", "--json", "--overwrite")
    assert all_of_it.exit_code == 0, all_of_it.stderr  # rank auto takes what is asked for


@pytest.mark.parametrize("kind", ["OFT", "IA3"])
def test_types_without_a_change_of_weights_are_refused(kind, base, tmp_path):
    place = saved(kind, base, tmp_path / "given")
    result = making.call("convert", place, "--base", base, "-o", tmp_path / "out")
    assert result.exit_code == 2 and kind in result.stderr and "merge it" in result.stderr
    assert not (tmp_path / "out").exists()


def test_every_command_names_the_one_that_makes_a_lora(base, tmp_path):
    place = saved("LOHA", base, tmp_path / "given")
    for call in (["inspect", place], ["merge", place, place, "-o", tmp_path / "out"]):
        result = making.call(*call)
        assert result.exit_code == 2
        assert f"loraprobe convert {place} --base auto -o DIR" in result.stderr
    without = making.call("convert", place, "-o", tmp_path / "out")
    assert without.exit_code == 2 and "--base" in without.stderr


def test_another_base_and_whole_modules_are_refused(base, tmp_path):
    place = saved("LOHA", base, tmp_path / "given")
    config = json.loads((place / "adapter_config.json").read_text())
    for name, change in (
        ("whole", {"modules_to_save": ["lm_head"]}),
        ("bias", {"bias": "all"}),
        ("none", {"r": 3}),
    ):
        other = tmp_path / name
        other.mkdir()
        for file in place.iterdir():
            (other / file.name).write_bytes(file.read_bytes())
        (other / "adapter_config.json").write_text(json.dumps(config | change))
        result = making.call("convert", other, "--base", base, "-o", tmp_path / "out")
        assert result.exit_code == 2 and not (tmp_path / "out").exists(), result.output
    lora = making.peft_adapter(tmp_path / "lora", making.tiny_llama(), target_modules=["q_proj"])
    assert making.call("convert", lora, "-o", tmp_path / "out", "--rank", "4").exit_code == 2
