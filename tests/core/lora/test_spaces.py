"""Spaces: what goes in comes back, and the bases belong to the deltas."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from making import random_update, regauged

from loraprobe.errors import UsageError
from loraprobe.lora.lowrank import LowRank
from loraprobe.lora.spaces import core, full, knots, space_named

F64 = torch.float64
RANKS = st.lists(st.integers(0, 4), min_size=1, max_size=4).filter(any)
SIDE = st.integers(2, 14)


def bases(updates):
    """The bases of the joint column and row space, [out, p] and [in, q]."""
    stacked = core(updates)
    return stacked.left, stacked.right


def updates(ranks=(2, 3, 1), out=12, inp=9) -> list[LowRank]:
    return [random_update(out, inp, r, 7 * i, 0.5 + i, F64) for i, r in enumerate(ranks)]


@settings(max_examples=40)
@given(RANKS, SIDE, SIDE)
def test_core_projection_is_inverted_exactly(ranks, out, inp):
    sources = updates(ranks, out, inp)
    stacked = core(sources)
    n, p, q = stacked.matrices.shape
    assert n == len(ranks) and p <= min(sum(ranks), out) and q <= min(sum(ranks), inp)
    for basis in (stacked.left, stacked.right):
        eye = torch.eye(basis.shape[1], dtype=F64)
        torch.testing.assert_close(basis.mT @ basis, eye, rtol=0, atol=1e-10)
    for matrix, source in zip(stacked.matrices, sources, strict=True):
        torch.testing.assert_close(
            stacked.back(matrix).delta(), source.delta(), rtol=1e-8, atol=1e-8
        )


@settings(max_examples=40)
@given(RANKS, SIDE, SIDE)
def test_knots_projection_is_inverted_exactly(ranks, out, inp):
    """The matrices are S V_i^T of the decomposition of the deltas side by side."""
    sources = updates(ranks, out, inp)
    stacked = knots(sources)
    U, S, Vh = torch.linalg.svd(torch.cat([s.delta() for s in sources], 1), full_matrices=False)
    p = int((1e-9 * S[0] < S).sum())
    assert stacked.matrices.shape == (len(ranks), p, inp) and stacked.right is None
    signs = (stacked.left * U[:, :p]).sum(0)
    torch.testing.assert_close(signs.abs(), torch.ones_like(signs))
    blocks = (signs * S[:p])[:, None] * Vh[:p]
    torch.testing.assert_close(torch.cat(list(stacked.matrices), 1), blocks, rtol=0, atol=1e-8)
    for matrix, source in zip(stacked.matrices, sources, strict=True):
        torch.testing.assert_close(
            stacked.back(matrix).delta(), source.delta(), rtol=1e-8, atol=1e-8
        )


def test_full_is_the_deltas_themselves():
    sources = updates()
    stacked = full(sources)
    for matrix, source in zip(stacked.matrices, sources, strict=True):
        torch.testing.assert_close(matrix, source.scaling * source.B @ source.A)
    assert stacked.back(stacked.matrices[0]) is not None
    torch.testing.assert_close(stacked.back(stacked.matrices[0]), stacked.matrices[0])


def test_the_bases_are_the_singular_vectors_of_the_concatenated_deltas():
    sources = updates()
    dense = [s.delta() for s in sources]
    left, right = bases(sources)
    for basis, matrix in ((left, torch.cat(dense, 1)), (right, torch.cat(dense, 0).mT)):
        U, S, _ = torch.linalg.svd(matrix, full_matrices=False)
        assert basis.shape[1] == int((1e-9 * S[0] < S).sum())
        overlap = (basis * U[:, : basis.shape[1]]).sum(0)
        torch.testing.assert_close(overlap.abs(), torch.ones_like(overlap))
        assert bool((basis.gather(0, basis.abs().argmax(0, keepdim=True)) > 0).all())


def test_the_bases_depend_on_the_deltas_alone():
    sources = updates()
    left, right = bases(sources)
    for same in (sources[::-1], [regauged(s, i) for i, s in enumerate(sources)]):
        other_left, other_right = bases(same)
        torch.testing.assert_close(left, other_left, rtol=0, atol=1e-9)
        torch.testing.assert_close(right, other_right, rtol=0, atol=1e-9)
    raw = torch.linalg.qr(torch.cat([s.A for s in sources]).mT).Q
    turned = torch.linalg.qr(torch.cat([regauged(s, 1).A for s in sources]).mT).Q
    assert (raw.abs() - turned.abs()).abs().max() > 0.1  # what a QR of stored factors would do


def test_unknown_spaces_are_refused_by_name():
    with pytest.raises(UsageError, match=r"Unknown space 'cubist'.*full, core and knots"):
        space_named("cubist")
