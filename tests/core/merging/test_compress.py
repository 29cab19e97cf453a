"""The loss of a rank, measured against dense singular values, and the sketch of large matrices."""

import pytest
import torch
from making import planted_pair, random_update
from merges import F64, adapters_of, delta, merge, sources

from loraprobe.adapters import adapter_of
from loraprobe.lora.lowrank import LowRank
from loraprobe.merging import _compress


@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("rank", [1, 2, 5, 50])
def test_truncation_is_optimal_and_its_error_is_reported(rank, dtype):
    adapters = sources((3, 4), dtype, 13, 12)
    merged = merge(adapters, "uniform", rank=rank)
    mean = (delta(adapters[0]) + delta(adapters[1])) / 2
    U, S, Vh = torch.linalg.svd(mean)
    k = min(rank, 7)
    assert merged.rank == merged.adapter.rank_range[1] == k
    best = (U[:, :k] * S[:k]) @ Vh[:k]
    torch.testing.assert_close(delta(merged.adapter), best, rtol=1e-5, atol=1e-5)
    lost = float((mean - best).norm() / mean.norm())
    assert merged.compression_error == pytest.approx(lost, abs=1e-6)
    assert [i.code for i in merged.issues] == ["compression-lost"] * (lost > 0.1)
    update = merged.adapter.modules["up"]
    torch.testing.assert_close(update.A.norm(dim=1), update.B.norm(dim=0))  # balanced


def test_auto_takes_the_numerical_rank_and_loses_nothing():
    a, b = planted_pair(0.6, rank=3)
    ((path, update),) = a.modules.items()
    A = torch.cat([update.A, torch.randn_like(update.A)])
    padded = adapter_of("padded", {path: LowRank(A, torch.cat([update.B, 0 * update.B], 1))})
    twin = adapter_of("twin", dict(a.modules))
    for adapters, rank in (([a, b], 6), ([a], 3), ([a, twin], 3), ([padded], 3)):
        merged = merge(adapters)
        assert merged.rank == rank and merged.compression_error == 0.0


def lopsided(scale: float) -> list[LowRank]:
    """float32 factors whose components are scaled apart by 14 orders of magnitude."""
    powers, plain = torch.logspace(-7, 7, 4), random_update(12, 11, 4, 3, 0.5)
    tilted = LowRank(plain.A * powers[:, None] * scale, plain.B / powers / scale, 0.5)
    return [tilted, random_update(12, 11, 2, 4, 0.5)]


def nearly_parallel() -> list[LowRank]:
    """Adapters that still share most of A's initial value."""
    a = random_update(40, 30, 4, 1, 1.0)
    A = a.A + 1e-4 * random_update(40, 30, 4, 2).A
    return [a, LowRank(A, random_update(40, 30, 4, 3).B, 1.0)]


@pytest.mark.parametrize("updates", [lopsided(1e-7), lopsided(1e7), nearly_parallel()])
def test_ill_conditioned_factors_cost_no_precision(updates):
    adapters = adapters_of(updates)
    for weights in ((1, 1), (1, -1)):
        expected = sum(w * delta(a) for w, a in zip(weights, adapters, strict=True))
        merged = merge(adapters, "task_arithmetic", weights=weights)
        assert (delta(merged.adapter) - expected).norm() / expected.norm() < 1e-6
        assert merged.rank == sum(update.rank for update in updates)


@pytest.mark.parametrize("lost", ["A", "B"])
@pytest.mark.parametrize("method", ["uniform", "ties:density=1", "slerp", "model_stock"])
def test_a_dead_component_with_a_huge_partner_takes_nothing_with_it(lost, method):
    """Zeros in one factor and 1e30 in the other are an update of zero, and no more than that."""
    live, dead, other = (random_update(12, 10, 3, seed) for seed in (1, 2, 3))
    huge = LowRank(dead.A * (lost != "A") * 1e30, dead.B * (lost != "B") * 1e30, 0.5)
    zero = LowRank(dead.A * 0, dead.B * 0)
    found, wanted = (
        merge(
            [adapter_of("a", {"x": live, "y": live}), adapter_of("b", {"x": x, "y": other})],
            method,
            weights=[0.5, 0.5],
        ).adapter.modules["x"]
        for x in (huge, zero)
    )
    scale = float(wanted.delta().norm())
    assert float((found.delta() - wanted.delta()).norm()) <= 1e-5 * scale
    assert method != "uniform" or scale == pytest.approx(float(live.delta().norm()) / 2, rel=1e-5)


# Large matrices are sketched. The border is moved so that small ones are.


@pytest.fixture
def sketched(monkeypatch):
    monkeypatch.setattr(_compress, "EXACT_SIDE", 8)


@pytest.mark.parametrize("method", ["ties:density=0.3", "magnitude_prune", "dare_ties"])
def test_a_sketch_is_nearly_the_best_and_its_error_is_measured(method, sketched, monkeypatch):
    adapters = sources((4, 4), torch.float32, 90, 70)
    sketch = merge(adapters, method, rank=6, seed=3)
    monkeypatch.setattr(_compress, "EXACT_SIDE", 1000)
    exact, everything = (merge(adapters, method, rank=rank, seed=3) for rank in (6, 70))
    assert everything.compression_error < 1e-6
    gap = delta(everything.adapter) - delta(sketch.adapter)
    true = float(gap.norm() / delta(everything.adapter).norm())
    assert sketch.compression_error == pytest.approx(true, abs=1e-5)
    assert exact.compression_error - 1e-6 <= sketch.compression_error
    assert sketch.compression_error < 1.02 * exact.compression_error
    excess2 = sketch.compression_error**2 - exact.compression_error**2
    assert excess2 < 2 * sketch.sketch_error**2 + 1e-6  # the reported error bounds what was missed
    assert exact.sketch_error == 0.0


def test_a_sketch_of_a_low_rank_matrix_loses_nothing_and_may_exceed_the_sources_rank(sketched):
    adapters = sources((4, 3), torch.float32, 90, 70)
    merged = merge(adapters, "magnitude_prune:density=1")
    assert merged.rank == 7 and merged.compression_error < 1e-6
    expected = (delta(adapters[0]) + delta(adapters[1])) / 2
    torch.testing.assert_close(delta(merged.adapter), expected, rtol=1e-4, atol=1e-4)
    small, large = (merge(adapters, "ties", rank=r) for r in (7, 40))
    assert large.rank == 40 and large.compression_error < 0.5 * small.compression_error


def test_auto_rank_in_full_space_is_the_sum_of_ranks_and_reports_its_error():
    adapters = sources((2, 3), F64, 40, 30)
    merged, core = merge(adapters, "ties"), merge(adapters, "ties", space="core")
    assert merged.rank == 5 and merged.compression_error > 0.1
    assert [i.code for i in merged.issues] == ["compression-lost"]
    assert core.compression_error == 0.0 and core.rank <= 5 and core.config.space == "core"
    knots = merge(sources((3, 4), torch.float32, 40, 700), "ties", space="knots")
    assert knots.rank == 7 and knots.compression_error < 1e-6  # the rank of the basis, no sketch
