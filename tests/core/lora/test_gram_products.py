"""Many adapters: products in float32 against the same in float64, over planted cases."""

import pytest
import torch
from making import dense, generator, random_update, regauged

from loraprobe.lora import grams
from loraprobe.lora.grams import gram_matrices
from loraprobe.lora.lowrank import LowRank, same_update

F64 = torch.float64
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
