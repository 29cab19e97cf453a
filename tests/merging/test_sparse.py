"""Elementwise methods: entry by entry, block by block, and compared with peft on drawn shapes."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from making import random_update
from peft.utils import merge_utils

from loraprobe.adapters import adapter_of
from loraprobe.errors import UsageError
from loraprobe.merging import METHODS, merge
from loraprobe.merging import sparse as selection
from loraprobe.merging.sparse import (
    Breadcrumbs,
    BreadcrumbsTies,
    DareLinear,
    DareTies,
    Della,
    DellaLinear,
    MagnitudePrune,
    Sce,
    Ties,
)

F64 = torch.float64
SIGNED = torch.tensor([0.7, 0.3, -0.4], dtype=F64)
ONES = torch.ones(3, dtype=F64)

# One of each definition, with options off their defaults.
DEFINITIONS = """
    ties  ties:variant=mergekit,lambda=0.5  ties:rescale=l2
    magnitude_prune  magnitude_prune:rescale=linf
    dare_linear  dare_linear:variant=mergekit  dare_ties  dare_ties:variant=mergekit
    breadcrumbs:gamma=0.1  breadcrumbs:gamma=0.1,rescale=l1  breadcrumbs_ties:gamma=0.1
    della  della:variant=mergekit  della_linear  della_linear:variant=mergekit
    sce:select_topk=0.3  sce:variant=authors,select_topk=0.3
""".split()


def stacked(n: int = 3, p: int = 20, q: int = 17, dtype: torch.dtype = F64) -> torch.Tensor:
    return torch.stack([random_update(p, q, 3, i, 0.5, dtype).delta() for i in range(n)])


def draws(n: int = 3, seed: int = 0) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed + i) for i in range(n)]


def run(spec: Any, deltas: torch.Tensor, weights: torch.Tensor = SIGNED) -> torch.Tensor:
    return METHODS.make(spec)(deltas, weights[: len(deltas)], draws(len(deltas)))


# Breadcrumbs: the entries sorted by magnitude, a slice of the list kept.


@pytest.mark.parametrize(
    ("density", "gamma"), [(0.5, 0.1), (0.9, 0.05), (0.9, 0.4), (0.2, 0.0), (1.0, 0.3), (1e-9, 0.5)]
)
def test_breadcrumbs_keeps_a_slice_of_the_magnitudes(density, gamma):
    deltas = stacked()
    n = deltas[0].numel()
    kept = []
    for delta in deltas:
        flat = delta.flatten().tolist()
        order = sorted(range(n), key=lambda i, flat=flat: abs(flat[i]))
        count = max(1, int(density * n))
        top = min(int(gamma * n), n - count)
        chosen = set(order[n - top - count : n - top])
        kept.append([v if i in chosen else 0.0 for i, v in enumerate(flat)])
    expected = torch.tensor(kept, dtype=F64).reshape(deltas.shape)
    assert all(len({abs(v) for v in row if v}) == max(1, int(density * n)) for row in kept)
    for weights in (SIGNED, ONES / 3):
        want = torch.tensordot(weights, expected, dims=1)
        torch.testing.assert_close(Breadcrumbs(density, gamma)(deltas, weights), want)


def test_breadcrumbs_ties_is_the_mask_of_breadcrumbs_and_the_election_of_ties():
    deltas = stacked()
    masked = torch.stack([Breadcrumbs(0.6, 0.1)(d[None], ONES[:1]) for d in deltas])
    assert 0 < int((masked == 0).sum()) < masked.numel()
    for normalize in (False, True):
        ours = BreadcrumbsTies(density=0.6, gamma=0.1, normalize=normalize)(deltas, SIGNED)
        theirs = Ties(density=1.0, variant="mergekit", normalize=normalize)(masked, SIGNED)
        torch.testing.assert_close(ours, theirs)


def test_breadcrumbs_drops_an_outlier_that_ties_keeps():
    deltas = stacked()
    deltas[:, 4, 5] = 1e3
    assert float(Breadcrumbs(0.9, 0.01)(deltas, ONES / 3)[4, 5]) == 0
    assert float(Ties(density=0.1)(deltas, ONES)[4, 5]) == 1e3


def test_equal_magnitudes_are_treated_alike():
    deltas = torch.ones(1, 4, 5, dtype=F64)
    deltas[0, 1] = -1
    for method in (Ties(density=0.1), Breadcrumbs(0.5, 0.2), MagnitudePrune(0.3)):
        torch.testing.assert_close(method(deltas, ONES[:1]), deltas[0])


# DELLA.


def test_the_probability_of_staying_rises_evenly_with_the_rank_in_the_row():
    delta = torch.tensor([[3.0, -1.0, 2.0], [0.1, -0.3, 0.2]], dtype=F64)
    expected = torch.tensor([[0.6, 0.2, 0.4], [0.2, 0.6, 0.4]], dtype=F64)
    torch.testing.assert_close(selection.chances_of(delta, 0.4, 0.2), expected)
    column = selection.chances_of(delta[:, :1], 0.4, 0.2)
    torch.testing.assert_close(column, torch.full((2, 1), 0.4, dtype=F64))


def test_della_drops_the_stated_share_and_keeps_the_expectation():
    delta = random_update(30, 40, 5, 1, 1.0, F64).delta()[None]
    chances = selection.chances_of(delta[0], 0.4, 0.3)
    runs = torch.stack(
        [DellaLinear(0.4, 0.3)(delta, ONES[:1], draws(1, seed)) for seed in range(400)]
    )
    seen = (runs != 0).double().mean(0)
    noise = (chances * (1 - chances) / 400).sqrt()
    assert float(((seen - chances) / noise).square().mean()) == pytest.approx(1, abs=0.15)
    expected_error = ((delta[0].square() * (1 / chances - 1)).sum() / 400).sqrt()
    assert float((runs.mean(0) - delta[0]).norm() / expected_error) == pytest.approx(1, abs=0.15)
    kept = runs[0] != 0
    torch.testing.assert_close(runs[0][kept], (delta[0] / chances)[kept])


def test_without_a_window_della_is_dare():
    deltas = stacked()
    for variant, theirs in (("authors", "peft"), ("mergekit", "mergekit")):
        flat = DellaLinear(density=0.4, epsilon=0, variant=variant)(deltas, SIGNED, draws())
        dare = DareLinear(density=0.4, variant=theirs)(deltas, SIGNED, draws())
        torch.testing.assert_close(flat, dare)


def test_della_is_della_linear_of_each_and_the_election_of_ties():
    deltas = stacked()
    for variant in ("authors", "mergekit"):
        alone = [
            DellaLinear(density=0.4, epsilon=0.2, variant=variant)(d[None], ONES[:1], [g])
            for d, g in zip(deltas, draws(), strict=True)
        ]
        theirs = Ties(density=1.0, variant="mergekit")(torch.stack(alone), SIGNED)
        ours = Della(density=0.4, epsilon=0.2, variant=variant)(deltas, SIGNED, draws())
        torch.testing.assert_close(ours, theirs)


# SCE, entry by entry.


@pytest.mark.parametrize("variant", ["mergekit", "authors"])
@pytest.mark.parametrize("share", [1.0, 0.5, 0.07])
def test_sce_selects_calculates_and_erases(variant, share):
    deltas = stacked(p=6, q=5)
    deltas[:, :2] = 0  # entries that differ in no adapter do not count
    flat = deltas.flatten(1).T.tolist()  # entries, each a list over the adapters

    def spread(entry: list[float]) -> float:
        mean = sum(entry) / len(entry)
        return sum((x - mean) ** 2 for x in entry) / len(entry)

    count = int(share * sum(spread(entry) > 0 for entry in flat))
    ranked = sorted(range(len(flat)), key=lambda i: -spread(flat[i]))
    chosen = set(ranked[:count])
    energies = [sum(flat[i][k] ** 2 for i in chosen) for k in range(3)]
    expected = []
    for i, entry in enumerate(flat):
        seen = entry if i in chosen or variant == "authors" else [0.0] * 3
        sign = 1 if sum(seen) >= 0 else -1
        agree = [k for k in range(3) if seen[k] * sign > 0]
        top = sum(energies[k] * seen[k] for k in agree)
        expected.append(top / sum(energies[k] for k in agree) if agree else 0.0)
    want = torch.tensor(expected, dtype=F64).reshape(6, 5)
    torch.testing.assert_close(Sce(share, variant)(deltas, SIGNED), want)


def test_sce_leaves_equal_adapters_as_they_are_and_has_weights_of_its_own():
    delta = stacked(1)[0]
    for n in (1, 2, 3):
        for share in (1.0, 0.2):
            torch.testing.assert_close(Sce(share)(delta.expand(n, -1, -1), ONES[:n]), delta)
    adapters = [adapter_of(x, {"up": random_update(9, 8, 2, i)}) for i, x in enumerate("ab")]
    merged = merge(adapters, "sce", weights=[3, 1])
    assert [issue.code for issue in merged.issues] == ["weights-ignored"]
    same = merge(adapters, "sce").adapter.modules["up"].delta()
    torch.testing.assert_close(merged.adapter.modules["up"].delta(), same)


# Blocks.


@pytest.mark.parametrize("spec", DEFINITIONS)
def test_blocks_change_nothing(spec, monkeypatch):
    deltas = stacked()
    whole = run(spec, deltas)
    assert len(selection.in_blocks(deltas)) == 1
    monkeypatch.setattr(selection, "BLOCK", 200)
    assert len(selection.in_blocks(deltas)) == 7
    torch.testing.assert_close(run(spec, deltas), whole, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("spec", DEFINITIONS)
def test_nothing_of_full_size_is_held_for_each_adapter(spec, monkeypatch):
    """Eight adapters: the largest tensor made is one matrix, not eight."""
    monkeypatch.setattr(selection, "BLOCK", 1 << 10)
    deltas = stacked(8, 64, 64, torch.float32)
    weights = torch.ones(8, dtype=F64)
    sizes: list[int] = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            for tensor in out if isinstance(out, (list, tuple)) else [out]:
                if isinstance(tensor, torch.Tensor) and not func.is_view:
                    sizes.append(tensor.numel())
            return out

    with Watch():
        METHODS.make(spec)(deltas, weights, draws(8))
    assert max(sizes) == 64 * 64, "the result, or the scratch matrix"


@pytest.mark.parametrize("spec", DEFINITIONS)
def test_the_inputs_stay_as_they_are(spec):
    deltas = stacked()
    generators = draws()
    before = deltas.clone(), [g.get_state() for g in generators]
    METHODS.make(spec)(deltas, SIGNED, generators)
    assert torch.equal(deltas, before[0])
    assert all(torch.equal(g.get_state(), s) for g, s in zip(generators, before[1], strict=True))


# Rescaling.


@pytest.mark.parametrize(("name", "order"), [("l1", 1), ("l2", 2), ("linf", math.inf)])
def test_rescaling_restores_the_norm_of_each_delta(name, order):
    deltas = stacked()
    for method in (
        MagnitudePrune(0.3, rescale=name),
        DareLinear(0.3, rescale=name),
        Breadcrumbs(0.3, 0.1, rescale=name),
        DellaLinear(0.4, rescale=name),
    ):
        for delta, generator in zip(deltas, draws(), strict=True):
            alone = method(delta[None], ONES[:1], [generator])
            norms = [float(torch.linalg.vector_norm(m, order)) for m in (alone, delta)]
            assert norms[0] == pytest.approx(norms[1], rel=1e-9)
            kept = alone != 0
            ratio = (alone / delta)[kept]  # one factor for all that is kept
            assert float(ratio.max() - ratio.min()) < 1e-9
    zero = torch.zeros(1, 4, 5, dtype=F64)
    assert float(MagnitudePrune(0.3, rescale=name)(zero, ONES[:1]).abs().max()) == 0


# peft's functions on drawn shapes, densities, weights and numbers of adapters.

SHAPES = {"n": st.integers(1, 4), "p": st.integers(1, 9), "q": st.integers(1, 9)}
SHAPES |= {"density": st.floats(0.15, 1.0), "seed": st.integers(0, 99)}
SHAPES |= {"dtype": st.sampled_from([torch.float32, F64])}


def drawn(n: int, p: int, q: int, seed: int, dtype: torch.dtype):
    generator = torch.Generator().manual_seed(seed)
    deltas = torch.randn(n, p, q, generator=generator, dtype=F64).to(dtype)
    return deltas, torch.randn(n, generator=generator, dtype=F64).to(dtype)


@settings(max_examples=40)
@given(election=st.sampled_from(["total", "frequency"]), **SHAPES)
def test_result_equals_pefts_on_any_shape(n, p, q, density, seed, dtype, election):
    deltas, weights = drawn(n, p, q, seed, dtype)
    if int(density * p * q) > 0:  # peft keeps nothing then, one entry is kept here
        theirs = merge_utils.ties(list(deltas), weights, density, election)
        ours = Ties(density=density, election=election)(deltas, weights)
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
        theirs = merge_utils.magnitude_prune(list(deltas), weights, density)
        ours = MagnitudePrune(density)(deltas, weights)
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    if density < 1:
        uniforms = [torch.rand(p, q, generator=g) for g in draws(n, seed)]
        for name, method in (
            ("dare_linear", DareLinear(density)),
            ("dare_ties", DareTies(density=density, election=election)),
        ):
            masks = iter([u < density for u in uniforms])
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(torch, "bernoulli", lambda t, masks=masks: next(masks).to(t))
                more = (election,) if name == "dare_ties" else ()
                theirs = getattr(merge_utils, name)(list(deltas), weights, density, *more)
            ours = method(deltas, weights, draws(n, seed))
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


# Options.


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
    sce:variant=peft -> mergekit, authors
    ties:lambda=0 -> lambda
    ties:lambda=nan -> lambda
    ties:rescale=l3 -> linf
    ties:rescale=probability -> linf
    ties:normalize=perhaps -> true or false
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
    with pytest.raises(ValueError, match="variant is one of peft, mergekit, not 'other'"):
        method.__post_init__()
    other = Sce()
    object.__setattr__(other, "variant", "peft")
    with pytest.raises(ValueError, match="variant is one of mergekit, authors"):
        other.__post_init__()


def options(name: str) -> set[str]:
    return {field.name for field in dataclasses.fields(METHODS.get(name))}


def test_variant_sets_all_options_explicitly():
    """So the model card of a merge names every choice that was made."""
    assert "normalize=True" in repr(METHODS.make("ties:variant=mergekit"))
    made = METHODS.make("dare_ties:variant=mergekit")
    assert "normalize=False" in repr(made) and "rescale='l1'" in repr(made)
    assert made == METHODS.make("dare_ties:variant=mergekit,normalize=false,rescale=l1")
    assert "rescale='probability'" in repr(METHODS.make("della"))
    for name in METHODS.names():
        if "density" in options(name):
            assert "auto" not in repr(METHODS.make(name)) and "None" not in repr(METHODS.make(name))


def test_lambda_scales_the_result_and_default_weights_make_an_average():
    deltas = stacked()
    for name in METHODS.names():
        if "election" not in options(name):
            continue
        for normalize in ("true", "false"):
            half = METHODS.make(f"{name}:normalize={normalize},lambda=0.5")
            whole = METHODS.make(f"{name}:normalize={normalize}")
            torch.testing.assert_close(
                half(deltas, SIGNED, draws()), whole(deltas, SIGNED, draws()) / 2
            )
            method: Any = METHODS.make(f"{name}:normalize={normalize},density=1")
            twins = deltas[:1].expand(3, -1, -1)
            weights = torch.tensor(method.default_weights(3), dtype=F64)
            torch.testing.assert_close(method(twins, weights, draws()), deltas[0])


def test_cancelling_weights_do_not_diverge_under_the_mergekit_variant():
    """All three agree after weighting, and 0.1 + 0.6 - 0.7 is rounding, not a divisor."""
    weights = torch.tensor([0.1, 0.6, -0.7], dtype=F64)
    left = torch.zeros(1)
    for weight in weights.tolist():
        left.add_(torch.ones(1), alpha=weight)
    assert 0 < abs(float(left)) < 1e-6
    deltas = weights.sign().float()[:, None, None]
    out = Ties(density=1.0, variant="mergekit")(deltas, weights)
    assert float(out) == pytest.approx(1.4, rel=1e-5)
