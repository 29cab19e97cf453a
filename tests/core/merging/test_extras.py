"""Linear merges of DoRA, of what adapters replace whole, of token rows and of biases of B.

Against dense weights written out by the definition, and as peft runs them.
"""

from functools import partial

import pytest
import torch
from composing import learnable, refused
from hypothesis import given, settings
from hypothesis import strategies as st
from making import (
    GPT2_SIZES,
    base_of,
    base_tensors,
    peft_adapter,
    random_adapter,
    random_update,
    tiny_gpt2,
    tiny_llama,
    tiny_model,
)
from merges import merge

from loraprobe.adapters import adapter_of, read_adapter
from loraprobe.adapters.types import TokenRows
from loraprobe.base import open_base
from loraprobe.composition import Composition, composed
from loraprobe.errors import CompatibilityError, UnsupportedAdapter
from loraprobe.lora.lowrank import LowRank
from loraprobe.options import Options
from loraprobe.pipeline import commands
from loraprobe.routing.constant import ConstantGates
from loraprobe.session import Session

UP, TABLE, HEAD = "model.layers.0.mlp.up_proj", "model.embed_tokens", "lm_head"
NORM, BIAS, SCORE = "model.norm.weight", f"{UP}.bias", "score.weight"
OUT, IN = 14, 10

# DoRA.


def base(seed=0, out=OUT, inp=IN):
    generator = torch.Generator().manual_seed(seed + 100)
    return torch.randn(out, inp, generator=generator, dtype=torch.float64)


def dora(name, W0, seed, rank=2, spread=0.3):
    """A DoRA adapter whose magnitudes are those of its direction, moved by up to `spread`."""
    update = random_update(*W0.shape, rank, seed, 0.5, torch.float64)
    norms = (W0 + update.delta()).norm(dim=1)
    generator = torch.Generator().manual_seed(seed)
    factor = 1 + spread * torch.randn(len(W0), generator=generator, dtype=torch.float64)
    return adapter_of(name, {UP: update}, magnitudes={UP: norms * factor}, base_model="owner/base")


def plain(name, W0, seed, rank=2):
    update = random_update(*W0.shape, rank, seed, 0.5, torch.float64)
    return adapter_of(name, {UP: update}, base_model="owner/base")


def weight_of(adapter, W0):
    """The weight that an adapter makes of W0, dense, by DoRA's definition."""
    direction = W0.double() + adapter.modules[UP].to(torch.float64).delta()
    if UP not in adapter.magnitudes:
        return direction
    norms = direction.norm(dim=1, keepdim=True)
    return adapter.magnitudes[UP].double()[:, None] * direction / norms


def dense_sum(adapters, weights, W0):
    return W0 + sum(w * (weight_of(a, W0) - W0) for a, w in zip(adapters, weights, strict=True))


@settings(max_examples=40)
@given(
    out=st.integers(1, 9),
    inp=st.integers(2, 9),
    ranks=st.lists(st.integers(1, 3), min_size=1, max_size=3),
    weights=st.lists(st.floats(-1.5, 1.5), min_size=3, max_size=3),
    scaled=st.lists(st.booleans(), min_size=3, max_size=3),
    spread=st.sampled_from([0.01, 0.3, 1.0, 3.0]),
    seed=st.integers(0, 10_000),
)
def test_any_linear_merge_is_its_dense_definition(out, inp, ranks, weights, scaled, spread, seed):
    W0 = base(seed, out, inp)
    adapters = [
        dora(f"x{i}", W0, seed + i, r, spread)
        if scaled[i] or i == 0
        else plain(f"x{i}", W0, seed + i, r)
        for i, r in enumerate(ranks)
    ]
    weights = [w if abs(w) > 0.05 else 0.5 for w in weights[: len(adapters)]]
    merged = merge(adapters, "task_arithmetic", weights=weights, base=base_tensors(lambda _: W0))
    expected = dense_sum(adapters, weights, W0)
    change = float((expected - W0).norm())
    error = float((weight_of(merged.adapter, W0) - expected).norm())
    assert error <= 1e-6 * change + 1e-9
    assert merged.compression_error == 0.0 and merged.rounding_error < 1e-9
    for source, adapter in zip(merged.sources, adapters, strict=True):
        assert source.norm == pytest.approx(float((weight_of(adapter, W0) - W0).norm()))


def test_a_row_of_the_base_that_vanishes_is_refused_and_one_that_turns_around_is_exact():
    W0 = base()
    adapter = dora("a", W0, 1)
    turned, vanished = adapter.magnitudes[UP].clone(), adapter.magnitudes[UP].clone()
    turned[2], vanished[0] = -turned[2], 0
    for magnitude in (turned, vanished):
        pair = [
            adapter_of("a", dict(adapter.modules), magnitudes={UP: magnitude}),
            plain("b", W0, 2),
        ]
        if magnitude is vanished:
            with pytest.raises(UnsupportedAdapter, match="a row of"):
                merge(pair, "sum", base=base_tensors(lambda _: W0))
            continue
        merged = merge(pair, "sum", base=base_tensors(lambda _: W0))
        expected = dense_sum(pair, [1.0, 1.0], W0)
        torch.testing.assert_close(weight_of(merged.adapter, W0), expected, rtol=1e-9, atol=1e-9)


def test_a_cut_is_the_best_of_its_rank_for_the_weights_and_its_loss_is_told():
    W0 = base()
    adapters = [dora("a", W0, 1), dora("b", W0, 2)]
    merged = merge(adapters, rank=3, base=base_tensors(lambda _: W0))
    expected = dense_sum(adapters, [0.5, 0.5], W0)
    got = weight_of(merged.adapter, W0)
    assert merged.adapter.layout[UP].rank == 3
    lost = float((got - expected).norm() / (expected - W0).norm())
    assert merged.compression_error == pytest.approx(lost, rel=1e-6) and lost > 0.01
    # W - diag(c) W0 = L, of rank 4: no direction of rank 3 leaves less of it.
    c = 1 + sum(
        0.5 * (a.magnitudes[UP] / (W0 + a.modules[UP].delta()).norm(dim=1) - 1) for a in adapters
    )
    best = torch.linalg.svdvals(expected - c[:, None] * W0)[3]
    assert float((got - expected).norm()) == pytest.approx(float(best), rel=1e-6)
    for dtype in (torch.float32, torch.bfloat16):  # and the rounding of a dtype
        rounded = merge(adapters, base=base_tensors(lambda _: W0), dtype=dtype)
        assert rounded.adapter.magnitudes[UP].dtype == torch.float32
        gap = (weight_of(rounded.adapter, W0) - expected).norm() / (expected - W0).norm()
        assert float(gap) <= 2 * rounded.rounding_error + 1e-6
        assert rounded.rounding_error < 10 * torch.finfo(dtype).eps


# Full weights and token rows.

FROM_BASE = {
    NORM: torch.linspace(0, 1, 8),
    BIAS: torch.linspace(-1, 1, OUT),
    f"{TABLE}.weight": torch.randn(9, 6, generator=torch.Generator().manual_seed(0)),
}


def holding(name, seed, *names, rows=3):
    """An adapter with factors of one module and with these parameters whole."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {NORM: (8,), BIAS: (OUT,), SCORE: (rows, 10), f"{UP}.weight": (OUT, IN)}
    whole = {n: torch.randn(shapes[n], generator=generator) for n in names}
    return adapter_of(name, {UP: random_update(OUT, IN, 2, seed)}, whole=whole)


def trained(name, seed, tokens, path=TABLE, width=6):
    """An adapter with factors of one module and with trained rows for these tokens."""
    values = torch.randn(len(tokens), width, generator=torch.Generator().manual_seed(seed))
    tables = {path: TokenRows(tuple(tokens), values.clone)}
    return adapter_of(name, {UP: random_update(OUT, IN, 2, seed)}, token_rows=tables)


def parameter_of(adapter, name):
    """A parameter as the adapter makes it of the base's, in float64."""
    if name in adapter.whole:
        return adapter.whole[name].double()
    made = FROM_BASE[name].double().clone()
    rows = adapter.token_rows.get(name.rpartition(".")[0])
    for token, row in zip(rows.tokens, rows.values, strict=True) if rows else ():
        made[token] = row.double()
    return made


@pytest.mark.parametrize("weights", [[0.25, 0.75], [1.0, 1.0], [0.3, -0.7], [1.5, -0.5]])
@pytest.mark.parametrize(
    "a, b",
    [
        (holding("a", 1, NORM, BIAS), holding("b", 2, NORM)),
        (trained("a", 1, [1, 4]), trained("b", 2, [4, 1])),
        (trained("a", 1, [1, 4]), trained("b", 2, [4, 7, 2])),
        (trained("a", 1, [3]), trained("b", 2, [8])),
    ],
)
def test_a_merge_is_the_linear_combination_of_whole_parameters(a, b, weights):
    third = adapter_of("c", {UP: random_update(OUT, IN, 2, 3)})
    options = {"weights": [*weights, 0.4], "base": base_of(FROM_BASE)}
    merged = merge([a, b, third], "task_arithmetic", **options).adapter
    changed = {*a.whole, *b.whole, *(f"{path}.weight" for path in a.token_rows)}
    assert len(merged.extras) == len(changed)
    for name in changed:
        start = FROM_BASE[name].double()
        parts = zip(weights, (a, b), strict=True)
        expected = start + sum(w * (parameter_of(x, name) - start) for w, x in parts)
        torch.testing.assert_close(parameter_of(merged, name), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    "a, b, weights",
    [
        *((holding("a", 1, n), holding("b", 2, n), [1.5, -0.5]) for n in (NORM, BIAS)),
        (trained("a", 1, [1, 4]), trained("b", 2, [4, 1]), [0.25, 0.75]),
        (trained("a", 1, [1, 4]), trained("c", 3, [7]), [1.0, 1.0]),
    ],
)
def test_weights_of_sum_one_need_no_base(a, b, weights):
    alone, known = (
        merge([a, b], "task_arithmetic", weights=weights, base=known).adapter
        for known in (None, base_of(FROM_BASE))
    )
    assert len(alone.extras) == 1
    for name in (*alone.whole, *(f"{path}.weight" for path in alone.token_rows)):
        torch.testing.assert_close(
            parameter_of(alone, name), parameter_of(known, name), rtol=0, atol=0
        )


def test_a_classifiers_head_has_a_mean_alone_and_stays_where_factors_are_zero():
    a, b = holding("a", 1, SCORE), holding("b", 2, SCORE)
    merged = merge([a, b]).adapter
    torch.testing.assert_close(merged.whole[SCORE], (a.whole[SCORE] + b.whole[SCORE]) / 2)
    update = random_update(OUT, IN, 2, 1)
    idle = LowRank(update.A, update.B * 0)
    values = {"a": torch.full((8,), 2.0), "b": torch.full((8,), 4.0)}
    pair = [adapter_of(name, {UP: idle}, whole={NORM: own}) for name, own in values.items()]
    merged = merge(pair)
    assert torch.equal(merged.adapter.whole[NORM], torch.full((8,), 3.0))
    assert not merged.issues and merged.compression_error == 0.0


def test_biases_of_B_are_summed_with_their_scalings():
    a, b = (
        adapter_of(
            n, {UP: random_update(OUT, IN, 2, i, s)}, offsets={UP: torch.full((OUT,), 1.0 * i)}
        )
        for n, i, s in (("a", 1, 0.5), ("b", 2, 3.0))
    )
    third = adapter_of("c", {UP: random_update(OUT, IN, 2, 3), "other": random_update(4, 4, 2, 4)})
    merged = merge([a, b, third], "task_arithmetic", weights=[2.0, -1.0, 1.0]).adapter
    got = merged.offsets[UP] * merged.layout[UP].scaling
    assert torch.allclose(got, torch.full((OUT,), 2.0 * 0.5 * 1 - 1.0 * 3.0 * 2))
    assert not merged.offsets["other"].any()  # one flag for the whole file


def test_rows_of_two_modules_are_merged_only_for_a_base_that_ties_nothing():
    values = FROM_BASE[f"{TABLE}.weight"][:1].clone
    tables = {TABLE: TokenRows((1,), values), HEAD: TokenRows((1,), values)}
    untied = adapter_of("u", {UP: random_update(OUT, IN, 2, 1)}, token_rows=tables)
    merged = merge([untied, trained("h", 2, [5], HEAD)], "sum").adapter
    assert {p: r.tokens for p, r in merged.token_rows.items()} == {TABLE: (1,), HEAD: (1, 5)}
    odd = tables | {HEAD: TokenRows((2,), values)}
    odd = adapter_of("odd", {UP: random_update(OUT, IN, 2, 1)}, token_rows=odd)
    for some in ([odd], [trained("t", 1, [1]), trained("h", 2, [1], HEAD)]):
        with pytest.raises(UnsupportedAdapter, match=r"lm_head and model.embed_tokens for differ"):
            merge(some, "sum")


# Refusals, each with its cure.

DORA = [dora("a", base(), 1), plain("b", base(), 2)]
OFFSETS = adapter_of("c", dict(DORA[1].modules), offsets={UP: torch.ones(OUT)})
NORMED, BIASED, SCORED = (holding("a", 1, name) for name in (NORM, BIAS, SCORE))
PLAIN, OWN_UP = holding("b", 2), holding("a", 1, f"{UP}.weight")
FEWER_LABELS = holding("b", 2, SCORE, rows=2)
ROW, ROWS, OF_HEAD = trained("a", 1, [1]), trained("a", 1, [1, 4]), trained("a", 1, [1], HEAD)
EMBEDDED = adapter_of("e", {TABLE: random_update(6, 9, 2, 1)}, kinds={TABLE: "embedding"})
WTE = adapter_of("t", {"wte": random_update(4, 4, 2, 4)}, kinds={"wte": "embedding"})
OWN_TABLE = {f"{TABLE}.weight": FROM_BASE[f"{TABLE}.weight"]}
WHOLE_TABLE = adapter_of("w", {UP: random_update(OUT, IN, 2, 5)}, whole=OWN_TABLE)
KNOWN, LONG = base_of(FROM_BASE), base_tensors(parameter=lambda _: torch.ones(9))
W0, WIDE = base_tensors(lambda _: base()), base_tensors(lambda _: base(inp=11))
LINEAR = r"only a linear method keeps; take uniform, sum"
MEAN_ONLY = r"a holds modules_to_save model.norm.weight, .*--base DIR .*--allow modules-to"
MIXED = r"token_delta.*--base DIR.*--allow token-d"


@pytest.mark.parametrize(
    "adapters, method, known, said",
    [
        (DORA, "uniform", None, r"a holds dora_magnitude .*--base DIR .*--allow"),
        (DORA, "ties", W0, r"a holds dora_magnitude .*uniform, sum or"),
        (DORA, "uniform", WIDE, r"\[14, 10\] in the adapters and \[14, 11\]"),
        ([DORA[0], OFFSETS], "uniform", W0, r"c has biases of B .*together with DoRA \(a\)"),
        ([OFFSETS, WTE], "uniform", None, r"c has biases of B .*embedding wte"),
        ([NORMED, PLAIN], "uniform", None, MEAN_ONLY),
        ([NORMED, holding("c", 3, NORM)], "sum", None, r"a and c holds? modules_to_save"),
        ([BIASED, PLAIN], "uniform", None, r"a holds bias .*up_proj.bias.*--allow bias"),
        ([SCORED, PLAIN], "uniform", KNOWN, r"score.weight, which the base does not have"),
        ([NORMED, PLAIN], "uniform", LONG, r"\[8\] in the adapters and \[9\] in the base"),
        ([SCORED, FEWER_LABELS], "uniform", None, r"\[3, 10\] in a and \[2, 10\] in b: .*labels"),
        ([OWN_UP, PLAIN], "uniform", None, r"replaced whole in a and has factors in a and b"),
        *(([NORMED, PLAIN], name, None, LINEAR) for name in ("ties", "dare_linear", "slerp")),
        ([ROWS, trained("c", 3, [7])], "uniform", None, MIXED),
        ([ROWS, trained("b", 2, [4, 1])], "sum", None, MIXED),
        ([ROW, trained("b", 2, [1])], "ties", None, r"token_delta .*only a linear method keeps"),
        ([ROW, trained("b", 2, [1], width=8)], "uniform", None, r"6 and 8 entries in a and b"),
        ([ROW, trained("b", 2, [9])], "uniform", KNOWN, r"Token 9 .* 9 rows"),
        ([OF_HEAD, trained("b", 2, [2], HEAD)], "uniform", KNOWN, r"the base has no lm_head"),
        ([ROW, EMBEDDED], "uniform", KNOWN, r"token rows in a and factors in e"),
        ([ROW, WHOLE_TABLE], "uniform", KNOWN, r"token rows in a and a whole weight in w"),
    ],
)
def test_what_is_not_exact_or_does_not_fit_is_refused(adapters, method, known, said):
    with pytest.raises((UnsupportedAdapter, CompatibilityError), match=said):
        merge(adapters, method, base=known)


@pytest.mark.parametrize(
    "adapters, code",
    [
        (DORA, "dora-magnitude"),
        ([NORMED, PLAIN], "modules-to-save"),
        ([ROWS, PLAIN], "token-delta"),
    ],
)
def test_what_is_allowed_is_dropped_and_said(adapters, code):
    dropped = merge(adapters, allow=[code])
    assert not dropped.adapter.extras
    assert [(i.severity, i.code, i.adapters) for i in dropped.issues] == [("warning", code, ("a",))]
    mean = sum(a.modules[UP].delta() for a in adapters) / 2
    torch.testing.assert_close(dropped.adapter.modules[UP].delta(), mean, rtol=1e-5, atol=1e-5)


def test_merging_plain_adapters_does_not_read_the_base():
    def never(path):
        raise AssertionError(path)

    merge([plain("a", base(), 1), plain("b", base(), 2)], base=base_tensors(never, never))


# As peft writes, loads and runs them.


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
    sizes = {"d_model": 16, "d_kv": 4, "d_ff": 24, "num_layers": 2, "num_heads": 4}
    config = T5Config(
        vocab_size=40, decoder_start_token_id=0, pad_token_id=0, eos_token_id=1, **sizes
    )
    return T5ForConditionalGeneration(config).eval()


def saving(*modules, **more):
    """A config that trains these modules whole, beside factors of the queries."""
    return {"target_modules": ["q_proj"], "modules_to_save": list(modules), **more}


def scaled(*targets):
    """Two DoRA adapters, one with rsLoRA, and a plain one."""
    own = {"target_modules": list(targets), "lora_alpha": 3}
    return [own | {"use_dora": True}, own | {"r": 3, "use_dora": True, "use_rslora": True}, own]


def rows(*indices):
    return [{"target_modules": ["q_proj"], "trainable_token_indices": one} for one in indices]


def alike(make, config, weights):
    """A case of two adapters with one config."""
    return make, [config] * 2, weights


LISTED = rows([1, 30], {"embed_tokens": [30, 7, 2]})
BOTH = rows(*({"embed_tokens": t, "lm_head": t} for t in ([1, 30], [30, 7, 2])))
HEADS = rows({"lm_head": [1, 30]}, {"lm_head": [30, 7]})
T5 = {"task_type": "SEQ_2_SEQ_LM"}
T5_NORM = saving("final_layer_norm", **T5) | {"target_modules": ["q"]}
LABELS = {"target_modules": ["c_attn"], "task_type": "SEQ_CLS"}
tied, untied = partial(tiny_llama, tied=True), partial(tiny_llama, tied=False)
# Base, configs, weights: with which a merge needs the base, or does not.
NEEDS, FREE, MEAN = (0.7, 0.6, 0.2), (0.6, 0.7), (0.5, 0.5)
CASES = {
    "dora, llama": (tied, scaled("q_proj", "v_proj", "down_proj"), NEEDS),
    "dora, gpt2": (tiny_gpt2, scaled("c_attn", "c_fc", "lm_head"), NEEDS),
    "dora, embedding": (tied, scaled("embed_tokens", "o_proj"), NEEDS),
    "rows, tied": (tied, LISTED, NEEDS),
    "rows, untied": (untied, LISTED, NEEDS),
    "rows of both": (untied, BOTH, NEEDS),
    "rows of both, tied": (tied, BOTH, NEEDS),
    "rows of the head": (untied, HEADS, NEEDS),
    "rows of the head, tied": (tied, HEADS, NEEDS),
    "whole, lora_only": alike(
        biased_llama, {"target_modules": ["v_proj"], "bias": "lora_only"}, NEEDS
    ),
    "whole, all": alike(
        biased_llama, {"target_modules": ["q_proj", "up_proj"], "bias": "all"}, NEEDS
    ),
    "whole, lora_bias": alike(
        biased_llama, {"target_modules": ["o_proj"], "lora_bias": True}, FREE
    ),
    "whole, head": alike(biased_llama, saving("lm_head"), NEEDS),
    "whole, norms": alike(tiny_llama, saving("norm"), NEEDS),
    "whole, classifier": alike(tiny_classifier, LABELS, MEAN),
    "whole, t5": alike(tiny_t5, {"target_modules": ["q", "v", "wi"], **T5}, FREE),
    "whole, t5-norm": alike(tiny_t5, T5_NORM, NEEDS),
}
# The tied partner of a layer, which peft's merged model changes and its forward pass does not.
PARTNERS = {"dora, gpt2": "transformer.wte.weight", "dora, embedding": "lm_head.weight"}


def answer(model):
    tokens = torch.arange(40).reshape(2, 20)
    extra = {"decoder_input_ids": tokens[:, :4]} if model.config.is_encoder_decoder else {}
    with torch.no_grad():
        return model(input_ids=tokens, **extra).logits


def written(tmp_path, case):
    """The base's directory, and the adapters as peft writes them."""
    make, configs, _ = CASES[case]
    make().save_pretrained(tmp_path / "base")
    return make, [
        read_adapter(peft_adapter(tmp_path / name, make(), i, **{"r": 2, **config}), name)
        for i, (name, config) in enumerate(zip("abc", configs, strict=False), 1)
    ]


def as_peft_runs_it(make, folder, case):
    """Name -> parameter. Merging writes into a tied table, so tables are taken before."""
    from peft import PeftModel

    wrapped = PeftModel.from_pretrained(make(), folder)
    tables = {
        f"{path}.weight": wrapped.base_model.model.get_submodule(path).weight.detach().clone()
        for path in ((TABLE, HEAD) if case.startswith("rows") else ())
    }
    merged = dict(wrapped.merge_and_unload().named_parameters(remove_duplicate=False)) | tables
    if partner := PARTNERS.get(case):
        merged[partner] = dict(make().named_parameters(remove_duplicate=False))[partner]
    return merged


def combination(make, folders, weights, case):
    """The model whose parameters are start + sum w (those that peft runs - start), untied."""
    states = [as_peft_runs_it(make, folder, case) for folder in folders]
    result, start = make(), dict(make().named_parameters(remove_duplicate=False))
    if case.startswith(("rows", "dora")):
        result.lm_head.weight = torch.nn.Parameter(result.lm_head.weight.detach().clone())
    with torch.no_grad():
        for name, held in result.named_parameters(remove_duplicate=case.startswith("whole")):
            parts = zip(weights, states, strict=True)
            held.copy_(start[name] + sum(w * (state[name] - start[name]) for w, state in parts))
    return result


@pytest.mark.parametrize("case", CASES)
def test_merges_and_gates_compute_what_pefts_models_combine_to(case, tmp_path):
    from peft import PeftModel

    make, adapters = written(tmp_path, case)
    weights = CASES[case][2][: len(adapters)]
    expected = answer(combination(make, [tmp_path / a.name for a in adapters], weights, case))
    assert (expected - answer(make())).abs().max() > 0.02, "or this test shows nothing"
    options = Options(methods=("task_arithmetic",), weights=weights)
    if CASES[case][2] is NEEDS:
        with pytest.raises(UnsupportedAdapter, match="--base DIR"):
            commands.merge(adapters, Session(options))
    made = commands.merge(adapters, Session(options), base=open_base(tmp_path / "base"))
    assert made.audit.compatibility.compatible
    made.made.save(tmp_path / "out")
    loaded = PeftModel.from_pretrained(make(), tmp_path / "out").eval()
    torch.testing.assert_close(answer(loaded), expected, rtol=1e-3, atol=1e-4)
    again = read_adapter(tmp_path / "out")
    assert not [issue for issue in again.issues if issue.severity == "error"]
    assert again.task_type == adapters[0].task_type
    with composed(make(), Composition("c", tuple(adapters), ConstantGates(weights))) as model:
        torch.testing.assert_close(answer(model), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("case", [case for case in CASES if case.startswith("rows")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_hot_gates_and_learnable_gates_are_the_adapter_as_peft_runs_it(case, dtype, tmp_path):
    from peft import PeftModel

    make, adapters = written(tmp_path, case)
    ids = torch.arange(40)[None]
    with torch.no_grad():
        wanted = [
            PeftModel.from_pretrained(make().to(dtype), tmp_path / name)(input_ids=ids).logits
            for name in "ab"
        ]
        model = make().to(dtype)
        plain_ = model(input_ids=ids).logits
        for i, expected in enumerate(wanted):
            assert not torch.allclose(plain_, expected, rtol=0.01, atol=0.01)
            with composed(model, Composition("c", tuple(adapters), ConstantGates.one_hot(i, 2))):
                torch.testing.assert_close(model(input_ids=ids).logits, expected)
        assert torch.equal(model(input_ids=ids).logits, plain_)
        for gates, expected in zip(((1.0, 0.0), (0.0, 1.0)), wanted, strict=True):
            with composed(model, Composition("c", tuple(adapters), learnable(*gates))):
                torch.testing.assert_close(model(input_ids=ids).logits, expected)


def test_tokens_that_the_base_does_not_have_and_scaling_are_refused(tmp_path):
    from loraprobe.compatibility import check
    from loraprobe.pipeline.transforms import scaled_adapter

    tiny_llama(vocab=40).save_pretrained(tmp_path / "base")
    opened = open_base(tmp_path / "base")
    beyond, elsewhere = trained("a", 1, [3, 40], width=16), trained("b", 1, [3], "model.wte", 16)
    for adapter, code in ((beyond, "vocabulary-mismatch"), (elsewhere, "module-not-in-base")):
        found = [i for i in check([adapter], opened).issues if i.module in adapter.token_rows]
        assert [(i.severity, i.code) for i in found if i.code != "token-delta"] == [("error", code)]
    alone = adapter_of("a", {}, token_rows=beyond.token_rows)
    composition = Composition("c", (alone,), ConstantGates((1.0,)))
    refused(CompatibilityError, r"tokens up to 40 .*\[40, 16\]", tiny_llama(vocab=40), composition)
    with pytest.raises(UnsupportedAdapter, match="token rows"):
        scaled_adapter(beyond, 0.5)
    with pytest.raises(UnsupportedAdapter, match=r"replaces rows of model\.embed_tokens"):
        commands.compose([trained("a", 1, [1]), trained("b", 2, [2])], Session())


def test_a_classifier_is_inspected_and_merged(shelf, tmp_path):
    (real,) = shelf.adapters("classifier")
    assert commands.inspect([real], Session()).audit.compatibility.compatible
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
