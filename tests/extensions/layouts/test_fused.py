"""Fused projections against single ones: split exactly, or left alone with the reason."""

import copy
import re

import pytest
import torch
from making import (
    fused_and_split_model,
    hidden,
    peft_adapter,
    peft_model,
    random_adapter,
    tiny_llama,
    tiny_phi3,
)
from peft import PeftModel

import loraprobe
from loraprobe.adapters import adapter_of, read_adapter
from loraprobe.compatibility import check
from loraprobe.composition import Composition, composed
from loraprobe.composition.attaching import on_layout_of
from loraprobe.errors import CompatibilityError
from loraprobe.extensions.layouts.fused import one_layout
from loraprobe.lora.lowrank import LowRank
from loraprobe.routing import ROUTERS

ATTENTION, MLP = "model.layers.0.self_attn", "model.layers.0.mlp"
FUSED = {f"{ATTENTION}.qkv_proj": (28, 12), f"{MLP}.gate_up_proj": (40, 12)}
ROWS = {"q_proj": (0, 16), "k_proj": (16, 22), "v_proj": (22, 28)}
TWELVE = dict.fromkeys(ROWS, (12, 12))
SINGLE = {f"{ATTENTION}.{name}": (end - start, 12) for name, (start, end) in ROWS.items()}
SINGLE |= {f"{MLP}.gate_proj": (20, 12), f"{MLP}.up_proj": (20, 12)}
UP = ("gate_proj", "up_proj")
BASE = SINGLE | {"model.embed_tokens": (12, 30)}
FUSED_BASE = FUSED | {"model.embed_tokens": (12, 30)}
CONFIG = {"num_attention_heads": 8, "num_key_value_heads": 3, "hidden_size": 16}


def dense(adapter, path):
    return adapter.modules[path].to(torch.float64).delta()


def stacked(adapter, prefix=ATTENTION, names=tuple(ROWS)):
    """The single projections' deltas one below the other, zero where the adapter has none."""
    parts = []
    for path in (f"{prefix}.{name}" for name in names):
        zeros = torch.zeros(SINGLE[path], dtype=torch.float64)
        parts.append(dense(adapter, path) if path in adapter.modules else zeros)
    return torch.cat(parts)


def test_a_fused_adapter_beside_a_single_one_is_split_exactly():
    single = random_adapter("s", SINGLE, rank=2)
    fused = random_adapter("f", FUSED, rank=3, seed=1)
    (same, split), refused = one_layout([single, fused])
    assert same is single and not refused
    assert set(split.layout) == set(SINGLE)
    assert torch.equal(stacked(split), dense(fused, f"{ATTENTION}.qkv_proj"))
    assert torch.equal(stacked(split, MLP, UP), dense(fused, f"{MLP}.gate_up_proj"))
    assert all(split.layout[path].rank == 3 for path in split.layout)
    (note,) = split.issues
    assert (note.severity, note.code, note.adapters) == ("note", "fused-translated", ("f",))
    assert "2 fused layers" in note.message and "gate_up_proj and qkv_proj" in note.message
    # What is on one layout already stays as it is.
    assert one_layout([same, split])[0] == [same, split]


def beside(names=SINGLE, seed=0):
    """An adapter with magnitudes, offsets and whole biases of every module."""
    generator = torch.Generator().manual_seed(seed)
    draw = {path: torch.randn(3, out, generator=generator) for path, (out, _) in names.items()}
    plain = random_adapter("x", names, rank=2, seed=seed)
    return adapter_of(
        "x",
        dict(plain.modules),
        magnitudes={path: t[0] for path, t in draw.items()},
        offsets={path: t[1] for path, t in draw.items()},
        whole={f"{path}.bias": t[2] for path, t in draw.items()},
    )


def test_what_stands_beside_the_factors_goes_by_the_same_rows():
    fused = beside(FUSED)
    (split,), refused = one_layout([fused], BASE)
    assert not refused
    for name, (start, end) in ROWS.items():
        path, whole = f"{ATTENTION}.{name}", f"{ATTENTION}.qkv_proj"
        assert torch.equal(split.magnitudes[path], fused.magnitudes[whole][start:end])
        assert torch.equal(split.offsets[path], fused.offsets[whole][start:end])
        assert torch.equal(split.whole[f"{path}.bias"], fused.whole[f"{whole}.bias"][start:end])
    for held in (split.magnitudes, split.offsets, split.whole):
        assert len(held) == len(SINGLE) and not any("qkv" in name for name in held)


@pytest.mark.parametrize(
    ("fused", "others", "options", "reason"),
    [
        ({"qkv_proj": (28, 12)}, {"q_proj": (16, 12)}, {}, "k_proj and v_proj's is not known"),
        ({"qkv_proj": (28, 12)}, {"q_proj": (16, 12), "v_proj": (6, 12)}, {}, None),
        ({"qkv_proj": (28, 12)}, {"q_proj": (16, 11)}, {}, "contradict"),
        ({"qkv_proj": (20, 12)}, {"q_proj": (16, 12), "v_proj": (6, 12)}, {}, "do not add up"),
        ({"qkv_proj": (28, 12)}, dict.fromkeys(ROWS, (9, 12)), {}, r"\(9, 9, 9\) do not add up"),
        ({"gate_up_proj": (40, 12)}, {"up_proj": (20, 12)}, {}, None),
        ({"gate_up_proj": (41, 12)}, {"up_proj": (20, 12)}, {}, "do not add up to its 41"),
        ({"W_pack": (36, 12)}, TWELVE, {}, None),
        ({"Wqkv": (36, 12)}, TWELVE, {}, None),
        ({"query_key_value": (36, 12)}, TWELVE, {}, "order of its rows depends on the model"),
        ({"query_key_value": (36, 12)}, {"query": (12, 12)}, {}, "order of its rows depends on"),
        ({"qkv_proj": (36, 12)}, TWELVE, {"config": {"model_type": "codegen"}}, "CodeGen"),
        ({"qkv_proj": (28, 12), "q_proj": (16, 12)}, {"k_proj": (6, 12)}, {}, "changes both"),
    ],
)
def test_what_is_known_for_certain_is_translated_and_the_rest_named(fused, others, options, reason):
    a = random_adapter("f", {f"{ATTENTION}.{n}": s for n, s in fused.items()})
    b = random_adapter("s", {f"{ATTENTION}.{n}": s for n, s in others.items()})
    adapters, refused = one_layout([a, b], **options)
    if reason is None:
        (path,) = a.layout
        parts = [f"{ATTENTION}.{name}" for name in (UP if "up" in path else ROWS)]
        assert not refused and list(adapters[0].layout) == sorted(parts)
        got = torch.cat([dense(adapters[0], part) for part in parts])
        assert torch.equal(got, dense(a, path))
    else:
        assert adapters == [a, b]
        assert len(refused) == 1 and refused[0].adapters[0] == "f"
        assert re.search(reason, refused[0].message), refused[0].message


def test_rows_come_from_the_base_where_the_adapters_do_not_tell_them():
    fused = random_adapter("f", FUSED)
    only_q = random_adapter("s", {f"{ATTENTION}.q_proj": (16, 12)})
    (split, _), refused = one_layout([fused, only_q], BASE)
    assert not refused and set(split.layout) == set(SINGLE)
    # A packed (quantised) base gives paths and no shapes; its config tells the heads.
    (split, _), refused = one_layout([fused, only_q], dict.fromkeys(BASE), CONFIG)
    assert not refused and set(split.layout) == set(SINGLE)


@pytest.mark.parametrize("lost", [(), ("k_proj",), ("q_proj", "v_proj", "gate_proj")])
def test_single_ones_on_a_base_that_fuses_them_are_joined_exactly(lost):
    shapes = {p: s for p, s in SINGLE.items() if p.rpartition(".")[2] not in lost}
    single = random_adapter("s", shapes, rank=2)
    (joined,), refused = one_layout([single], FUSED_BASE, CONFIG)
    assert not refused and set(joined.layout) == set(FUSED)
    (note,) = joined.issues
    assert (note.severity, note.code, note.adapters) == ("note", "fused-translated", ("s",))
    for prefix, name, parts in ((ATTENTION, "qkv_proj", tuple(ROWS)), (MLP, "gate_up_proj", UP)):
        path = f"{prefix}.{name}"
        assert torch.equal(dense(joined, path), stacked(single, prefix, parts))
        held = [part for part in parts if part not in lost]
        assert joined.layout[path].rank == joined.modules[path].rank == 2 * len(held)
    # The way back gives the single ones again, and zeros for those that were not there.
    (split,), refused = one_layout([joined], BASE)
    assert not refused and torch.equal(stacked(split), stacked(single))


def test_single_ones_of_other_ranks_scalings_and_dtypes_are_joined():
    generator = torch.Generator().manual_seed(0)
    updates = {}
    for i, (path, (out, inp)) in enumerate(SINGLE.items(), start=1):
        A, B = torch.randn(i, inp, generator=generator), torch.randn(out, i, generator=generator)
        updates[path] = LowRank(A.bfloat16() if i == 2 else A, B, 0.5 * i)
    adapter = adapter_of("s", updates, offsets={p: u.B[:, 0] for p, u in updates.items()})
    (joined,), refused = one_layout([adapter], FUSED_BASE)
    assert not refused
    path = f"{ATTENTION}.qkv_proj"
    torch.testing.assert_close(dense(joined, path), stacked(adapter), rtol=1e-6, atol=1e-6)
    scaled = torch.cat([updates[part].scaling * adapter.offsets[part] for part in SINGLE][:3])
    torch.testing.assert_close(joined.offsets[path] * joined.layout[path].scaling, scaled)


def test_what_stands_beside_single_factors_is_joined_where_all_parts_have_it():
    single = beside()
    (joined,), refused = one_layout([single], FUSED_BASE)
    assert not refused
    for name, (start, end) in ROWS.items():
        path, whole = f"{ATTENTION}.{name}", f"{ATTENTION}.qkv_proj"
        assert torch.equal(joined.magnitudes[whole][start:end], single.magnitudes[path])
        assert torch.equal(joined.offsets[whole][start:end], single.offsets[path])
        assert torch.equal(joined.whole[f"{whole}.bias"][start:end], single.whole[f"{path}.bias"])
    for held in (joined.magnitudes, joined.offsets, joined.whole):
        assert len(held) == len(FUSED)
    some = beside({p: s for p, s in SINGLE.items() if "k_proj" not in p})
    (same,), (why,) = one_layout([some], FUSED_BASE, CONFIG)
    assert same.layout.keys() == {*some.layout} - {f"{MLP}.{n}" for n in UP} | {
        f"{MLP}.gate_up_proj"
    }
    assert why.code == "fused-targets" and "none of k_proj" in why.message


def test_linear_attention_of_qwen_is_fused_by_the_heads_of_its_config():
    """Tinker trains query, key and value of it apart."""
    prefix = "model.layers.0.linear_attn"
    heads = {"key": (2, 3), "value": (4, 5)}  # number, width
    config = {f"linear_num_{of}_heads": n for of, (n, _) in heads.items()}
    config |= {f"linear_{of}_head_dim": width for of, (_, width) in heads.items()}
    base = {f"{prefix}.in_proj_qkv": (32, 12)}
    adapter = random_adapter("t", {f"{prefix}.in_proj_v": (20, 12)}, rank=2)
    (joined,), refused = one_layout([adapter], base, {"text_config": config})
    assert not refused
    delta = dense(joined, f"{prefix}.in_proj_qkv")
    assert not delta[:12].any() and torch.equal(delta[12:], dense(adapter, f"{prefix}.in_proj_v"))
    _, (why,) = one_layout([adapter], base, {})
    assert why.code == "fused-targets"


def test_nothing_is_done_where_nothing_needs_it():
    fused = [random_adapter("a", FUSED), random_adapter("b", FUSED, seed=1)]
    singles = [random_adapter("a", SINGLE), random_adapter("b", {"lm_head": (30, 12)})]
    apart = [fused[0], random_adapter("b", {"model.layers.1.self_attn.q_proj": (16, 12)})]
    for adapters, *base in ((fused,), (fused, FUSED_BASE), (singles,), (singles, BASE), (apart,)):
        assert one_layout(adapters, *base) == (adapters, [])


def test_layers_of_which_one_cannot_be_made_of_the_other_are_an_error_of_the_check():
    single = random_adapter("s", {f"{ATTENTION}.q_proj": (16, 12), "x": (4, 4)})
    fused = random_adapter("f", {f"{ATTENTION}.qkv_proj": (48, 12), "x": (4, 4)}, seed=1)
    found = {issue.code: issue for issue in check([single, fused]).issues}
    assert found["fused-targets"].severity == "error"
    assert found["fused-targets"].module == f"{ATTENTION}.qkv_proj"
    assert found["targets-differ"].severity == "note"


def test_a_fused_adapter_runs_on_a_split_model_as_peft_runs_it_on_the_fused_one(tmp_path):
    phi, llama = fused_and_split_model()
    config = {"r": 2, "target_modules": ["qkv_proj", "gate_up_proj", "down_proj"]}
    adapter = read_adapter(peft_adapter(tmp_path / "f", phi, 3, **config))
    wrapped = peft_model(tiny_phi3(), 3, **config)
    assert (hidden(wrapped) - hidden(llama)).abs().max() > 0.1, "or this test shows nothing"
    with loraprobe.route(llama, [adapter], router="constant"):
        torch.testing.assert_close(hidden(llama), hidden(wrapped), rtol=1e-4, atol=1e-4)


def test_a_single_adapter_runs_on_a_fused_model_as_peft_runs_it_on_the_split_one(tmp_path):
    phi, llama = fused_and_split_model()
    for number, more in enumerate(({}, {"use_dora": True})):
        parts = [*ROWS, *UP] if more else ["q_proj", "v_proj", "up_proj", "down_proj"]
        config = {"r": 2, "target_modules": parts, **more}
        place = peft_adapter(tmp_path / str(number), copy.deepcopy(llama), 3, **config)
        adapter = read_adapter(place)
        wrapped = PeftModel.from_pretrained(copy.deepcopy(llama), place)
        assert (hidden(wrapped) - hidden(phi)).abs().max() > 0.1, "or this test shows nothing"
        with loraprobe.route(phi, [adapter], router="constant"):
            torch.testing.assert_close(hidden(phi), hidden(wrapped), rtol=1e-4, atol=1e-4)


def test_a_composition_finds_the_layout_of_the_model_it_is_put_into():
    model, llama = tiny_phi3(), tiny_llama()
    shapes = {f"{ATTENTION}.qkv_proj": (32, 16)}
    adapter = random_adapter("a", shapes)
    composition = Composition("x", (adapter,), ROUTERS.make("arrow"))
    first = on_layout_of(llama, composition)
    assert first is not composition and on_layout_of(llama, composition) is first
    assert on_layout_of(model, composition) is composition  # nothing to translate there
    lost = Composition("x", (random_adapter("a", {"h.0.q": (16, 16)}),), composition.router)
    with pytest.raises(CompatibilityError, match="which the model does not have"):
        composed(model, lost).__enter__()
