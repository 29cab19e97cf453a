"""Elementwise methods: against other tools, by laws over the family, and block by block."""

import dataclasses
import json
import typing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from making import random_update
from merges import F64, merge, sources
from peft.utils import merge_utils

from loraprobe.errors import UsageError
from loraprobe.lora.lowrank import LowRank
from loraprobe.merging import METHODS, sparse
from loraprobe.merging._engine import seeded_generators
from loraprobe.merging.sparse import (
    Breadcrumbs,
    DareLinear,
    DareTies,
    DellaLinear,
    MagnitudePrune,
    Sce,
    Ties,
)

SIGNED = torch.tensor([0.7, 0.3, -0.4], dtype=F64)
ONES = torch.ones(3, dtype=F64)

# One of each definition, with options off their defaults.
DEFINITIONS = """
    ties  ties:variant=mergekit,lambda=0.5  magnitude_prune
    dare_linear  dare_linear:variant=mergekit  dare_ties  dare_ties:variant=mergekit
    breadcrumbs:gamma=0.1  breadcrumbs_ties:gamma=0.1
    della  della:variant=mergekit  della_linear  della_linear:variant=mergekit
    sce  sce:select_topk=0.3
""".split()


def stacked(n: int = 3, p: int = 20, q: int = 17, dtype: torch.dtype = F64) -> torch.Tensor:
    return torch.stack([random_update(p, q, 3, i, 0.5, dtype).delta() for i in range(n)])


def draws(n: int = 3, seed: int = 0) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed + i) for i in range(n)]


def run(spec: Any, deltas: torch.Tensor, weights: torch.Tensor = SIGNED) -> torch.Tensor:
    return METHODS.make(spec)(deltas, weights[: len(deltas)], draws(len(deltas)))


# Outputs of other tools, stored as numbers.

STORED: dict[str, Any] = json.loads(
    (Path(__file__).parents[1] / "vectors" / "elementwise.json").read_text()
)
CASES = [(peer["peer"], case) for peer in STORED["peers"] for case in peer["cases"]]
UNIFORMS = torch.tensor(STORED["uniforms"], dtype=F64)


def deltas_of(case: dict[str, Any]) -> torch.Tensor:
    return torch.tensor(STORED["deltas"][case["deltas"]], dtype=F64)


def given_draws(spec: str, deltas: torch.Tensor, weights: list[float], monkeypatch) -> torch.Tensor:
    """The method with the stored draws in place of its own: generator i draws UNIFORMS[i]."""
    drawn = iter(UNIFORMS)
    monkeypatch.setattr(sparse, "uniform", lambda shape, generator: next(drawn))
    return METHODS.make(spec)(deltas, torch.tensor(weights, dtype=F64), draws(len(deltas)))


@pytest.mark.parametrize("peer, case", CASES, ids=[f"{p}: {case['method']}" for p, case in CASES])
def test_result_equals_the_other_tools(peer, case, monkeypatch):
    """To 1e-6: the stored numbers have 7 decimals, and mergekit masks in float32."""
    result = given_draws(case["method"], deltas_of(case), case["weights"], monkeypatch)
    theirs = torch.tensor(case["result"], dtype=F64)
    assert float(theirs.norm()) > 0.1
    torch.testing.assert_close(result, theirs, rtol=2e-6, atol=2e-6)
    method: Any = METHODS.make(case["method"])
    for delta, chances in zip(deltas_of(case), case.get("chances", ()), strict=False):
        ours = sparse.chances_of(delta, method.density, method.epsilon)
        expected, nonzero = torch.tensor(chances, dtype=F64), delta != 0
        # Which of equal magnitudes, here zeros, ranks first does not matter.
        torch.testing.assert_close(ours[nonzero], expected[nonzero], rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(ours.sort(1).values, expected.sort(1).values, rtol=1e-6, atol=0)


@pytest.mark.parametrize("case", STORED["differ"], ids=lambda case: case["call"])
def test_documented_differences_from_mergekit(case, monkeypatch):
    """It drops all where none of the largest is to go, and weighs small adapters alike."""
    deltas = torch.tensor(STORED["deltas"]["small"], dtype=F64) * case["scale"]
    result = given_draws(case["method"], deltas, case["weights"], monkeypatch)
    theirs = torch.tensor(case["result"], dtype=F64)
    assert float((result - theirs).norm() / result.norm()) > 0.1
    if case["method"] == "sce":
        larger = given_draws("sce", deltas / case["scale"], case["weights"], monkeypatch)
        torch.testing.assert_close(result, larger * case["scale"], rtol=1e-9, atol=0)
    else:
        assert float(theirs.norm()) == 0
        pruned = given_draws("magnitude_prune:density=0.5", deltas, case["weights"], monkeypatch)
        torch.testing.assert_close(result, pruned)  # nothing of the largest is dropped


SHAPES = {"n": st.integers(1, 4), "p": st.integers(1, 9), "q": st.integers(1, 9)}
SHAPES |= {"density": st.floats(0.15, 1.0), "seed": st.integers(0, 99)}
SHAPES |= {"dtype": st.sampled_from([torch.float32, F64])}


@settings(max_examples=40)
@given(**SHAPES)
def test_result_equals_pefts_on_any_shape(n, p, q, density, seed, dtype):
    generator = torch.Generator().manual_seed(seed)
    deltas = torch.randn(n, p, q, generator=generator, dtype=F64).to(dtype)
    weights = torch.randn(n, generator=generator, dtype=F64).to(dtype)
    close = {"rtol": 1e-5, "atol": 1e-6}
    if int(density * p * q) > 0:  # peft keeps nothing then, one entry is kept here
        theirs = merge_utils.ties(list(deltas), weights, density)
        ours = Ties(density=density)(deltas, weights)
        torch.testing.assert_close(ours, theirs, **close)
        theirs = merge_utils.magnitude_prune(list(deltas), weights, density)
        torch.testing.assert_close(MagnitudePrune(density)(deltas, weights), theirs, **close)
    if density < 1:
        uniforms = [torch.rand(p, q, generator=g) for g in draws(n, seed)]
        for name, method in (
            ("dare_linear", DareLinear(density)),
            ("dare_ties", DareTies(density=density)),
        ):
            masks = iter([u < density for u in uniforms])
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(torch, "bernoulli", lambda t, masks=masks: next(masks).to(t))
                theirs = getattr(merge_utils, name)(list(deltas), weights, density)
            torch.testing.assert_close(
                method(deltas, weights, draws(n, seed)), theirs, rtol=1e-5, atol=1e-6
            )


# Which entries stay.


@pytest.mark.parametrize(
    ("density", "gamma"), [(0.5, 0.1), (0.9, 0.05), (0.9, 0.4), (0.2, 0.0), (1.0, 0.3), (1e-9, 0.5)]
)
def test_breadcrumbs_keeps_a_slice_of_the_magnitudes(density, gamma):
    deltas = stacked()
    n = deltas[0].numel()
    count = max(1, int(density * n))
    top = min(int(gamma * n), n - count)
    kept = torch.zeros_like(deltas).flatten(1)
    for row, flat in zip(kept, deltas.flatten(1), strict=True):
        chosen = flat.abs().argsort()[n - top - count : n - top]
        row[chosen] = flat[chosen]
    for weights in (SIGNED, ONES / 3):
        want = torch.tensordot(weights, kept.view_as(deltas), dims=1)
        torch.testing.assert_close(Breadcrumbs(density, gamma)(deltas, weights), want)


def test_equal_magnitudes_are_treated_alike_and_outliers_are_dropped_or_kept():
    flat = torch.ones(1, 4, 5, dtype=F64)
    flat[0, 1] = -1
    for method in (Ties(density=0.1), Breadcrumbs(0.5, 0.2), MagnitudePrune(0.3)):
        torch.testing.assert_close(method(flat, ONES[:1]), flat[0])
    deltas = stacked()
    deltas[:, 4, 5] = 1e3
    assert float(Breadcrumbs(0.9, 0.01)(deltas, ONES / 3)[4, 5]) == 0
    assert float(Ties(density=0.1)(deltas, ONES)[4, 5]) == 1e3


TWINS = {
    "ties": "magnitude_prune",
    "breadcrumbs_ties": "breadcrumbs",
    "dare_ties": "dare_linear",
    "della": "della_linear",
}


@pytest.mark.parametrize("name", TWINS)
def test_an_electing_method_selects_like_its_twin_and_elects_like_ties(name):
    """The same entries of each delta; then the election, written out."""
    deltas = stacked()
    hint = typing.get_type_hints(METHODS.get(name)).get("variant")
    for variant in typing.get_args(hint) or ("",):
        spec = "density=0.4" + (f",variant={variant}" if variant else "")
        twin = spec if "variant" in options(TWINS[name]) else "density=0.4"
        alone = torch.stack(
            [
                METHODS.make(f"{TWINS[name]}:{twin}")(delta[None], ONES[:1], [generator])
                for delta, generator in zip(deltas, draws(), strict=True)
            ]
        )
        assert 0 < int((alone == 0).sum()) < alone.numel()
        method: Any = METHODS.make(f"{name}:{spec}")
        votes, weights = ONES if variant == "peft" else SIGNED, SIGNED[:, None, None]
        elected = torch.tensordot(votes, alone, dims=1).sign()
        agrees = alone * votes[:, None, None] * elected > 0
        total = (weights * alone * agrees).sum(0)
        divisors = {"none": 1, "count": agrees.sum(0), "weights": (weights * agrees).sum(0)}
        want = (total / divisors[method.divisor]).where(agrees.any(0), 0)
        torch.testing.assert_close(run(f"{name}:{spec}", deltas), want)


@pytest.mark.parametrize(
    ("method", "epsilon"), [(DareLinear(0.4), None), (DellaLinear(0.4, 0.3), 0.3)]
)
def test_the_stated_share_is_dropped_and_the_expectation_kept(method, epsilon):
    delta = random_update(30, 40, 5, 1, 1.0, F64).delta()[None]
    chances = sparse.chances_of(delta[0], 0.4, epsilon).expand(30, 40)
    runs = torch.stack([method(delta, ONES[:1], draws(1, seed)) for seed in range(400)])
    seen = (runs != 0).double().mean(0)
    noise = (chances * (1 - chances) / 400).sqrt()
    assert float(((seen - chances) / noise).square().mean()) == pytest.approx(1, abs=0.15)
    expected_error = ((delta[0].square() * (1 / chances - 1)).sum() / 400).sqrt()
    assert float((runs.mean(0) - delta[0]).norm() / expected_error) == pytest.approx(1, abs=0.15)
    kept = runs[0] != 0
    torch.testing.assert_close(runs[0][kept], (delta[0] / chances)[kept])


def test_the_probability_of_staying_rises_evenly_with_the_rank_in_the_row():
    delta = torch.tensor([[3.0, -1.0, 2.0], [0.1, -0.3, 0.2]], dtype=F64)
    expected = torch.tensor([[0.6, 0.2, 0.4], [0.2, 0.6, 0.4]], dtype=F64)
    torch.testing.assert_close(sparse.chances_of(delta, 0.4, 0.2), expected)
    column = sparse.chances_of(delta[:, :1], 0.4, 0.2)
    torch.testing.assert_close(column, torch.full((2, 1), 0.4, dtype=F64))
    deltas = stacked()
    for variant, theirs in (("authors", "peft"), ("mergekit", "mergekit")):  # no window: DARE
        flat = DellaLinear(density=0.4, epsilon=0, variant=variant)(deltas, SIGNED, draws())
        dare = DareLinear(density=0.4, variant=theirs)(deltas, SIGNED, draws())
        torch.testing.assert_close(flat, dare)


def test_masks_depend_on_the_direction_of_a_delta_and_on_the_seed_alone():
    update = random_update(20, 17, 3, 1, 0.5)
    same = [
        update,
        update.scaled(7.0),
        LowRank(update.A * 4, update.B / 4, update.scaling),
        LowRank(update.A.flip(0), update.B.flip(1), update.scaling),
    ]
    other = [random_update(20, 17, 3, 2, 0.5), update.scaled(-1.0)]

    def first(updates, module="m", seed=0):
        return [g.initial_seed() for g in seeded_generators(updates, module, seed)]

    assert len(set(first(same))) == 1
    assert len(set(first([update, *other]))) == 3
    assert first([update], seed=1) != first([update]) != first([update], module="n")
    one, again, new = (merge(sources((3, 3)), "dare_linear", seed=s).adapter for s in (1, 1, 2))
    assert one.sha256 == again.sha256 != new.sha256


@pytest.mark.parametrize("share", [1.0, 0.5, 0.07])
def test_sce_selects_calculates_and_erases(share):
    """Entry by entry, by the definition."""
    deltas = stacked(p=6, q=5)
    deltas[:, :2] = 0  # entries that differ in no adapter do not count
    flat = deltas.flatten(1).T.numpy()  # entries, each over the adapters
    spread = flat.var(1)
    chosen = spread.argsort()[::-1][: int(share * (spread > 0).sum())]
    energies = (flat[chosen] ** 2).sum(0)
    expected = []
    for i, entry in enumerate(flat):
        seen = entry if i in chosen else np.zeros(3)
        agree = seen * (1 if seen.sum() >= 0 else -1) > 0
        expected.append((energies * seen)[agree].sum() / energies[agree].sum() if any(agree) else 0)
    want = torch.tensor(expected, dtype=F64).reshape(6, 5)
    torch.testing.assert_close(Sce(share)(deltas, SIGNED), want)
    for n in (1, 2, 3):  # equal adapters stay as they are
        equal = deltas[:1].expand(n, -1, -1)
        torch.testing.assert_close(Sce(share)(equal, ONES[:n]), deltas[0])


@pytest.mark.parametrize("spec", DEFINITIONS)
def test_blocks_change_neither_the_result_nor_the_inputs(spec, monkeypatch):
    deltas = stacked()
    before, whole = deltas.clone(), run(spec, deltas)
    assert torch.equal(deltas, before)
    monkeypatch.setattr(sparse, "BLOCK", 200)
    assert len(sparse.in_blocks(deltas)) == 7
    torch.testing.assert_close(run(spec, deltas), whole, rtol=1e-12, atol=1e-14)


# Exact selection of magnitudes by their place.


def drawn(kind: str, n: int, seed: int) -> np.ndarray:
    """Entries whose sample tells much, little, or nothing about them."""
    rng = np.random.default_rng(seed)
    made = {
        "normal": lambda: rng.standard_normal(n).astype(np.float32),
        "heavy": lambda: rng.standard_cauchy(n),
        "few": lambda: rng.integers(-3, 4, n).astype(np.float32),
        "zeros": lambda: np.where(rng.random(n) < 0.9, 0, rng.standard_normal(n)),
        # every entry that the strided sample sees is tiny
        "misleading": lambda: np.where(
            np.arange(n) % max(1, n // 16), rng.standard_normal(n), 1e-6
        ),
        "sorted": lambda: np.sort(rng.standard_normal(n)),  # representative by luck
    }
    return made[kind]()


@pytest.mark.parametrize("kind", ["normal", "heavy", "few", "zeros", "misleading", "sorted"])
@settings(max_examples=25)
@given(n=st.integers(8, 700), seed=st.integers(0, 99), data=st.data())
def test_every_place_agrees_with_a_sort(kind, n, seed, data):
    entries = drawn(kind, n, seed)
    places = data.draw(st.lists(st.integers(0, n - 1), min_size=1, max_size=2))
    before = entries.copy()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (("FEW", 8), ("COUNTED", 64), ("SAMPLE", 16)):
            patch.setattr(sparse, name, value)
        found = sparse.magnitudes_at(entries, places)
    np.testing.assert_array_equal(found, np.sort(np.abs(entries))[places])
    np.testing.assert_array_equal(entries, before)


# Options.


def options(name: str) -> set[str]:
    return {field.name for field in dataclasses.fields(METHODS.get(name))}


@pytest.mark.parametrize("method", ["dare_linear", "della_linear"])
def test_mergekits_variant_restores_the_l1_norm_of_each_delta(method):
    made = METHODS.make(f"{method}:density=0.3,variant=mergekit")
    for delta, generator in zip(stacked(), draws(), strict=True):
        alone = made(delta[None], ONES[:1], [generator])
        assert float(alone.abs().sum()) == pytest.approx(float(delta.abs().sum()), rel=1e-9)
        ratio = (alone / delta)[alone != 0]  # one factor for all that is kept
        assert float(ratio.max() - ratio.min()) < 1e-9
    zero = torch.zeros(1, 4, 5, dtype=F64)
    assert float(made(zero, ONES[:1], draws(1)).abs().max()) == 0


REFUSED = """
    breadcrumbs:density=0 -> density
    breadcrumbs:gamma=1 -> gamma
    breadcrumbs:gamma=nan -> gamma
    breadcrumbs_ties:gamma=-0.1 -> gamma
    della:density=0.9 -> below 0.1
    della_linear:density=0.1,epsilon=0.1 -> below 0.1
    della:epsilon=-1 -> epsilon
    della:epsilon=nan -> epsilon
    della:variant=peft -> authors
    sce:select_topk=0 -> select_topk
    ties:lambda=0 -> lambda
    ties:lambda=nan -> lambda
    ties:rescale=l1 -> has no option
    dare_linear:variant=authors -> mergekit
    dare_ties:density=nan -> density
"""


@pytest.mark.parametrize("row", map(str.strip, REFUSED.strip().splitlines()))
def test_bad_options_are_refused_by_name(row):
    spec, message = row.split(" -> ")
    with pytest.raises(UsageError, match=message):
        METHODS.make(spec)


def test_literal_options_are_checked_in_python_too():
    """Outside of the tests nothing checks the types of the fields."""
    method = Ties()
    object.__setattr__(method, "variant", "other")
    with pytest.raises(ValueError, match="variant is one of"):
        method.__post_init__()


@pytest.mark.parametrize("name", TWINS)
def test_lambda_scales_the_result_and_default_weights_make_an_average(name):
    deltas = stacked()
    torch.testing.assert_close(run(f"{name}:lambda=0.5", deltas), run(name, deltas) / 2)
    method: Any = METHODS.make(f"{name}:density=1")
    weights = torch.tensor(method.default_weights(3), dtype=F64)
    twins = deltas[:1].expand(3, -1, -1)
    torch.testing.assert_close(method(twins, weights, draws()), deltas[0])


def test_cancelling_weights_do_not_diverge_under_the_mergekit_variant():
    """All three agree after weighting, and 0.1 + 0.6 - 0.7 is rounding, not a divisor."""
    weights = torch.tensor([0.1, 0.6, -0.7], dtype=F64)
    deltas = weights.sign().float()[:, None, None]
    out = Ties(density=1.0, variant="mergekit")(deltas, weights)
    assert float(out) == pytest.approx(1.4, rel=1e-5)
