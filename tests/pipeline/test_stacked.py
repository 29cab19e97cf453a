"""Commands on an adapter that was trained on another one: what they say, write, repeat and ask."""

import json
import shutil

import making
import pytest
import torch
from composing import logits, relative
from making import call, random_adapter
from peft import PeftModel

import loraprobe
from loraprobe.adapters import below, read_adapter, stacked_on
from loraprobe.base import open_base
from loraprobe.composition import Composition
from loraprobe.demo import shipped_world
from loraprobe.options import Options
from loraprobe.pipeline.evaluator import identity
from loraprobe.pipeline.plan import SystemBuilder, baseline_systems
from loraprobe.pipeline.transforms import Transformed, transform
from loraprobe.routing import ROUTERS
from loraprobe.routing.constant import single
from loraprobe.verdict.next_command import library_words


@pytest.fixture
def three(tmp_path, monkeypatch):
    """Adapters a, b, c of one base in the working directory; b was trained on the base with a."""
    monkeypatch.chdir(tmp_path)
    for seed, name in enumerate("abc", 1):
        random_adapter(name, seed=seed, rank=2, scaling=0.1).save(tmp_path / name)
    (tmp_path / "a" / "README.md").write_text("---\nlicense: cc-by-nc-4.0\n---\n")
    (tmp_path / "b" / "README.md").write_text("---\nlicense: mit\n---\n")
    (tmp_path / "c" / "README.md").write_text("---\nlicense: mit\n---\n")
    return tmp_path


def document(*arguments):
    done = call(*arguments, "--json", "--quiet")
    assert done.exit_code in (0, 1, 3), done.output
    return json.loads(done.stdout)


def codes(found):
    return [issue["code"] for issue in found["compatibility"]["issues"]]


def test_inspect_says_what_stays_at_weight_1(three):
    found = document("inspect", "b=./b,on=./a", "./c")
    assert "on-adapter" in codes(found)
    (one,) = found["adapters"][0]["below"]
    assert (one["name"], one["license"]) == ("a", "cc-by-nc-4.0")
    assert "licence-noncommercial" in codes(document("merge", "./b,on=./a", "./c", "-o", "m"))
    assert "b=b,on=a" in found["verdict"]["next"]
    told = call("inspect", "b=./b,on=./a").stdout
    assert "owner/base + a" in told


def test_a_merge_is_one_file_that_verify_repeats(three):
    model = making.tiny_llama()
    call("merge", "b=./b,on=./a", "./c", "--method", "ties", "-o", "out")
    own = loraprobe.merge(["./b", "./c"], method="ties").adapter
    expected = logits(model, single(stacked_on(own, [read_adapter("a")])))
    loaded = PeftModel.from_pretrained(making.tiny_llama(), "out").eval()
    assert relative(making.hidden(loaded), expected) < 1e-5
    card = (three / "out" / "README.md").read_text()
    assert "license: other" in card
    checks = document("verify", "out")["checks"]
    assert [check["passed"] for check in checks] == [True] * len(checks)
    assert {"source b", "source a", "source c"} <= {check["name"] for check in checks}
    shutil.rmtree(three / "a")
    assert call("verify", "out").exit_code == 3


def test_a_stack_alone_is_written_as_one_file_and_by_merge_only(three):
    assert call("merge", "./b,on=./a", "-o", "out").exit_code == 0
    summed = loraprobe.merge(["./a", "./b"], method="sum").adapter
    for path, update in read_adapter("out").modules.items():
        assert torch.allclose(update.delta(), summed.modules[path].delta(), atol=1e-6)
    assert call("merge", "./b", "-o", "other").exit_code == 2
    refused = call("merge", "./b,on=./a", "./c", "--weights", "0.5,0.2,0.3", "-o", "other")
    assert refused.exit_code == 2 and "a as a part of b" in refused.stderr
    for command in (["convert", "./b,on=./a", "-o", "x"], ["inspect", "./b,on=./a", "--serve=all"]):
        done = call(*command)
        assert done.exit_code == 2
        assert "loraprobe merge" in done.stderr


@pytest.mark.parametrize("router", ["arrow", "constant"])
def test_a_saved_composition_holds_what_is_below_its_experts(three, router):
    done = call("route", "b=./b,on=./a", "./c", "--router", router, "-o", "out")
    assert done.exit_code == 0, done.output
    restored = loraprobe.load_composition("out")
    experts = (stacked_on(read_adapter("b"), [read_adapter("a")]), read_adapter("c"))
    expected = logits(making.tiny_llama(), Composition(router, experts, ROUTERS.make(router)))
    assert torch.equal(logits(making.tiny_llama(), restored), expected)
    with loraprobe.route(making.tiny_llama(), ["./b,on=./a", "./c"], router=router) as model:
        assert torch.equal(making.hidden(model), expected)
    assert [one.name for one in below(restored.experts)] == ["a"]
    assert restored.experts[1].below == ()
    assert call("verify", "out").exit_code == 0
    (three / "out" / "experts" / "a" / "adapter_model.safetensors").unlink()
    assert call("verify", "out").exit_code == 1


NEXT = {"./a": "loraprobe merge b=b,on=a -o DIR", "./c": "loraprobe inspect b=b,on=a c"}


@pytest.mark.parametrize("other", NEXT)
def test_what_is_below_another_and_given_too_is_an_error(three, other):
    found = document("inspect", "./a", "./b,on=./a", *([other] if other == "./c" else []))
    assert [one["name"] for one in found["adapters"][:2]] == ["a", "b"]
    errors = [i for i in found["compatibility"]["issues"] if i["severity"] == "error"]
    assert [(i["code"], i["adapters"]) for i in errors] == [("on-adapter", ["a"])]
    assert (found["verdict"]["decision"], found["verdict"]["next"]) == ("incompatible", NEXT[other])
    assert call("merge", "./a", "./b,on=./a", "-o", "out").exit_code == 2


def test_steps_before_a_merge_change_the_adapter_and_not_what_is_below(three):
    b, c = loraprobe.load("./b", on="./a"), loraprobe.load("./c")
    made = transform([b, c], Options(balance="norm")).adapters
    assert [[one.name for one in adapter.below] for adapter in made] == [["a"], []]
    assert torch.equal(
        made[0].below[0].modules["model.layers.0.mlp.up_proj"].A,
        read_adapter("a").modules["model.layers.0.mlp.up_proj"].A,
    )


def test_every_system_that_holds_it_has_what_is_below_at_gate_1(three):
    model, options = making.tiny_llama(), Options()
    b, c, a = loraprobe.load("./b", on="./a"), loraprobe.load("./c"), read_adapter("a")
    builder = SystemBuilder([b, c], Transformed((b, c)), options)
    systems = [*baseline_systems([b, c])[1:], *map(builder.build, ("uniform", "ties", "arrow"))]
    systems += builder.controls("b", "uniform") + builder.controls("c", "uniform")
    for system in systems:
        held = any(expert.below for expert in system.composition.experts) or system.merged
        assert bool(held) == (system.name not in ("c", "shrunk:c"))
    alone = SystemBuilder([c, read_adapter("b")], Transformed((c, read_adapter("b"))), options)
    with_a = making.tiny_llama()
    merged = PeftModel.from_pretrained(with_a, str(three / "a")).merge_and_unload().eval()
    for spec in ("uniform", "ties", "arrow"):
        expected = logits(merged, alone.build(spec).composition)
        assert relative(logits(model, builder.build(spec).composition), expected) < 1e-4
    assert [one.name for one in a.below] == []


def test_a_library_composes_no_adapter_with_what_is_below_it(three):
    screened = loraprobe.screen(["./a", "B=./b,on=./a", "./c"])
    assert [row.state for row in screened.library.adapters] == ["usable"] * 3
    words = ["screen", "a", "B=b,on=a", "c", "--keep", "3"]
    assert library_words(screened.library.adapters, words) == ["a", "B=b,on=a", "c"]


def test_kept_answers_are_those_of_the_same_stack():
    world = shipped_world()
    base = open_base(world.base)
    a, b = (read_adapter(path) for path in list(world.scenario("disjoint").adapters.values())[:2])
    kept = [
        identity(adapters, base, (), Options())
        for adapters in ([a, b], [a, stacked_on(b, [a])], [a, stacked_on(b, [a])])
    ]
    assert kept[0] != kept[1] == kept[2]


def test_merge_and_eval_of_a_stack_gives_no_probability(tmp_path, monkeypatch):
    monkeypatch.setenv("LORAPROBE_CACHE", str(tmp_path / "cache"))
    one, other, *rest = making.shipped("disjoint")
    on = world_adapter("count")
    command = ["merge-and-eval", f"{one},on={on}", other, *rest, "--limit", "32"]
    found = document(*command, "--method", "sum", "--router", "none", "-o", tmp_path / "out")
    assert found["adapters"][0]["below"][0]["name"] == "count"
    assert found["verdict"]["probability"] is None
    reasons = {reason["code"] for reason in found["verdict"]["reasons"]}
    assert "probability-measured-on" not in reasons
    assert "on-adapter" in codes(found)


def world_adapter(name):
    return next(p for p in (shipped_world().base.parent / "adapters").iterdir() if p.name == name)
