"""Many adapters: products in float32 against the same in float64, over planted cases."""

from __future__ import annotations

import pytest
import torch
from making import dense, generator, random_update, regauged

from loraprobe.lora import grams
from loraprobe.lora.grams import gram_matrices
from loraprobe.lora.lowrank import LowRank, same_update
from loraprobe.lora.workers import in_order

F64 = torch.float64
# The stated error: of a cosine, and of the energies of a sum relative to each of them.
STATED, RELATIVE = 5e-7, 1e-4


def ill_conditioned(seed):
    """Factors as training leaves them, and worse: singular values of B over three decades."""
    one = random_update(48, 40, 6, seed, 1.0, F64)
    mix = torch.randn(6, 6, generator=generator(seed), dtype=F64)
    return LowRank(one.A, one.B * torch.logspace(0, -3, 6, dtype=F64) @ mix, 1.0).to(torch.float32)


def planted():
    """Ten adapters, the cases that lose digits among them."""
    one = random_update(48, 40, 6, 0, 1.0, torch.bfloat16)
    shared = random_update(48, 40, 6, 1, 1.0, torch.bfloat16)
    nearly = LowRank(one.A.float(), one.B.float() + 1e-4 * random_update(48, 40, 6, 7).B, 1.0)
    opposed = LowRank(nearly.A, -nearly.B, 1.0)
    dead = random_update(48, 40, 6, 2, 1.0, torch.float32)
    dead.B[:, 1] = 0.0
    dead.A[4] = dead.A[0] - dead.A[2]
    huge = random_update(48, 40, 6, 3, 1.0, torch.float16).scaled(1e6)
    tiny = LowRank(shared.A * 2.0**-40, random_update(48, 40, 6, 4, 1.0, torch.bfloat16).B, 1.0)
    return {
        "one": one,
        "again": regauged(one.to(F64), 3).to(torch.float32),
        "nearly": nearly,
        "opposed": opposed,
        "shared A": LowRank(shared.A, random_update(48, 40, 6, 5, 1.0, torch.bfloat16).B, 2.0),
        "tiny": tiny,
        "dead": dead,
        "huge": huge,
        "small rank": random_update(48, 40, 2, 6, 1.0, torch.bfloat16),
        "ill": ill_conditioned(8),
        "ill too": ill_conditioned(9),
        "absent": None,
    }


def made(updates, few, monkeypatch):
    monkeypatch.setattr(grams, "FEW", few)
    (found,) = gram_matrices([{} if one is None else {"m": one} for one in updates], ["m"])
    return found


@pytest.mark.parametrize("order", [1, -1])
def test_the_stated_error_holds_over_planted_cases(order, monkeypatch):
    updates = list(planted().values())[::order]
    many, exact = made(updates, 1, monkeypatch), made(updates, 100, monkeypatch)
    n = len(updates)
    torch.testing.assert_close(many.spectrum.S, exact.spectrum.S, rtol=1e-8, atol=1e-13)
    assert torch.equal(many.spectrum.rank, exact.spectrum.rank)
    norms = exact.square.sqrt()
    scale = (norms[:, :, None] * norms[:, None, :]).clamp_min(1e-300)
    assert ((many.inner - exact.inner).abs() / scale).max() < STATED
    for side in ("cosines_in", "cosines_out"):
        assert (getattr(many, side) - getattr(exact, side)).abs().max() < STATED
    i, j = torch.triu_indices(n, n, 1)
    ours, theirs = many.sum_energies(i, j), exact.sum_energies(i, j)
    floor = 1e-12 * theirs[..., :1]
    assert ((ours - theirs).abs() <= RELATIVE * theirs + floor).all()
    products = exact.grams_in.diagonal(dim1=2, dim2=4)
    lengths = products.diagonal(dim1=1, dim2=2).mT.sqrt()
    error = (many.grams_in.diagonal(dim1=2, dim2=4) - products).abs()
    assert (error <= STATED * lengths[:, :, None] * lengths[:, None, :]).all()


def test_what_cancels_among_many_is_exact(monkeypatch):
    """Duplicates stay duplicates in another basis, and what is left of opposed ones is right."""
    cases = planted()
    names = list(cases)
    found = made(cases.values(), 1, monkeypatch)
    one, again, nearly, opposed = map(names.index, ("one", "again", "nearly", "opposed"))
    assert [same_update(found.inner[0], one, k) for k in (nearly, opposed)] == [False, False]
    exact = made(cases.values(), 100, monkeypatch)
    for k in (again, nearly, opposed):
        assert float(found.inner[0, one, k]) == pytest.approx(
            float(exact.inner[0, one, k]), rel=1e-13
        )
    rest = (dense(cases["one"]) + dense(cases["opposed"])).square().sum()
    energy = found.sum_energies([one], [opposed]).sum()
    assert float(energy) == pytest.approx(float(rest), rel=1e-4)


def test_one_nan_among_many_affects_no_other(monkeypatch):
    updates = [random_update(20, 16, 3, seed, 1.0) for seed in range(5)]
    clean = made(updates, 1, monkeypatch)
    updates[2].A[1, 1] = float("nan")
    found = made(updates, 1, monkeypatch)
    assert found.finite.tolist() == [[True, True, False, True, True]]
    others = [0, 1, 3, 4]
    inner = clean.inner[:, others][:, :, others]
    torch.testing.assert_close(found.inner[:, others][:, :, others], inner)
    assert not found.inner[0, 2].any()


def test_factors_in_float64_stay_float64(monkeypatch):
    updates = [random_update(20, 16, 3, seed, 1.0, F64) for seed in range(5)]
    many, exact = made(updates, 1, monkeypatch), made(updates, 100, monkeypatch)
    assert torch.equal(many.grams_in, exact.grams_in)


def test_results_keep_their_order_and_the_number_of_threads():
    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        taken = []
        items = (taken.append(i) or i for i in range(50))
        found = in_order(lambda i: (i, torch.get_num_threads()), items)
        assert next(found) == (0, 1)
        assert len(taken) < 10  # not all are read at once
        assert [i for i, _ in found] == list(range(1, 50))
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(threads)


def test_an_error_in_a_worker_is_raised():
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with pytest.raises(ZeroDivisionError):
            list(in_order(lambda i: 1 // (5 - i), range(10)))
    finally:
        torch.set_num_threads(threads)
