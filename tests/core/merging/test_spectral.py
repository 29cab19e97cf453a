"""slerp, model_stock, tsv, iso_c, iso_cts and the space knots, against algebra written out in numpy
and against what other projects give on the same deltas (tests/core/vectors/spectral.json)."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from making import planted_pair, random_update, regauged
from merges import F64, TIGHT, adapters_of, close, delta, merge, sources, ties_dense, trimmed

from loraprobe.adapters import Adapter, adapter_of
from loraprobe.lora.lowrank import LowRank
from loraprobe.lora.spaces import SPACES, knots

PEERS = json.loads((Path(__file__).parents[1] / "vectors" / "spectral.json").read_text())
SPECTRAL = ("tsv", "iso_c", "iso_cts")


def dense_of(adapters: list[Adapter]) -> list[np.ndarray]:
    return [delta(adapter).numpy() for adapter in adapters]


def polar(columns: np.ndarray) -> np.ndarray:
    """columns (columns^T columns)^(-1/2): the nearest orthonormal frame, from an eigensystem."""
    values, vectors = np.linalg.eigh(columns.T @ columns)
    return columns @ (vectors / np.sqrt(values)) @ vectors.T


# What other projects give.


@pytest.mark.parametrize(
    "vector", PEERS["vectors"], ids=lambda v: f"{v['project']}: {v['method']}: {v['call']}"
)
def test_parity_with_other_projects(vector):
    updates = [
        LowRank(torch.tensor(u["A"], dtype=F64), torch.tensor(u["B"], dtype=F64), u["scaling"])
        for u in PEERS["updates"][vector["updates"]]
    ]
    expected = np.array(vector["output"])
    limit = vector.get("tolerance", 1e-7)
    if "masks" in vector:  # random there: their masks on our matrices
        stacked = knots(updates)
        kept = torch.tensor(vector["masks"]) * stacked.matrices / 0.6
        ours = stacked.back(kept.sum(0)).delta().numpy()
    else:
        given = {key: vector[key] for key in ("method", "weights", "space")}
        merged = merge(adapters_of(updates), allow=["no-effect"], **given)
        ours = delta(merged.adapter).numpy()
    assert np.linalg.norm(ours - expected) < limit * np.linalg.norm(expected)


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
    """tsv gives the adapter itself, iso_c and model_stock what they make of one."""
    twins = [adapter_of(f"a{i}", {"up": random_update(9, 8, 3, 1, 0.5, F64)}) for i in range(n)]
    for space in SPACES:
        close(merge(twins, "tsv", space=space).adapter, delta(twins[0]).numpy())
        alone = delta(merge(twins[:1], "iso_c", space=space).adapter).numpy()
        close(merge(twins, "iso_c", space=space).adapter, n * alone)
        cts = merge(twins, "iso_cts", space=space)
        values = torch.linalg.svdvals(delta(cts.adapter))[: cts.rank]
        assert cts.rank <= 3 and float(values.max() / values.min()) == pytest.approx(1.0)
    close(merge(twins, "model_stock").adapter, delta(twins[0]).numpy())


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


# knots


def test_ties_in_knots_is_ties_on_the_rows_of_s_v():
    adapters = sources(out=12, inp=10)
    deltas = dense_of(adapters)
    U, S, _ = np.linalg.svd(np.concatenate(deltas, 1), full_matrices=False)
    U = U[:, : int((S > 1e-9).sum())]
    parts = [trimmed(torch.as_tensor(U.T @ d), 0.3) for d in deltas]
    expected = U @ ties_dense(parts, [1.0] * 3, "peft").numpy()
    merged = merge(adapters, "ties:density=0.3", space="knots")
    close(merged.adapter, expected)
    assert merged.config.space == "knots" and merged.rank == np.linalg.matrix_rank(expected) <= 9
    cut = merge(adapters, "ties:density=0.3", space="knots", rank=4)
    assert cut.rank == 4
    tail = np.linalg.svd(expected)[1]
    assert cut.compression_error == pytest.approx(
        float(np.linalg.norm(tail[4:]) / np.linalg.norm(tail)), rel=1e-6
    )
