"""The laws of merging, over every method of the registry: on planted adapters and on random ones.

What a method declares is checked in every space it runs in; what it does not declare is shown to
fail on the same planted adapters, so that no declaration is an excuse.
"""

import functools
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import pytest
import torch
from hypothesis import Phase, assume, given, settings
from hypothesis import strategies as st
from making import dense, random_update, regauged
from merges import (
    EVERY_SPEC,
    FAILS,
    HOLDS,
    WEIGHTS,
    distance,
    merge,
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
from loraprobe.merging import METHODS, FactorMethod, LinearMethod, Merged, MergeMethod
from loraprobe.merging._method import EVERY_SPACE

F64 = torch.float64


@functools.cache
def merged(method: MergeMethod, space: str | None) -> Adapter:
    """The merge of the planted adapters, which many laws compare others with."""
    return run(method, space, planted(method), WEIGHTS)


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
    return distance(merged(method, space), run(method, space, turned, WEIGHTS))


def homogeneity(method: MergeMethod, space: str | None) -> float:
    """c times every delta gives c times the result, for c > 0."""
    adapters = planted(method)
    louder = [rewritten(a, lambda _, u: u.scaled(2.5)) for a in adapters]
    return distance(run(method, space, louder, WEIGHTS), merged(method, space), factor=2.5)


OF_DELTAS = [spec for spec in EVERY_SPEC if not isinstance(METHODS.make(spec), FactorMethod)]
LAWS = {law.__name__: law for law in (identity, order, gauge, homogeneity)}


# The order of adapters for every spec, the other laws for every method.
CASES = [(spec, "order") for spec in EVERY_SPEC]
CASES += [(name, law) for name in METHODS.names() for law in LAWS if law != "order"]


@pytest.mark.parametrize(("name", "law"), CASES)
def test_a_declared_law_holds_and_an_undeclared_one_fails(name, law):
    method = METHODS.make(name)
    assert method.laws <= LAWS.keys() and method.lossless <= SPACES.keys()
    errors = {space: LAWS[law](method, space) for space in spaces(method)}
    if law in method.laws:
        assert max(errors.values()) < (1e-12 if law == "order" else HOLDS), (
            f"{name} declares {law} but breaks it: {errors}"
        )
    else:
        # One space is enough: a lone adapter's core is diagonal, so pruning half spares it.
        assert max(errors.values()) > FAILS, f"{name} obeys {law}, so declare it: {errors}"


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


def modules_of(method: MergeMethod, space: str | None, adapters: list, weights) -> dict:
    """The merged modules, none where everything cancels."""
    try:
        return dict(run(method, space, adapters, weights).modules)
    except UsageError as error:
        assert "zero in every module" in str(error)
        return {}


@pytest.mark.parametrize("planted_as", [planted, hard_to_order])
@pytest.mark.parametrize("spec", EVERY_SPEC)
def test_the_order_in_which_adapters_are_given_changes_no_bit(spec, planted_as):
    """The adapters in reverse, so that every two change places."""
    method = METHODS.make(spec)
    adapters, whole = planted_as(method), planted_as is planted
    weights = (WEIGHTS if whole else WEIGHTS_THAT_CANCEL)[: len(adapters)]
    for space in spaces(method):
        first = merged(method, space).modules if whole else None
        first = first or modules_of(method, space, adapters, weights)
        other = modules_of(method, space, adapters[::-1], weights[::-1])
        assert other.keys() == first.keys()
        for path, update in other.items():
            assert torch.equal(update.A, first[path].A), (space, path)
            assert torch.equal(update.B, first[path].B), (space, path)


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


@pytest.mark.parametrize("space", [s for s in SPACES if s != "full"])
@pytest.mark.parametrize("spec", OF_DELTAS)
def test_lossless_means_the_same_as_in_full(spec, space):
    method = METHODS.make(spec)
    adapters = planted(method)
    whole = merged(method, "full")
    error = distance(whole, merged(method, space))
    for path, update in whole.modules.items():  # which itself is the bare function on the deltas
        if method.takes_weights and space in method.lossless:
            zero = torch.zeros(update.out_features, update.in_features, dtype=F64)
            deltas = [a.modules[path].delta() if path in a.modules else zero for a in adapters]
            bare = method(torch.stack(deltas), torch.tensor(WEIGHTS[: len(deltas)], dtype=F64))
            assert float((update.delta() - bare).norm()) < HOLDS * float(bare.norm())
    if space in method.lossless:
        assert error < HOLDS
    else:
        assert error > FAILS, "it loses nothing there: declare it, and it will run there"
    assert method.default_space() == ("core" if "core" in method.lossless else "full")


# Random input: shapes, ranks, dtypes, scalings, numbers of adapters, missing modules. Changes that
# floating point does not round (a factor of two, a permutation of components, powers of two between
# A and B) leave a method no excuse: what it declares must hold to the last few bits, also in bf16,
# unless rounding inside decides which entries it keeps.

DTYPES = (torch.float32, torch.bfloat16, torch.float16, F64)
DRAWS = settings(  # four draws for each method and test, the same in every run; no shrinking
    max_examples=4, derandomize=True, phases=[Phase.explicit, Phase.generate]
)


@dataclass(frozen=True)
class Case:
    """The input of a merge: adapters, a weight for each, and the space."""

    method: MergeMethod
    space: str | None
    adapters: tuple[Adapter, ...]
    weights: tuple[float, ...]

    @property
    def single(self) -> bool:
        """Whether the matrices are float32 inside: dense ones of no float64 adapter."""
        double = any(a.dtype == F64 for a in self.adapters)
        return self.space == "full" and "core" not in self.method.lossless and not double

    def merged(self, adapters: list[Adapter] | None = None, **options) -> Merged:
        """The merge, in float64 by default; a draw that cancels is another draw."""
        options = {"weights": self.weights, "space": self.space, "dtype": F64, "seed": 3} | options
        try:
            return merge(adapters or self.adapters, self.method, allow=["no-effect"], **options)
        except UsageError as error:
            assert "zero in every module" in str(error)
            assume(False)
            raise


Part = tuple[int, int, float, torch.dtype]  # rank, seed, scaling, dtype


@st.composite
def drawn(
    draw: st.DrawFn, most: int, equal: bool, places: list[str | None]
) -> tuple[list[tuple[int, int]], list[list[Part]], list[float], str | None]:
    """Shapes of 1 or 2 modules, the parts of 1 to `most` adapters there (rank 0: missing), weights,
    a space. Plain numbers: what is made of them here would count as drawn from chance."""
    n, side = draw(st.integers(1, most)), st.integers(1, 9)
    shapes = draw(st.lists(st.tuples(side, side), min_size=1, max_size=2))
    common = draw(st.integers(1, 4))
    adapters = []
    for i in range(n):
        dtype, scaling = (
            draw(st.sampled_from(DTYPES)),
            draw(st.sampled_from((0.25, 1.0, 2.0, -0.5))),
        )
        ranks = draw(st.lists(st.integers(0, 4), min_size=len(shapes), max_size=len(shapes)))
        if equal:
            ranks = [common] * len(shapes)
        ranks[i % len(ranks)] = max(1, ranks[i % len(ranks)])  # every adapter does something
        adapters.append([(r, draw(st.integers(0, 999)), scaling, dtype) for r in ranks])
    weights = draw(st.lists(st.sampled_from((0.25, 0.5, 1.0, 1.5)), min_size=n, max_size=n))
    return shapes, adapters, weights, draw(st.sampled_from(places))


def case(data: st.DataObject, name: str, most: int = 4) -> Case:
    """Builds the case that was drawn."""
    method = METHODS.make(name)
    most = min(most, 4 if takes(method, 3) else 2)
    shapes, adapters, weights, space = data.draw(
        drawn(most, isinstance(method, FactorMethod), spaces(method))
    )
    built = []
    for i, parts in enumerate(adapters):
        modules = {
            f"layers.{m}.up": random_update(out, inp, r, seed, scaling, dtype)
            for m, ((out, inp), (r, seed, scaling, dtype)) in enumerate(
                zip(shapes, parts, strict=True)
            )
            if r
        }
        built.append(adapter_of(f"a{i}", modules))
    return Case(method, space, tuple(built), tuple(weights))


def deltas(merged: Merged) -> dict[str, torch.Tensor]:
    return {path: dense(update) for path, update in merged.adapter.modules.items()}


def apart(one: Merged, other: Merged, factor: float = 1.0) -> float:
    return distance(one.adapter, other.adapter, factor)


@pytest.mark.parametrize("name", METHODS.names())
@DRAWS
@given(data=st.data())
def test_a_merge_is_finite_complete_and_no_larger_than_allowed(name, data):
    it = case(data, name)
    merged = it.merged(dtype=None)
    widest = merged.adapter.dtype
    assert all(torch.promote_types(a.dtype, widest) == widest for a in it.adapters)
    assert set(merged.adapter.layout) == {p for a in it.adapters for p in a.layout}
    for path, update in merged.adapter.modules.items():
        assert bool(torch.isfinite(update.A).all() and torch.isfinite(update.B).all())
        held = sum(a.layout[path].rank for a in it.adapters if path in a.layout)
        assert 1 <= update.rank <= min(held, update.out_features, update.in_features)
        assert update.scaling == 1.0
    assert 0 <= merged.compression_error <= 1 and merged.rounding_error < 0.02
    if it.space is not None and it.method.lossless == EVERY_SPACE:
        assert merged.compression_error < 1e-6  # the sum of the ranks is enough


@pytest.mark.parametrize("name", METHODS.names())
@DRAWS
@given(data=st.data())
def test_compression_error_agrees_with_dense_algebra(name, data):
    """Cut module by module to the singular values that a rank leaves out."""
    it = case(data, name)
    whole, rank = it.merged(rank=9), data.draw(st.integers(1, 6))
    cut = it.merged(rank=rank)
    close = 1e-4 if it.single else 1e-6
    assert whole.compression_error < close
    lost = total = gap = 0.0
    kept = deltas(cut)
    for path, matrix in deltas(whole).items():
        values = torch.linalg.svdvals(matrix)
        total += float(values.square().sum())
        lost += float(values[rank:].square().sum())
        gap += float((matrix - kept[path]).square().sum())
        assert cut.adapter.modules[path].rank <= rank
    assert cut.compression_error == pytest.approx((lost / total) ** 0.5, abs=close)
    assert (gap / total) ** 0.5 == pytest.approx((lost / total) ** 0.5, abs=close)


@pytest.mark.parametrize("name", METHODS.names())
@DRAWS
@given(data=st.data())
def test_declared_laws_hold_on_random_adapters(name, data):
    it = case(data, name)
    once, laws = it.merged(), it.method.laws
    close = 1e-5 if it.single else 1e-6
    turned = data.draw(st.permutations(range(len(it.adapters))))
    if "homogeneity" in laws:
        louder = [rewritten(a, lambda _, u: u.scaled(2.0)) for a in it.adapters]
        assert apart(it.merged(louder), once, 2.0) < close
    if "order" in laws:
        weights = [it.weights[i] for i in turned]
        other = it.merged([it.adapters[i] for i in turned], weights=weights)
        assert apart(other, once) < close
    if "gauge" in laws:
        assert apart(it.merged([rewritten(a, exchanged) for a in it.adapters]), once) < close
    if it.space in it.method.lossless - {"full"}:
        assert apart(it.merged(space="full"), once) < 1e-5
    if "identity" in laws:
        alone = it.merged([it.adapters[0]], weights=[1.0])
        expected = {p: u.to(F64).delta() for p, u in it.adapters[0].modules.items()}
        for path, matrix in deltas(alone).items():
            assert float((matrix - expected[path]).norm()) <= close * float(matrix.norm())


def exchanged(_: str, update: LowRank) -> LowRank:
    """Components in reverse, each with powers of two moved from A to B: exact in every dtype."""
    powers = torch.tensor([2.0 ** (i % 3 - 1) for i in range(update.rank)])
    A = (update.A * powers[:, None]).flip(0).to(update.A.dtype)
    B = (update.B / powers).flip(1).to(update.B.dtype)
    return LowRank(A, B, update.scaling)


@pytest.mark.parametrize("name", METHODS.names())
@DRAWS
@given(data=st.data())
def test_equal_adapters_merge_to_that_adapter(name, data):
    """The same direction, as long as one to n of them; where they share it with nobody."""
    it = case(data, name, most=1)
    n = data.draw(st.integers(2, 4 if takes(it.method, 3) else 2))
    twins = [adapter_of(f"t{i}", dict(it.adapters[0].modules)) for i in range(n)]
    one = it.merged(weights=None, rank=9)  # at full rank: n adapters may hold n times the rank
    all_ = it.merged(twins, weights=None, rank=9)
    ours, theirs = deltas(one), deltas(all_)
    for path in ours:
        a, b = ours[path].flatten(), theirs[path].flatten()
        whole = float(twins[0].modules[path].norm())
        if float(a.norm()) < 1e-6 * whole and float(b.norm()) < 1e-6 * whole:
            continue  # all entries were dropped
        if name == "iso_cts":  # counts directions of the sum and of each once: fewer than one has
            assert all_.adapter.modules[path].rank <= one.adapter.modules[path].rank
            continue
        length = float(b.norm() / a.norm())
        assert float(a @ b) > (1 - 1e-5) * float(a.norm() * b.norm())
        assert 1 - 1e-5 < length < n + 1e-5
