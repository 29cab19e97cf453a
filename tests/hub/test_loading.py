"""What an adapter was trained on, by its reference and by its files."""

from dataclasses import replace
from pathlib import Path

import making
import pytest
import torch
import yaml
from making import edit, random_adapter
from safetensors.torch import load_file

from loraprobe import hub
from loraprobe.adapters import adapter_of
from loraprobe.errors import AdapterError, BadReference
from loraprobe.hub.reference import Reference
from loraprobe.lora.lowrank import LowRank


@pytest.fixture
def three(tmp_path, monkeypatch):
    """Unrelated adapters a, b, c in the working directory."""
    monkeypatch.chdir(tmp_path)
    for seed, name in enumerate("abc"):
        random_adapter(name, seed=seed, rank=2).save(tmp_path / name)
    return tmp_path


PARSED = {
    "./b,on=./a": ("b", "./b", "a"),
    "B=./b,on=A=./a": ("B", "./b", "A"),
    "B=owner/b@v1:sub,on=owner/a@main": ("B", "owner/b@v1:sub", "a"),
    "owner/b,on=base": ("b", "owner/b", "base"),
    "./x,on=y": ("x,on=y", "./x,on=y", None),
    "N=./p,q=r,on=./a": ("N", "./p,q=r", "a"),
}


@pytest.mark.parametrize("text", PARSED)
def test_a_reference_says_what_it_was_trained_on(three, text):
    for name in ("x,on=y", "p,q=r"):
        (three / name).mkdir()
    found = Reference.parse(text)
    on = found.on.short if isinstance(found.on, Reference) else found.on
    assert (found.short, found.text, on) == PARSED[text]


def test_a_chain_of_references_is_a_chain_of_adapters(three):
    (adapter,) = hub.load_all(["C=./c,on=./b,on=A=./a"])
    assert (adapter.name, [one.name for one in adapter.below]) == ("C", ["A", "b"])
    (other,) = hub.load_all([hub.load("./c", on=hub.load("./b", on="./a"))])
    assert [one.sha256 for one in other.below] == [one.sha256 for one in adapter.below]


def test_what_is_found_in_adapters_of_one_name_is_told_by_the_names_that_they_have(three):
    random_adapter("a", seed=1).save(three / "x" / "a")
    weights = three / "x" / "a" / "adapter_model.safetensors"
    torch.save(load_file(weights), weights.with_suffix(".bin"))
    weights.unlink()
    found = [adapter.issues[0] for adapter in hub.load_all(["x/a", "x/../x/a"])]
    assert [issue.adapters for issue in found] == [("a",), ("a-2",)]
    assert "a-2" in found[1].message and "a-2" not in found[0].message


WRONG = {
    "./b,on=": BadReference,
    "./b,on=./none": BadReference,
    "./b,on=./b": AdapterError,
    "./b,on=./a,on=./b": AdapterError,
    "./b,on=./full": AdapterError,
}


@pytest.mark.parametrize("text", WRONG)
def test_what_cannot_be_below_is_one_error(three, text):
    (three / "full").mkdir()
    (three / "full" / "config.json").write_text("{}")
    with pytest.raises(WRONG[text]):
        hub.load(text)
    done = making.call("inspect", text)
    assert (done.exit_code, done.stdout) == (2, "")


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
    assert hub.load("./b").below == ()
    say(three)
    found = hub.load("./b")
    assert [one.name for one in found.below] == ["a"]
    assert found.base_model == "owner/base"
    assert hub.load("./b,on=base").below == hub.load("./b", on="base").below == ()
    assert [one.name for one in hub.load("./b,on=./c").below] == ["c"]  # the user's word counts
    (three / "a" / "config.json").write_text("{}")  # a merged model beside its adapter is a base
    names = [one.name for one in hub.load("./b").below]
    assert names == (["a"] if say is by_training_file else [])


def test_adapters_that_were_merged_before_one_that_was_trained_further(three):
    by_training_file(three, adapter_name_or_path="./a,./c", create_new_adapter=False)
    assert [one.name for one in hub.load("./b").below] == ["a"]
    by_training_file(three, adapter_name_or_path=["./a", "./c"])
    assert [one.name for one in hub.load("./b").below] == ["a", "c"]
    by_training_file(three, do_train=False)
    assert hub.load("./b").below == ()


def test_an_adapter_that_is_named_and_not_found_is_an_error(three):
    by_training_file(three, adapter_name_or_path="saves/sft")
    found = hub.load("./b")
    assert [i.code for i in found.issues if i.severity == "error"] == ["on-adapter-missing"]
    assert making.call("inspect", "./b").exit_code == 1
    assert making.call("inspect", "./b,on=./a").exit_code == 0


def test_a_card_that_names_an_adapter_which_was_trained_further_puts_none_below(three):
    a = hub.load("./a")
    updates = {
        path: LowRank(update.A, update.B + 0.01, update.scaling)
        for path, update in a.modules.items()
    }
    adapter_of("b", updates, base_model="owner/base").save(three / "b", overwrite=True)
    by_sentence(three)
    found = hub.load("./b")
    assert (found.below, [i.code for i in found.issues]) == ((), ["continued-adapter"])


def card_of(name, named):
    Path(name, "README.md").write_text(f"A fine-tuned version of [{named}](x).")


def test_a_guess_from_a_card_never_ends_the_load(three):
    card_of("a", "./b")
    card_of("b", "./a")
    found = hub.load_all(["./a", "./b"])
    assert [one.below for one in found] == [(), ()]
    told = [[(i.code, i.severity) for i in one.issues] for one in found]
    assert told == [[("on-adapter-missing", "note")]] * 2
    by_config(three)  # that b stands on a is certain; that a stands on b was a guess
    assert [one.name for one in hub.load("./b").below] == ["a"]
    assert hub.load("./a").below == ()
    (three / "a" / "adapter_model.safetensors").write_bytes(b"no weights")
    card_of("c", "./a")
    found = hub.load("./c")
    assert (found.below, [i.severity for i in found.issues]) == ((), ["note"])
    assert making.call("inspect", "./c").exit_code == 0


def test_a_guess_that_stands_on_what_is_missing_is_left_out(three):
    by_training_file(three, adapter_name_or_path="saves/sft")
    card_of("c", "./b")
    assert [i.severity for i in hub.load("./c").issues] == ["note"]
    assert making.call("inspect", "./c").exit_code == 0


def test_a_guess_that_cannot_be_added_is_left_out(three):
    adapter = hub.load("./b")
    dora = {path: torch.ones(info.shape[0]) for path, info in adapter.layout.items()}
    replace(adapter, magnitudes=dora).save(three / "b", overwrite=True)
    card_of("b", "./a")
    found = hub.load("./b")
    assert (found.below, [i.severity for i in found.issues]) == ((), ["note"])


def test_circles_of_files_end_in_an_error(three):
    by_config(three)
    edit(three / "a" / "adapter_config.json", base_model_name_or_path="./b")
    with pytest.raises(AdapterError, match="would stand on itself"):
        hub.load("./b")
    edit(three / "b" / "adapter_config.json", base_model_name_or_path="./b")
    assert hub.load("./b").below == ()  # saved where its base was


@pytest.mark.parametrize("given", [["./b,on=A=./a", "./c,on=./a"], ["A=./a", "./b,on=./a"]])
def test_one_that_is_below_others_has_one_name(three, given):
    found = hub.load_all(given)
    assert {low.name for one in found for low in one.below} == {"A"}
    with_names_taken = hub.load_all(["a=./c", "./b,on=./a"])[1]
    assert [one.name for one in with_names_taken.below] == ["a-2"]
