"""Trained token rows: read, merged, composed, saved and refused, against the rows peft runs."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from composing import learnable
from making import base_of, peft_adapter, random_update, tiny_llama

from loraprobe.adapters import adapter_of, read_adapter
from loraprobe.adapters.types import TokenRows
from loraprobe.base import open_base
from loraprobe.composition import Composition, composed
from loraprobe.errors import CompatibilityError, UnsupportedAdapter
from loraprobe.merging import merge
from loraprobe.options import Options
from loraprobe.pipeline import commands
from loraprobe.routing.constant import ConstantGates

UP, TABLE, HEAD = "model.layers.0.mlp.up_proj", "model.embed_tokens", "lm_head"
BASE = torch.randn(9, 6, generator=torch.Generator().manual_seed(0))


def rows(name, seed, tokens, path=TABLE, width=6, **rest):
    """An adapter with factors of one module and with trained rows for these tokens."""
    values = torch.randn(len(tokens), width, generator=torch.Generator().manual_seed(seed))
    tables = {path: TokenRows(tuple(tokens), values.clone)}
    return adapter_of(name, {UP: random_update(14, 10, 2, seed)}, token_rows=tables, **rest)


def table_of(adapter, path=TABLE):
    """The base's table with the adapter's rows, written one by one."""
    table = BASE.double().clone()
    for token, row in zip(
        adapter.token_rows[path].tokens, adapter.token_rows[path].values, strict=True
    ):
        table[token] = row.double()
    return table


@pytest.mark.parametrize("tokens", [([1, 4], [4, 1]), ([1, 4], [4, 7, 2]), ([3], [8])])
@pytest.mark.parametrize("weights", [[0.5, 0.5], [1.0, 1.0], [0.3, -0.7]])
def test_a_merge_is_the_linear_combination_of_whole_tables(tokens, weights):
    a, b = rows("a", 1, tokens[0]), rows("b", 2, tokens[1])
    plain = adapter_of("c", {UP: random_update(14, 10, 2, 3)})
    merged = merge(
        [a, b, plain],
        "task_arithmetic",
        weights=[*weights, 0.4],
        base=base_of({f"{TABLE}.weight": BASE}),
    ).adapter
    start = BASE.double()
    expected = start + sum(w * (table_of(x) - start) for w, x in zip(weights, (a, b), strict=True))
    assert set(merged.token_rows[TABLE].tokens) == {*tokens[0], *tokens[1]}
    torch.testing.assert_close(table_of(merged), expected, rtol=1e-6, atol=1e-6)
    assert [extra.kind for extra in merged.extras] == ["token_delta"]


def test_the_base_is_needed_only_where_weights_of_a_token_do_not_sum_to_one():
    a, b, c = rows("a", 1, [1, 4]), rows("b", 2, [4, 1]), rows("c", 3, [7])
    for pair, weights in (((a, b), [0.25, 0.75]), ((a, c), [1.0, 1.0])):
        alone = merge(pair, "task_arithmetic", weights=weights).adapter
        known = merge(
            pair, "task_arithmetic", weights=weights, base=base_of({f"{TABLE}.weight": BASE})
        ).adapter
        torch.testing.assert_close(table_of(alone), table_of(known), rtol=0, atol=0)
    for pair, method in (((a, c), "uniform"), ((a, b), "sum")):
        with pytest.raises(UnsupportedAdapter, match=r"token_delta.*--base DIR.*--allow token-d"):
            merge(pair, method)
    dropped = merge([a, c], allow=["token-delta"])
    assert not dropped.adapter.token_rows and [i.code for i in dropped.issues] == ["token-delta"]
    with pytest.raises(UnsupportedAdapter, match=r"token_delta .*only a linear method keeps"):
        merge([a, b], "ties")


def test_rows_that_do_not_fit_are_refused_by_name():
    a = rows("a", 1, [1])
    with pytest.raises(CompatibilityError, match=r"6 and 8 entries in a and b"):
        merge([a, rows("b", 2, [1], width=8)])
    with pytest.raises(CompatibilityError, match=r"Token 9 .* 9 rows"):
        merge([a, rows("b", 2, [9])], base=base_of({f"{TABLE}.weight": BASE}))
    with pytest.raises(CompatibilityError, match="the base has no lm_head"):
        merge(
            [rows("a", 1, [1], HEAD), rows("b", 2, [2], HEAD)],
            base=base_of({f"{TABLE}.weight": BASE}),
        )
    embedded = adapter_of("e", {TABLE: random_update(6, 9, 2, 1)}, kinds={TABLE: "embedding"})
    with pytest.raises(UnsupportedAdapter, match=r"token rows in a and factors in e"):
        merge([a, embedded], base=base_of({f"{TABLE}.weight": BASE}))
    whole = adapter_of("w", {UP: random_update(14, 10, 2, 5)}, whole={f"{TABLE}.weight": BASE})
    with pytest.raises(UnsupportedAdapter, match=r"token rows in a and a whole weight in w"):
        merge([a, whole], base=base_of({f"{TABLE}.weight": BASE}))


def test_rows_of_two_modules_are_merged_only_for_a_base_that_ties_nothing():
    values = BASE[:1].clone
    tables = {TABLE: TokenRows((1,), values), HEAD: TokenRows((1,), values)}
    untied = adapter_of("u", {UP: random_update(14, 10, 2, 1)}, token_rows=tables)
    merged = merge([untied, rows("h", 2, [5], HEAD)], "sum").adapter
    assert {p: r.tokens for p, r in merged.token_rows.items()} == {TABLE: (1,), HEAD: (1, 5)}
    odd = adapter_of(
        "odd",
        {UP: random_update(14, 10, 2, 1)},
        token_rows=tables | {HEAD: TokenRows((2,), values)},
    )
    for some in ([odd], [rows("t", 1, [1]), rows("h", 2, [1], HEAD)]):
        with pytest.raises(
            UnsupportedAdapter, match=r"lm_head and model.embed_tokens for different"
        ):
            merge(some, "sum")


# as peft writes, loads and runs them

TARGETS = {"target_modules": ["q_proj"], "r": 2}
EACH = (
    {"trainable_token_indices": [1, 30]},
    {"trainable_token_indices": {"embed_tokens": [30, 7, 2]}},
)
UNTIED = tuple(
    {"trainable_token_indices": {"embed_tokens": tokens, "lm_head": tokens}}
    for tokens in ([1, 30], [30, 7, 2])
)
HEADS = tuple({"trainable_token_indices": {"lm_head": tokens}} for tokens in ([1, 30], [30, 7]))
CASES = {
    "tied": (partial(tiny_llama, tied=True), EACH),
    "untied": (partial(tiny_llama, tied=False), EACH),
    "both": (partial(tiny_llama, tied=False), UNTIED),
    "both, tied": (partial(tiny_llama, tied=True), UNTIED),
    "head": (partial(tiny_llama, tied=False), HEADS),
    "head, tied": (partial(tiny_llama, tied=True), HEADS),
}


def written(tmp_path, case):
    """The base's directory, and two adapters as peft writes them."""
    make, configs = CASES[case]
    make().save_pretrained(tmp_path / "base")
    return make, [
        read_adapter(peft_adapter(tmp_path / n, make(), i, **TARGETS, **config), n)
        for i, (n, config) in enumerate(zip("ab", configs, strict=True), 1)
    ]


def answer(model):
    with torch.no_grad():
        return model(input_ids=torch.arange(40)[None]).logits


def parameters_as_peft_runs_them(model, directory):
    """Name -> tensor. Merging writes into a tied table, so the tables are taken before."""
    from peft import PeftModel

    wrapped = PeftModel.from_pretrained(model, directory)
    inner = wrapped.base_model.model
    tables = {f"{p}.weight": inner.get_submodule(p).weight.detach().clone() for p in (TABLE, HEAD)}
    merged = wrapped.merge_and_unload()
    return dict(merged.named_parameters(remove_duplicate=False)) | tables


def combined(make, folders, weights):
    """The model whose parameters are start + sum w (those that peft runs - start), untied."""
    states = [parameters_as_peft_runs_them(make(), folder) for folder in folders]
    result, start = make(), dict(make().named_parameters(remove_duplicate=False))
    result.lm_head.weight = torch.nn.Parameter(result.lm_head.weight.detach().clone())
    with torch.no_grad():
        for name, held in result.named_parameters(remove_duplicate=False):
            parts = zip(weights, states, strict=True)
            held.copy_(start[name] + sum(w * (state[name] - start[name]) for w, state in parts))
    return result


@pytest.mark.parametrize("case", CASES)
def test_merges_and_gates_compute_what_pefts_rows_combine_to(case, tmp_path):
    from peft import PeftModel

    make, adapters = written(tmp_path, case)
    weights = (0.7, 0.6)
    expected = answer(combined(make, [tmp_path / "a", tmp_path / "b"], weights))
    assert (expected - answer(make())).abs().max() > 0.02, "or this test shows nothing"
    options = Options(methods=("task_arithmetic",), weights=weights)
    base = open_base(tmp_path / "base")
    made = commands.merge(adapters, base=base, options=options).made
    made.save(tmp_path / "out")
    loaded = PeftModel.from_pretrained(make(), tmp_path / "out").eval()
    torch.testing.assert_close(answer(loaded), expected, rtol=1e-3, atol=1e-4)
    again = read_adapter(tmp_path / "out")
    assert not [issue for issue in again.issues if issue.severity != "note"]
    with composed(make(), Composition("c", tuple(adapters), ConstantGates(weights))) as model:
        torch.testing.assert_close(answer(model), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_hot_gates_and_learnable_gates_are_the_adapter_as_peft_runs_it(case, dtype, tmp_path):
    from peft import PeftModel

    make, adapters = written(tmp_path, case)
    wanted = [answer(PeftModel.from_pretrained(make().to(dtype), tmp_path / name)) for name in "ab"]
    model = make().to(dtype)
    plain = answer(model)
    for i, expected in enumerate(wanted):
        assert not torch.allclose(plain, expected, rtol=0.01, atol=0.01)
        with composed(model, Composition("c", tuple(adapters), ConstantGates.one_hot(i, 2))):
            torch.testing.assert_close(answer(model), expected)
    assert torch.equal(answer(model), plain)
    for gates, expected in zip(((1.0, 0.0), (0.0, 1.0)), wanted, strict=True):
        with composed(model, Composition("c", tuple(adapters), learnable(*gates))):
            torch.testing.assert_close(answer(model), expected)


def test_tokens_that_the_base_does_not_have_and_scaling_are_refused(tmp_path):
    from loraprobe.compatibility import check
    from loraprobe.pipeline.transforms import scaled

    tiny_llama(vocab=40).save_pretrained(tmp_path / "base")
    base = open_base(tmp_path / "base")
    beyond, elsewhere = rows("a", 1, [3, 40], width=16), rows("b", 1, [3], "model.wte", 16)
    for adapter, code in ((beyond, "vocabulary-mismatch"), (elsewhere, "module-not-in-base")):
        found = [i for i in check([adapter], base).issues if i.module in adapter.token_rows]
        assert [(i.severity, i.code) for i in found if i.code != "token-delta"] == [("error", code)]
    model = tiny_llama(vocab=40)
    with (
        pytest.raises(CompatibilityError, match=r"tokens up to 40 .*\[40, 16\]"),
        composed(
            model, Composition("c", (adapter_without_factors(beyond),), ConstantGates((1.0,)))
        ),
    ):
        pass
    with pytest.raises(UnsupportedAdapter, match="token rows"):
        scaled(beyond, 0.5)
    with pytest.raises(UnsupportedAdapter, match=r"replaces rows of model\.embed_tokens"):
        commands.compose([rows("a", 1, [1]), rows("b", 2, [2])])


def adapter_without_factors(adapter):
    return adapter_of(adapter.name, {}, token_rows=adapter.token_rows)
