"""Gram matrices of several adapters: against dense float64 algebra, and many in float32 against the
same in float64."""

from collections.abc import Mapping
from typing import ClassVar

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from making import dense, generator, random_update, regauged

from loraprobe.lora import grams
from loraprobe.lora.grams import gram_matrices
from loraprobe.lora.lowrank import LowRank, same_update

F64 = torch.float64


def one_module(*updates: LowRank | None):
    (found,) = gram_matrices([{} if one is None else {"m": one} for one in updates], ["m"])
    return found


@settings(max_examples=40)
@given(st.lists(st.integers(1, 5), min_size=1, max_size=4), st.integers(0, 999), st.booleans())
def test_products_spectra_and_overlaps_are_the_dense_ones(ranks, seed, change_basis):
    updates = [random_update(14, 11, r, seed + i, 0.5 + i, F64) for i, r in enumerate(ranks)]
    deltas = [dense(one) for one in updates]
    if change_basis:
        updates = [regauged(one, seed) for one in updates]
    found = one_module(*updates)
    flat = torch.stack([delta.flatten() for delta in deltas])
    torch.testing.assert_close(found.inner[0], flat @ flat.T, rtol=1e-9, atol=1e-9)
    bases = {"in": [], "out": []}
    for i, (delta, r) in enumerate(zip(deltas, ranks, strict=True)):
        U, S, Vh = torch.linalg.svd(delta, full_matrices=False)
        torch.testing.assert_close(found.spectrum.S[0, i, :r], S[:r], rtol=1e-7, atol=1e-9)
        assert not found.spectrum.S[0, i, r:].any()
        assert int(found.spectrum.rank[0, i]) == r
        bases["in"].append(Vh[:r].T)
        bases["out"].append(U[:, :r])
    for side, spaces in bases.items():
        expected = torch.stack(
            [torch.stack([(P.T @ Q).square().sum() for Q in spaces]) for P in spaces]
        )
        torch.testing.assert_close(found.overlap(side)[0], expected, rtol=1e-7, atol=1e-9)
    first, second = torch.triu_indices(len(ranks), len(ranks), 0)
    energies = found.sum_energies(first, second)[0]
    for i, j, own in zip(first.tolist(), second.tolist(), energies, strict=True):
        total = torch.linalg.svdvals(deltas[i] + deltas[j]).square()
        size = min(len(total), len(own))
        torch.testing.assert_close(own[:size], total[:size], rtol=1e-8, atol=1e-10 * total[0])
        assert not own[size:].gt(1e-10 * total[0]).any()


@settings(max_examples=20)
@given(st.integers(0, 999))
def test_singular_vectors_are_combinations_of_the_factors(seed):
    one = random_update(9, 12, 4, seed, 2.0, F64)
    spectrum = one_module(one).spectrum
    U = one.B @ spectrum.left[0, 0]
    Vh = spectrum.right[0, 0] @ one.A
    torch.testing.assert_close((U * spectrum.S[0, 0]) @ Vh, dense(one), rtol=1e-8, atol=1e-9)
    torch.testing.assert_close(U.T @ U, torch.eye(4, dtype=F64), rtol=0, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("basis", [None, 1, 2])
def test_dead_and_repeated_components_are_no_rank(dtype, basis):
    one = random_update(40, 30, 6, 3, 2.0, F64)
    one.B[:, 1] = 0.0
    one.A[4] = one.A[0] - one.A[2]
    if basis is not None:
        one = regauged(one, basis)
    found = one_module(one.to(dtype), random_update(40, 30, 6, 9, 1.0, dtype))
    assert found.spectrum.rank.tolist() == [[4, 6]]
    assert float(found.overlap("in")[0, 0, 0]) == pytest.approx(4, abs=1e-5)


def test_dependent_rows_stay_dead_in_a_badly_conditioned_basis():
    """Rounding in a dead direction of A must not be blown up by a B that is large there."""
    one = random_update(40, 30, 6, 3, 1.0, F64)
    one.A[4] = one.A[0] - one.A[2]
    first = torch.linalg.qr(torch.randn(6, 6, generator=generator(0), dtype=F64)).Q
    second = torch.linalg.qr(torch.randn(6, 6, generator=generator(1), dtype=F64)).Q
    G = (first * torch.logspace(-2, 2, 6, dtype=F64)) @ second
    other = LowRank(G @ one.A, one.B @ torch.linalg.inv(G), 1.0)
    found = one_module(other)
    assert int(found.spectrum.rank) == 5
    expected = torch.linalg.svdvals(dense(one))[:5]
    torch.testing.assert_close(found.spectrum.S[0, 0, :5], expected, rtol=1e-6, atol=0)


def test_sizes_of_rows_cost_no_precision():
    """The same delta with rows of A from 1e-6 to 1e6 long and columns of B the inverse."""
    one = random_update(40, 30, 5, 0, 1.0, F64)
    sizes = torch.logspace(-6, 6, 5, dtype=F64)
    other = LowRank(one.A * sizes[:, None], one.B / sizes, 1.0)
    first, second = one_module(one), one_module(other)
    torch.testing.assert_close(second.spectrum.S, first.spectrum.S, rtol=1e-9, atol=0)
    torch.testing.assert_close(second.overlap("out"), first.overlap("out"), rtol=1e-9, atol=1e-9)


def test_a_missing_module_is_a_zero_delta():
    found = one_module(random_update(8, 6, 2, 0, 1.0, F64), None)
    assert found.present.tolist() == [[True, False]]
    assert found.square[0, 1] == 0 and found.inner[0, 0, 1] == 0
    assert found.comparable.all()
    assert int(found.spectrum.rank[0, 1]) == 0


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("factor", ["A", "B"])
def test_one_nan_entry_is_found_and_affects_no_other_adapter(value, factor):
    good, bad = random_update(8, 6, 2, 0, 1.0), random_update(8, 6, 2, 1, 1.0)
    getattr(bad, factor)[1, 1] = value
    found = one_module(good, bad)
    assert found.finite.tolist() == [[True, False]]
    assert float(found.square[0, 0]) == pytest.approx(float(good.norm()) ** 2, rel=1e-5)
    for figure in (
        found.inner,
        found.spectrum.S,
        found.overlap("in"),
        found.sum_energies([0], [1]),
    ):
        assert torch.isfinite(figure).all()


def test_unequal_shapes_are_not_multiplied():
    found = one_module(random_update(8, 6, 2, 0, 1.0), random_update(8, 7, 3, 1, 1.0))
    assert found.comparable[0].tolist() == [[True, False], [False, True]]
    assert found.inner[0, 0, 1] == 0
    assert found.square.min() > 0


def test_batches_agree_with_one_batch(monkeypatch):
    adapters = [
        {f"m{k}": random_update(8, 6 + k, 1 + (k + i) % 3, 10 * i + k, 0.5) for k in range(7)}
        for i in range(2)
    ]
    assert not [*gram_matrices(adapters, [])]  # no modules are not all modules
    (whole,) = gram_matrices(adapters)
    monkeypatch.setattr(grams, "BATCH_BYTES", 1000)
    parts = list(gram_matrices(adapters))
    assert len(parts) > 2
    assert sum((p.paths for p in parts), ()) == whole.paths
    torch.testing.assert_close(torch.cat([p.inner for p in parts]), whole.inner)
    ranks = torch.cat([p.spectrum.rank for p in parts])
    assert ranks.tolist() == whole.spectrum.rank.tolist() == whole.rank.tolist()


def test_each_module_is_read_once_and_shown_once(monkeypatch):
    class Counting(Mapping):
        reads: ClassVar[list[str]] = []

        def __init__(self, **modules):
            self.modules = self.infos = modules  # infos: as of an adapter, whose headers are known

        def __getitem__(self, path):
            one = self.modules[path]
            self.reads.append(path)
            return one

        def __iter__(self):
            return iter(self.modules)

        def __len__(self):
            return len(self.modules)

    adapters = [Counting(m0=random_update(4, 5, 2, 0)), Counting(m1=random_update(4, 5, 2, 1))]
    monkeypatch.setattr(grams, "BATCH_BYTES", 1)  # a batch a module
    seen, reported = {}, []

    def look(grams, updates):
        seen[grams.paths] = [[u is not None for u in one] for one in updates]

    def progress(done, total):
        reported.append((done, total))

    stream = gram_matrices(adapters, visitor=look, progress=progress)
    Counting.reads.clear()  # the tests' check of annotations looks into mappings
    list(stream)
    assert Counting.reads == ["m0", "m1"]
    assert seen == {("m0",): [[True, False]], ("m1",): [[False, True]]}
    assert reported == [(1, 2), (2, 2)]


@pytest.mark.parametrize("seed", range(4))
def test_a_sum_of_updates_that_share_some_of_their_directions(seed):
    """Two of four directions in common: the remainder is singular and has no Cholesky factor."""
    one = random_update(20, 16, 4, seed, 1.0, F64)
    U = torch.linalg.qr(one.B).Q
    B = torch.cat([U[:, :2], random_update(20, 16, 2, seed + 50, 1.0, F64).B], 1)
    other = LowRank(random_update(20, 16, 4, seed + 90, 1.0, F64).A, B, 3.0)
    found = one_module(LowRank(one.A, U, 1.0), other).sum_energies([0], [1])[0, 0]
    expected = torch.linalg.svdvals(U @ one.A + dense(other)).square()
    torch.testing.assert_close(found[:6], expected[:6], rtol=1e-8, atol=0)
    assert not found[6:].any()


# The stated errors: of products and cosines of updates, of cosines of angles, and of the energies
# of a sum relative to each of them.
PRODUCT, ANGLE, RELATIVE = 5e-7, 1e-4, 1e-3
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def near(one, change):
    """The update with a small change of B."""
    return LowRank(one.A.float(), one.B.float() + change * random_update(48, 40, 6, 7).B, 1.0)


def ill_conditioned(seed):
    """Factors as training leaves them, and worse: singular values of B over three decades."""
    one = random_update(48, 40, 6, seed, 1.0, F64)
    mix = torch.randn(6, 6, generator=generator(seed), dtype=F64)
    return LowRank(one.A, one.B * torch.logspace(0, -3, 6, dtype=F64) @ mix, 1.0)


def planted(dtype):
    """Adapters that lose digits, stored in a dtype; in 16 bits rounding parts the near ones."""
    one, shared = random_update(48, 40, 6, 0, 1.0, dtype), random_update(48, 40, 6, 1, 1.0, dtype)
    nearly = near(one, 1e-4 if dtype == torch.float32 else 1e-2)
    dead = random_update(48, 40, 6, 2, 1.0, dtype)
    dead.B[:, 1] = 0.0
    dead.A[4] = dead.A[0]
    apart = random_update(48, 40, 6, 5, 1.0, dtype)
    small = 2.0**-10 if dtype == torch.float16 else 2.0**-60  # whose squares float32 does not hold
    cases = {
        "one": one,
        "copy": one,
        "again": regauged(one.to(F64), 3),
        "nearly": nearly,
        "opposed": LowRank(nearly.A, -nearly.B, 1.0),
        "shared A": LowRank(shared.A, apart.B, 2.0),
        "tiny": LowRank(shared.A * small, random_update(48, 40, 6, 4, 1.0, dtype).B, 1.0),
        "dead": dead,
        "huge": random_update(48, 40, 6, 3, 1.0, dtype).scaled(1e6),
        "small rank": random_update(48, 40, 2, 6, 1.0, dtype),
        "ill": ill_conditioned(8),
        "ill too": ill_conditioned(9),
    }
    return {name: one.to(dtype) for name, one in cases.items()} | {"absent": None}


def made(updates, exact, monkeypatch):
    monkeypatch.setattr(grams, "FEW", 100 if exact else 1)
    monkeypatch.setattr(grams, "FEW_OF_16_BITS", 100 if exact else 1)
    (found,) = gram_matrices([{} if one is None else {"m": one} for one in updates], ["m"])
    return found


@pytest.mark.parametrize("order", [1, -1])
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_stated_error_holds_over_planted_cases(dtype, order, monkeypatch):
    updates = list(planted(dtype).values())[::order]
    many, exact = (made(updates, one, monkeypatch) for one in (False, True))
    n = len(updates)
    torch.testing.assert_close(many.spectrum.S, exact.spectrum.S, rtol=1e-8, atol=1e-13)
    assert torch.equal(many.spectrum.rank, exact.spectrum.rank)
    norms = exact.square.sqrt()
    scale = (norms[:, :, None] * norms[:, None, :]).clamp_min(1e-300)
    assert ((many.inner - exact.inner).abs() / scale).max() < PRODUCT
    for side in ("cosines_in", "cosines_out"):
        one, other = getattr(many, side).abs(), getattr(exact, side).abs()
        assert (one - other).abs().max() < ANGLE
    i, j = torch.triu_indices(n, n, 1)
    ours, theirs = many.sum_energies(i, j), exact.sum_energies(i, j)
    floor = 1e-14 * (exact.square[:, i] + exact.square[:, j])[..., None]  # of what cancels
    assert ((ours - theirs).abs() <= RELATIVE * theirs + floor).all()
    products = exact.grams_in.diagonal(dim1=2, dim2=4)
    lengths = products.diagonal(dim1=1, dim2=2).mT.sqrt()
    error = (many.grams_in.diagonal(dim1=2, dim2=4) - products).abs()
    assert (error <= PRODUCT * lengths[:, :, None] * lengths[:, None, :]).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_cancels_among_many_is_exact(dtype, monkeypatch):
    """Duplicates stay duplicates in another basis, and what is left of opposed ones is right."""
    cases = planted(dtype)
    names = list(cases)
    found, exact = (made(cases.values(), one, monkeypatch) for one in (False, True))
    one, others = names.index("one"), ("copy", "again", "nearly", "opposed")
    same = [same_update(found.inner[0], one, names.index(name)) for name in others]
    assert same == [True, dtype == torch.float32, False, False]
    for k in map(names.index, others):
        expected = pytest.approx(float(exact.inner[0, one, k]), rel=1e-13)
        assert float(found.inner[0, one, k]) == expected
    rest = (dense(cases["one"]) + dense(cases["opposed"])).square().sum()
    energy = found.sum_energies([one], [names.index("opposed")]).sum()
    assert float(energy) == pytest.approx(float(rest), rel=1e-4)


@pytest.mark.parametrize("dtype", DTYPES)
def test_one_nan_among_many_affects_no_other(dtype, monkeypatch):
    updates = [random_update(20, 16, 3, seed, 1.0, dtype) for seed in range(6)]
    clean = made(updates, False, monkeypatch)
    updates[2].A[1, 1] = float("nan")
    found = made(updates, False, monkeypatch)
    assert found.finite.tolist() == [[True, True, False, True, True, True]]
    others = [0, 1, 3, 4, 5]
    inner = clean.inner[:, others][:, :, others]
    torch.testing.assert_close(found.inner[:, others][:, :, others], inner)
    assert not found.inner[0, 2].any()


def test_factors_in_float64_stay_float64(monkeypatch):
    updates = [random_update(20, 16, 3, seed, 1.0, F64) for seed in range(5)]
    many, exact = (made(updates, one, monkeypatch) for one in (False, True))
    assert torch.equal(many.grams_in, exact.grams_in)


@pytest.mark.parametrize("dtype", DTYPES)
def test_unrelated_adapters_of_many_are_multiplied_in_float32(dtype, monkeypatch):
    updates = [random_update(768, 768, 8, seed, 1.0, dtype) for seed in range(6)]
    many, exact = (made(updates, one, monkeypatch) for one in (False, True))
    error = (many.inner - exact.inner).abs() / exact.square.max()
    assert 0 < error.max() < 1e-8
    # Each alone is in float64.
    torch.testing.assert_close(many.square, exact.square, rtol=1e-13, atol=0)
