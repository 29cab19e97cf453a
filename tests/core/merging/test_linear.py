"""Linear combinations of deltas and of factors, against algebra written out densely."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from making import LLAMA, planted_pair, random_adapter, random_update
from merges import F64, TIGHT, adapters_of, close, delta, merge, sources

from loraprobe.adapters import adapter_of
from loraprobe.errors import UsageError
from loraprobe.lora.lowrank import LowRank


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


# slerp


@pytest.mark.parametrize("t", [0.0, 0.2, 0.5, 1.0])
def test_slerp_goes_along_the_arc_at_constant_speed(t):
    cosine = 0.3
    a, b = planted_pair(cosine, norms=(2.0, 2.0))
    path = next(iter(a.modules))
    point = delta(merge([a, b], "slerp", weights=[1 - t, t]).adapter, path)
    angle = float((point * delta(a, path)).sum()) / 4
    assert float(point.norm()) == pytest.approx(2.0)
    assert math.acos(min(1.0, angle)) == pytest.approx(t * math.acos(cosine), abs=1e-6)


def test_slerp_takes_weights_as_given():
    a, b = sources((3, 2))
    once = merge([a, b], "slerp", weights=[0.3, 0.7]).adapter
    twice = merge([a, b], "slerp", weights=[0.6, 1.4]).adapter
    close(twice, 2 * delta(once).numpy())
    close(
        merge([a, b], "slerp").adapter, delta(merge([a, b], "slerp", weights=[1 / 2] * 2).adapter)
    )
    close(merge([a], "slerp", weights=[0.4]).adapter, 0.4 * delta(a).numpy())


@pytest.mark.parametrize("sign", [1, -1])
def test_slerp_of_nearly_parallel_deltas_is_linear(sign):
    a, b = planted_pair(0.9996)
    path = next(iter(a.modules))
    b = adapter_of("b", {path: b.modules[path].scaled(sign)})
    point = delta(merge([a, b], "slerp", weights=[0.3, 0.7]).adapter, path)
    torch.testing.assert_close(point, 0.3 * delta(a, path) + 0.7 * delta(b, path), **TIGHT)
    a, b = planted_pair(0.9994)
    point = delta(merge([a, b], "slerp", weights=[0.5, 0.5]).adapter, path)
    assert float(point.norm()) == pytest.approx(1.0, abs=1e-9)  # on the arc, not on the chord


def test_slerp_refuses_zero_and_opposed_deltas():
    three = sources()
    with pytest.raises(UsageError, match=r"slerp.*cannot take 3"):
        merge(three, "slerp")
    for weights in ([-0.5, 1.5], [0.0, 0.0]):
        with pytest.raises(UsageError, match=r"slerp needs weights of 0 or more"):
            merge(three[:2], "slerp", weights=weights)


# model_stock


@pytest.mark.parametrize("cosine", [0.05, 0.6, 1.0])
def test_model_stock_of_two_is_the_ratio_of_their_cosine(cosine):
    a, b = planted_pair(cosine, norms=(1.0, 3.0))
    path = next(iter(a.modules))
    merged = merge([a, b], "model_stock")
    mean = (delta(a, path) + delta(b, path)) / 2
    torch.testing.assert_close(
        delta(merged.adapter, path), 2 * cosine / (1 + cosine) * mean, **TIGHT
    )


def test_model_stock_of_three_takes_the_mean_over_pairs():
    common = random_update(7, 6, 2, 5, 1.0, F64)
    adapters = adapters_of(
        [
            LowRank(torch.cat([u.A, common.A]), torch.cat([u.B, common.B], 1), 0.5 + i)
            for i, u in enumerate(random_update(7, 6, 2, 60 + i, 1.0, F64) for i in range(3))
        ]
    )
    deltas = [delta(adapter).numpy() for adapter in adapters]
    pairs = [
        float((deltas[i] * deltas[j]).sum() / np.linalg.norm(deltas[i]) / np.linalg.norm(deltas[j]))
        for i, j in ((0, 1), (0, 2), (1, 2))
    ]
    c = np.mean(pairs)
    expected = 3 * c / (1 + 2 * c) * np.mean(deltas, 0)
    close(merge(adapters, "model_stock").adapter, expected)
    assert np.ptp(pairs) > 0.1


def test_model_stock_keeps_nothing_of_opposed_deltas_and_all_of_a_lone_one():
    a, b = planted_pair(-0.3)
    with pytest.raises(UsageError, match=r"zero in every module.*share nothing"):
        merge([a, b], "model_stock")
    (path,) = a.modules
    a = adapter_of("a", {path: a.modules[path], "other": random_update(5, 4, 2, 3, 1.0, F64)})
    merged = merge([a, b], "model_stock").adapter
    assert float(delta(merged, path).norm()) == 0.0
    torch.testing.assert_close(delta(merged, "other"), delta(a, "other") / 2, **TIGHT)
    issue = merge([a, b], "model_stock", weights=[0.5, 0.5]).issues[0]
    assert issue.code == "weights-ignored"


def test_an_audit_refuses_before_it_loads_anything():
    from loraprobe.options import Options
    from loraprobe.pipeline.plan import check_systems

    three = sources()
    check_systems(three[:2], Options(methods=("slerp",)))
    for options in (Options(methods=("slerp",)), Options(systems=("slerp",))):
        with pytest.raises(UsageError, match=r"slerp.*cannot take 3"):
            check_systems(three, options)
    with pytest.raises(UsageError, match=r"slerp needs weights"):
        check_systems(three[:2], Options(methods=("slerp",), weights=(-1.0, 2.0)))
    with pytest.raises(UsageError, match=r"may be negative, which slerp"):
        check_systems(three[:2], Options(methods=("slerp",), weights="learn"))
    check_systems(three, Options(methods=("ties", "task_arithmetic"), weights="learn"))
