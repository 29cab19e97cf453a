"""The laws of merging, over every file of the shelf.

What a method declares is checked in every space it runs in; what it does not declare is shown to
fail on the same planted adapters, so that no declaration is an excuse.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import pytest
from making import regauged
from merges import FAILS, HOLDS, WEIGHTS, distance, planted, rewritten, run, spaces

from loraprobe.lora.spaces import SPACES
from loraprobe.merging import METHODS, LinearMethod, MergeMethod
from loraprobe.registry import name_of


def identity(method: MergeMethod, space: str | None) -> float:
    """One adapter with weight 1 is that adapter."""
    alone = planted(method)[0]
    return distance(alone, run(method, space, [alone], [1.0]))


def order(method: MergeMethod, space: str | None) -> float:
    """Permuting adapters and weights together changes nothing."""
    adapters = planted(method)
    turned = [*range(1, len(adapters)), 0]
    one = run(method, space, adapters, WEIGHTS)
    other = run(method, space, [adapters[i] for i in turned], [WEIGHTS[i] for i in turned])
    return distance(one, other)


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
def test_every_method_says_what_it_is(name):
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


@dataclass(frozen=True)
class _FirstWins(LinearMethod):
    """A liar: what comes first counts double."""

    formula: ClassVar[str] = "none"
    paper: ClassVar[str] = "none"

    def coefficients(self, weights: Sequence[float], n: int) -> tuple[float, ...]:
        return (2.0, *(1.0,) * (n - 1))


@dataclass(frozen=True)
class _Squares(MergeMethod):
    """Another liar: the entries' squares, in whatever basis they come."""

    laws: ClassVar[frozenset[str]] = frozenset({"homogeneity"})
    formula: ClassVar[str] = "none"
    paper: ClassVar[str] = "none"

    def __call__(self, deltas, weights, generators=()):
        return deltas.square().sum(0)


def test_the_laws_catch_liars():
    assert order(_FirstWins(), "full") > FAILS
    assert identity(_FirstWins(), "full") > FAILS
    assert homogeneity(_Squares(), "full") > FAILS
    assert identity(_Squares(), "core") > FAILS
