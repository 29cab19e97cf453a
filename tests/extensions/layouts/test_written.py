"""What `convert` writes of adapters in another layout than the base's, as peft loads it."""

import copy
import json
from functools import partial

import pytest
import torch
from making import call, edit, fused_and_split_model, peft_adapter, tiny_model
from peft import PeftModel

from loraprobe.adapters import read_adapter
from loraprobe.extensions.layouts.orders import exchanged

pytestmark = pytest.mark.needs("convert")
CONFIG = "adapter_config.json"


def convert(*arguments: object):
    return call("convert", *arguments)


def logits(model, directory) -> torch.Tensor:
    """What peft computes with an adapter on a model."""
    with torch.no_grad():
        ids = torch.arange(1, 21)[None]
        return PeftModel.from_pretrained(model, str(directory)).eval()(ids).logits


mixtral = partial(tiny_model, "Mixtral", num_local_experts=3, tie_word_embeddings=False)
EXPERTS = {"r": 2, "target_modules": [], "target_parameters": ["experts.gate_up_proj"]}


@pytest.fixture
def older(tmp_path):
    """A function that writes a base and two adapters of its experts, new and as peft 0.18.1."""

    def make(**sizes) -> None:
        mixtral(**sizes).save_pretrained(tmp_path / "base")
        peft_adapter(tmp_path / "new", mixtral(**sizes), **EXPERTS)
        adapter = read_adapter(tmp_path / "new")
        exchanged(adapter, [*adapter.stacks], "a test says").save(tmp_path / "old")
        for name, version in (("new", "0.21.0"), ("old", "0.18.1")):
            edit(tmp_path / name / CONFIG, peft_version=version, base_model_name_or_path="base")

    return make


def test_experts_of_older_peft_are_written_in_the_order_that_the_base_shows(tmp_path, older):
    older()
    done = convert(tmp_path / "old", "--base", tmp_path / "base", "-o", tmp_path / "made")
    assert done.exit_code == 0, done.output
    wanted = logits(mixtral(), tmp_path / "new")
    torch.testing.assert_close(logits(mixtral(), tmp_path / "made"), wanted)
    assert (wanted - mixtral()(torch.arange(1, 21)[None]).logits).abs().max() > 1e-3
    assert "exchanged" in (tmp_path / "made" / "README.md").read_text()
    for more in ([], ["--base", tmp_path / "base", "--expert-layout", "old"]):
        done = convert(tmp_path / "old", *more, "-o", tmp_path / "out")
        assert done.exit_code == 2 and not (tmp_path / "out").exists()


def test_square_experts_are_written_in_the_order_that_is_named(tmp_path, older):
    older(intermediate_size=8)  # gate_up_proj is [3, 16, 16]
    base = ["--base", tmp_path / "base"]
    done = convert(tmp_path / "old", *base, "-o", tmp_path / "out")
    assert done.exit_code == 2 and not (tmp_path / "out").exists()
    assert "inputs" in done.stderr and "outputs" in done.stderr
    assert "--expert-layout new" in done.stderr
    wanted, square = logits(mixtral(intermediate_size=8), tmp_path / "new"), {}
    for order in ("new", "old"):
        done = convert(tmp_path / "old", *base, "--expert-layout", order, "-o", tmp_path / order[0])
        assert done.exit_code == 0, done.output
        square[order] = logits(mixtral(intermediate_size=8), tmp_path / order[0])
    torch.testing.assert_close(square["old"], wanted)
    assert not torch.allclose(square["new"], wanted)
    # Without the base too, and only what the option knows.
    assert convert(tmp_path / "old", "--expert-layout", "old", "-o", tmp_path / "x").exit_code == 0
    torch.testing.assert_close(logits(mixtral(intermediate_size=8), tmp_path / "x"), wanted)
    for name, order, *given in (("old", "older", *base), ("new", "old", *base), ("new", "old")):
        done = convert(tmp_path / name, *given, "--expert-layout", order, "-o", tmp_path / "y")
        assert done.exit_code == 2 and not (tmp_path / "y").exists()


@pytest.mark.parametrize("fused", [True, False], ids=["joined", "split"])
def test_projections_are_written_as_the_base_has_them(tmp_path, fused):
    base, other = fused_and_split_model()[:: 1 if fused else -1]
    base.save_pretrained(tmp_path / "base")
    targets = ["q_proj", "v_proj"] if fused else ["qkv_proj"]
    peft_adapter(tmp_path / "in", copy.deepcopy(other), r=2, target_modules=targets)
    with torch.no_grad():
        plain = base(torch.arange(1, 21)[None]).logits
    wanted = logits(other, tmp_path / "in")
    done = convert(tmp_path / "in", "--base", tmp_path / "base", "-o", tmp_path / "out")
    assert done.exit_code == 0, done.output
    torch.testing.assert_close(logits(base, tmp_path / "out"), wanted)
    assert (wanted - plain).abs().max() > 1e-2
    # Ranks that add up are no ranks that were filled up.
    config = json.loads((tmp_path / "out" / CONFIG).read_text())
    assert config["r"] == (4 if fused else 2) and "became" not in done.output
