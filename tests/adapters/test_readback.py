"""An adapter is read back before its directory appears; what is written wrong never appears."""

from __future__ import annotations

import pytest
import safetensors.torch
from making import random_adapter

from loraprobe.adapters import saving
from loraprobe.errors import OutputError

save_file, config_of = safetensors.torch.save_file, saving.config_of


def one_entry(tensors):
    key = min(tensors)
    return tensors | {key: tensors[key].clone().fill_(0.25)}


def without_one(tensors):
    return {key: tensor for key, tensor in tensors.items() if key != min(tensors)}


def in_half(tensors):
    return {key: tensor.half() for key, tensor in tensors.items()}


@pytest.mark.parametrize("change", [one_entry, without_one, in_half])
def test_wrong_tensors(monkeypatch, tmp_path, change):
    def spoil(tensors, path, metadata=None):
        save_file(change(dict(tensors)), path, metadata=metadata)

    monkeypatch.setattr(safetensors.torch, "save_file", spoil)
    with pytest.raises(OutputError, match="differs"):
        random_adapter("a").save(tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_scaling(monkeypatch, tmp_path):
    monkeypatch.setattr(saving, "config_of", lambda *a: config_of(*a) | {"lora_alpha": 7})
    with pytest.raises(OutputError, match="the scaling of"):
        random_adapter("a").save(tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
