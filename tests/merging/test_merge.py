"""Merging against dense float64 algebra, written out here a second time and entry by entry."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from making import LLAMA, random_adapter, random_update
from merges import F64, TIGHT, delta, sources, ties_dense, trimmed

from loraprobe.adapters import adapter_of
from loraprobe.lora.lowrank import LowRank
from loraprobe.merging import METHODS, merge

# Matrices of 7 x 6 with ranks that sum to more: rank "auto" keeps everything, so that the dense
# definition and the merge are the same matrix.


@pytest.mark.parametrize("weights", [(0.7, 0.3, 1.1), (1.0, -0.5, 2.0)])
@pytest.mark.parametrize("variant", ["peft", "mergekit"])
@pytest.mark.parametrize("election", ["total", "frequency"])
def test_ties_is_trim_elect_merge(weights, variant, election):
    adapters = sources()
    spec = f"ties:density=0.45,variant={variant},election={election}"
    merged = merge(adapters, spec, weights=weights)
    parts = [trimmed(delta(a), 0.45) for a in adapters]
    expected = ties_dense(parts, list(weights), variant, election)
    assert merged.space == "full" and merged.compression_error < 1e-7
    torch.testing.assert_close(delta(merged.adapter), expected, **TIGHT)


def test_the_two_ties_agree_without_weights_and_differ_with_them():
    adapters = sources()
    peft, mergekit = (f"ties:variant={v}" for v in ("peft", "mergekit"))
    torch.testing.assert_close(
        delta(merge(adapters, peft).adapter), delta(merge(adapters, mergekit).adapter), **TIGHT
    )
    halves = {"weights": [0.5] * 3}
    half = delta(merge(adapters, peft, **halves).adapter)
    whole = delta(merge(adapters, mergekit, **halves).adapter)
    torch.testing.assert_close(2 * half, whole, **TIGHT)


def test_magnitude_prune_is_the_weighted_sum_of_large_entries():
    adapters, weights = sources(), [0.7, -0.2, 1.5]
    merged = merge(adapters, "magnitude_prune:density=0.3", weights=weights)
    expected = sum(w * trimmed(delta(a), 0.3) for w, a in zip(weights, adapters, strict=True))
    torch.testing.assert_close(delta(merged.adapter), expected, **TIGHT)


@settings(max_examples=50)
@given(
    st.lists(st.integers(1, 5), min_size=1, max_size=4),
    st.integers(1, 9),
    st.integers(1, 9),
    st.sampled_from([torch.float32, F64]),
    st.data(),
)
def test_linear_methods_are_the_dense_sums(ranks, out, inp, dtype, data):
    adapters = sources(ranks, dtype, out, inp)
    deltas = [delta(a) for a in adapters]
    n = len(ranks)
    weights = data.draw(
        st.lists(st.floats(-2, 2).filter(lambda w: abs(w) > 1e-3), min_size=n, max_size=n)
    )
    expected = {
        "uniform": sum(deltas) / n,
        "sum": sum(deltas),
        "task_arithmetic": sum(w * d for w, d in zip(weights, deltas, strict=True)),
    }
    close = TIGHT if dtype == F64 else {"rtol": 1e-5, "atol": 2e-5}
    for name, want in expected.items():
        merged = merge(adapters, name, weights=weights)
        torch.testing.assert_close(delta(merged.adapter), want, **close)
        assert merged.rank <= min(sum(ranks), out, inp)
        assert merged.compression_error == 0.0


def test_default_weights_make_an_average_of_everything_but_sum():
    twins = [adapter_of(n, {"up": random_update(7, 6, 3, 1, 0.5, F64)}) for n in "ab"]
    flat = {"iso_c", "iso_cts"}  # the spectrum is not an adapter's own: test_merging_spectral
    for name in set(METHODS.names()) - flat:
        spec = (
            name
            if name == "factor_average" or "density" not in dir(METHODS.get(name))
            else (f"{name}:density=1")
        )
        merged = delta(merge(twins, spec).adapter)
        torch.testing.assert_close(merged, (2 if name == "sum" else 1) * delta(twins[0]), **TIGHT)


def test_a_module_that_an_adapter_leaves_alone_counts_as_zero():
    a = random_adapter("a", rank=2, seed=1, dtype=F64)
    some = dict(list(LLAMA.items())[3:])
    b = random_adapter("b", some, rank=3, seed=2, dtype=F64)
    for spec in ("uniform", "ties:density=1", "dare_linear:density=1", "sum"):
        merged = merge([a, b], spec).adapter
        assert set(merged.layout) == set(LLAMA)
        alone = next(iter(LLAMA))
        factor = 0.5 if spec in ("uniform", "dare_linear:density=1") else 1.0
        torch.testing.assert_close(delta(merged, alone), factor * delta(a, alone), **TIGHT)


def test_factor_average_keeps_the_cross_terms_and_is_exact_where_a_factor_is_shared():
    one, other = sources((3, 3))
    u, v = one.modules["up"], other.modules["up"]
    A = (u.A * u.scaling**0.5 + v.A * v.scaling**0.5) / 2
    B = (u.B * u.scaling**0.5 + v.B * v.scaling**0.5) / 2
    apart = delta(merge([one, other], "factor_average").adapter)
    torch.testing.assert_close(apart, B @ A, **TIGHT)
    mean = (delta(one) + delta(other)) / 2
    assert (apart - mean).norm() > 0.3 * mean.norm()
    same_a = adapter_of("c", {"up": LowRank(u.A, v.B, u.scaling)})
    apart = delta(merge([one, same_a], "factor_average").adapter)
    torch.testing.assert_close(apart, (delta(one) + delta(same_a)) / 2, **TIGHT)


def test_negative_scalings_and_weights_keep_their_signs_in_factor_average():
    flipped = adapter_of("f", {"up": random_update(7, 6, 3, 3, -0.7, F64)})
    one = merge([flipped], "factor_average", weights=[1.0])
    torch.testing.assert_close(delta(one.adapter), delta(flipped), **TIGHT)
    minus = merge([flipped], "factor_average:variant=peft", weights=[-1.0])
    torch.testing.assert_close(delta(minus.adapter), -delta(flipped), **TIGHT)


# Random masks.


def test_masks_come_from_the_seed_and_the_content():
    adapters = sources((3, 3))
    first, again, other = (delta(merge(adapters, "dare_linear", seed=s).adapter) for s in (1, 1, 2))
    assert torch.equal(first, again) and not torch.allclose(first, other)
    alone = [
        delta(merge([a], "dare_linear", weights=[1], seed=1, rank=6).adapter) for a in adapters
    ]
    torch.testing.assert_close(first, sum(alone) / 2, **TIGHT)  # a partner changes no mask
    masks = [(d.abs() > 1e-9) for d in alone]
    assert not torch.equal(*masks)


def test_dare_drops_the_stated_share_and_keeps_the_expectation():
    adapter = [adapter_of("a", {"up": random_update(60, 50, 30, 1, 1.0, F64)})]
    whole = delta(adapter[0])
    runs = [
        delta(merge(adapter, "dare_linear:density=0.3", rank=50, weights=[1], seed=s).adapter)
        for s in range(60)
    ]
    kept = torch.stack([(d.abs() > 1e-8).double() for d in runs])
    assert kept.mean() == pytest.approx(0.3, abs=0.005)
    assert float(kept.mean((1, 2)).std()) == pytest.approx((0.3 * 0.7 / 3000) ** 0.5, rel=0.35)
    gap = (torch.stack(runs).mean(0) - whole).norm() / whole.norm()
    assert gap == pytest.approx((0.7 / 0.3 / 60) ** 0.5, rel=0.1)  # the Monte Carlo error itself
    one = runs[0][kept[0].bool()]
    torch.testing.assert_close(one, whole[kept[0].bool()] / 0.3, rtol=1e-6, atol=1e-6)


def test_dare_ties_is_dare_and_then_ties():
    adapters = sources((3, 3, 3))
    for variant, more in (("peft", ""), ("mergekit", ",normalize=true")):
        parts = [
            delta(merge([a], f"dare_linear:variant={variant}", weights=[1], seed=4, rank=6).adapter)
            for a in adapters
        ]
        parts = [torch.where(p.abs() < 1e-9, torch.zeros_like(p), p) for p in parts]
        spec = f"dare_ties:variant={variant}{more}"
        merged = merge(adapters, spec, weights=[1, 2, 0.5], seed=4)
        expected = ties_dense(parts, [1, 2, 0.5], variant, "total")
        torch.testing.assert_close(delta(merged.adapter), expected, rtol=1e-6, atol=1e-7)
