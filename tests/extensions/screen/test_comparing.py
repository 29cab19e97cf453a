"""Families, outliers and the map against planted structure and an independent oracle."""

import numpy as np
import pytest

from loraprobe.extensions.screen.comparing import group_families, map_positions, outliers


def unit_rows(*rows) -> np.ndarray:
    found = np.array(rows, dtype=np.float64)
    return found / np.linalg.norm(found, axis=1, keepdims=True)


def planted(sizes, dims=40, noise=0.5, seed=0) -> np.ndarray:
    """Cosines of groups of vectors around random centres."""
    draw = np.random.default_rng(seed)
    rows = []
    for size in sizes:
        centre = draw.standard_normal(dims)
        centre /= np.linalg.norm(centre)
        rows += [centre + noise * draw.standard_normal(dims) / dims**0.5 for _ in range(size)]
    held = unit_rows(*rows)
    return (held @ held.T).astype(np.float32)


def near(n, pairs) -> np.ndarray:
    """Cosines of n adapters: those of these pairs, and else 0."""
    found = np.eye(n, dtype=np.float32)
    for (i, j), cosine in pairs.items():
        found[i, j] = found[j, i] = cosine
    return found


@pytest.mark.parametrize(
    ("cosines", "found"),
    [
        (planted([2, 1, 5, 1, 3]), [3, 3, None, 1, 1, 1, 1, 1, None, 2, 2, 2]),
        (near(4, {(1, 3): 0.8, (0, 2): 0.8}), [1, 2, 1, 2]),  # in the order of the members
        (near(2, {(0, 1): 0.51}), [1, 1]),
        (near(2, {(0, 1): 0.49}), [None] * 2),
        (near(2, {(0, 1): -1}), [None] * 2),
        (near(3, {(0, 1): 0.7, (1, 2): 0.6, (0, 2): 0.1}), [1, 1, None]),  # a chain is none
    ],
)
def test_families_have_half_in_common_the_largest_first(cosines, found):
    assert group_families(cosines) == found


@pytest.mark.parametrize("n", [0, 1])
def test_few_adapters_have_no_family_and_lie_in_the_middle(n):
    near = np.ones((n, n), dtype=np.float32)
    assert group_families(near) == [None] * n
    assert map_positions(near) == ([(0.0, 0.0)] * n, None)


def test_an_extreme_norm_is_far_from_the_others_and_by_a_factor():
    usual = [1.0, 1.1, 0.9, 1.05, 0.95, 1.2]
    assert outliers([*usual, 50.0])[:6] == [None] * 6
    assert outliers([*usual, 50.0])[6] == pytest.approx(50 / 1.05)
    assert outliers([*usual, 0.01])[6] == pytest.approx(0.01 / 1.0)
    assert outliers([*usual, 2.0]) == [None] * 7  # less than three times
    assert outliers([1.0, 3.0, 9.0, 27.0, 81.0, 243.0]) == [None] * 6  # all differ
    assert outliers([1.0, 1.0, 1.0, 100.0]) == [None] * 4  # too few
    assert outliers([1.0] * 6 + [4.0])[6] == 4.0  # no deviation at all


def test_the_map_is_the_principal_plane_of_the_vectors():
    draw = np.random.default_rng(2)
    held = unit_rows(*draw.standard_normal((12, 7)))
    found, share = map_positions((held @ held.T).astype(np.float32))
    centred = held - held.mean(0)
    U, S, _ = np.linalg.svd(centred, full_matrices=False)
    for axis in range(2):
        wanted = U[:, axis] * S[axis]
        wanted *= np.sign(wanted[np.abs(wanted).argmax()])
        assert np.allclose([place[axis] for place in found], wanted, atol=1e-5)
    assert share == pytest.approx(float((S[:2] ** 2).sum() / (S**2).sum()), rel=1e-5)


def test_equal_adapters_share_a_place():
    found, share = map_positions(np.ones((3, 3), dtype=np.float32))
    assert np.allclose(found, 0) and share is None
