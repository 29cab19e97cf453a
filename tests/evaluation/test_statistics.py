"""Intervals against hand-computed values, exact enumeration and simulation; gains and retention."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize, special, stats

from loraprobe.evaluation import (
    System,
    compare,
    gains,
    retention,
    score,
    statistics,
)
from loraprobe.evaluation.statistics import estimate, largest, ratio, wilson
from loraprobe.records import ItemResult
from loraprobe.records.estimates import items_needed

Z = 1.959963984540054
ALONE = np.arange(10_000)


def single_interval(x, clusters=None, level=0.95):
    x = np.asarray(x, dtype=float)
    found = estimate(x[:, None], ALONE[: len(x)] if clusters is None else np.asarray(clusters))
    low, high = found.interval(found.critical(level))
    return float(low[0]), float(high[0])


def pairs(plus: int, minus: int, n: int) -> np.ndarray:
    return np.array([1.0] * plus + [-1.0] * minus + [0.0] * (n - plus - minus))


# One pair


def log_likelihood(counts, shares):
    return float(special.xlogy(counts, shares).sum())


@pytest.mark.parametrize(
    ("plus", "minus", "n"), [(10, 3, 50), (0, 0, 30), (1, 0, 40), (60, 20, 90), (29, 31, 60)]
)
def test_the_ends_have_the_likelihood_ratio_of_the_level(plus, minus, n):
    """Half an observation is added each way; the constrained maximum is found numerically."""
    counts = np.array([plus + 0.5, minus + 0.5, n - plus - minus])
    best = log_likelihood(counts, counts / counts.sum())
    for end in single_interval(pairs(plus, minus, n)):
        span = (max(0.0, -end), (1 - end) / 2)

        def loss(lost, end=end):
            return -log_likelihood(counts, np.array([lost + end, lost, 1 - 2 * lost - end]))

        inner = optimize.minimize_scalar(loss, bounds=span, options={"xatol": 1e-9})
        assert 2 * (best + inner.fun) == pytest.approx(Z**2, abs=1e-4)


def test_the_standard_error_is_that_of_bonett_and_price():
    # n = 50, 10 items gained, 3 lost: p12 = 11/52, p21 = 4/52, difference 7/52,
    # variance (15/52 - 49/2704) / 52 = (780 - 49) / 140608
    found = estimate(pairs(10, 3, 50)[:, None], ALONE[:50])
    assert found.center == pytest.approx([7 / 52])
    assert found.se == pytest.approx([(731 / 140_608) ** 0.5])


def test_it_behaves_where_nothing_differs_and_where_all_does():
    low, high = single_interval(pairs(0, 0, 100))
    assert low == pytest.approx(-high) and 0.02 < high < 0.04
    low, high = single_interval(pairs(100, 0, 100))
    assert high == 1 and 0.9 < low < 1
    assert single_interval(pairs(0, 100, 100)) == pytest.approx((-1, -low))


def exact(n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """All counts (gained, lost) of n items, and the ends of their intervals."""
    counts = np.array([(a, b) for a in range(n + 1) for b in range(n + 1 - a)])
    x = np.stack([pairs(a, b, n) for a, b in counts], axis=1)
    found = estimate(x, ALONE[:n])
    return counts, *found.interval(found.critical(0.95))


def chances(cells: np.ndarray, d: float, lost: float) -> np.ndarray:
    """How probable each (gained, lost, same) is where `lost` and `lost + d` are their shares."""
    shares = np.clip([lost + d, lost, 1 - 2 * lost - d], 0, 1)
    return stats.multinomial.pmf(cells, cells[0].sum(), shares / shares.sum())


def misses(n: int, differences: np.ndarray) -> np.ndarray:
    """Exact probability that the interval lies (above, below) the true difference, over the
    whole range of discordance: [cases, 2]."""
    counts, low, high = exact(n)
    cells = np.column_stack([counts, n - counts.sum(1)])
    found = []
    for d in differences:
        for lost in np.linspace(0, (1 - d) / 2, 9):
            weights = chances(cells, d, lost)
            found.append([weights[low > d + 1e-12].sum(), weights[high < d - 1e-12].sum()])
    return np.array(found)


def test_exact_coverage_of_forty_items():
    missed = misses(40, np.array([0.0, 0.05, 0.1, 0.3, 0.6, 0.9]))
    assert missed.sum(1).max() < 0.07, "coverage is nowhere below 0.93"
    assert missed.sum(1).mean() < 0.05
    assert missed.sum(1).max() > 0.02, "and the interval is not just wide"


@pytest.mark.slow
def test_exact_wrong_decisions_at_a_hundred_items():
    counts, low, high = exact(100)
    cells = np.column_stack([counts, 100 - counts.sum(1)])
    for d, wrong in [(0.04, low > 0.05), (0.06, high < 0.05)]:
        for lost in [*np.linspace(0, 0.1, 21), *np.linspace(0.12, (1 - d) / 2, 12)]:
            weights = chances(cells, d, lost)
            assert weights[wrong].sum() <= 0.03


def test_losses_get_students_interval():
    x = np.random.default_rng(0).normal(0.3, 1, 12)
    found = estimate(x[:, None], ALONE[:12], bounded=False)
    low, high = found.interval(found.critical(0.95))
    oracle = stats.ttest_1samp(x, 0).confidence_interval()
    assert (low[0], high[0]) == pytest.approx((oracle.low, oracle.high))
    assert statistics.mean_interval(x, ALONE[:12]) == pytest.approx((oracle.low, oracle.high))


# Clusters


@given(st.lists(st.sampled_from([-1.0, 0.0, 1.0]), min_size=3, max_size=40), st.integers(2, 6))
@settings(max_examples=60)
def test_copies_in_a_cluster_do_not_narrow_the_interval(values, copies):
    """k copies of every item in a cluster of their own: the same centre and standard error."""
    x = np.array(values)
    once = estimate(x[:, None], ALONE[: len(x)])
    often = estimate(np.repeat(x, copies)[:, None], np.repeat(ALONE[: len(x)], copies))
    assert often.center == pytest.approx(once.center)
    assert often.se == pytest.approx(once.se)
    assert often.n_effective == pytest.approx([len(x)])
    assert often.df == len(x) - 1 and once.df == np.inf
    share, plain = (np.repeat(x > 0, copies).astype(float), (x > 0).astype(float))
    narrow, wide = wilson(plain, ALONE[: len(x)]), wilson(share, np.repeat(ALONE[: len(x)], copies))
    assert wide[0] <= narrow[0] + 1e-9 and wide[1] >= narrow[1] - 1e-9


def test_clusters_only_widen_and_their_names_do_not_matter():
    rng = np.random.default_rng(1)
    x = rng.choice([-1.0, 0, 0, 1], 120)
    plain = single_interval(x)
    shuffled = single_interval(x, rng.permutation(120))
    assert shuffled == plain
    alike = np.argsort(np.argsort(x)) // 6  # items of one sign share clusters
    low, high = single_interval(x, alike)
    assert low < plain[0] - 0.05 and high > plain[1] + 0.05
    assert single_interval(x, np.zeros(120, dtype=int)) == (-1, 1), "one cluster says nothing"
    assert wilson((x > 0).astype(float), np.zeros(120, dtype=int)) == (0, 1)


@pytest.mark.parametrize("hits", [[1, 0, 0, 1, 1], [1] * 7, [0] * 7])
def test_wilson_of_copied_items_takes_t_for_z(hits):
    x = np.array(hits * 3, dtype=float)
    clusters = np.array([f"person {i}" for i in range(len(hits))] * 3)
    t = stats.t.ppf(0.975, len(hits) - 1)
    oracle = stats.binomtest(sum(hits), len(hits)).proportion_ci(
        2 * stats.norm.cdf(t) - 1, method="wilson"
    )
    assert wilson(x, clusters) == pytest.approx((oracle.low, oracle.high))


def test_wilson_by_hand():
    assert wilson(np.ones(10), ALONE[:10]) == pytest.approx((10 / (10 + Z**2), 1))
    oracle = stats.binomtest(7, 20).proportion_ci(method="wilson")
    x = np.array([1.0] * 7 + [0.0] * 13)
    assert wilson(x, ALONE[:20]) == pytest.approx((oracle.low, oracle.high))


# Many pairs


def grid(rng, n, shape):
    return estimate(rng.choice([-1.0, 1.0], (n, shape[0] * shape[1])), ALONE[:n])


def test_critical_values_of_independent_pairs():
    found = grid(np.random.default_rng(0), 4000, (6, 1))
    lower, upper, both = largest(found, (6, 1), 0.95, seed=0)
    assert lower == pytest.approx(special.ndtri(0.975 ** (1 / 6)), abs=0.06)
    assert upper == pytest.approx(Z)
    assert both == pytest.approx(special.ndtri((1 + 0.95 ** (1 / 6)) / 2), abs=0.06)
    assert largest(found, (1, 6), 0.95, seed=0) == pytest.approx((upper, lower, both))


def test_copies_of_systems_change_no_critical_value():
    """More differences than clusters are drawn from the clusters, fewer from their covariance."""
    x = np.random.default_rng(3).normal(size=(30, 6))
    few = estimate(x, np.arange(30), bounded=False)
    many = estimate(np.tile(x, 10), np.arange(30), bounded=False)
    found = largest(few, (6, 1), 0.95, seed=0)
    assert largest(many, (60, 1), 0.95, seed=0) == pytest.approx(found, abs=0.08)
    assert largest(many, (60, 1), 0.95, 0, forms=2)[0] > found[0] + 0.1
    assert largest(many, (60, 1), 0.95, 0, forms=2)[1:] == largest(many, (60, 1), 0.95, 0)[1:]


def test_equal_pairs_need_no_cover_and_one_pair_is_itself():
    x = np.random.default_rng(0).choice([-1.0, 0, 1], (4000, 1))
    found = estimate(np.repeat(x, 6, axis=1), ALONE[:4000])
    assert largest(found, (6, 1), 0.95, seed=0) == pytest.approx((Z, Z, Z), abs=0.08)
    one = estimate(x, ALONE[:4000])
    assert largest(one, (1, 1), 0.95, seed=3) == pytest.approx((Z, Z, Z))
    flat = estimate(np.zeros((50, 6)), ALONE[:50])
    assert largest(flat, (6, 1), 0.95, seed=0)[0] > 2.5, "pairs without variation count, too"
    rare = estimate(np.repeat(pairs(1, 0, 50)[:, None], 6, axis=1), ALONE[:50])
    assert largest(rare, (6, 1), 0.95, seed=0)[0] > 2.3, "one shared item shows no kinship"


# Gains


def results(
    columns: dict[tuple[str, str], np.ndarray], task="t", metric="exact_match", groups=None
):
    return [
        ItemResult(
            system,
            task,
            part,
            str(i),
            metric,
            float(value),
            "",
            f"item:{i}" if groups is None else f"group:{groups[i]}",
        )
        for (system, part), values in columns.items()
        for i, value in enumerate(values)
        if np.isfinite(value)
    ]


def right(k: int, n: int = 100) -> np.ndarray:
    """The first k of n items right."""
    return (np.arange(n) < k).astype(float)


SYSTEMS = [
    System("base", "base"),
    System("a", "adapter"),
    System("b", "adapter"),
    System("uniform", "merge"),
    System("arrow", "router"),
    System("chain", "chain"),
    System("shrunk:a", "control"),
]
TARGETS = {
    ("base", "question"): right(5),
    ("a", "question"): right(40),
    ("b", "question"): right(20),
    ("uniform", "question"): right(70),
    ("arrow", "question"): right(55),
    ("chain", "question"): right(95),
    ("shrunk:a", "question"): right(30),
}


def gain(rows, compositions, baselines, part="question", **options):
    """The largest gain of these compositions in one form, which is the only one they are asked."""
    asked = [row for row in rows if row.system not in compositions or row.part == part]
    kinds = [(n, "merge") for n in compositions] + [(n, "adapter") for n in baselines]
    return next(iter(gains(asked, [System(*one) for one in kinds], **options)), None)


def test_the_best_gains_over_the_best():
    found = gain(results(TARGETS), ["uniform", "arrow"], ["base", "a", "b"])
    assert (found.system, found.against, found.task, found.part) == (
        "uniform",
        "a",
        "t",
        "question",
    )
    assert found.difference == pytest.approx(0.3) and found.n == 100
    low, high = single_interval(TARGETS["uniform", "question"] - TARGETS["a", "question"])
    assert found.ci95 == pytest.approx((low, high))
    assert found.adjusted_ci95[0] < low and high <= found.adjusted_ci95[1] < 0.5, "0.5: against b"
    assert found.n_needed == 100, "decided already"
    assert gain(results(TARGETS), [], ["base"]) is None
    assert gain(results(TARGETS), ["uniform"], []) is None
    assert gain(results(TARGETS), ["uniform"], ["base"], "steps") is None


def test_families_have_rows_of_their_own():
    found = gains(results(TARGETS), SYSTEMS)
    assert [(g.system, g.against) for g in found] == [
        ("uniform", "a"),
        ("arrow", "a"),
        ("chain", "a"),
    ]
    assert found[1].difference == pytest.approx(0.15)
    assert found[1].adjusted_ci95[1] < found[0].adjusted_ci95[1]


def test_an_answer_at_once_counts_against_worked_steps():
    columns = TARGETS | {("a", "steps"): right(1), ("uniform", "steps"): right(80)}
    found = gain(results(columns), ["uniform"], ["base", "a", "b"], "steps")
    assert (found.against, found.against_part) == ("a", "question")
    assert found.difference == pytest.approx(0.4)
    columns["a", "steps"] = right(60)
    found = gain(results(columns), ["uniform"], ["base", "a", "b"], "steps")
    assert (found.against, found.against_part) == ("a", "steps")


def test_worked_steps_count_against_an_answer_at_once_and_against_a_chain():
    columns = TARGETS | {("a", "steps"): right(90)}
    rows = {row.system: row for row in gains(results(columns), SYSTEMS)}
    for name in ("uniform", "chain"):
        assert (rows[name].against, rows[name].against_part) == ("a", "steps")
    # a task without worked steps leaves the plain answers as the only ones to compare
    second = {key: values for key, values in columns.items() if key[1] == "question"}
    rows = gains([*results(columns, "t"), *results(second, "u")], SYSTEMS)
    assert {(row.system, row.against_part) for row in rows} == {
        (name, "question") for name in ("uniform", "arrow", "chain")
    }


def test_two_forms_of_the_question_share_the_chance_of_a_false_gain():
    """A gain in either form is a success, so each form's lower end spends half of alpha."""
    columns = {key: values for key, values in TARGETS.items() if key[0] in ("a", "uniform")}
    both = columns | {("a", "steps"): right(30), ("uniform", "steps"): right(60)}
    (alone,) = gains(results(columns), SYSTEMS)
    plain = next(row for row in gains(results(both), SYSTEMS) if row.part == "question")
    half = gain(results(both), ["uniform"], ["a"], alpha=0.025)
    whole = gain(results(both), ["uniform"], ["a"])
    assert plain.adjusted_ci95 == (half.adjusted_ci95[0], whole.adjusted_ci95[1])
    assert plain.adjusted_ci95[0] < alone.adjusted_ci95[0]


def test_tasks_have_equal_weight_whatever_their_size():
    first = {("a", "question"): right(0, 10), ("m", "question"): right(10, 10)}
    second = {("a", "question"): right(0, 1000), ("m", "question"): right(0, 1000)}
    found = gain([*results(first, "t"), *results(second, "u")], ["m"], ["a"])
    assert found.task is None and found.difference == pytest.approx(0.5) and found.n == 1010
    alone = gain(results(first, "t"), ["m"], ["a"])
    wide = alone.ci95[1] - alone.ci95[0]
    assert found.ci95[1] - found.ci95[0] > 0.4 * wide
    twice = gain([*results(first, "t"), *results(first, "u")], ["m"], ["a"])
    assert twice.ci95[1] - twice.ci95[0] < alone.ci95[1] - alone.ci95[0]
    both = estimate(np.tile(pairs(6, 2, 20), 2)[:, None], ALONE[:40], ALONE[:40] // 20)
    one = estimate(pairs(6, 2, 20)[:, None], ALONE[:20])
    assert both.center == pytest.approx(one.center) and both.n == [40]
    assert both.se == pytest.approx(one.se / 2**0.5)
    missing = [r for r in results(second, "u") if r.system != "m"]
    assert gain([*results(first, "t"), *missing], ["m"], ["a"]) is None


def test_as_many_items_as_needed_decide():
    for plus, minus in ((12, 5), (8, 8), (8, 0)):
        change = pairs(plus, minus, 60)
        columns = {
            ("a", "question"): (change < 0).astype(float),
            ("m", "question"): (change > 0).astype(float),
        }
        found = gain(results(columns), ["m"], ["a"])
        assert found.adjusted_ci95[0] < 0.05 < found.adjusted_ci95[1]
        assert found.n_needed > 60
        copies = -(-found.n_needed // 60)
        more = {key: np.tile(values, copies) for key, values in columns.items()}
        decided = gain(results(more), ["m"], ["a"]).adjusted_ci95
        assert decided[0] > 0.05 or decided[1] < 0.05
        fewer = {key: np.tile(values, max(1, copies // 4)) for key, values in columns.items()}
        open_ = gain(results(fewer), ["m"], ["a"]).adjusted_ci95
        assert open_[0] < 0.05 < open_[1]
    at_margin = {("a", "question"): right(50), ("m", "question"): right(55)}
    assert gain(results(at_margin), ["m"], ["a"], margin=0.05).n_needed is None


def test_only_a_success_pays_for_the_choice_among_compositions():
    """With one baseline, the items needed for a failure are those of a single pair."""
    start = right(50)
    above, below = start.copy(), start.copy()
    above[:6], above[-14:] = 0, 1  # +0.08
    below[:10], below[-11:] = 0, 1  # +0.01
    columns = {("a", "question"): start, ("m", "question"): above, ("n", "question"): below}
    systems = [System("a", "adapter"), System("m", "merge"), System("n", "merge")]
    for row, values in zip(gains(results(columns), systems), (above, below), strict=True):
        se = float(estimate((values - start)[:, None], ALONE[:100]).se[0])
        single = items_needed(100, row.difference - 0.05, se)
        assert row.adjusted_ci95[0] < 0.05 < row.adjusted_ci95[1]
        assert row.n_needed > single if row.system == "m" else row.n_needed == single


def test_groups_widen_a_gain():
    columns = {("a", "question"): right(40), ("m", "question"): right(60)}
    plain = gain(results(columns), ["m"], ["a"]).adjusted_ci95
    grouped = gain(results(columns, groups=np.arange(100) // 5), ["m"], ["a"]).adjusted_ci95
    assert grouped[0] < plain[0] and grouped[1] > plain[1]


def test_a_lower_loss_is_a_gain():
    rng = np.random.default_rng(0)
    columns = {("a", "question"): rng.normal(2, 0.1, 50), ("m", "question"): rng.normal(1, 0.1, 50)}
    rows = results(columns, metric="answer_loss")
    found = gain(rows, ["m"], ["a"])
    assert found.difference == pytest.approx(1, abs=0.1) and found.adjusted_ci95[0] > 0.9
    systems = [System("a", "adapter"), System("m", "merge")]
    (row,) = compare(rows, systems)
    assert row.difference == found.difference
    assert score(rows, systems)[0].value == pytest.approx(2, abs=0.1)


def test_compositions_are_compared_with_everything_they_have_to_beat():
    rows = [row for row in compare(results(TARGETS), SYSTEMS) if row.against_part is None]
    pairs_ = {(row.system, row.against) for row in rows}
    assert pairs_ == {
        (s, b) for s in ("uniform", "arrow", "chain") for b in ("base", "a", "b", "shrunk:a")
    }
    for row in rows:
        assert row.adjusted_ci95[0] < row.ci95[0] <= row.difference + 0.02
        assert row.adjusted_ci95[1] >= row.ci95[1]


def test_the_best_option_is_compared_with_every_other_one_in_both_forms():
    """One-call options and the chain; a control, and what was asked fewer items, are none."""
    few = right(60)[:50]
    columns = {**TARGETS, ("uniform", "steps"): right(98), ("a", "steps"): right(90)}
    rows = [*results(columns), *results({("sum", "question"): few})]
    systems = [*SYSTEMS, System("sum", "merge")]
    found = {(r.against, r.against_part): r for r in compare(rows, systems) if r.against_part}
    assert {(r.system, r.part) for r in found.values()} == {("uniform", "steps")}
    others = {c for c in columns if c != ("uniform", "steps") and c[0] != "shrunk:a"}
    assert found.keys() == others - {("a", "steps")}  # which is compared as a baseline already
    chain = found["chain", "question"]
    low, high = single_interval(columns["uniform", "steps"] - columns["chain", "question"])
    assert chain.difference == pytest.approx(0.03) and chain.ci95 == pytest.approx((low, high))
    assert chain.adjusted_ci95[0] < low and chain.adjusted_ci95[1] > high


def test_on_several_tasks_the_best_option_has_the_best_mean():
    one = {("a", "question"): right(90), ("b", "question"): right(10)}
    two = {("a", "question"): right(20), ("b", "question"): right(95)}
    rows = [*results(one, task="x"), *results(two, task="y")]
    found = compare(rows, [System("a", "adapter"), System("b", "adapter")])
    assert [(r.task, r.system, r.against) for r in found] == [("x", "a", "b"), ("y", "a", "b")]
    assert [r.difference for r in found] == pytest.approx([0.8, -0.75])


def test_differences_belong_to_their_pairs_in_the_order_of_the_systems():
    counts = {"z": 10, "a": 30, "base": 5, "m": 60, "k": 40}
    kinds = {"z": "adapter", "a": "adapter", "base": "base", "m": "merge", "k": "merge"}
    columns = {(name, "question"): right(count) for name, count in counts.items()}
    rows = compare(results(columns), [System(name, kind) for name, kind in kinds.items()])
    pairs_ = [(s, b) for s in ("m", "k") for b in ("z", "a", "base")]
    assert [(row.system, row.against) for row in rows] == [*pairs_, ("m", "k")]
    for row in rows:
        assert row.difference == pytest.approx((counts[row.system] - counts[row.against]) / 100)


def test_pairs_share_the_items_that_both_have():
    chain = right(95)
    chain[50:] = np.nan
    rows = compare(results(TARGETS | {("chain", "question"): chain}), SYSTEMS)
    found = {(row.system, row.against): row for row in rows}
    assert found["chain", "a"].n == 50 and found["uniform", "a"].n == 100
    assert found["chain", "a"].difference == pytest.approx(0.2)


def test_the_same_seed_gives_the_same_interval():
    first, again = (gain(results(TARGETS), ["uniform", "arrow"], ["base", "a"]) for _ in range(2))
    assert first == again


def world(rng, n, means, share, groups=None):
    """Right and wrong [n, systems] with these means; a latent difficulty, common to all systems
    with weight `share`; items of a group share most of theirs."""
    groups = ALONE[:n] if groups is None else groups
    common, own = (
        0.8**0.5 * rng.standard_normal((groups.max() + 1, k))[groups]
        + 0.2**0.5 * rng.standard_normal((n, k))
        for k in (1, len(means))
    )
    latent = share**0.5 * common + (1 - share) ** 0.5 * own
    return (latent < special.ndtri(means)).astype(float)


def decide(rng, n, compositions, baselines, repeats, groups=None, margin=0.05):
    """Shares of (lower end above the truth, upper end below it, likely, unlikely)."""
    truth = max(compositions) - max(baselines)
    shape = (len(compositions), len(baselines))
    counts = np.zeros(4)
    for seed in range(repeats):
        v = world(rng, n, [*compositions, *baselines], 0.3, groups)
        x = (v[:, : shape[0], None] - v[:, None, shape[0] :]).reshape(n, -1)
        found = estimate(x, ALONE[:n] if groups is None else groups)
        lower, upper, _ = largest(found, shape, 0.95, seed)
        low = found.interval(lower)[0].reshape(shape).min(1).max()
        high = found.interval(upper)[1].reshape(shape).min(1).max()
        counts += [low > truth + 1e-12, high < truth - 1e-12, low > margin, high < margin]
    return counts / repeats


@pytest.mark.parametrize("truth", [0.0, 0.04, 0.06, 0.4])
def test_small_simulation_of_decisions(truth, monkeypatch):
    monkeypatch.setattr(statistics, "DRAWS", 500)
    rng = np.random.default_rng(0)
    many, single_ = [0.3 + truth] * 6, [0.3, 0.05, 0.05]
    too_high, _, likely, unlikely = decide(rng, 100, many, single_, 80)
    assert too_high <= 0.06
    _, too_low, likely2, unlikely2 = decide(rng, 100, many[:1], [0.3] * 3, 80)
    assert too_low <= 0.06
    if truth < 0.05:
        assert max(likely, likely2) <= 0.06
    else:
        assert max(unlikely, unlikely2) <= 0.06
    if truth == 0.4:
        assert min(likely, likely2) > 0.95, "a large gain is found"


GROUPS = {
    "none": None,
    "25 x 4": np.repeat(np.arange(25), 4),
    "unequal": np.repeat(np.arange(40), [1] * 20 + [3] * 15 + [7] * 5),
}


@pytest.mark.slow
@pytest.mark.parametrize("groups", GROUPS)
@pytest.mark.parametrize("truth", [0.04, 0.06])
@pytest.mark.parametrize(
    ("many", "few"),
    [
        ([0.3] * 8, [0.3, 0.05, 0.05]),
        ([0.3], [0.3] * 3),
        ([0.3] * 4, [0.3] * 3),
        ([0.02], [0.02]),
        ([0.9] * 4, [0.9, 0.5]),
        ([0.3], [0.3]),
    ],
)
def test_wrong_decisions_stay_rare(groups, truth, many, few, monkeypatch):
    """At most 3 % of decisions are wrong 0.01 away from the margin, up to simulation error."""
    monkeypatch.setattr(statistics, "DRAWS", 1000)
    which = GROUPS[groups]
    n = 100 if which is None else len(which)
    rng = np.random.default_rng(7)
    shares = decide(rng, n, [m + truth for m in many], few, 1000, which)
    wrong = shares[2] if truth < 0.05 else shares[3]
    assert wrong <= 0.03 + 3 * (0.03 * 0.97 / 1000) ** 0.5
    assert max(shares[:2]) <= 0.06


# Retention


@given(st.integers(0, 2**32 - 1), st.sampled_from([1, 3]))
@settings(max_examples=60)
def test_retention_agrees_with_the_paired_intervals(seed, copies):
    """r = 1 lies outside exactly if composition and specialist differ, r = 0 if composition and
    base do: the interval inverts Bonett and Price's."""
    rng = np.random.default_rng(seed)
    base, mix, best = ((rng.random(40) < p).astype(float) for p in (0.1, rng.random(), 0.9))
    u, w = np.repeat(mix - base, copies), np.repeat(best - base, copies)
    clusters = np.repeat(ALONE[:40], copies)
    found = ratio(u, w, clusters)
    assert found is not None
    point, (low, high) = found
    assert point == pytest.approx((mix - base).mean() / (best - base).mean())
    at = estimate((u - point * w)[:, None], clusters)
    if copies == 1 and at.n_effective[0] == pytest.approx(40):
        for r in (0.0, 1.0):
            paired = estimate((u - r * w)[:, None], clusters)
            reach = Z * paired.se[0]
            below, above = paired.center[0] - reach, paired.center[0] + reach
            inside = below <= 0 <= above
            if min(abs(below), abs(above)) > 1e-9:
                assert inside == (low <= r <= high)


def test_retention_behaves_at_its_ends():
    n = 100
    point, (low, high) = ratio(np.ones(n), np.ones(n), ALONE[:n])
    assert point == 1 and 0.9 < low < 1 < high
    assert ratio(np.zeros(n), pairs(2, 1, n), ALONE[:n]) is None, "nothing was learned"
    assert ratio(np.zeros(n), -np.ones(n), ALONE[:n]) is None
    groups = ALONE[:n] // 10  # two of ten groups learned everything: too few, whatever is kept
    learned = (groups < 2).astype(float)
    kept = np.where(learned, np.tile([0.0, 1.0], 50), np.tile([1.0, -1.0], 50))
    assert ratio(kept, learned, groups) is None
    point, (low, high) = ratio(pairs(40, 0, n), pairs(80, 0, n), ALONE[:n])
    assert point == 0.5 and 0.35 < low < 0.45 < 0.55 < high < 0.65
    few = ratio(
        np.repeat(pairs(40, 0, n), 4), np.repeat(pairs(80, 0, n), 4), np.repeat(ALONE[:n], 4)
    )
    assert few[1] == pytest.approx((low, high), abs=0.01) and few[1][0] < low


def test_retention_covers():
    rng = np.random.default_rng(0)
    inside = 0
    for _ in range(600):
        difficulty = rng.random(100)
        base, mix, best = (
            (0.7 * difficulty + 0.3 * rng.random(100) < p).astype(float) for p in (0.2, 0.6, 0.8)
        )
        _, (low, high) = ratio(mix - base, best - base, ALONE[:100])
        inside += low <= TRUE_RETENTION <= high
    assert 0.93 <= inside / 600 <= 0.98


def _share(p: float) -> float:
    """P(0.7 U + 0.3 V < p) for independent uniform U, V: a trapezoid's distribution."""
    grid_ = (np.arange(200_000) + 0.5) / 200_000
    return float(np.clip((p - 0.7 * grid_) / 0.3, 0, 1).mean())


TRUE_RETENTION = (_share(0.6) - _share(0.2)) / (_share(0.8) - _share(0.2))


def test_retention_needs_several_tasks_and_is_that_of_the_specialist():
    first = {
        ("base", "question"): right(0),
        ("a", "question"): right(100),
        ("b", "question"): right(0),
        ("uniform", "question"): right(80),
    }
    second = {
        ("base", "question"): right(10),
        ("a", "question"): right(10),
        ("b", "question"): right(60),
        ("uniform", "question"): right(35),
    }
    both = [*results(first, "t"), *results(second, "u")]
    kept = {(s.system, s.task): s.retention for s in score(both, SYSTEMS)}
    assert kept["uniform", "t"] == pytest.approx(0.8)
    assert kept["uniform", "u"] == pytest.approx(0.5)
    assert kept["a", "t"] is None and kept["a", "u"] == pytest.approx(0)
    assert kept["base", "t"] is None
    assert {s.retention for s in score(results(first, "t"), SYSTEMS)} == {None}
    point, (low, high) = retention(both, SYSTEMS, "uniform", "t")
    assert low < point < high
    assert retention(both, SYSTEMS[1:], "uniform", "t") is None, "no base, no retention"
