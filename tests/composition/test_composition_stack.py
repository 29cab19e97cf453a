"""Adapters on adapters: what stands on A runs as on a base with A merged into it.

The oracle is peft, which merges A into the base and then loads B.
"""

import making
import pytest
import torch
from composing import learnable, logits, relative
from merges import F64, planted
from peft import PeftModel

from loraprobe.adapters import adapter_of, below, read_adapter, stacked_on
from loraprobe.composition import Composition, composed
from loraprobe.errors import CompatibilityError, UnsupportedAdapter
from loraprobe.lora.lowrank import LowRank
from loraprobe.merging import METHODS, merge
from loraprobe.routing import ROUTERS
from loraprobe.routing.constant import ConstantGates, single

ATTENTION, MLP = ["q_proj", "v_proj"], ["up_proj", "down_proj"]
# A and B as peft's options; the last says whether one file holds both without the base.
KINDS = {
    "plain": ({"target_modules": ATTENTION}, {"target_modules": ATTENTION}, True),
    "other modules": ({"target_modules": MLP}, {"target_modules": ATTENTION}, True),
    "rslora": ({"target_modules": ATTENTION, "use_rslora": True}, {"target_modules": MLP}, True),
    "dora below": ({"target_modules": ATTENTION, "use_dora": True}, {"target_modules": MLP}, False),
    "dora above": ({"target_modules": ATTENTION}, {"target_modules": MLP, "use_dora": True}, False),
    "head below": (
        {"target_modules": ATTENTION, "modules_to_save": ["lm_head"]},
        {"target_modules": ATTENTION},
        False,
    ),
}


def merged_base(*places):
    """The tiny Llama with adapters merged into it by peft, one after the other."""
    model = making.tiny_llama(tied=False)
    for place in places:
        model = PeftModel.from_pretrained(model, str(place)).merge_and_unload()
    return model.eval()


@pytest.fixture(params=KINDS, ids=str)
def stack(request, tmp_path):
    """The directories of A, of B that was trained on it, and whether one file holds both."""
    of_a, of_b, one_file = KINDS[request.param]
    a = making.peft_adapter(tmp_path / "a", making.tiny_llama(tied=False), seed=1, r=4, **of_a)
    b = making.peft_adapter(tmp_path / "b", merged_base(a), seed=2, r=2, **of_b)
    return a, b, one_file


def test_peft_computes_the_same_on_the_base_with_a_merged(stack, tmp_path):
    a, b, one_file = stack
    expected = making.hidden(PeftModel.from_pretrained(merged_base(a), str(b)).eval())
    adapter = stacked_on(read_adapter(b), [read_adapter(a)])
    model = making.tiny_llama(tied=False)
    assert relative(logits(model, single(adapter)), expected) < 1e-5
    alone = logits(model, single(read_adapter(b)))
    assert relative(alone, expected) > 1e-3  # A matters
    if one_file:
        merge([adapter], "sum").save(tmp_path / "one")
        loaded = PeftModel.from_pretrained(making.tiny_llama(tied=False), str(tmp_path / "one"))
        assert relative(making.hidden(loaded.eval()), expected) < 1e-5


def test_a_stack_of_three_and_two_on_one_hold_each_adapter_once(tmp_path):
    places = []
    for seed, name in enumerate("abc"):
        options = {"target_modules": ATTENTION if name != "b" else MLP, "r": 2}
        model = merged_base(*places)
        places.append(making.peft_adapter(tmp_path / name, model, seed=seed, **options))
    expected = making.hidden(PeftModel.from_pretrained(merged_base(*places[:2]), str(places[2])))
    a, b, c = map(read_adapter, places)
    on_b = stacked_on(c, [stacked_on(b, [a])])
    assert [one.name for one in on_b.below] == ["a", "b"]
    model = making.tiny_llama(tied=False)
    assert relative(logits(model, single(on_b)), expected) < 1e-5
    both = (stacked_on(b, [a]), stacked_on(c, [read_adapter(places[0])]))
    assert len(below(both)) == 1
    summed = merge([a, b, c], "sum").adapter
    expected = logits(model, single(summed))
    assert relative(logits(model, Composition("sum", both, ConstantGates.ones(2))), expected) < 1e-5
    assert relative(logits(model, single(merge(both, "sum").adapter)), expected) < 1e-5


ROUTED = ["constant", "arrow", "arrow:per=sequence", "spectr", "lag", "hard", "learnable"]


@pytest.mark.parametrize("spec", ROUTED)
def test_gates_see_the_base_with_a_merged_and_never_weigh_a(tmp_path, spec):
    a = making.peft_adapter(
        tmp_path / "a", making.tiny_llama(tied=False), seed=1, target_modules=[*ATTENTION, *MLP]
    )
    b, c = (
        making.peft_adapter(tmp_path / name, merged_base(a), seed=seed, target_modules=ATTENTION)
        for name, seed in (("b", 2), ("c", 3))
    )
    experts = (read_adapter(b), read_adapter(c))
    router = learnable(0.3, -0.7) if spec == "learnable" else ROUTERS.make(spec)
    expected = logits(merged_base(a), Composition(spec, experts, router))
    on_a = (stacked_on(experts[0], [read_adapter(a)]), experts[1])
    composition, seen = Composition(spec, on_a, router), []
    with composed(
        making.tiny_llama(tied=False),
        composition,
        lambda path, present, gates: seen.append((present, gates.shape[-1])),
    ) as model:
        assert relative(making.hidden(model), expected) < 1e-5
    assert all(list(present) in ([], [0, 1]) and k == len(present) for present, k in seen)
    assert bool(seen) == (not router.constant)
    assert len(composition.experts) == 2  # what is written and shown


@pytest.mark.parametrize("name", METHODS.names())
def test_every_method_merges_what_stands_on_a_and_adds_a_at_weight_1(name):
    method = METHODS.make(name)
    alone = planted(method)
    paths = {path: info.shape for one in alone for path, info in one.layout.items()}
    a = making.random_adapter("under", paths, rank=2, seed=50, dtype=F64, base_model=None)
    weights = tuple(0.5 + i / 4 for i in range(len(alone))) if method.takes_weights else None
    found = merge([stacked_on(alone[0], [a]), *alone[1:]], method, weights=weights)
    expected = merge(alone, method, weights=weights)
    assert found.weights == expected.weights
    for path in paths:
        own = making.dense(found.adapter.modules[path]) - making.dense(a.modules[path])
        wanted = making.dense(expected.adapter.modules[path])
        assert torch.allclose(own, wanted, rtol=0, atol=1e-9 * float(wanted.norm() + 1))


def test_a_rank_cuts_the_merge_and_not_what_is_below():
    alone = planted(METHODS.make("uniform"))
    paths = {path: info.shape for one in alone for path, info in one.layout.items()}
    a = making.random_adapter("under", paths, rank=4, seed=50, dtype=F64, base_model=None)
    found = merge([stacked_on(one, [a]) for one in alone], "uniform", rank=1)
    cut = merge(alone, "uniform", rank=1)
    assert (found.rank, cut.rank) == (5, 1)
    assert found.compression_error == cut.compression_error > 0


def test_two_learnable_routers_are_not_one():
    one, other = learnable(0.3), learnable(0.3)
    assert one != other
    assert len({one, other, one}) == 2


def adapter(name="b", rows=16, base="owner/base", path="layers.0.q", **fields):
    generator = torch.Generator().manual_seed(len(name) + rows)
    update = LowRank(torch.randn(2, 8, generator=generator), torch.randn(rows, 2), 1.0)
    return adapter_of(name, {path: update}, base_model=base, **fields)


REFUSED = {
    "another base": (adapter(), adapter("a", base="owner/other"), CompatibilityError),
    "another shape": (adapter(), adapter("a", rows=12), CompatibilityError),
    "another shape in another layer": (
        adapter(),
        adapter("a", rows=12, base="/models/a", path="layers.1.q"),
        CompatibilityError,
    ),
    "another layer": (adapter(), adapter("a", path="layers.1.q"), None),
    "dora": (adapter(magnitudes={"layers.0.q": torch.ones(16)}), adapter("a"), UnsupportedAdapter),
    "whole": (
        adapter(whole={"layers.0.q.weight": torch.ones(16, 8)}),
        adapter("a"),
        UnsupportedAdapter,
    ),
    "a copy of the base by its name": (adapter(base="owner/base-bnb-4bit"), adapter("a"), None),
    "whole below": (adapter(), adapter("a", whole={"layers.0.q.weight": torch.ones(16, 8)}), None),
    "a base named by its path": (adapter(base="/models/a"), adapter("a"), None),
}


@pytest.mark.parametrize("case", REFUSED)
def test_only_changes_that_add_up_on_one_base_stand_on_each_other(case):
    upper, lower, error = REFUSED[case]
    if error is None:
        assert stacked_on(upper, [lower]).base_model == "owner/base"
        return
    with pytest.raises(error, match=r"^b cannot stand on a: "):
        stacked_on(upper, [lower])


def test_nothing_stands_on_itself():
    one = adapter("x")
    with pytest.raises(CompatibilityError, match="the same adapter"):
        stacked_on(one, [one])
