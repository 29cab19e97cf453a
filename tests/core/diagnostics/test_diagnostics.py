"""Diagnostics against dense float64 algebra, planted structure, laws and real adapters."""

import math

import pytest
import torch
from making import LLAMA, base_of, generator, planted_pair, random_adapter, random_update, regauged
from merges import merge
from shelves import DOMAINS

from loraprobe.adapters import Adapter, adapter_of
from loraprobe.diagnostics import DIAGNOSTICS, Diagnosis, diagnose
from loraprobe.errors import UsageError
from loraprobe.lora.lowrank import LowRank
from loraprobe.registry import name_of

F64 = torch.float64


def dense(adapter: Adapter, paths) -> list[torch.Tensor]:
    """All deltas in float64, zero where the adapter lacks the module."""
    found = []
    for path in paths:
        if path in adapter.modules:
            one = adapter.modules[path]
            found.append(one.scaling * one.B.double() @ one.A.double())
        else:
            found.append(torch.zeros(LLAMA[path], dtype=F64))
    return found


def values(adapters, name, *, module=None, **keywords):
    """(adapters, side, rank) -> value of one diagnostic."""
    rows = diagnose(adapters, only=[name], per_module=module is not None, **keywords)
    return {(m.adapters, m.side, m.rank): m for m in rows if m.module == module}


def close(one, other):
    """Equal up to rounding; None equals None."""
    return one is other is None or one == pytest.approx(other, rel=1e-9, abs=1e-9)


def value(adapters, name, side=None, rank=None, **keywords):
    key = (tuple(a.name for a in adapters), side, rank)
    return values(adapters, name, **keywords)[key].value


@pytest.fixture(scope="module")
def trio() -> list[Adapter]:
    """Three adapters of mixed ranks and scalings; the third lacks half of the modules."""
    paths = list(LLAMA)
    half = {path: LLAMA[path] for path in paths[::2]}
    return [
        random_adapter("a", rank=4, seed=1, scaling=0.5, dtype=F64),
        random_adapter("b", rank={p: 1 + i % 5 for i, p in enumerate(paths)}, seed=2, dtype=F64),
        random_adapter("c", shapes=half, rank=3, seed=3, scaling=2.0, dtype=F64),
    ]


@pytest.mark.parametrize("step", [1, -1])
@pytest.mark.parametrize("method", ["uniform", "ties"])
def test_a_merge_shows_the_modules_that_diagnose_reads(trio, method, step):
    given = trio[::step]
    seen = Diagnosis(given, per_module=True)
    merge(given, method, visitor=seen.visit)
    wanted = {
        (m.name, m.adapters, m.module, m.side, m.rank): m for m in diagnose(given, per_module=True)
    }
    for one in seen.measurements():
        other = wanted.pop((one.name, one.adapters, one.module, one.side, one.rank))
        assert close(one.value, other.value) and close(one.chance, other.chance)
    assert not wanted


def test_whole_adapters_are_one_block_diagonal_update(trio):
    blocks = [torch.block_diag(*dense(a, LLAMA)) for a in trio]
    first, second, third = blocks
    for adapter, block in zip(trio, blocks, strict=True):
        assert value([adapter], "norm") == pytest.approx(float(block.norm()), rel=1e-10)
    pairs = {("a", "b"): (first, second), ("a", "c"): (first, third), ("b", "c"): (second, third)}
    rows = {(m.name, m.adapters, m.side): m.value for m in diagnose(trio)}
    for names, (one, other) in pairs.items():
        inner, norms = (one * other).sum(), one.norm() * other.norm()
        assert rows["cosine", names, None] == pytest.approx(float(inner / norms), abs=1e-12)
        ratio = float(max(one.norm(), other.norm()) / min(one.norm(), other.norm()))
        assert rows["norm_ratio", names, None] == pytest.approx(ratio, rel=1e-10)
        energy = (one + other).norm() ** 2 / (one.norm() ** 2 + other.norm() ** 2)
        assert rows["energy_ratio", names, None] == pytest.approx(float(energy), rel=1e-10)


def test_overlap_of_the_whole_is_that_of_the_block_diagonal_spaces(trio):
    def spaces(adapter):
        U, S, Vh = torch.linalg.svd(torch.block_diag(*dense(adapter, LLAMA)))
        k = int((S > 1e-9).sum())
        return {"in": Vh[:k].T, "out": U[:, :k]}

    ranks = [spaces(a) for a in trio]
    for i, j in ((0, 1), (0, 2), (1, 2)):
        found = values([trio[i], trio[j]], "subspace_overlap")
        for side in ("in", "out"):
            # min(k1, k2) is taken module by module, so compare the sums of squared cosines.
            row = found[(trio[i].name, trio[j].name), side, None]
            shared = (ranks[i][side].T @ ranks[j][side]).square().sum()
            smaller = sum(min(adapter_rank(trio[i], p), adapter_rank(trio[j], p)) for p in LLAMA)
            assert row.value == pytest.approx(float(shared) / smaller, rel=1e-8)
            assert row.chance is not None and 0 < row.chance < 1


def adapter_rank(adapter: Adapter, path: str) -> int:
    return adapter.layout[path].rank if path in adapter.layout else 0


def test_chance_is_what_random_adapters_show():
    """The mean over many random pairs meets the stated chance level."""
    shapes = {"m.0.x": (24, 16), "m.1.x": (16, 40)}
    overlaps, cosines, rows = {"in": [], "out": []}, [], {}
    for seed in range(60):
        pair = [random_adapter(n, shapes, rank=3, seed=2 * seed + i) for i, n in enumerate("ab")]
        rows = {(m.name, m.side): m for m in diagnose(pair, only=["cosine", "subspace_overlap"])}
        cosines.append(rows["cosine", None].value)
        for side in ("in", "out"):
            overlaps[side].append(rows["subspace_overlap", side].value)
    for side, seen in overlaps.items():
        expected = rows["subspace_overlap", side].chance
        assert sum(seen) / len(seen) == pytest.approx(expected, rel=0.12)
    rms = math.sqrt(sum(c * c for c in cosines) / len(cosines))
    assert rms == pytest.approx(rows["cosine", None].chance, rel=0.3)


@pytest.mark.parametrize("cosine", [-0.8, 0.0, 0.3, 0.999])
def test_planted_cosine_and_norms_are_found(cosine):
    pair = planted_pair(cosine, norms=(2.0, 5.0))
    assert value(pair, "cosine") == pytest.approx(cosine, abs=1e-12)
    assert value(pair, "norm_ratio") == pytest.approx(2.5)
    assert value([pair[0]], "norm") == pytest.approx(2.0)
    assert value([pair[0]], "stable_rank") == pytest.approx(3.0)  # flat spectrum of rank 3
    assert value(pair, "energy_ratio") == pytest.approx(1 + 2 * cosine * 10 / 29)


def test_planted_overlap_is_found():
    """Two row spaces that share 2 of 3 directions, column spaces that share none."""
    Q = torch.linalg.qr(torch.randn(20, 20, dtype=F64, generator=generator(0))).Q
    P = torch.linalg.qr(torch.randn(24, 24, dtype=F64, generator=generator(1))).Q
    a = LowRank(Q[:3], P[:, :3], 1.0)
    b = LowRank(Q[1:4], P[:, 3:6], 7.0)
    pair = [adapter_of("a", {"m": regauged(a, 1)}), adapter_of("b", {"m": regauged(b, 2)})]
    found = values(pair, "subspace_overlap")
    assert found[("a", "b"), "in", None].value == pytest.approx(2 / 3)
    assert found[("a", "b"), "out", None].value == pytest.approx(0, abs=1e-9)
    assert found[("a", "b"), "in", None].chance == pytest.approx(3 / 20)
    assert found[("a", "b"), "out", None].chance == pytest.approx(3 / 24)


def test_dead_and_repeated_components_count_as_dead():
    adapter = random_adapter(rank=4, dtype=F64)
    modules = dict(adapter.modules)
    path, other = list(modules)[:2]
    modules[path].B[:, 2] = 0.0
    modules[other].A[3] = 2 * modules[other].A[0]
    planted = adapter_of("a", modules)
    assert value([planted], "dead_rank") == 2
    assert value([planted], "dead_rank", module=path) == 1


def test_stable_rank_of_the_whole_weighs_modules_by_energy(trio):
    weighted = energy = 0.0
    for delta in dense(trio[1], LLAMA):
        S = torch.linalg.svdvals(delta)
        weighted += float(S.square().sum() ** 2 / S[0] ** 2)
        energy += float(S.square().sum())
    assert value([trio[1]], "stable_rank") == pytest.approx(weighted / energy, rel=1e-9)


def test_truncation_loses_what_the_dense_svd_says(trio):
    a, b = trio[:2]
    for names, deltas in {
        ("a",): dense(a, LLAMA),
        ("a", "b"): [(x + y) / 2 for x, y in zip(dense(a, LLAMA), dense(b, LLAMA), strict=True)],
    }.items():
        found = values([a, b], "truncation_error")
        assert sorted(rank for n, _, rank in found if n == names) == [1, 2, 4, 5]
        for rank in (1, 2, 4, 5):
            lost = total = 0.0
            for delta in deltas:
                S = torch.linalg.svdvals(delta)
                lost += float(S[rank:].square().sum())
                total += float(S.square().sum())
            expected = math.sqrt(lost / total)
            assert found[names, None, rank].value == pytest.approx(expected, rel=1e-6, abs=1e-7)


def test_cross_terms_are_the_error_of_adding_factors_apart():
    """Against the product that peft's "linear" builds, sqrt(weight * scaling) on each factor."""
    pair = [random_adapter("a", seed=1, scaling=0.5), random_adapter("b", seed=2, scaling=3.0)]
    wrong = exact = 0.0
    for path in LLAMA:
        one, other = (a.modules[path].to(F64) for a in pair)
        A = sum(math.sqrt(0.5 * u.scaling) * u.A for u in (one, other))
        B = sum(math.sqrt(0.5 * u.scaling) * u.B for u in (one, other))
        mean = (one.delta() + other.delta()) / 2
        wrong += float((B @ A - mean).square().sum())
        exact += float(mean.square().sum())
    assert value(pair, "cross_terms") == pytest.approx(math.sqrt(wrong / exact), rel=1e-6)


def test_cross_terms_vanish_for_updates_without_common_directions():
    A, B = torch.eye(6, dtype=F64), torch.eye(8, dtype=F64)
    same = [adapter_of(n, {"m": LowRank(A[:2], B[:, :2], 1.0)}) for n in "ab"]
    assert value(same, "cross_terms") == pytest.approx(1.0)  # twice the delta instead of once
    apart = [
        adapter_of("a", {"m": LowRank(A[:2], B[:, :2], 1.0)}),
        adapter_of("b", {"other": LowRank(A[:2], B[:, :2], 1.0)}),
    ]
    assert value(apart, "cross_terms") == 0.0


def test_cross_terms_are_undefined_for_unequal_ranks():
    pair = [random_adapter("a", rank=4), random_adapter("b", rank=3)]
    assert value(pair, "cross_terms") is None


def test_one_seed_is_seen_in_A_and_in_no_random_pair():
    shapes = {f"m.{k}.x": (32, 64) for k in range(4)}
    a, b = (random_adapter(n, shapes, seed=i) for i, n in enumerate("ab"))
    moved = {
        path: LowRank(
            one.A + 0.1 * torch.randn(one.A.shape, generator=generator(5)), b.modules[path].B
        )
        for path, one in a.modules.items()
    }
    twin = adapter_of("twin", moved)
    (seeded,) = values([a, twin], "shared_initialisation").values()
    (random,) = values([a, b], "shared_initialisation").values()
    assert seeded.value == pytest.approx(1 / math.sqrt(1.01), abs=0.01)
    assert abs(random.value) < 4 * random.chance
    assert random.chance == pytest.approx(1 / math.sqrt(64 * 16))


def test_sampled_sign_conflict_lies_within_its_error_of_the_exact_one():
    pair = [random_adapter(n, rank=2, seed=i) for i, n in enumerate("ab")]
    conflict = active = 0
    for x, y in zip(dense(pair[0], LLAMA), dense(pair[1], LLAMA), strict=True):
        conflict += int((x * y < 0).sum())
        active += int((x * y != 0).sum())
    scores = []
    for seed in range(60):
        row = values(pair, "sign_conflict", seed=seed)[("a", "b"), None, None]
        scores.append((row.value - conflict / active) / row.stderr)
    spread = math.sqrt(sum(s * s for s in scores) / len(scores))
    assert 0.75 < spread < 1.3  # the stated error is the true one
    again = values(pair, "sign_conflict", seed=3)[("a", "b"), None, None]
    assert again == values(pair, "sign_conflict", seed=3)[("a", "b"), None, None]
    assert again != values(pair, "sign_conflict", seed=4)[("a", "b"), None, None]


def test_planted_sign_conflict_ignores_entries_where_one_delta_is_zero():
    """Rows 0-1 agree, row 2 conflicts, row 3 is touched by one adapter only."""
    A = torch.ones(1, 5, dtype=F64)
    one = LowRank(A, torch.tensor([[1.0], [1.0], [1.0], [1.0]], dtype=F64), 1.0)
    other = LowRank(A, torch.tensor([[1.0], [2.0], [-1.0], [0.0]], dtype=F64), 1.0)
    pair = [adapter_of("a", {"m": one}), adapter_of("b", {"m": other})]
    row = values(pair, "sign_conflict:entries=20000")[("a", "b"), None, None]
    assert abs(row.value - 1 / 3) < 4 * row.stderr
    # Of one module the error is the binomial one of the places where both are not zero.
    binomial = math.sqrt(1 / 3 * 2 / 3 / (20000 * 3 / 4))
    assert row.stderr == pytest.approx(binomial, rel=0.03)


def random_weights(seed=0):
    places = enumerate(LLAMA.items())
    return {p: torch.randn(shape, generator=generator(seed + i)) for i, (p, shape) in places}


def test_relative_norm_is_against_the_weights_that_are_touched(trio):
    weights = random_weights()
    base = base_of(weights)
    deltas = dense(trio[2], LLAMA)
    touched = [weights[p] for p in trio[2].layout]
    expected = math.sqrt(
        sum(float(d.square().sum()) for d in deltas)
        / sum(float(w.double().square().sum()) for w in touched)
    )
    found = values(trio, "relative_norm", base=base)
    assert found[("c",), None, None].value == pytest.approx(expected, rel=1e-6)
    path = next(iter(trio[2].layout))
    del weights[path]
    assert value([trio[2]], "relative_norm", base=base) is None
    assert "relative_norm" not in {m.name for m in diagnose([trio[2]])}
    with pytest.raises(UsageError, match="--base"):
        diagnose([trio[2]], only=["relative_norm"])


def test_planted_intruders_are_counted():
    """W0 is diagonal with a flat floor; an update along a mixture of many axes is an intruder."""
    n = 32
    W0 = torch.diag(torch.linspace(1.0, 0.5, n))
    base = base_of({"m": W0})
    mixed = torch.ones(n, 1) / math.sqrt(n)
    axis = torch.eye(n)[:, :1]
    intruder = adapter_of("intruder", {"m": LowRank(mixed.T, mixed, 20.0)})
    tame = adapter_of("tame", {"m": LowRank(axis.T, axis, 20.0)})
    found = values([intruder, tame], "intruder_dimensions:k=1", base=base)
    assert found[("intruder",), None, None].value == 1
    assert found[("tame",), None, None].value == 0
    assert "intruder_dimensions" not in {m.name for m in diagnose([tame], base=base)}
    added = diagnose([tame], base=base, on_demand=["intruder_dimensions"])
    assert "intruder_dimensions" in {m.name for m in added} > {"norm"}


@pytest.mark.parametrize("diagnostic", list(DIAGNOSTICS), ids=lambda d: d.__name__)
def test_law_of_basis(diagnostic, trio):
    """A diagnostic depends on the basis exactly if it does not declare that it is independent."""
    name = name_of(diagnostic)
    # Equal ranks, one seed for A: nothing here is None for want of a definition.
    pair = [random_adapter("a", seed=1, dtype=F64), random_adapter("b", seed=1, dtype=F64)]
    other = {
        p: LowRank(u.A, random_update(*LLAMA[p], 4, i, 1.0, F64).B, 0.5)
        for i, (p, u) in enumerate(pair[1].modules.items())
    }
    pair[1] = adapter_of("b", other)
    changed = [
        adapter_of(
            a.name, {p: regauged(u, 7 * i + k) for k, (p, u) in enumerate(a.modules.items())}
        )
        for i, a in enumerate(pair)
    ]
    base = base_of(random_weights())
    before, after = (diagnose(x, only=[name], base=base, per_module=True) for x in (pair, changed))
    assert len(before) == len(after) > 0
    same = all(
        x.value == pytest.approx(y.value, rel=1e-7, abs=1e-7)
        and x.chance == pytest.approx(y.chance)
        for x, y in zip(before, after, strict=True)
    )
    assert all(x.value is not None for x in before)
    assert same == (name not in ("shared_initialisation", "cross_terms"))


@pytest.mark.parametrize("diagnostic", list(DIAGNOSTICS), ids=lambda d: d.__name__)
def test_law_of_order(diagnostic, trio):
    """The order of adapters changes nothing but the order of names."""
    name = name_of(diagnostic)
    base = base_of(random_weights())
    forth = diagnose(trio, only=[name], base=base, per_module=True)
    back = diagnose(trio[::-1], only=[name], base=base, per_module=True)

    def keyed(rows):
        return {(frozenset(m.adapters), m.module, m.side, m.rank): m.value for m in rows}

    there, here = keyed(forth), keyed(back)
    assert there.keys() == here.keys()
    assert all(close(there[key], here[key]) for key in there)


def test_rows_of_modules_follow_the_layers_and_the_modules_touched(trio):
    rows = diagnose(trio, per_module=True)
    assert rows[0].module is None
    modules = [m.module for m in rows if m.module and m.name == "norm" and m.adapters == ("a",)]
    assert sorted(modules) == sorted(LLAMA) and len(modules) == len(LLAMA)
    for row in rows:
        for adapter in trio:
            if row.module is not None and adapter.name in row.adapters:
                assert row.module in adapter.layout
    alone = diagnose(trio[:1])
    assert {m.adapters for m in alone} == {("a",)}


def test_all_pairs_of_many_agree_with_each_pair_alone():
    many = [random_adapter(f"x{i}", rank=1 + i % 3, seed=i, dtype=F64) for i in range(5)]
    together = {(m.name, m.adapters, m.side, m.rank): m.value for m in diagnose(many)}
    for i, j in ((0, 1), (2, 4)):
        for row in diagnose([many[i], many[j]]):
            key = (row.name, row.adapters, row.side, row.rank)
            if key in together and row.value is not None:
                assert together[key] == pytest.approx(row.value, rel=1e-7, abs=1e-8)


def test_what_cannot_be_measured_is_none_and_harms_nothing_else(trio):
    broken = dict(random_adapter(dtype=F64).modules)
    path = list(broken)[3]
    broken[path].A[0, 0] = float("nan")
    rows = diagnose([trio[0], adapter_of("nan", broken)], per_module=True)
    for row in rows:
        if "nan" in row.adapters and row.module in (None, path):
            assert row.value is None, row
        else:
            assert row.value is not None or row.name == "cross_terms", row
    nothing = adapter_of("0", {p: LowRank(u.A, 0 * u.B, 1.0) for p, u in trio[0].modules.items()})
    rows = {(m.name, m.side): m.value for m in diagnose([trio[0], nothing]) if len(m.adapters) == 2}
    assert rows["cosine", None] is None and rows["norm_ratio", None] is None
    assert rows["energy_ratio", None] == pytest.approx(1.0)
    other = adapter_of("shape", {p: random_update(5, 6, 2, 0) for p in LLAMA})
    rows = diagnose([trio[0], other])
    assert all(m.value is None for m in rows if len(m.adapters) == 2)
    assert all(m.value is not None for m in rows if len(m.adapters) == 1)
    assert diagnose([]) == () or all(m.value == 0 for m in diagnose([]))


def test_unknown_names_and_options_are_refused():
    adapter = random_adapter()
    with pytest.raises(UsageError, match="did you mean 'cosine'"):
        diagnose([adapter], only=["cosin"])
    with pytest.raises(UsageError, match="no option"):
        diagnose([adapter], only=["sign_conflict:density=2"])
    with pytest.raises(UsageError, match="at least 2"):
        diagnose([adapter], only=["sign_conflict:entries=1"])


def test_observers_see_every_module_once(trio):
    seen = []
    diagnose(trio, observe=lambda grams: seen.extend(grams.paths))
    assert sorted(seen) == sorted(LLAMA)


def test_adapters_as_people_publish_them_show_the_independent_figures(shelf):
    trio = shelf.adapters(*DOMAINS)
    rows = {(m.name, m.adapters, m.side): m for m in diagnose(trio)}
    for pair, expected in {
        ("legal", "medical"): shelf.apart,
        ("legal", "sports"): shelf.apart,
        ("medical", "sports"): shelf.cosine,
    }.items():
        assert rows["cosine", pair, None].value == pytest.approx(expected, abs=shelf.near)
        a, b = (next(x for x in trio if x.name == n) for n in pair)
        inner = first = second = 0.0
        for path in a.modules:
            x, y = a.modules[path].to(F64).delta(), b.modules[path].to(F64).delta()
            inner += float((x * y).sum())
            first, second = first + float(x.square().sum()), second + float(y.square().sum())
        assert rows["cosine", pair, None].value == pytest.approx(
            inner / math.sqrt(first * second), rel=1e-8
        )
    # medical and sports were initialised from one seed, and that is why they overlap on A.
    assert rows["shared_initialisation", ("medical", "sports"), None].value > 0.9
    assert abs(rows["shared_initialisation", ("legal", "sports"), None].value) < 0.05 + shelf.near
    assert rows["subspace_overlap", ("medical", "sports"), "in"].value > 0.9
    assert rows["subspace_overlap", ("medical", "sports"), "out"].value < 0.4
