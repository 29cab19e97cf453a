"""The laws of merging, over every method of the registry.

What a method declares is checked in every space it runs in; what it does not declare is shown to
fail on the same planted adapters, so that no declaration is an excuse.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import pytest
import torch
from making import regauged
from merges import (
    EVERY_SPEC,
    FAILS,
    HOLDS,
    WEIGHTS,
    distance,
    planted,
    rewritten,
    run,
    spaces,
    takes,
)

from loraprobe.adapters import Adapter, adapter_of
from loraprobe.errors import UsageError
from loraprobe.lora.lowrank import LowRank
from loraprobe.lora.spaces import SPACES
from loraprobe.merging import METHODS, LinearMethod, MergeMethod
from loraprobe.registry import name_of


def identity(method: MergeMethod, space: str | None) -> float:
    """One adapter with weight 1 is that adapter."""
    alone = planted(method)[0]
    return distance(alone, run(method, space, [alone], [1.0]))


def order(method: MergeMethod, _: str | None) -> float:
    """f(M_pi, w_pi) = f(M, w), the random numbers of each matrix its own: the largest error.

    Of the bare function, since `merge` sorts the adapters before it calls the method.
    """
    draw = torch.Generator().manual_seed(3)
    n = 3 if takes(method, 3) else 2
    matrices = 1 + torch.randn(n, 9, 8, generator=draw, dtype=torch.float64)
    weights = torch.tensor(WEIGHTS[:n], dtype=torch.float64)
    made = []
    for places in itertools.permutations(range(n)):
        seeds = [torch.Generator().manual_seed(i) for i in places]
        made.append(method(matrices[list(places)], weights[list(places)], seeds))
    return max(float((other - made[0]).norm() / made[0].norm()) for other in made[1:])


def gauge(method: MergeMethod, space: str | None) -> float:
    """A -> G A, B -> B G^-1, another G for each, changes nothing."""
    adapters = planted(method)
    turned = [rewritten(a, lambda _, u, seed=i: regauged(u, seed)) for i, a in enumerate(adapters)]
    return distance(run(method, space, adapters, WEIGHTS), run(method, space, turned, WEIGHTS))


def homogeneity(method: MergeMethod, space: str | None) -> float:
    """c times every delta gives c times the result, for c > 0."""
    adapters = planted(method)
    louder = [rewritten(a, lambda _, u: u.scaled(2.5)) for a in adapters]
    return distance(
        run(method, space, louder, WEIGHTS), run(method, space, adapters, WEIGHTS), factor=2.5
    )


LAWS = {law.__name__: law for law in (identity, order, gauge, homogeneity)}


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("name", METHODS.names())
def test_a_declared_law_holds_and_an_undeclared_one_fails(name, law):
    method = METHODS.make(name)
    errors = {space: LAWS[law](method, space) for space in spaces(method)}
    if law in method.laws:
        assert max(errors.values()) < HOLDS, f"{name} declares {law} but breaks it: {errors}"
    else:
        # One space is enough: a lone adapter's core is diagonal, so pruning half spares it.
        assert max(errors.values()) > FAILS, f"{name} obeys {law}, so declare it: {errors}"


@pytest.mark.parametrize("name", METHODS.names())
def test_every_method_has_a_formula_and_a_paper(name):
    method = METHODS.get(name)
    assert method.laws <= LAWS.keys()
    assert method.lossless <= SPACES.keys()
    assert "=" in method.formula and any(c.isdigit() for c in method.paper)
    assert method.__doc__ and method.__doc__.splitlines()[0].endswith(".")  # what listings show
    assert METHODS.make(repr_spec(method())) == method()


def repr_spec(method: MergeMethod) -> str:
    """The spec "name:option=value,..." of an instance."""
    name = name_of(method)
    options = ",".join(f"{key}={value}" for key, value in vars(method).items())
    return f"{name}:{options}" if options else name


def hard_to_order(method: MergeMethod) -> list[Adapter]:
    """Adapters whose merge depends on the order of a sum: in elections and in the space `core`.

    a and b are equal; c is opposite to them and 3 times as long, so that with WEIGHTS_THAT_CANCEL
    the sum is zero but for rounding. Their spectra are flat, so that no basis is canonical. Factors
    are held in different dtypes.
    """
    generator = torch.Generator().manual_seed(4)
    U, V = (
        torch.linalg.qr(torch.randn(side, 3, generator=generator, dtype=torch.float64)).Q
        for side in (14, 11)
    )
    A, B = V.T.float(), U.float()
    updates = [LowRank(A, B), LowRank(A.double(), B.double()), LowRank(A, B, -1.0)]
    adapters = [adapter_of(n, {"up": u}) for n, u in zip("bac", updates, strict=True)]
    return adapters if takes(method, 3) else adapters[:2]


WEIGHTS_THAT_CANCEL = (0.1, 0.2, 0.3)


@pytest.mark.parametrize("planted_as", [planted, hard_to_order])
@pytest.mark.parametrize("spec", EVERY_SPEC)
def test_the_order_in_which_adapters_are_given_changes_no_bit(spec, planted_as):
    method = METHODS.make(spec)
    adapters = planted_as(method)
    weights = WEIGHTS if planted_as is planted else WEIGHTS_THAT_CANCEL
    n = len(adapters)
    orders = [range(n), range(n)[::-1]]  # every two change places
    for space in spaces(method):
        made = []
        for places in orders:
            try:
                moved = [adapters[i] for i in places], [weights[i] for i in places]
                merged = run(method, space, *moved)
            except UsageError as error:
                assert "zero in every module" in str(error)
                made.append({})
                continue
            made.append(dict(merged.modules))
        first, other = made
        assert other.keys() == first.keys()
        for path, update in other.items():
            assert torch.equal(update.A, first[path].A), (space, path)
            assert torch.equal(update.B, first[path].B), (space, path)


@pytest.mark.parametrize("spec", EVERY_SPEC)
def test_the_function_itself_does_not_depend_on_the_order(spec):
    assert order(METHODS.make(spec), None) < 1e-12


@dataclass(frozen=True)
class _FirstWins(LinearMethod):
    """A false declaration of "order": what comes first counts double."""

    formula = "none"
    paper = "none"

    def coefficients(self, weights: Sequence[float], inner=None) -> tuple[float, ...]:
        return (2.0, *(1.0,) * (len(weights) - 1))


@dataclass(frozen=True)
class _Squares(MergeMethod):
    """Another false declaration: the entries' squares, in whatever basis they come."""

    laws = frozenset({"homogeneity"})
    formula = "none"
    paper = "none"

    def __call__(self, deltas, weights, generators=()):
        return deltas.square().sum(0)


def test_the_laws_catch_false_declarations():
    assert order(_FirstWins(), "full") > FAILS
    assert identity(_FirstWins(), "full") > FAILS
    assert homogeneity(_Squares(), "full") > FAILS
    assert identity(_Squares(), "core") > FAILS
