"""What published code of other ways of training saves is recognised, and no pickle is opened."""

import json
import re

import making
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from loraprobe.adapters import read_adapter
from loraprobe.adapters.files import find_directory, open_tensors, trained_by, trainings
from loraprobe.errors import AdapterError


def sd_lora(place):
    """Lists of layers, as torch.save of SD-LoRA's save_lora_parameters writes them."""
    layers = [nn.Linear(8, 2, bias=False) for _ in range(4)]
    torch.save(layers, place / "lora_w_a_0.pt")
    torch.save(torch.zeros(20, 20), place / "scaling_factor0.pt")


def lora_recycle(place):
    factors = {f"w_{which}_{i:03d}": torch.ones(2, 2) for which in "ab" for i in range(4)}
    save_file(factors | {"fc_2in_5out": torch.ones(5, 2)}, str(place / "lora.safetensors"))


HEADS = {
    f"q.{start}lora_{which}_weight": torch.ones(3, 2, 2)
    for which in "AB"
    for start in ("", "prev_")
}


def lte(place):
    """The state of a layer whose heads are stacked, as create_parallelized_params names them."""
    save_file(HEADS | {"q.weight": torch.ones(2, 2)}, str(place / "model.safetensors"))


SAVED = {"sd_lora": sd_lora, "lora_recycle": lora_recycle, "lte": lte}


@pytest.mark.parametrize("name", SAVED)
def test_a_directory_of_such_files_is_recognised_and_refused(tmp_path, name):
    SAVED[name](tmp_path)
    (found,) = (row for row in trainings() if row["name"] == name)
    with pytest.raises(AdapterError, match=re.escape(found["saved"])):
        read_adapter(tmp_path)
    assert making.call("inspect", tmp_path).exit_code == 2


def test_matrices_that_depend_on_the_input_are_no_lora(tmp_path):
    model = making.peft_model(making.tiny_llama(), target_modules=["q_proj"], r=2)
    for module in model.modules():
        if hasattr(module, "lora_A"):  # as C-LoRA's code adds them to the layers of peft
            contextual = nn.ModuleDict({"e1": nn.Linear(2, 64), "e2": nn.Linear(64, 8)})
            module.lora_E = nn.ModuleDict({"default": contextual})
    model.save_pretrained(str(tmp_path))
    found = trained_by("keys", open_tensors(tmp_path).shapes)
    assert found is not None and found["name"] == "c_lora"
    issues = [i for i in read_adapter(tmp_path).issues if i.severity == "error"]
    assert [i.code for i in issues] == ["unknown-tensors"]
    assert found["cure"] in issues[0].cure.lower() and found["cure"] not in issues[0].message


def test_what_is_no_adapter_has_one_cure(tmp_path):
    issues = read_adapter(making.write_adapter(tmp_path, HEADS)).issues
    assert {i.code for i in issues} == {"unknown-tensors", "no-modules"}
    assert len({i.cure for i in issues}) == 1


def test_no_plain_adapter_counts_as_one_of_them(tmp_path, shelf):
    for place in shelf.paths.values():
        assert trained_by("keys", open_tensors(place).shapes) is None
    (tmp_path / "scaling_factors.pt").write_bytes(b"")
    with pytest.raises(AdapterError, match="is no PEFT adapter"):
        find_directory(tmp_path)


def test_methods_names_every_one_with_its_reason():
    rows = json.loads(making.call("methods", "--json").stdout)["methods"]
    named = {row["name"]: row for row in rows if row["kind"] == "training method"}
    assert (
        named.keys() == {one["name"] for one in trainings()} == {*SAVED, "c_lora", "lora_dropout"}
    )
    assert all("composition" in row["description"] for row in named.values())
