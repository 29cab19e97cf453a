"""What an adapter was trained on, by its files."""

import making
import pytest
import torch
import yaml
from making import edit, random_adapter
from safetensors.torch import load_file

from loraprobe import hub
from loraprobe.adapters import adapter_of
from loraprobe.lora.lowrank import LowRank


@pytest.fixture
def three(tmp_path, monkeypatch):
    """Unrelated adapters a, b, c in the working directory."""
    monkeypatch.chdir(tmp_path)
    for seed, name in enumerate("abc"):
        random_adapter(name, seed=seed, rank=2).save(tmp_path / name)
    return tmp_path


def test_what_is_found_in_adapters_of_one_name_is_told_by_the_names_that_they_have(three):
    random_adapter("a", seed=1).save(three / "x" / "a")
    weights = three / "x" / "a" / "adapter_model.safetensors"
    torch.save(load_file(weights), weights.with_suffix(".bin"))
    weights.unlink()
    found = [adapter.issues[0] for adapter in hub.load_all(["x/a", "x/../x/a"])]
    assert [issue.adapters for issue in found] == [("a",), ("a-2",)]
    assert "a-2" in found[1].message and "a-2" not in found[0].message


def parents(ref):
    """(name where it is found else reference) of what the adapter was trained on."""
    return [p.adapter.name if p.adapter else p.reference for p in hub.load(ref).parents]


def by_config(three):
    edit(three / "b" / "adapter_config.json", base_model_name_or_path="./a")


def by_sentence(three):
    card = "---\nbase_model: owner/base\n---\nThis model is a fine-tuned version of [./a](x) on y."
    (three / "b" / "README.md").write_text(card)


def by_tag(three):
    (three / "b" / "README.md").write_text("---\ntags:\n- base_model:adapter:./a\n---\n")


def by_base_of_card(three):
    (three / "b" / "README.md").write_text("---\nbase_model:\n- ./a\n---\n")


def by_training_file(three, **given):
    given = {"do_train": True, "adapter_name_or_path": "./a", "create_new_adapter": True} | given
    (three / "b" / "training_args.yaml").write_text(yaml.safe_dump(given))


FILES = [by_config, by_sentence, by_tag, by_base_of_card, by_training_file]


@pytest.mark.parametrize("say", FILES, ids=lambda one: one.__name__)
def test_the_files_say_what_it_was_trained_on(three, say):
    assert parents("./b") == []
    say(three)
    assert parents("./b") == ["a"]
    assert hub.load("./b").base_model == "owner/base"
    (three / "a" / "config.json").write_text("{}")  # a merged model beside its adapter is a base
    assert parents("./b") == (["a"] if say is by_training_file else [])


def test_adapters_that_were_merged_before_one_that_was_trained_further(three):
    by_training_file(three, adapter_name_or_path="./a,./c", create_new_adapter=False)
    assert parents("./b") == ["a"]
    by_training_file(three, adapter_name_or_path=["./a", "./c"])
    assert parents("./b") == ["a", "c"]
    by_training_file(three, do_train=False)
    assert parents("./b") == []


def test_an_adapter_that_is_named_and_not_found_is_an_error(three):
    by_training_file(three, adapter_name_or_path="saves/sft")
    assert parents("./b") == ["saves/sft"]
    assert making.call("inspect", "./b").exit_code == 1
    assert making.call("inspect", "./b", "--allow", "on-adapter").exit_code == 0


def test_a_card_that_names_an_adapter_which_was_trained_further_names_no_parent(three):
    a = hub.load("./a")
    updates = {
        path: LowRank(update.A, update.B + 0.01, update.scaling)
        for path, update in a.modules.items()
    }
    adapter_of("b", updates, base_model="owner/base").save(three / "b", overwrite=True)
    by_sentence(three)
    found = hub.load("./b")
    assert (found.parents, [i.code for i in found.issues]) == ((), ["continued-adapter"])


def test_a_guess_from_a_card_never_ends_the_load(three):
    (three / "b" / "README.md").write_text("A fine-tuned version of [./a](x).")
    (three / "a" / "adapter_model.safetensors").write_bytes(b"no weights")
    found = hub.load("./b")
    assert (found.parents, [i.severity for i in found.issues]) == ((), ["note"])
    assert making.call("inspect", "./b").exit_code == 0


def test_circles_of_files_end(three):
    by_config(three)
    edit(three / "a" / "adapter_config.json", base_model_name_or_path="./b")
    assert (parents("./a"), parents("./b")) == (["b"], ["a"])
    edit(three / "b" / "adapter_config.json", base_model_name_or_path="./b")
    assert parents("./b") == []  # saved where its base was
