"""Linear merges of DoRA adapters: against dense weights, and as peft runs them."""

from __future__ import annotations

import copy
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from making import (
    base_tensors,
    hidden,
    peft_adapter,
    peft_model,
    random_update,
    tiny_gpt2,
    tiny_llama,
)

from loraprobe.adapters import adapter_of, read_adapter
from loraprobe.base import open_base
from loraprobe.errors import CompatibilityError, UnsupportedAdapter
from loraprobe.lora.lowrank import LowRank
from loraprobe.merging import merge
from loraprobe.pipeline import commands

UP = "model.layers.0.mlp.up_proj"
OUT, IN = 14, 10


def base(seed=0, out=OUT, inp=IN):
    generator = torch.Generator().manual_seed(seed + 100)
    return torch.randn(out, inp, generator=generator, dtype=torch.float64)


def dora(name, W0, seed, rank=2, dtype=torch.float64, spread=0.3, scaling=0.5):
    """A DoRA adapter whose magnitudes are those of its direction, moved by up to `spread`."""
    update = random_update(*W0.shape, rank, seed, scaling, dtype)
    norms = (W0 + update.to(torch.float64).delta()).norm(dim=1)
    generator = torch.Generator().manual_seed(seed)
    factor = 1 + spread * torch.randn(len(W0), generator=generator, dtype=torch.float64)
    return adapter_of(name, {UP: update}, magnitudes={UP: norms * factor}, base_model="owner/base")


def plain(name, W0, seed, rank=2):
    update = random_update(*W0.shape, rank, seed, 0.5, torch.float64)
    return adapter_of(name, {UP: update}, base_model="owner/base")


def weight_of(adapter, W0, path=UP):
    """The weight that an adapter makes of W0, dense, by DoRA's definition."""
    direction = W0.double() + adapter.modules[path].to(torch.float64).delta()
    if path not in adapter.magnitudes:
        return direction
    norms = direction.norm(dim=1, keepdim=True)
    return adapter.magnitudes[path].double()[:, None] * direction / norms


def combined(adapters, weights, W0):
    return W0 + sum(w * (weight_of(a, W0) - W0) for a, w in zip(adapters, weights, strict=True))


METHODS = {
    "uniform": (None, lambda n: [1 / n] * n),
    "sum": (None, lambda n: [1.0] * n),
    "task_arithmetic": ([0.7, -0.4, 1.3], lambda n: [0.7, -0.4, 1.3][:n]),
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kinds", ["dd", "dp", "ddp", "d"])
def test_linear_merges_are_exact_and_of_the_sum_of_ranks(method, kinds):
    W0 = base()
    made = {"d": dora, "p": plain}
    adapters = [made[k](f"x{i}", W0, i + 1) for i, k in enumerate(kinds)]
    weights, coefficients = METHODS[method]
    weights = None if weights is None else weights[: len(adapters)]
    merged = merge(adapters, method, weights=weights, base=base_tensors({UP: W0}.__getitem__))
    expected = combined(adapters, coefficients(len(adapters)), W0)
    assert (expected - W0).norm() > 0.5, "or this test shows nothing"
    torch.testing.assert_close(weight_of(merged.adapter, W0), expected, rtol=1e-9, atol=1e-9)
    assert merged.adapter.layout[UP].rank <= 2 * len(adapters)
    assert merged.compression_error == 0.0 and merged.rounding_error < 1e-12
    for source, adapter in zip(merged.sources, adapters, strict=True):
        assert source.norm == pytest.approx(float((weight_of(adapter, W0) - W0).norm()))


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
        dora(f"x{i}", W0, seed + i, r, spread=spread)
        if scaled[i] or i == 0
        else plain(f"x{i}", W0, seed + i, r)
        for i, r in enumerate(ranks)
    ]
    weights = [w if abs(w) > 0.05 else 0.5 for w in weights[: len(adapters)]]
    merged = merge(adapters, "task_arithmetic", weights=weights, base=base_tensors(lambda _: W0))
    expected = combined(adapters, weights, W0)
    change = float((expected - W0).norm())
    error = float((weight_of(merged.adapter, W0) - expected).norm())
    assert error <= 1e-6 * change + 1e-9


@pytest.mark.parametrize("others", [0.0, 1e-9, 1e-5, -1e-5, 1e-3, -2.0])
def test_rows_of_the_base_that_vanish_or_turn_around_are_exact_too(others):
    """c is 0 in row 0, `others` in row 1, negative in row 2; row 3 of the merge is 0 altogether."""
    W0 = base()
    adapter = dora("a", W0, 1)
    norms = (W0 + adapter.modules[UP].delta()).norm(dim=1)
    magnitude = adapter.magnitudes[UP].clone()
    magnitude[0], magnitude[1], magnitude[2] = 0, others * norms[1], -magnitude[2]
    update = adapter.modules[UP]
    B = update.B.clone()
    B[3] = 0
    magnitude[3] = 0
    a = adapter_of("a", {UP: LowRank(update.A, B, 0.5)}, magnitudes={UP: magnitude})
    b = plain("b", W0, 2)
    with_rows = merge([a], base=base_tensors(lambda _: W0))
    assert weight_of(with_rows.adapter, W0)[3].abs().max() == 0
    torch.testing.assert_close(
        weight_of(with_rows.adapter, W0), weight_of(a, W0), rtol=1e-9, atol=1e-9
    )
    expected = combined([a, b], [1.0, 1.0], W0)  # row 0: L alone, of the plain adapter
    merged = merge([a, b], "sum", base=base_tensors(lambda _: W0))
    torch.testing.assert_close(weight_of(merged.adapter, W0), expected, rtol=1e-9, atol=1e-9)
    faded = 2 + (abs(others) < 1e-3)
    assert merged.adapter.layout[UP].rank <= 4 + faded


def test_a_cut_is_the_best_of_its_rank_for_the_weights_and_its_loss_is_told():
    W0 = base()
    adapters = [dora("a", W0, 1), dora("b", W0, 2)]
    merged = merge(adapters, rank=3, base=base_tensors(lambda _: W0))
    expected = combined(adapters, [0.5, 0.5], W0)
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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rounding_error_is_reported(dtype):
    W0 = base()
    adapters = [dora("a", W0, 1), dora("b", W0, 2)]
    merged = merge(adapters, base=base_tensors(lambda _: W0), dtype=dtype)
    expected = combined(adapters, [0.5, 0.5], W0)
    assert merged.adapter.magnitudes[UP].dtype == torch.float32
    error = float((weight_of(merged.adapter, W0) - expected).norm() / (expected - W0).norm())
    assert error <= 2 * merged.rounding_error + 1e-6
    assert merged.rounding_error < 10 * torch.finfo(dtype).eps


def test_refusals_name_the_cure():
    W0 = base()
    adapters = [dora("a", W0, 1), plain("b", W0, 2)]
    with pytest.raises(UnsupportedAdapter, match=r"a holds dora_magnitude .*--base DIR .*--allow"):
        merge(adapters)
    with pytest.raises(UnsupportedAdapter, match=r"a holds dora_magnitude .*uniform, sum or"):
        merge(adapters, "ties", base=base_tensors(lambda _: W0))
    with pytest.raises(CompatibilityError, match=r"\[14, 10\] in the adapters and \[14, 11\]"):
        merge(adapters, base=base_tensors(lambda _: base(inp=11)))
    dropped = merge(adapters, allow=["dora-magnitude"])
    mean = sum(a.modules[UP].delta() for a in adapters) / 2
    torch.testing.assert_close(dropped.adapter.modules[UP].delta(), mean)
    assert not dropped.adapter.magnitudes
    both = [adapters[0], adapter_of("c", dict(adapters[1].modules), offsets={UP: torch.ones(OUT)})]
    with pytest.raises(UnsupportedAdapter, match=r"c has biases of B .*together with DoRA \(a\)"):
        merge(both, base=base_tensors(lambda _: W0))


def test_merging_plain_adapters_does_not_read_the_base():
    def never(path):
        raise AssertionError(path)

    W0 = base()
    merge([plain("a", W0, 1), plain("b", W0, 2)], base=base_tensors(never, never))


# as peft runs it


CONFIGS = {
    "llama": (tiny_llama, ["q_proj", "v_proj", "down_proj"]),
    "gpt2": (tiny_gpt2, ["c_attn", "c_fc", "lm_head"]),
    "embedding": (tiny_llama, ["embed_tokens", "o_proj"]),
}


@pytest.mark.parametrize("case", CONFIGS)
def test_peft_loads_the_merge_and_runs_the_mean_of_the_models(case, tmp_path):
    from peft import PeftModel

    make, targets = CONFIGS[case]
    make().save_pretrained(tmp_path / "base")
    options = [{"use_dora": True, "r": 2}, {"use_dora": True, "r": 3, "use_rslora": True}, {"r": 2}]
    adapters, models = [], []
    for i, option in enumerate(options):
        config = {"target_modules": targets, "lora_alpha": 3, **option}
        path = peft_adapter(tmp_path / f"a{i}", make(), i + 1, **config)
        adapters.append(read_adapter(path, f"a{i}"))
        models.append(peft_model(make(), i + 1, **config).merge_and_unload())
    opened = open_base(tmp_path / "base")
    made = commands.merge(adapters, base=opened)
    found, merged = made.audit, made.made
    merged.save(tmp_path / "out")
    mean = copy.deepcopy(make())
    state = [dict(model.named_parameters()) for model in models]
    with torch.no_grad():
        for name, parameter in mean.named_parameters():
            parameter.copy_(sum(s[name].double() for s in state) / len(state))
    if case == "embedding":  # peft's merged model would change the tied head as well
        mean.lm_head.weight = torch.nn.Parameter(make().lm_head.weight.detach().clone())
    if case == "gpt2":
        mean.transformer.wte.weight = torch.nn.Parameter(make().lm_head.weight.detach().clone())
    loaded = PeftModel.from_pretrained(make(), tmp_path / "out").eval()
    assert (hidden(mean) - hidden(make())).abs().max() > 0.02, "or this test shows nothing"
    torch.testing.assert_close(hidden(loaded), hidden(mean), rtol=1e-3, atol=1e-4)
    again = read_adapter(tmp_path / "out")
    assert again.config["use_dora"] and not [i for i in again.issues if i.severity == "error"]
    assert not [i for i in found.compatibility.issues if i.severity == "error"]


def test_the_command_line_requires_the_base_for_dora(tmp_path):
    from typer.testing import CliRunner

    from loraprobe.cli import app

    tiny_llama().save_pretrained(tmp_path / "base")
    config = {"r": 2, "use_dora": True, "target_modules": ["q_proj"]}
    paths = [str(peft_adapter(tmp_path / n, tiny_llama(), i, **config)) for i, n in enumerate("ab")]
    call = ["merge", *paths, "--output", str(tmp_path / "out"), "--allow", "base-unknown"]
    refused = CliRunner().invoke(app, call)
    assert refused.exit_code == 2 and not (tmp_path / "out").exists()
    assert "add --base DIR" in re.sub(r"\s+", " ", refused.stderr)
    done = CliRunner().invoke(app, [*call, "--base", str(tmp_path / "base")])
    assert done.exit_code == 0, done.stderr
    assert read_adapter(tmp_path / "out").magnitudes
