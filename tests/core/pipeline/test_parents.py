"""An adapter that was trained on the base with another one in it: what is said, and the cure."""

import shlex

import making
import pytest
from composing import logits, relative
from making import call, document, edit, peft_adapter, random_adapter, tiny_llama
from peft import PeftModel
from transformers import AutoModelForCausalLM

from loraprobe.adapters import read_adapter
from loraprobe.routing.constant import single


@pytest.fixture
def world(tmp_path, monkeypatch):
    """base, a, c of it, and b, which peft trained on the base with a merged into it."""
    monkeypatch.chdir(tmp_path)
    tiny_llama(tied=False).save_pretrained("base")
    for seed, name in enumerate("ac"):
        model = AutoModelForCausalLM.from_pretrained("base")
        peft_adapter(tmp_path / name, model, seed=seed, r=2, target_modules=["q_proj", "up_proj"])
    model = AutoModelForCausalLM.from_pretrained("base")
    merged = PeftModel.from_pretrained(model, "a").merge_and_unload()
    peft_adapter(tmp_path / "b", merged, seed=5, r=2, target_modules=["q_proj", "v_proj"])
    for name in "abc":
        base = "a" if name == "b" else "base"
        edit(tmp_path / name / "adapter_config.json", base_model_name_or_path=base)
    return tmp_path


def errors(found):
    issues = found["compatibility"]["issues"]
    return [(i["code"], i["adapters"]) for i in issues if i["severity"] == "error"]


@pytest.mark.needs("--full-model")
def test_the_cure_is_one_command_after_which_peft_computes_the_same(world):
    found = document("inspect", "b", "c", code=1)
    assert errors(found) == [("on-adapter", ["b"])]
    assert found["adapters"][0]["base_model"] == "base"
    command = "loraprobe merge a --base base --full-model DIR"
    assert (found["verdict"]["decision"], found["verdict"]["next"]) == ("incompatible", command)
    assert call(*shlex.split(command)[1:]).exit_code == 0
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained("base"), "a")
    expected = making.hidden(PeftModel.from_pretrained(model.merge_and_unload(), "b").eval())
    whole = AutoModelForCausalLM.from_pretrained("DIR").eval()
    assert relative(logits(whole, single(read_adapter("b"))), expected) < 1e-5
    alone = AutoModelForCausalLM.from_pretrained("base").eval()
    assert relative(logits(alone, single(read_adapter("b"))), expected) > 1e-3  # a matters
    assert errors(document("inspect", "b", "c", "--base", "DIR", code=0)) == []
    twice = document("inspect", "a", "b", "--base", "DIR", code=1)
    assert errors(twice) == [("on-adapter", ["a"])]  # which the base holds


def test_an_adapter_that_lacks_its_parent_is_not_composed(world):
    assert errors(document("inspect", "b", "c", code=1)) == [("on-adapter", ["b"])]
    assert call("merge", "b", "c", "-o", "out").exit_code == 2 and not (world / "out").exists()


@pytest.mark.needs("verify")
def test_who_knows_that_the_base_holds_it_says_so(world):
    assert call("merge", "b", "c", "--allow", "on-adapter", "-o", "out").exit_code == 0
    assert "on-adapter" in (world / "out" / "README.md").read_text()
    assert call("verify", "out").exit_code == 0


@pytest.mark.needs("--full-model")
def test_several_parents_are_merged_at_weight_1(world):
    edit(world / "b" / "adapter_config.json", base_model_name_or_path="base")
    text = "do_train: true\nadapter_name_or_path: ./a,./c\ncreate_new_adapter: true\n"
    (world / "b" / "training_args.yaml").write_text(text)
    random_adapter("d", seed=9, base_model="base").save(world / "d")
    found = document("inspect", "b", "d", code=1)
    command = "loraprobe merge a c --method sum --base base --full-model DIR"
    assert found["verdict"]["next"] == command


def test_a_parent_in_a_card_is_a_guess_and_warns(world):
    edit(world / "b" / "adapter_config.json", base_model_name_or_path="base")
    (world / "b" / "README.md").write_text("This model is a fine-tuned version of [./a](x) on y.")
    found = document("inspect", "b", "c", code=0)
    told = [(i["severity"], i["adapters"]) for i in found["compatibility"]["issues"]
            if i["code"] == "on-adapter"]  # fmt: skip
    assert told == [("warning", ["b"])]
