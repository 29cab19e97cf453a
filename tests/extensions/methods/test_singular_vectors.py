"""tsv, iso_c and iso_cts against algebra written out in numpy."""

import numpy as np
import pytest
import torch
from making import planted_pair, random_update, regauged
from merges import F64, TIGHT, close, delta, merge, sources

from loraprobe.adapters import Adapter, adapter_of
from loraprobe.errors import UsageError
from loraprobe.lora.lowrank import LowRank
from loraprobe.lora.spaces import SPACES
from loraprobe.merging import METHODS

SPECTRAL = ("tsv", "iso_c", "iso_cts")


def dense_of(adapters: list[Adapter]) -> list[np.ndarray]:
    return [delta(adapter).numpy() for adapter in adapters]


def polar(columns: np.ndarray) -> np.ndarray:
    """columns (columns^T columns)^(-1/2): the nearest orthonormal frame, from an eigensystem."""
    values, vectors = np.linalg.eigh(columns.T @ columns)
    return columns @ (vectors / np.sqrt(values)) @ vectors.T


# tsv


@pytest.mark.parametrize("weights", [(1.0, 1.0, 1.0), (0.5, -1.0, 2.0)])
def test_tsv_whitens_the_vectors_and_keeps_the_values(weights):
    adapters = sources(out=12, inp=11)
    parts = [
        np.linalg.svd(w * d, full_matrices=False)
        for w, d in zip(weights, dense_of(adapters), strict=True)
    ]
    kept = (3, 2, 4)
    U = np.concatenate([p[0][:, :k] for p, k in zip(parts, kept, strict=True)], 1)
    V = np.concatenate([p[2][:k].T for p, k in zip(parts, kept, strict=True)], 1)
    S = np.concatenate([p[1][:k] for p, k in zip(parts, kept, strict=True)])
    merged = merge(adapters, "tsv", weights=weights)
    close(merged.adapter, (polar(U) * S) @ polar(V).T)
    assert merged.config.space == "core" and merged.rank == sum(kept)


def test_tsv_of_adapters_that_do_not_overlap_is_their_sum():
    a, b = planted_pair(0.0)
    (path,) = a.modules
    merged = merge([a, b], "tsv").adapter
    torch.testing.assert_close(delta(merged, path), delta(a, path) + delta(b, path), **TIGHT)


@pytest.mark.parametrize("n", [1, 2, 4])
def test_equal_adapters_share_their_directions(n):
    """tsv gives the adapter itself, iso_c what it makes of one."""
    twins = [adapter_of(f"a{i}", {"up": random_update(9, 8, 3, 1, 0.5, F64)}) for i in range(n)]
    for space in SPACES:
        close(merge(twins, "tsv", space=space).adapter, delta(twins[0]).numpy())
        alone = delta(merge(twins[:1], "iso_c", space=space).adapter).numpy()
        close(merge(twins, "iso_c", space=space).adapter, n * alone)
        cts = merge(twins, "iso_cts", space=space)
        values = torch.linalg.svdvals(delta(cts.adapter))[: cts.rank]
        assert cts.rank <= 3 and float(values.max() / values.min()) == pytest.approx(1.0)


# iso_c, iso_cts


@pytest.mark.parametrize("weights", [(1.0, 1.0, 1.0), (0.5, -1.0, 2.0)])
def test_iso_c_flattens_the_spectrum_of_the_sum_over_its_rank(weights):
    adapters = sources(out=12, inp=11)
    total = sum(w * d for w, d in zip(weights, dense_of(adapters), strict=True))
    U, S, Vh = np.linalg.svd(total)
    merged = merge(adapters, "iso_c", weights=weights)
    close(merged.adapter, S[:9].mean() * U[:, :9] @ Vh[:9])
    assert merged.rank == 9


@pytest.mark.parametrize(
    ("common", "shared", "each"), [(0.8, 9, 1), (0.5, 6, 2), (0.0, 0, 4), (1.0, 12, 0)]
)
def test_iso_cts_adds_task_specific_directions(common, shared, each):
    adapters = sources((5, 3, 4), out=16, inp=15)
    deltas = dense_of(adapters)
    U, S, Vh = np.linalg.svd(sum(deltas))
    Us, Ss, Vs = [U[:, :shared]], [S[:shared]], [Vh[:shared].T]
    for d in deltas:
        own = np.linalg.svd(d - Us[0] @ Us[0].T @ d)
        k = min(each, int((own[1] > 1e-9).sum()))  # the second has three components, not four
        Us.append(own[0][:, :k])
        Ss.append(own[1][:k])
        Vs.append(own[2][:k].T)
    expected = np.concatenate(Ss).mean() * polar(np.hstack(Us)) @ polar(np.hstack(Vs)).T
    merged = merge(adapters, f"iso_cts:common={common}")
    close(merged.adapter, expected)
    assert merged.rank == (11 if common == 0 else 12)


def test_iso_cts_does_not_share_out_more_than_there_is():
    """Rank 2 among three adapters: one each would be more than the sum holds."""
    adapters = sources((1, 1, 1), out=2, inp=9)
    close(
        merge(adapters, "iso_cts:common=0").adapter, delta(merge(adapters, "iso_c").adapter).numpy()
    )


def test_cancelled_components_are_not_amplified():
    """1 - 1 leaves rounding, which a flat spectrum must not take for directions."""
    a = random_update(9, 8, 3, 1, 0.5, F64)
    own = {"own": random_update(6, 5, 2, 3, 1.0, F64)}
    adapters = [adapter_of("a", {"up": a, **own}), adapter_of("b", {"up": regauged(a, 2)})]
    for method in ("iso_c", "iso_cts"):
        merged = merge(adapters, method, weights=[1, -1]).adapter
        assert float(delta(merged, "up").norm()) == 0.0
        assert float(delta(merged, "own").norm()) > 1


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("name", SPECTRAL)
def test_dead_components_and_zero_deltas_change_nothing(name, space):
    """No arbitrary singular vector of a null space gets in."""
    adapters = sources((3, 2), out=12, inp=11)
    update = adapters[1].modules["up"]
    noise = random_update(12, 11, 2, 9, 1.0, F64)
    padded = LowRank(
        torch.cat([update.A, noise.A]), torch.cat([update.B, 0 * noise.B], 1), update.scaling
    )
    expected = delta(merge(adapters, name, space=space).adapter).numpy()
    close(
        merge([adapters[0], adapter_of("b", {"up": padded})], name, space=space).adapter, expected
    )
    if name == "tsv":
        zero = adapter_of("z", {"up": LowRank(noise.A, 0 * noise.B)})
        three = merge([*adapters, zero], name, space=space, allow=["no-effect"])
        close(three.adapter, expected)


def test_a_common_space_that_is_no_share_is_refused():
    with pytest.raises(UsageError, match=r"from 0 to 1, not 1\.2"):
        METHODS.make("iso_cts:common=1.2")
