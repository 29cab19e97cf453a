"""Reading an adapter's file needs no memory for what it has passed, and notices a changed file."""

from __future__ import annotations

import pytest
import torch
from making import LLAMA, random_adapter

from loraprobe.adapters import read_adapter, tensors
from loraprobe.errors import AdapterError


@pytest.fixture
def saved(tmp_path):
    random_adapter("a", seed=1).save(tmp_path / "a")
    return tmp_path / "a"


def test_every_tensor_is_the_same_however_often_the_map_is_opened_anew(saved, monkeypatch):
    whole = read_adapter(saved)
    expected = {path: whole.modules[path].delta() for path in whole.modules}
    monkeypatch.setattr(tensors, "MAPPED_BYTES", 0)
    parts = read_adapter(saved)
    held = {path: parts.modules[path] for path in parts.modules}
    assert set(held) == set(LLAMA)
    for path, update in held.items():  # tensors outlive the map that they came from
        torch.testing.assert_close(update.delta(), expected[path], rtol=0, atol=0)


def test_a_file_that_changes_while_it_is_read_is_an_error(saved, monkeypatch):
    monkeypatch.setattr(tensors, "MAPPED_BYTES", 0)
    adapter = read_adapter(saved)
    path = next(iter(adapter.modules))
    assert adapter.modules[path].rank == 4
    random_adapter("b", rank=3, seed=2).save(saved, overwrite=True)
    with pytest.raises(AdapterError, match="changed while it was being read"):
        adapter.modules[path]
