"""The algebra of s B A against dense float64 algebra."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from making import dense, random_update, regauged

from loraprobe.lora.lowrank import LowRank, same_update

F64 = torch.float64
TIGHT = {"rtol": 1e-9, "atol": 1e-12}

shapes = st.tuples(
    st.integers(1, 12),  # out
    st.integers(1, 12),  # in
    st.integers(1, 6),  # rank, also above out or in
    st.integers(0, 10_000),  # seed
    st.sampled_from([2.0, 0.25, -1.5]),  # scaling
)


def update(shape: tuple[int, int, int, int, float]) -> LowRank:
    out, inp, rank, seed, scaling = shape
    return random_update(out, inp, rank, seed, scaling, F64)


@settings(max_examples=60)
@given(shapes, st.integers(0, 100))
def test_norms_and_svd_are_the_dense_ones_in_every_basis(shape, seed):
    one = update(shape)
    delta, other = dense(one), regauged(one, seed)
    assert not torch.allclose(one.A, other.A)  # the factors did change
    for same in (one, other):
        U, S, Vh = same.svd()
        torch.testing.assert_close(same.norm(), torch.linalg.matrix_norm(delta), **TIGHT)
        torch.testing.assert_close(same.inner(one), delta.square().sum(), **TIGHT)
        torch.testing.assert_close(S, torch.linalg.svdvals(delta)[: one.rank], rtol=1e-8, atol=1e-9)
        torch.testing.assert_close((U * S) @ Vh, delta, rtol=1e-8, atol=1e-9)
        eye = torch.eye(len(S), dtype=F64)
        torch.testing.assert_close(U.mT @ U, eye, rtol=0, atol=1e-9)
        torch.testing.assert_close(Vh @ Vh.mT, eye, rtol=0, atol=1e-9)


def test_only_the_same_delta_is_the_same_update():
    one = random_update(7, 9, 3, 0, 0.5, F64)
    others = [regauged(one, 1), one.scaled(1 + 1e-5), one.scaled(-1.0), one.scaled(0.0)]
    deltas = torch.stack([dense(u).flatten() for u in [one, *others, one.scaled(0.0)]])
    inner = deltas @ deltas.T
    assert [same_update(inner, 0, j) for j in range(1, 5)] == [True, False, False, False]
    assert not same_update(inner, 4, 5)  # both zero: that is no update at all


def test_a_scaling_counts_in_every_form():
    one = random_update(11, 8, 3, 0, 0.5, F64)
    torch.testing.assert_close(one.folded().delta(), dense(one))
    torch.testing.assert_close(one.scaled(-3.0).delta(), -3 * dense(one))
    torch.testing.assert_close(one.inner(one.scaled(2.0)), 2 * one.norm().square())


@pytest.mark.parametrize("basis", ["as planted", "another"])
def test_dead_and_repeated_components_are_no_rank(basis):
    one = random_update(20, 16, 5, 3, 2.0, F64)
    one.B[:, 1] = 0.0  # a dead one
    one.A[3] = one.A[0] - one.A[2]  # one that depends on two others
    if basis == "another":
        one = regauged(one, 1)
    assert int((one.svd()[1] > 1e-12).sum()) == 3
    U, S, Vh = one.svd()
    torch.testing.assert_close((U * S) @ Vh, dense(one), **TIGHT)


def test_nothing_has_no_rank():
    nothing = LowRank(torch.ones(2, 4), torch.zeros(3, 2), 1.0)
    assert float(nothing.svd()[1].max()) == 0.0
    assert float(nothing.norm()) == 0.0


def test_float32_factors_are_exact_to_their_precision():
    one = random_update(300, 200, 16, 0, 0.5)
    expected = torch.linalg.svdvals(dense(one))[:16]
    torch.testing.assert_close(one.svd()[1].double(), expected, rtol=1e-5, atol=1e-4)
