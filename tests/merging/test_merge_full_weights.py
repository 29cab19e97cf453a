"""Linear merges of what adapters replace whole: heads, modules, biases; other task types."""

from __future__ import annotations

import copy

import pytest
import torch
from making import (
    GPT2_SIZES,
    base_of,
    base_tensors,
    peft_adapter,
    peft_model,
    random_adapter,
    random_update,
    tiny_llama,
    tiny_model,
)

from loraprobe.adapters import adapter_of, read_adapter
from loraprobe.base import open_base
from loraprobe.errors import CompatibilityError, UnsupportedAdapter
from loraprobe.merging import merge
from loraprobe.options import Options
from loraprobe.pipeline import commands

UP = "model.layers.0.mlp.up_proj"
NORM, BIAS, SCORE = "model.norm.weight", f"{UP}.bias", "score.weight"
FROM_BASE = {NORM: torch.linspace(0, 1, 8), BIAS: torch.linspace(-1, 1, 14)}


def holding(name, seed, *names, rows=3, dtype=torch.float32):
    """An adapter with factors of one module and with these parameters whole."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {NORM: (8,), BIAS: (14,), SCORE: (rows, 10), f"{UP}.weight": (14, 10)}
    whole = {n: torch.randn(shapes[n], generator=generator).to(dtype) for n in names}
    return adapter_of(name, {UP: random_update(14, 10, 2, seed)}, whole=whole)


@pytest.mark.parametrize("name", [NORM, BIAS, SCORE])
@pytest.mark.parametrize("weights", [None, [0.25, 0.75], [1.5, -0.5]])
def test_the_mean_needs_no_base(name, weights):
    a, b = holding("a", 1, name), holding("b", 2, name)
    merged = merge([a, b], "task_arithmetic", weights=weights)
    w = weights or [0.5, 0.5]
    expected = w[0] * a.whole[name].double() + w[1] * b.whole[name].double()
    torch.testing.assert_close(merged.adapter.whole[name].double(), expected, rtol=1e-6, atol=1e-6)
    assert merged.adapter.whole[name].dtype == torch.float32
    assert len(merged.adapter.extras) == 1 and not merged.issues


@pytest.mark.parametrize("weights", [[1.0, 1.0], [0.3, 0.3], [-1.0, 0.5]])
def test_other_weights_and_adapters_without_it_take_the_base_into_account(weights):
    a, b = holding("a", 1, NORM, BIAS), holding("b", 2, NORM)
    merged = merge([a, b], "task_arithmetic", weights=weights, base=base_of(FROM_BASE))
    for name, holders in ((NORM, (a, b)), (BIAS, (a,))):
        start = FROM_BASE[name].double()
        expected = start + sum(
            w * (x.whole[name].double() - start) for w, x in zip(weights, holders, strict=False)
        )
        torch.testing.assert_close(
            merged.adapter.whole[name].double(), expected, rtol=1e-6, atol=1e-6
        )


def test_inexact_full_weight_merges_are_refused_with_a_cure():
    a, b, c = holding("a", 1, NORM), holding("b", 2), holding("c", 3, NORM)
    message = (
        r"Adapter a holds modules_to_save model.norm.weight, .*--base DIR .*--allow modules-to"
    )
    with pytest.raises(UnsupportedAdapter, match=message):
        merge([a, b])
    with pytest.raises(UnsupportedAdapter, match=r"a and c holds? modules_to_save"):
        merge([a, c], "sum")
    with pytest.raises(UnsupportedAdapter, match=r"a holds bias .*up_proj.bias.*--allow bias"):
        merge([holding("a", 1, BIAS), b])
    with pytest.raises(UnsupportedAdapter, match=r"score.weight, which the base does not have"):
        merge([holding("a", 1, SCORE), b], base=base_of(FROM_BASE))
    dropped = merge([a, b], allow=["modules-to-save"])
    assert not dropped.adapter.whole
    assert [(i.severity, i.code, i.adapters) for i in dropped.issues] == [
        ("warning", "modules-to-save", ("a",))
    ]
    with pytest.raises(CompatibilityError, match=r"\[8\] in the adapters and \[9\] in the base"):
        merge([a, b], base=base_tensors(parameter=lambda _: torch.ones(9)))


def test_heads_of_different_labels_and_whole_modules_with_factors_are_refused():
    with pytest.raises(CompatibilityError, match=r"\[3, 10\] in a and \[2, 10\] in b: .*labels"):
        merge([holding("a", 1, SCORE), holding("b", 2, SCORE, rows=2)])
    with pytest.raises(UnsupportedAdapter, match=r"replaced whole in a and has factors in a and b"):
        merge([holding("a", 1, f"{UP}.weight"), holding("b", 2)])


@pytest.mark.parametrize("method", ["ties", "dare_linear", "slerp"])
def test_other_methods_refuse_and_name_the_linear_ones(method):
    with pytest.raises(UnsupportedAdapter, match=r"only a linear method keeps; take uniform, sum"):
        merge([holding("a", 1, NORM), holding("b", 2, NORM)], method)


def test_an_adapter_whose_factors_are_zero_still_has_its_head():
    update = random_update(14, 10, 2, 1)
    idle = type(update)(update.A, update.B * 0, 1.0)
    pair = [
        adapter_of(n, {UP: idle}, whole={NORM: torch.full((8,), v)})
        for n, v in (("a", 2.0), ("b", 4.0))
    ]
    merged = merge(pair)
    assert torch.equal(merged.adapter.whole[NORM], torch.full((8,), 3.0))
    assert not merged.issues and merged.compression_error == 0.0


def test_offsets_are_summed_with_their_scalings():
    a, b = (
        adapter_of(
            n, {UP: random_update(14, 10, 2, i, s)}, offsets={UP: torch.full((14,), 1.0 * i)}
        )
        for n, i, s in (("a", 1, 0.5), ("b", 2, 3.0))
    )
    plain = adapter_of("c", {UP: random_update(14, 10, 2, 3), "other": random_update(4, 4, 2, 4)})
    merged = merge([a, b, plain], "task_arithmetic", weights=[2.0, -1.0, 1.0]).adapter
    got = merged.offsets[UP] * merged.layout[UP].scaling
    assert torch.allclose(got, torch.full((14,), 2.0 * 0.5 * 1 - 1.0 * 3.0 * 2))
    assert not merged.offsets["other"].any()  # one flag for the whole file
    table = adapter_of("t", {"wte": random_update(4, 4, 2, 4)}, kinds={"wte": "embedding"})
    with pytest.raises(UnsupportedAdapter, match=r"a has biases of B .*embedding wte"):
        merge([a, table])


# as peft writes, loads and runs them


def biased_llama(tied=False):
    return tiny_model("Llama", attention_bias=True, mlp_bias=True, tie_word_embeddings=tied)


def tiny_classifier():
    from transformers import GPT2Config, GPT2ForSequenceClassification

    torch.manual_seed(0)
    config = GPT2Config(vocab_size=40, num_labels=3, pad_token_id=0, **GPT2_SIZES)
    return GPT2ForSequenceClassification(config).eval()


def tiny_t5():
    from transformers import T5Config, T5ForConditionalGeneration

    torch.manual_seed(0)
    sizes = {
        "vocab_size": 40,
        "d_model": 16,
        "d_kv": 4,
        "d_ff": 24,
        "num_layers": 2,
        "num_heads": 4,
    }
    config = T5Config(decoder_start_token_id=0, pad_token_id=0, eos_token_id=1, **sizes)
    return T5ForConditionalGeneration(config).eval()


def saving(*modules, **more):
    """A config that trains these modules whole, beside factors of the queries."""
    return {"target_modules": ["q_proj"], "modules_to_save": list(modules), **more}


T5 = {"task_type": "SEQ_2_SEQ_LM"}
CASES = {
    "lora_only": (biased_llama, {"target_modules": ["v_proj"], "bias": "lora_only"}, True),
    "all": (biased_llama, {"target_modules": ["q_proj", "up_proj"], "bias": "all"}, True),
    "lora_bias": (biased_llama, {"target_modules": ["o_proj"], "lora_bias": True}, False),
    "head": (biased_llama, saving("lm_head"), True),
    "norms": (tiny_llama, saving("norm"), True),
    "classifier": (tiny_classifier, {"target_modules": ["c_attn"], "task_type": "SEQ_CLS"}, None),
    "t5": (tiny_t5, {"target_modules": ["q", "v", "wi"], **T5}, False),
    "t5-norm": (tiny_t5, saving("final_layer_norm", **{**T5, "target_modules": ["q"]}), True),
}


def answer(model):
    tokens = torch.arange(2 * 7).reshape(2, 7) * 5 % 39 + 1
    extra = {"decoder_input_ids": tokens[:, :4]} if model.config.is_encoder_decoder else {}
    with torch.no_grad():
        return model(input_ids=tokens, **extra).logits


def mean_of(models, weights, start):
    """start + sum w (model - start), parameter by parameter."""
    result = copy.deepcopy(start)
    states = [dict(m.named_parameters()) for m in models]
    with torch.no_grad():
        for name, p in result.named_parameters():
            p += sum(w * (s[name] - p) for w, s in zip(weights, states, strict=True))
    return result


@pytest.mark.parametrize("case", CASES)
def test_peft_loads_the_merge_and_runs_the_linear_combination(case, tmp_path):
    from peft import PeftModel

    make, config, needs_base = CASES[case]
    make().save_pretrained(tmp_path / "base")
    paths = [peft_adapter(tmp_path / n, make(), i, r=2, **config) for i, n in enumerate("ab", 1)]
    adapters = [read_adapter(path) for path in paths]
    weights = [0.5, 0.5] if needs_base is None else [0.7, 0.6]
    options = Options(methods=("task_arithmetic",), weights=tuple(weights))
    if needs_base:
        with pytest.raises(UnsupportedAdapter, match="--base DIR"):
            commands.merge(adapters, options=options)
    base = open_base(tmp_path / "base")
    made = commands.merge(adapters, base=base, options=options)
    found, merged = made.audit, made.made
    assert found.compatibility.compatible
    merged.save(tmp_path / "out")
    models = [peft_model(make(), i, r=2, **config).merge_and_unload() for i in (1, 2)]
    expected = answer(mean_of(models, weights, make()))
    loaded = PeftModel.from_pretrained(make(), tmp_path / "out").eval()
    assert (expected - answer(make())).abs().max() > 0.02, "or this test shows nothing"
    torch.testing.assert_close(answer(loaded), expected, rtol=1e-3, atol=1e-4)
    again = read_adapter(tmp_path / "out")
    assert again.task_type == config.get("task_type", "CAUSAL_LM")
    assert not [i for i in again.issues if i.severity == "error"]
    looked = commands.inspect([again, *(a.renamed(n) for a, n in zip(adapters, "xy", strict=True))])
    assert looked.compatibility.compatible


def test_a_classifier_is_inspected_and_merged(shelf, tmp_path):
    (real,) = shelf.adapters("classifier")
    assert commands.inspect([real]).compatibility.compatible
    twin = merge([real, real.renamed("twin")]).adapter
    assert torch.equal(twin.whole[SCORE], real.whole[SCORE])
    path = next(iter(real.layout))
    torch.testing.assert_close(
        twin.modules[path].delta(), real.modules[path].delta(), rtol=1e-4, atol=1e-6
    )
    shapes = {p: (i.out_features, i.in_features) for p, i in real.layout.items()}
    kinds = {p: i.kind for p, i in real.layout.items()}
    factors = random_adapter("other", shapes, 2, 1, 0.01)
    own = {"whole": {SCORE: real.whole[SCORE] + 1}, "config": {"task_type": "SEQ_CLS"}}
    other = adapter_of("other", dict(factors.modules), base_model="gpt2", kinds=kinds, **own)
    merged = merge([real, other])
    torch.testing.assert_close(merged.adapter.whole[SCORE], real.whole[SCORE] + 0.5)
    merged.save(tmp_path / "out")
    again = read_adapter(tmp_path / "out")
    assert again.task_type == "SEQ_CLS" and list(again.whole) == [SCORE]
    with pytest.raises(UnsupportedAdapter, match=r"score\.weight, .*only the mean"):
        merge([real, other], "sum")
