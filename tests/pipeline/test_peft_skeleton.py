"""Whether peft takes a directory is found without the base's weights."""

from __future__ import annotations

import warnings

import torch
from making import random_adapter, random_update, tiny_llama
from safetensors.torch import load_file, save_file

from loraprobe.adapters import adapter_of
from loraprobe.pipeline.verification.peft_skeleton import problems_in_peft


def test_all_kinds_of_layer(tmp_path):
    shapes = {
        "model.embed": (8, 20),
        "model.layers.0.fc": (6, 8),
        "model.conv": (5, 3 * 4),
        "lm_head": (20, 8),
    }
    adapter = adapter_of(
        "kinds",
        {path: random_update(*shape, rank=2) for path, shape in shapes.items()},
        kinds={"model.embed": "embedding", "model.conv": "convolution"},
        kernels={"model.conv": (2, 2)},
        whole={"score.weight": torch.ones(3, 8), "model.layers.0.fc.bias": torch.ones(6)},
    )
    adapter.save(tmp_path / "out")
    assert problems_in_peft(tmp_path / "out", adapter) == []


def test_dora_and_conv1d(tmp_path):
    shapes = {"transformer.h.0.attn.c_attn": (48, 16), "transformer.h.0.mlp.c_fc": (64, 16)}
    adapter = adapter_of(
        "d",
        random_adapter("d", shapes).modules,
        kinds=dict.fromkeys(shapes, "conv1d"),
        magnitudes={path: torch.ones(out) for path, (out, _) in shapes.items()},
    )
    adapter.save(tmp_path / "out")
    assert problems_in_peft(tmp_path / "out", adapter) == []


def test_tensors_that_peft_would_ignore_are_found(tmp_path):
    adapter, file = random_adapter("a"), tmp_path / "out" / "adapter_model.safetensors"
    adapter.save(tmp_path / "out")
    tensors = load_file(file)
    key = next(key for key in sorted(tensors) if "q_proj.lora_A" in key)
    save_file(tensors | {key.replace("q_proj", "r_proj"): tensors.pop(key)}, file)
    problems = problems_in_peft(tmp_path / "out", adapter)
    assert any("no place for" in problem for problem in problems)
    assert any("misses" in problem for problem in problems)


def test_it_agrees_with_a_real_model(tmp_path):
    """A model loads without a warning every adapter that the skeleton accepts."""
    from peft import PeftModel

    adapter = random_adapter("a")
    adapter.save(tmp_path / "out")
    assert problems_in_peft(tmp_path / "out", adapter) == []
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        PeftModel.from_pretrained(tiny_llama(), str(tmp_path / "out"))
