"""Exact selection of magnitudes by their place, against a full sort."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loraprobe.merging import sparse
from loraprobe.merging.sparse import magnitudes_at


def drawn(kind: str, n: int, seed: int) -> np.ndarray:
    """Entries whose sample tells much, little, or nothing about them."""
    rng = np.random.default_rng(seed)
    if kind == "normal":
        return rng.standard_normal(n).astype(np.float32)
    if kind == "heavy":
        return rng.standard_cauchy(n)
    if kind == "few":
        return rng.integers(-3, 4, n).astype(np.float32)
    if kind == "zeros":
        return np.where(rng.random(n) < 0.9, 0, rng.standard_normal(n)).astype(np.float32)
    return np.sort(rng.standard_normal(n))  # a strided sample that is representative by luck


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(sparse, "FEW", 8)
    monkeypatch.setattr(sparse, "COUNTED", 64)
    monkeypatch.setattr(sparse, "SAMPLE", 16)


@pytest.mark.parametrize("kind", ["normal", "heavy", "few", "zeros", "sorted"])
@settings(max_examples=25)
@given(n=st.integers(8, 700), seed=st.integers(0, 99), data=st.data())
def test_every_rank_agrees_with_a_sort(kind, n, seed, data):
    entries = drawn(kind, n, seed)
    places = data.draw(st.lists(st.integers(0, n - 1), min_size=1, max_size=2))
    expected = np.sort(np.abs(entries))[places]
    before = entries.copy()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (("FEW", 8), ("COUNTED", 64), ("SAMPLE", 16)):
            patch.setattr(sparse, name, value)
        np.testing.assert_array_equal(magnitudes_at(entries, places), expected)
    np.testing.assert_array_equal(entries, before)


def test_a_sample_that_misleads_costs_time_and_no_exactness(small):
    """Every entry that the strided sample sees is tiny; the place asked for is not."""
    entries = np.random.default_rng(0).standard_normal(640).astype(np.float32)
    entries[::40] = 1e-6
    np.testing.assert_array_equal(
        magnitudes_at(entries, [300, 600]), np.sort(np.abs(entries))[[300, 600]]
    )


def test_large_inputs_are_bracketed_and_not_put_in_order(monkeypatch):
    sizes = []
    selected = sparse._selected
    monkeypatch.setattr(
        sparse, "_selected", lambda m, places: (sizes.append(len(m)), selected(m, places))[1]
    )
    entries = np.random.default_rng(1).standard_normal(1 << 19).astype(np.float32)
    place = int(0.8 * len(entries))
    assert magnitudes_at(entries, [place])[0] == np.sort(np.abs(entries))[place]
    assert len(sizes) == 1 and sizes[0] < len(entries) // 20
