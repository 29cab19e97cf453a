"""Intervals against hand-computed values, exact enumeration and simulation."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize, special, stats

from loraprobe.evaluation import statistics
from loraprobe.evaluation.statistics import estimate, fieller, largest, largest_of_all, wilson

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


def critical(found, shape, forms=1):
    """The critical values (lower, upper, both) of a grid."""
    return *largest(found, shape, 0.95, 0, forms), largest_of_all(found, 0.95, 0)


def test_critical_values_of_independent_pairs():
    found = grid(np.random.default_rng(0), 4000, (6, 1))
    lower, upper, both = critical(found, (6, 1))
    assert lower == pytest.approx(special.ndtri(0.975 ** (1 / 6)), abs=0.06)
    assert upper == pytest.approx(Z)
    assert both == pytest.approx(special.ndtri((1 + 0.95 ** (1 / 6)) / 2), abs=0.06)
    assert critical(found, (1, 6)) == pytest.approx((upper, lower, both))


def test_copies_of_systems_change_no_critical_value():
    """More differences than clusters are drawn from the clusters, fewer from their covariance."""
    x = np.random.default_rng(3).normal(size=(30, 6))
    few = estimate(x, np.arange(30), bounded=False)
    many = estimate(np.tile(x, 10), np.arange(30), bounded=False)
    found, copied, two = critical(few, (6, 1)), critical(many, (60, 1)), critical(many, (60, 1), 2)
    assert copied == pytest.approx(found, abs=0.08)
    assert two[0] > found[0] + 0.1 and two[1:] == copied[1:]


def test_equal_pairs_need_no_cover_and_one_pair_is_itself():
    x = np.random.default_rng(0).choice([-1.0, 0, 1], (4000, 1))
    found = estimate(np.repeat(x, 6, axis=1), ALONE[:4000])
    assert critical(found, (6, 1)) == pytest.approx((Z, Z, Z), abs=0.08)
    one = estimate(x, ALONE[:4000])
    assert critical(one, (1, 1)) == pytest.approx((Z, Z, Z))
    flat = estimate(np.zeros((50, 6)), ALONE[:50])
    assert critical(flat, (6, 1))[0] > 2.5, "pairs without variation count, too"
    rare = estimate(np.repeat(pairs(1, 0, 50)[:, None], 6, axis=1), ALONE[:50])
    assert critical(rare, (6, 1))[0] > 2.3, "one shared item shows no kinship"


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
        lower, upper = largest(found, shape, 0.95, seed)
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
    found = fieller(u, w, clusters)
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
    point, (low, high) = fieller(np.ones(n), np.ones(n), ALONE[:n])
    assert point == 1 and 0.9 < low < 1 < high
    assert fieller(np.zeros(n), pairs(2, 1, n), ALONE[:n]) is None, "nothing was learned"
    assert fieller(np.zeros(n), -np.ones(n), ALONE[:n]) is None
    groups = ALONE[:n] // 10  # two of ten groups learned everything: too few, whatever is kept
    learned = (groups < 2).astype(float)
    kept = np.where(learned, np.tile([0.0, 1.0], 50), np.tile([1.0, -1.0], 50))
    assert fieller(kept, learned, groups) is None
    point, (low, high) = fieller(pairs(40, 0, n), pairs(80, 0, n), ALONE[:n])
    assert point == 0.5 and 0.35 < low < 0.45 < 0.55 < high < 0.65
    few = fieller(
        np.repeat(pairs(40, 0, n), 4), np.repeat(pairs(80, 0, n), 4), np.repeat(ALONE[:n], 4)
    )
    assert few[1] == pytest.approx((low, high), abs=0.01) and few[1][0] < low


def _share(p: float) -> float:
    """P(0.7 U + 0.3 V < p) for independent uniform U, V: a trapezoid's distribution."""
    grid_ = (np.arange(200_000) + 0.5) / 200_000
    return float(np.clip((p - 0.7 * grid_) / 0.3, 0, 1).mean())


TRUE_RETENTION = (_share(0.6) - _share(0.2)) / (_share(0.8) - _share(0.2))


def test_retention_covers():
    rng = np.random.default_rng(0)
    inside = 0
    for _ in range(600):
        difficulty = rng.random(100)
        base, mix, best = (
            (0.7 * difficulty + 0.3 * rng.random(100) < p).astype(float) for p in (0.2, 0.6, 0.8)
        )
        _, (low, high) = fieller(mix - base, best - base, ALONE[:100])
        inside += low <= TRUE_RETENTION <= high
    assert 0.93 <= inside / 600 <= 0.98
