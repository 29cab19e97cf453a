"""Sketches against the deltas themselves: unbiased, of the stated error, of the delta alone."""

import hashlib
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pytest
import torch
from making import dense, generator, planted_pair, random_adapter, random_update, regauged

from loraprobe.extensions.screen import sketches
from loraprobe.extensions.screen.sketches import NUMBERS, SketchBuilder, signs
from loraprobe.lora.grams import gram_matrices
from loraprobe.lora.lowrank import LowRank

SEEDS = 24


class Sketch(NamedTuple):
    numbers: np.ndarray
    error: float
    norm: float


def sketch(modules, seed: int = 0) -> Sketch | None:
    builder = SketchBuilder(seed)
    for joint in gram_matrices([modules], visitor=builder.visit):
        builder.take(joint)
    numbers, error = builder.made()
    return None if numbers is None else Sketch(numbers, error, math.fsum(builder.energy) ** 0.5)


def cosines(held: Sequence[Sketch]) -> np.ndarray:
    return sketches.estimate_cosines([one.numbers for one in held])


def cosine_error(one: Sketch, other: Sketch, cosine: float) -> float:
    """The standard error of an estimated cosine, at most, as the module's docstring states it."""
    return (1 - cosine**2) * math.sqrt(one.error * other.error)


def planted(cosine: float, modules: int, shared: bool) -> tuple[dict, dict]:
    """Two adapters of decaying spectra whose deltas have this cosine in every module.

    shared: the parts that differ have the same row spaces, the worst case of unrelated adapters
    that were trained from one A.
    """
    draw = generator(3)
    decay = 0.6 ** torch.arange(4, dtype=torch.float64)
    one, other = {}, {}
    for module in range(modules):
        U = torch.linalg.qr(torch.randn(40, 8, generator=draw, dtype=torch.float64)).Q
        V = torch.linalg.qr(torch.randn(32, 8, generator=draw, dtype=torch.float64)).Q.mT
        own, rest = V[:4], V[:4] if shared else V[4:]
        sine = (1 - cosine**2) ** 0.5
        B = torch.cat([U[:, :4] * decay * cosine, U[:, 4:] * decay * sine], 1)
        path = f"layers.{module}.q_proj"
        one[path] = LowRank(own, U[:, :4] * decay, 2.0)
        other[path] = LowRank(torch.cat([own, rest]), B, 0.5)
    return one, other


@pytest.mark.parametrize("cosine", [0.0, 0.9, 1.0])
@pytest.mark.parametrize(("modules", "shared"), [(2, False), (2, True)])
def test_a_cosine_has_the_stated_standard_error(cosine, modules, shared):
    one, other = planted(cosine, modules, shared)
    exact = sum(float((dense(one[p]) * dense(other[p])).sum()) for p in one)
    norms = [math.hypot(*(float(dense(u).norm()) for u in a.values())) for a in (one, other)]
    assert exact / math.prod(norms) == pytest.approx(cosine, abs=1e-9)
    pairs = [(sketch(one, seed), sketch(other, seed)) for seed in range(SEEDS)]
    found = np.array([cosines(pair)[0, 1] for pair in pairs])
    stated = cosine_error(*pairs[0], cosine)
    # The mean of SEEDS estimates, and the spread of their standard deviation around its own.
    assert abs(found.mean() - cosine) <= 4 * stated / SEEDS**0.5 + stated**2 + 1e-6
    assert found.std() <= stated * (1 + 3 / (2 * SEEDS) ** 0.5) + 1e-6
    if cosine == 1:
        assert np.all(found > 1 - 1e-6)
    if shared and cosine < 1:
        assert found.std() > stated / 4  # it is a bound, and no idle one


def test_inner_products_are_estimated_without_bias():
    one, other = planted(0.5, 3, True)
    exact = sum(float((dense(one[p]) * dense(other[p])).sum()) for p in one)
    found = []
    for seed in range(SEEDS):
        a, b = sketch(one, seed), sketch(other, seed)
        inner = float(a.numbers.astype(np.float64) @ b.numbers.astype(np.float64)) / NUMBERS
        found.append(inner * a.norm * b.norm)
    assert abs(np.mean(found) - exact) <= 4 * np.std(found) / SEEDS**0.5
    assert np.std(found) <= math.sqrt(a.error * b.error) * a.norm * b.norm * 1.2


def test_a_sketch_depends_on_the_delta_alone():
    modules = random_adapter(rank=4, seed=1).modules
    other = {path: regauged(update, 5) for path, update in modules.items()}
    one, again = sketch(modules), sketch(other)
    assert np.allclose(one.numbers, again.numbers, atol=0.02)
    assert one.norm == pytest.approx(again.norm, rel=1e-6)
    assert cosines([one, again])[0, 1] > 1 - 1e-6
    assert cosines([one, sketch(modules, seed=1)])[0, 1] < 0.5  # other projections
    opposed = {path: update.scaled(-3.0) for path, update in modules.items()}
    assert cosines([one, sketch(opposed)])[0, 1] < -(1 - 1e-6)


def test_the_stated_error_of_one_module_is_that_of_its_spectrum():
    update = random_update(24, 20, rank=5, seed=2)
    energies = torch.linalg.svdvals(dense(update)).square()
    concentration = float(energies.square().sum() / energies.sum() ** 2)
    wanted = (1 / 64**2 + 4 * concentration / 64) ** 0.5
    one = sketch({"q_proj": update})
    assert one.error == pytest.approx(wanted, rel=1e-6)
    assert cosine_error(one, one, 0.6) == pytest.approx(0.64 * wanted, rel=1e-6)


def test_the_norm_is_exact():
    a, b = planted_pair(0.3, norms=(2.0, 0.125))
    assert sketch(a.modules).norm == pytest.approx(2.0, rel=1e-12)
    assert sketch(b.modules).norm == pytest.approx(0.125, rel=1e-12)


def test_signs_are_those_of_every_machine():
    found = signs(0, "out layers.0.q_proj", 100)
    assert found.shape == (100, 64) and set(found.unique().tolist()) == {-1.0, 1.0}
    digest = hashlib.sha256(found.to(torch.int8).numpy().tobytes()).hexdigest()
    assert digest.startswith("1cbe7f9c58bf3917")
    assert not torch.equal(found, signs(0, "in layers.0.q_proj", 100))


def test_there_is_no_sketch_of_nothing_and_of_what_is_too_large():
    zero = LowRank(torch.ones(2, 8), torch.zeros(6, 2))
    huge = LowRank(torch.full((2, 8), 1e30), torch.full((6, 2), 1e30))
    assert sketch({"q": zero}) is None and sketch({"q": huge}) is None
    assert sketch({}) is None
