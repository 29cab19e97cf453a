"""Files of others: bounds that refuse by name, no memory for what was passed, changes are noticed;
the types of JSON values, of which nothing is converted."""

import json
import math
import zipfile
from functools import partial

import pytest
import torch
from making import LLAMA, random_adapter, write_adapter
from pydantic import ValidationError

from loraprobe import checkpoint, untrusted
from loraprobe.adapters import read_adapter
from loraprobe.adapters.config import CheckedConfig
from loraprobe.base.declared import BaseConfig
from loraprobe.checkpoint import open_weights
from loraprobe.errors import AdapterError, BaseError, TaskError
from loraprobe.tasks import load_probe, load_task
from loraprobe.untrusted import read_json


@pytest.fixture
def saved(tmp_path):
    random_adapter("a", seed=1).save(tmp_path / "a")
    return tmp_path / "a"


def test_every_tensor_is_the_same_however_often_the_map_is_opened_anew(saved, monkeypatch):
    whole = read_adapter(saved)
    expected = {path: whole.modules[path].delta() for path in whole.modules}
    monkeypatch.setattr(checkpoint, "MAPPED_BYTES", 0)
    parts = read_adapter(saved)
    held = {path: parts.modules[path] for path in parts.modules}
    assert set(held) == set(LLAMA)
    for path, update in held.items():  # tensors outlive the map that they came from
        torch.testing.assert_close(update.delta(), expected[path], rtol=0, atol=0)


def test_a_file_that_changes_while_it_is_read_is_an_error(saved, monkeypatch):
    monkeypatch.setattr(checkpoint, "MAPPED_BYTES", 0)
    adapter = read_adapter(saved)
    path = next(iter(adapter.modules))
    assert adapter.modules[path].rank == 4
    random_adapter("b", rank=3, seed=2).save(saved, overwrite=True)
    with pytest.raises(AdapterError, match="changed while it was being read"):
        adapter.modules[path]


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
            patch.setattr(untrusted, name, value)
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
        open_weights(place / "adapter_model.bin", "base")


# Keys of an adapter's or a base's config -> the values of VALUES that they take.
KEYS = {
    "task_type": "none text",
    "target_modules": "none text empty texts",
    "target_parameters": "none empty texts",
    "layers_to_transform": "none zero four negative huge empty numbers",
    "init_lora_weights": "none text true",
    "use_dora": "none true",
    "lora_alpha": "zero four negative half",
    "r": "four",
    "rank_pattern": "none object ranks",
    "alpha_pattern": "none object ranks shares",
    "architectures": "none empty texts",
    "text_config": "none object ranks shares words",
    "vocab_size": "none zero four negative huge",
}
VALUES = {
    "none": None,
    "text": "a",
    "true": True,
    "zero": 0,
    "four": 4,
    "negative": -2,
    "huge": 10**400,
    "half": 0.5,
    "infinite": math.inf,
    "nan": math.nan,
    "empty": [],
    "texts": ["a"],
    "mixed": ["a", 1],
    "numbers": [1],
    "flags": [True],
    "object": {},
    "ranks": {"q": 4},
    "shares": {"q": 0.5},
    "words": {"q": "2"},
}


def takes(model, key, value) -> bool:
    try:
        model.model_validate({key: value, "unknown": value})
    except ValidationError:
        return False
    return True


@pytest.mark.parametrize("key", KEYS)
def test_each_key_takes_the_values_of_its_type_alone(key):
    model = CheckedConfig if key in CheckedConfig.model_fields else BaseConfig
    assert [name for name in VALUES if takes(model, key, VALUES[name])] == KEYS[key].split()
