"""The loss of a rank, the rounding of a dtype, and the memory of a merge."""

from __future__ import annotations

import json
import weakref

import pytest
import torch
from making import LLAMA, planted_pair, random_adapter, random_update
from merges import F64, delta, sources

from loraprobe.adapters import adapter_of, read_adapter
from loraprobe.adapters.tensors import SafetensorsFile
from loraprobe.lora.lowrank import LowRank
from loraprobe.merging import METHODS, _compress, merge


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
    update = merged.adapter.modules["up"]
    torch.testing.assert_close(update.A.norm(dim=1), update.B.norm(dim=0))  # balanced
    assert update.scaling == 1.0


def test_auto_takes_the_numerical_rank_and_loses_nothing():
    a, b = planted_pair(0.6, rank=3)
    assert merge([a, b]).rank == 6
    assert merge([a]).rank == 3
    twin = adapter_of("twin", dict(a.modules))
    merged = merge([a, twin])
    assert merged.rank == 3 and merged.compression_error == 0.0
    path, update = next(iter(a.modules.items()))
    A = torch.cat([update.A, torch.randn_like(update.A)])
    B = torch.cat([update.B, 0 * update.B], 1)
    padded = adapter_of("padded", {path: LowRank(A, B)})
    assert merge([padded]).rank == 3


def test_compression_error_is_of_the_whole_adapter():
    adapters = [random_adapter(n, rank=4, seed=i, dtype=F64) for i, n in enumerate("ab")]
    merged = merge(adapters, "sum", rank=3)
    lost = whole = 0.0
    for path in LLAMA:
        total = delta(adapters[0], path) + delta(adapters[1], path)
        lost += float((total - delta(merged.adapter, path)).square().sum())
        whole += float(total.square().sum())
    assert merged.compression_error == pytest.approx((lost / whole) ** 0.5, rel=1e-9)
    assert [i.code for i in merged.issues] == ["compression-lost"]


@pytest.mark.parametrize("scale", [1e-7, 1e7])
def test_a_lopsided_basis_costs_no_precision(scale):
    """float32 factors whose components are scaled apart by 14 orders of magnitude."""
    powers = torch.logspace(-7, 7, 4)
    plain = random_update(12, 11, 4, 3, 0.5)
    tilted = LowRank(plain.A * powers[:, None] * scale, plain.B / powers / scale, 0.5)
    other = random_update(12, 11, 2, 4, 0.5)
    merged = merge([adapter_of("a", {"up": tilted}), adapter_of("b", {"up": other})], "sum")
    expected = delta(adapter_of("x", {"up": tilted})) + delta(adapter_of("y", {"up": other}))
    gap = (delta(merged.adapter) - expected).norm() / expected.norm()
    assert gap < 1e-6 and merged.rank == 6


def test_nearly_parallel_factors_cost_no_precision():
    """Adapters that still share most of A's initial value, in float32."""
    a = random_update(40, 30, 4, 1, 1.0)
    near = LowRank(a.A + 1e-4 * random_update(40, 30, 4, 2).A, random_update(40, 30, 4, 3).B, 1.0)
    adapters = [adapter_of("a", {"up": a}), adapter_of("b", {"up": near})]
    expected = delta(adapters[0]) - delta(adapters[1])
    merged = merge(adapters, "task_arithmetic", weights=[1, -1])
    assert (delta(merged.adapter) - expected).norm() / expected.norm() < 1e-6


# Large matrices are sketched. The border is moved so that small ones are.


@pytest.fixture
def sketched(monkeypatch):
    monkeypatch.setattr(_compress, "EXACT_SIDE", 8)


@pytest.mark.parametrize("method", ["ties:density=0.3", "magnitude_prune", "dare_ties"])
def test_a_sketch_is_nearly_the_best_and_its_error_is_measured(method, sketched, monkeypatch):
    adapters = sources((4, 4), torch.float32, 90, 70)
    sketch = merge(adapters, method, rank=6, seed=3)
    monkeypatch.setattr(_compress, "EXACT_SIDE", 1000)
    exact = merge(adapters, method, rank=6, seed=3)
    everything = merge(adapters, method, rank=70, seed=3)
    assert everything.compression_error < 1e-6
    gap = delta(everything.adapter) - delta(sketch.adapter)
    true = float(gap.norm() / delta(everything.adapter).norm())
    assert sketch.compression_error == pytest.approx(true, abs=1e-5)
    assert exact.compression_error - 1e-6 <= sketch.compression_error
    assert sketch.compression_error < 1.02 * exact.compression_error
    excess2 = sketch.compression_error**2 - exact.compression_error**2
    assert excess2 < 2 * sketch.sketch_error**2 + 1e-6  # the reported error bounds what was missed
    assert exact.sketch_error == 0.0


def test_a_sketch_of_a_low_rank_matrix_loses_nothing(sketched):
    adapters = sources((4, 3), torch.float32, 90, 70)
    merged = merge(adapters, "magnitude_prune:density=1")
    assert merged.rank == 7 and merged.compression_error < 1e-6
    expected = (delta(adapters[0]) + delta(adapters[1])) / 2
    torch.testing.assert_close(delta(merged.adapter), expected, rtol=1e-4, atol=1e-4)


def test_a_sketch_can_exceed_the_rank_of_the_sources(sketched):
    adapters = sources((2, 2), torch.float32, 60, 50)
    small, large = (merge(adapters, "ties", rank=r) for r in (4, 30))
    assert large.rank == 30 and large.compression_error < 0.5 * small.compression_error


def test_auto_rank_in_full_space_is_the_sum_of_ranks_and_reports_its_error():
    adapters = sources((2, 3), F64, 40, 30)
    merged = merge(adapters, "ties")
    assert merged.rank == 5 and merged.compression_error > 0.1
    assert [i.code for i in merged.issues] == ["compression-lost"]
    core = merge(adapters, "ties", space="core")
    assert core.compression_error == 0.0 and core.rank <= 5 and core.space == "core"
    assert merge(adapters, "ties", space="core", rank=2).compression_error > 0


# What is written.


def test_the_widest_dtype_is_written_and_its_rounding_measured():
    half = random_adapter("a", rank=2, seed=1, dtype=torch.bfloat16)
    single = random_adapter("b", rank=3, seed=2)
    assert merge([half]).adapter.dtype == torch.bfloat16
    assert merge([half, single]).adapter.dtype == torch.float32
    narrow = random_adapter("c", rank=2, seed=3, dtype=torch.float16)
    assert merge([half, narrow]).adapter.dtype == torch.float32
    tiny = random_adapter("d", rank=2, seed=4)
    tiny = adapter_of("d", {p: u.to(torch.float8_e4m3fn) for p, u in tiny.modules.items()})
    assert merge([tiny, half]).adapter.dtype == torch.bfloat16
    exact = merge([half, single], dtype=F64).adapter
    written = merge([half, single], dtype=torch.bfloat16)
    gap = sum(float((delta(exact, p) - delta(written.adapter, p)).square().sum()) for p in LLAMA)
    size = sum(float(delta(exact, p).square().sum()) for p in LLAMA)
    assert written.rounding_error == pytest.approx((gap / size) ** 0.5, rel=1e-3)


# Relative error of the whole adapter in bf16 against the dense float64 merge of the same files,
# and the bound that is promised: two factors rounded to 8 bits, 2^-9 each at most, together about
# 2^-9 sqrt(2/3) on average. Elementwise methods are compared where they lose nothing to rank.
BF16_BOUND = 4e-3


@pytest.mark.parametrize("name", METHODS.names())
def test_bf16_error_against_float64(name):
    adapters = [random_adapter(n, rank=4, seed=i, dtype=torch.bfloat16) for i, n in enumerate("ab")]
    double = [adapter_of(a.name, {p: u.to(F64) for p, u in a.modules.items()}) for a in adapters]
    rank = "auto" if name == "factor_average" else 99
    merged = merge(adapters, name, rank=rank)
    exact = merge(double, name, rank=rank).adapter
    gap = sum(float((delta(exact, p) - delta(merged.adapter, p)).square().sum()) for p in LLAMA)
    size = sum(float(delta(exact, p).square().sum()) for p in LLAMA)
    error = (gap / size) ** 0.5
    assert error < BF16_BOUND
    assert error == pytest.approx(merged.rounding_error, rel=0.01)
    assert merge(adapters, name, rank=rank, dtype=torch.float32).rounding_error < 1e-7


def test_kinds_base_and_names_travel():
    kinds = dict.fromkeys(LLAMA, "conv1d")
    a, b = (random_adapter(n, rank=2, seed=i, kinds=kinds) for i, n in enumerate("ab"))
    merged = merge([a, b], name="both")
    assert merged.adapter.name == "both" and merged.adapter.base_model == "owner/base"
    assert {i.kind for i in merged.adapter.layout.values()} == {"conv1d"}
    assert [s.name for s in merged.sources] == ["a", "b"]
    norm = sum(float(delta(a, p).square().sum()) for p in LLAMA) ** 0.5
    assert merged.sources[0].norm == pytest.approx(norm, rel=1e-6)
    assert merged.method == "Uniform()" and merged.weights == (0.5, 0.5)
    assert repr(METHODS.make("ties:density=0.3")).startswith("Ties(density=0.3, ")


def test_one_conv1d_among_linear_sources_is_conv1d_in_either_order():
    path = next(iter(LLAMA))
    plain = random_adapter("a", seed=1)
    flagged = random_adapter("b", seed=2, kinds={path: "conv1d"})
    for pair in ([plain, flagged], [flagged, plain]):
        merged = merge(pair).adapter
        assert merged.layout[path].kind == "conv1d"
        torch.testing.assert_close(
            merged.modules[path].delta().double(),
            (delta(plain, path) + delta(flagged, path)) / 2,
            rtol=1e-5,
            atol=1e-6,
        )


@pytest.mark.parametrize(
    ("configs", "expected"),
    [
        (({}, {}), (None, None)),
        (({"task_type": None}, {"task_type": "SEQ_CLS"}), ("SEQ_CLS", None)),
        (({"task_type": "CAUSAL_LM", "revision": "v1"},) * 2, ("CAUSAL_LM", "v1")),
        (({"revision": "v1"}, {"revision": "v2"}), (None, None)),
    ],
)
def test_task_type_and_revision_are_kept_and_never_invented(configs, expected, tmp_path):
    sources = [
        adapter_of(name, dict(random_adapter(name, seed=i).modules), base_model="b", config=config)
        for i, (name, config) in enumerate(zip("ab", configs, strict=True))
    ]
    merge(sources).save(tmp_path / "out")
    written = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert (written["task_type"], written["revision"]) == expected


def test_progress_counts_modules():
    seen: list[tuple[str, int, int]] = []
    merge([random_adapter("a")], progress=lambda *step: seen.append(step))
    assert seen == [("merge", i + 1, len(LLAMA)) for i in range(len(LLAMA))]


def test_each_module_is_read_once_and_forgotten(tmp_path, monkeypatch):
    for i, name in enumerate("ab"):
        random_adapter(name, seed=i).save(tmp_path / name)
    reads: list[str] = []
    living: weakref.WeakSet = weakref.WeakSet()
    most = 0

    def read(self, key, real=SafetensorsFile.read):
        nonlocal most
        tensor = real(self, key)
        reads.append(key)
        living.add(tensor)
        most = max(most, len(living))
        return tensor

    monkeypatch.setattr(SafetensorsFile, "read", read)
    adapters = [read_adapter(tmp_path / name) for name in "ab"]
    for method in ("uniform", "ties", "factor_average"):
        reads.clear()
        merge(adapters, method, rank=2)
        assert len(reads) == 2 * 2 * len(LLAMA)
        assert most <= 2 * 2 * 2  # A and B of two adapters, of this module and the one before


@pytest.mark.parametrize("lost", ["A", "B"])
@pytest.mark.parametrize("method", ["uniform", "ties:density=1", "slerp", "tsv"])
def test_a_dead_component_with_a_huge_partner_takes_nothing_with_it(lost, method):
    """Zeros in one factor and 1e30 in the other are an update of zero, and no more than that."""
    live = random_update(12, 10, 3, 1)
    dead = random_update(12, 10, 3, 2)
    A = dead.A * 0 if lost == "A" else dead.A * 1e30
    B = dead.B * 0 if lost == "B" else dead.B * 1e30
    a = adapter_of("a", {"x": live, "y": live})
    b = adapter_of("b", {"x": LowRank(A, B, 0.5), "y": random_update(12, 10, 2, 3)})
    found = merge([a, b], method, weights=[0.5, 0.5]).adapter.modules["x"]
    zero = adapter_of("b", {"x": LowRank(dead.A * 0, dead.B * 0), "y": b.modules["y"]})
    wanted = merge([a, zero], method, weights=[0.5, 0.5]).adapter.modules["x"]
    scale = float(wanted.delta().norm())
    assert float((found.delta() - wanted.delta()).norm()) <= 1e-5 * scale
    assert method != "uniform" or scale == pytest.approx(float(live.delta().norm()) / 2, rel=1e-5)
