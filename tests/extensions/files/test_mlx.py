"""Adapters of mlx-lm: read as mlx-lm fuses them, or refused with the reason."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from making import call, edit
from safetensors.torch import load_file, save_file

from loraprobe.adapters import read_adapter
from loraprobe.errors import AdapterError, UnsupportedAdapter

MADE = Path(__file__).with_name("mlx_lm")  # by mlx-lm itself; see make.py there
CONFIG, MLX = "adapter_config.json", "adapters.safetensors"


@pytest.mark.parametrize("kind", ["lora", "dora", "table"])
def test_what_mlx_lm_adds_to_each_weight_is_read(kind):
    adapter = read_adapter(MADE / kind)
    base = load_file(MADE / kind / "base.safetensors")
    wanted = load_file(MADE / kind / "deltas.safetensors")
    codes = {issue.code for issue in adapter.issues}
    assert codes == {"mlx-file"} | ({"shared-weights"} if kind == "table" else set())
    assert adapter.variant == ("dora" if kind == "dora" else "lora")
    assert {f"{path}.weight" for path in adapter.layout} == wanted.keys()
    for path, update in adapter.modules.items():
        weight, delta = base[f"{path}.weight"], update.delta()
        delta = delta.mT if adapter.layout[path].kind == "embedding" else delta
        if kind == "dora":
            moved = weight + delta
            norms = moved.norm(dim=1, keepdim=True)
            delta = adapter.magnitudes[path][:, None] / norms * moved - weight
        torch.testing.assert_close(delta, wanted[f"{path}.weight"], rtol=1e-5, atol=1e-5)


def test_experts_of_one_layer_become_one_module_each(tmp_path):
    """As LoRASwitchLinear stores them: A [E, r, in] and B [E, out, r]."""
    shutil.copytree(MADE / "lora", tmp_path / "a")
    name = "model.layers.0.mlp.switch_mlp.up_proj"
    A, B = torch.randn(3, 2, 6), torch.randn(3, 5, 2)
    save_file({f"{name}.lora_a": A, f"{name}.lora_b": B}, tmp_path / "a" / MLX)
    adapter = read_adapter(tmp_path / "a")
    assert list(adapter.layout) == [f"model.layers.0.mlp.experts.{e}.up_proj" for e in range(3)]
    for number, update in enumerate(adapter.modules.values()):
        torch.testing.assert_close(update.delta(), 5.0 * B[number] @ A[number])


def without(key):
    def change(place):
        config = json.loads((place / CONFIG).read_text())
        del config["lora_parameters"][key]
        (place / CONFIG).write_text(json.dumps(config))

    return change


def with_alpha(place):
    edit(place / CONFIG, lora_parameters={"rank": 8, "scale": 10.0, "alpha": 16})


def npz(place):
    for file in place.iterdir():
        file.unlink()
    (place / "adapters.npz").write_bytes(b"PK")


def fused(place):
    """What mlx_lm.fuse writes of a quantised model."""
    (place / CONFIG).unlink()
    (place / "config.json").write_text(json.dumps({"quantization": {"group_size": 64, "bits": 4}}))


REFUSED = {
    "without a scale": (without("scale"), AdapterError, "lacks lora_parameters"),
    "without a rank": (without("rank"), AdapterError, "lacks lora_parameters"),
    "alpha beside scale": (with_alpha, AdapterError, "so that the scale is 20"),
    "whole weights": (lambda p: edit(p / CONFIG, fine_tune_type="full"), UnsupportedAdapter,
        "fine_tune_type full"),
    "numpy": (npz, AdapterError, "before March 2024"),
    "fused and quantised": (fused, AdapterError, "in 4 bits, .* rounded"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_say_what_it_adds_is_refused_with_the_reason(tmp_path, case):
    change, error, words = REFUSED[case]
    shutil.copytree(MADE / "lora", tmp_path / "a")
    change(tmp_path / "a")
    with pytest.raises(error, match=words):
        read_adapter(tmp_path / "a")
    assert call("inspect", tmp_path / "a").exit_code == 2


def test_tensors_that_mlx_lm_does_not_write_are_named(tmp_path):
    shutil.copytree(MADE / "lora", tmp_path / "a")
    tensors = load_file(tmp_path / "a" / MLX)
    save_file(tensors | {"model.norm.strange": torch.ones(4)}, tmp_path / "a" / MLX)
    adapter = read_adapter(tmp_path / "a")
    assert [extra.kind for extra in adapter.extras] == ["unknown"]
