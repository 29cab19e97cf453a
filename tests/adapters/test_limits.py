"""Bounds on strangers' files: each refuses with a sentence that names it."""

from __future__ import annotations

import json
import zipfile
from functools import partial

import pytest
import torch
from making import random_adapter, write_adapter

from loraprobe import limits
from loraprobe.adapters import read_adapter
from loraprobe.checkpoint import read_json, read_tensor
from loraprobe.errors import AdapterError, BaseError, TaskError
from loraprobe.tasks import load_probe, load_task


def test_each_bound_refuses_by_name(tmp_path, monkeypatch):
    place, tasks, other = (tmp_path / name for name in ("a", "t.jsonl", "config.json"))
    random_adapter("a").save(place)
    tasks.write_text(json.dumps({"prompt": "p", "answer": "a" * 300}) + "\n")
    other.write_text(json.dumps({"k": "v" * 500}))
    read, load, probe = partial(read_adapter, place), partial(load_task, tasks), load_probe
    for name, value, act, raises, said in (
        ("CONFIG", 100, read, AdapterError, "adapter_config.json"),
        ("TENSORS", 5, read, AdapterError, "28 tensors"),
        ("MODULES", 5, read, AdapterError, "14 modules"),
        ("LINE", 100, load, TaskError, "line 1"),
        ("ITEMS", 100, load, TaskError, "t.jsonl"),
        ("LINE", 100, partial(probe, tasks), TaskError, "line 1"),
        ("CONFIG", 100, partial(read_json, other, "base"), BaseError, "config.json"),
    ):
        act()
        with monkeypatch.context() as patch:
            patch.setattr(limits, name, value)
            with pytest.raises(raises, match=said):
                act()


def inflating(path) -> None:
    """A pickle of zeros whose archive is compressed, as torch never writes it."""
    torch.save({"base_model.model.q_proj.lora_A.weight": torch.zeros(4, 1 << 20)}, path)
    with zipfile.ZipFile(path) as source:
        parts = {name: source.read(name) for name in source.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as target:
        for name, data in parts.items():
            target.writestr(name, data)


def test_a_pickle_that_inflates_is_refused_before_it_does(tmp_path):
    place = write_adapter(tmp_path, {}, pickle=True)
    inflating(place / "adapter_model.bin")
    assert (place / "adapter_model.bin").stat().st_size < 100_000
    with pytest.raises(AdapterError, match="unpack to 16,"):
        read_adapter(place)
    with pytest.raises(BaseError, match="unpack to 16,"):
        read_tensor(place / "adapter_model.bin", "x", "base")
