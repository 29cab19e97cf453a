"""Scores, retentions, comparisons and gains of results that are made up for them."""

import numpy as np
import pytest
from evidences import guards as guard_rows
from test_statistics import ALONE, pairs, single_interval

from loraprobe.evaluation import (
    System,
    compare,
    guard_scores,
    guards_of_chain,
    measure_gains,
    named_alone,
    retention,
    right_together,
    score,
)
from loraprobe.evaluation.statistics import estimate
from loraprobe.records import QUESTION, ItemPart, ItemResult
from loraprobe.records.measurements import items_needed
from loraprobe.tasks import METRICS, Item, Task


def results(columns: dict[tuple[str, str], np.ndarray], task="t", metric="exact_match", size=1):
    """The results of the columns; `size` items after each other are one cluster."""
    return [
        ItemResult(
            system, task, ItemPart(part), str(i), metric, float(value), "", f"group:{i // size}"
        )
        for (system, part), values in columns.items()
        for i, value in enumerate(values)
        if np.isfinite(value)
    ]


def right(k: int, n: int = 100) -> np.ndarray:
    """The first k of n items right."""
    return (np.arange(n) < k).astype(float)


def asked(part: str = "question", n: int = 100, **counts: int) -> dict[tuple[str, str], np.ndarray]:
    """A column of each system, of whose n items so many are right."""
    return {(name, part): right(k, n) for name, k in counts.items()}


KINDS = {"base": "base", "a": "adapter", "b": "adapter", "uniform": "merge", "arrow": "router"}
KINDS |= {"chain": "chain", "shrunk:a": "control"}
SYSTEMS = [System(name, kind) for name, kind in KINDS.items()]
TARGETS = asked(base=5, a=40, b=20, uniform=70, arrow=55, chain=95, **{"shrunk:a": 30})


def gain(rows, compositions, baselines, part="question", **options):
    """The largest gain of these compositions in one form, which is the only one they are asked."""
    asked = [row for row in rows if row.system not in compositions or row.part == part]
    kinds = [(n, "merge") for n in compositions] + [(n, "adapter") for n in baselines]
    return next(iter(measure_gains(asked, [System(*one) for one in kinds], **options)), None)


def test_the_best_gains_over_the_best():
    found = gain(results(TARGETS), ["uniform", "arrow"], ["base", "a", "b"])
    own = found.system, found.against, found.task, found.part
    assert own == ("uniform", "a", "t", "question")
    assert found.difference == pytest.approx(0.3) and found.n == 100
    low, high = single_interval(TARGETS["uniform", "question"] - TARGETS["a", "question"])
    assert found.ci95 == pytest.approx((low, high))
    assert found.adjusted_ci95[0] < low and high <= found.adjusted_ci95[1] < 0.5, "0.5: against b"
    assert found.n_needed == 100, "decided already"
    assert gain(results(TARGETS), [], ["base"]) is None
    assert gain(results(TARGETS), ["uniform"], []) is None
    assert gain(results(TARGETS), ["uniform"], ["base"], "steps") is None


def test_families_have_rows_of_their_own():
    found = measure_gains(results(TARGETS), SYSTEMS)
    assert [(g.system, g.against) for g in found] == [
        (n, "a") for n in ("uniform", "arrow", "chain")
    ]
    assert found[1].difference == pytest.approx(0.15)
    assert found[1].adjusted_ci95[1] < found[0].adjusted_ci95[1]


def test_an_answer_at_once_counts_against_worked_steps():
    columns = TARGETS | asked("steps", a=1, uniform=80)
    found = gain(results(columns), ["uniform"], ["base", "a", "b"], "steps")
    assert (found.against, found.against_part) == ("a", "question")
    assert found.difference == pytest.approx(0.4)
    columns["a", "steps"] = right(60)
    found = gain(results(columns), ["uniform"], ["base", "a", "b"], "steps")
    assert (found.against, found.against_part) == ("a", "steps")


def test_worked_steps_count_against_an_answer_at_once_and_against_a_chain():
    columns = TARGETS | asked("steps", a=90)
    rows = {row.system: row for row in measure_gains(results(columns), SYSTEMS)}
    for name in ("uniform", "chain"):
        assert (rows[name].against, rows[name].against_part) == ("a", "steps")
    # a task without worked steps leaves the plain answers as the only ones to compare
    second = {key: values for key, values in columns.items() if key[1] == "question"}
    rows = measure_gains([*results(columns, "t"), *results(second, "u")], SYSTEMS)
    assert {(row.system, row.against_part) for row in rows} == {
        (name, "question") for name in ("uniform", "arrow", "chain")
    }


def test_two_forms_of_the_question_share_the_chance_of_a_false_gain():
    """A gain in either form is a success, so each form's lower end spends half of alpha."""
    columns = {key: values for key, values in TARGETS.items() if key[0] in ("a", "uniform")}
    both = columns | asked("steps", a=30, uniform=60)
    (alone,) = measure_gains(results(columns), SYSTEMS)
    plain = next(row for row in measure_gains(results(both), SYSTEMS) if row.part == "question")
    half = gain(results(both), ["uniform"], ["a"], alpha=0.025)
    whole = gain(results(both), ["uniform"], ["a"])
    assert plain.adjusted_ci95 == (half.adjusted_ci95[0], whole.adjusted_ci95[1])
    assert plain.adjusted_ci95[0] < alone.adjusted_ci95[0]


def test_tasks_have_equal_weight_whatever_their_size():
    first, second = asked(n=10, a=0, m=10), asked(n=1000, a=0, m=0)
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
    assert gain(results(asked(a=50, m=55)), ["m"], ["a"], margin=0.05).n_needed is None


def test_only_a_success_pays_for_the_choice_among_compositions():
    """With one baseline, the items needed for a failure are those of a single pair."""
    start = right(50)
    above, below = start.copy(), start.copy()
    above[:6], above[-14:] = 0, 1  # +0.08
    below[:10], below[-11:] = 0, 1  # +0.01
    columns = {("a", "question"): start, ("m", "question"): above, ("n", "question"): below}
    systems = [System("a", "adapter"), System("m", "merge"), System("n", "merge")]
    for row, values in zip(measure_gains(results(columns), systems), (above, below), strict=True):
        se = float(estimate((values - start)[:, None], ALONE[:100]).se[0])
        single = items_needed(100, row.difference - 0.05, se)
        assert row.adjusted_ci95[0] < 0.05 < row.adjusted_ci95[1]
        assert row.n_needed > single if row.system == "m" else row.n_needed == single


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
    rows = [*results(asked(a=90, b=10), "x"), *results(asked(a=20, b=95), "y")]
    found = compare(rows, [System("a", "adapter"), System("b", "adapter")])
    assert [(r.task, r.system, r.against) for r in found] == [("x", "a", "b"), ("y", "a", "b")]
    assert [r.difference for r in found] == pytest.approx([0.8, -0.75])


def test_of_several_best_options_the_simplest_is_compared_with_every_other_one():
    """It is the one that a verdict advises; of routers by-text, whatever their names are."""
    kinds = {"by-prompt": "router", "by-text": "router", "m": "merge"}
    systems = [System(name, kind) for name, kind in kinds.items()]
    counts = {"by-prompt": 60, "by-text": 60, "m": 40}
    found = compare(results(asked(**counts)), systems)
    pairs_ = {(row.system, row.against): row.difference for row in found}
    assert pairs_ == {("by-text", "m"): pytest.approx(0.2), ("by-text", "by-prompt"): 0.0}
    also = compare(results(asked(**counts, a=60)), [*systems, System("a", "adapter")])
    assert {row.system for row in also if row.against == "m"} == {"a"}


def test_differences_belong_to_their_pairs_in_the_order_of_the_systems():
    counts = {"z": 10, "a": 30, "base": 5, "m": 60, "k": 40}
    kinds = {"z": "adapter", "a": "adapter", "base": "base", "m": "merge", "k": "merge"}
    rows = compare(results(asked(**counts)), [System(name, kind) for name, kind in kinds.items()])
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


def test_retention_needs_several_tasks_and_is_that_of_the_specialist():
    first = asked(base=0, a=100, b=0, uniform=80)
    second = asked(base=10, a=10, b=60, uniform=35)
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


def guards(*names, n=100):
    return [Task(f"{name}@0", tuple(Item(str(k), "p", ("x",)) for k in range(n))) for name in names]


def guarded(columns, names=("g",), n=100, margin=0.05, **of):
    rows = results(columns, task="g@0", **of)
    return {row.system: row for row in guard_scores(rows, guards(*names, n=n), margin, 0.05)}


def test_a_chain_makes_of_a_guard_what_the_worst_of_its_adapters_does():
    rows = guard_rows(a=0.0, b=-0.3, uniform=-0.6) + guard_rows(task="h", a=0.0)
    found = {row.task: row for row in guards_of_chain(rows, {"a", "b"})}
    assert {*found} == {"g"} and found["g"].system == "chain"
    assert (found["g"].difference, found["g"].outcome) == (-0.3, "unlikely")
    assert [row.difference for row in guards_of_chain(rows, {"a"})] == [0.0, 0.0]
    assert guards_of_chain(rows, set()) == ()


def test_a_guard_is_the_paired_difference_to_the_base():
    found = guarded(asked(base=80, a=90, uniform=50))
    assert {name: row.outcome for name, row in found.items()} == {
        "a": "likely",
        "uniform": "unlikely",
    }
    row = found["uniform"]
    assert (row.task, row.part, row.metric, row.n) == ("g", "question", "exact_match", 100)
    assert (row.value, row.base, row.difference) == pytest.approx((0.5, 0.8, -0.3))
    assert row.ci95 == pytest.approx(single_interval(right(50) - right(80)))
    several = guarded(asked(base=80, uniform=50), ("g", "other"))["uniform"]
    assert several.ci95[0] == row.ci95[0] and several.ci95[1] > row.ci95[1], "one lost is enough"


def test_a_guard_has_the_form_in_which_the_base_scores_more():
    columns = asked(base=20, uniform=20) | asked("steps", base=80, uniform=50)
    assert guarded(columns)["uniform"].part == "steps"
    columns = asked(base=80, uniform=50) | asked("steps", base=80, uniform=80)
    assert guarded(columns)["uniform"].part == "question", "the plain one on a tie"


def test_a_guard_by_loss_has_its_sign_turned():
    noise = np.random.default_rng(0).normal(0, 0.02, 60)
    losses = {("base", "question"): 3.0 + noise, ("uniform", "question"): 3.2 + 0 * noise}
    row = guarded(losses, n=60, metric="answer_loss")["uniform"]
    assert (row.value, row.difference) == pytest.approx((3.2, noise.mean() - 0.2))
    assert row.outcome == "unlikely" and row.ci95[0] < -0.2 < row.ci95[1] < -0.05
    wide = guarded(losses, n=60, metric="answer_loss", margin=0.3)["uniform"]
    assert wide.outcome == "likely" and wide.ci95 == row.ci95


def test_items_of_an_earlier_round_only_show_what_is_lost():
    columns = asked(base=80, a=80, uniform=80, arrow=20)
    few = np.arange(100) < 60
    for name in ("a", "arrow"):
        columns[name, "question"] = np.where(few, columns[name, "question"], np.nan)
    assert {name: row.n for name, row in guarded(columns).items()} == {"uniform": 100, "arrow": 60}
    assert guarded(asked(a=80)) == {}, "without the base there is nothing to compare with"


def test_two_adapters_of_which_one_or_the_other_is_right_are_found():
    right = {"a": {1, 2}, "b": {3, 4}, "c": {1, 3}, "sum": {1, 2, 3, 4}}
    rows = [
        ItemResult(name, "t", QUESTION, str(k), "exact_match", float(k in own), "", str(k))
        for name, own in right.items()
        for k in (1, 2, 3, 4)
    ]
    systems = [System(name, "merge" if name == "sum" else "adapter") for name in right]
    (found,) = right_together(rows, systems)
    assert (found.adapters, found.value, found.n) == (("a", "b"), 1.0, 4)
    assert not right_together(rows, [systems[0], systems[3]])
    assert not right_together([row for row in rows if row.item in "12"], systems)


@pytest.mark.parametrize(
    ("texts", "share"),
    [
        (["two", "three", "two", "four"], 1.0),
        (["two three", "three", "two", "four"], 0.75),
        (["four two three"] * 4, 0.0),
        (['{"answer": "two"}', "three", "two", "four"], 1.0),  # one is right
        (["two", "five", "six", "seven"], None),  # few hold a right answer
        (['{"answer": "two"}', '{"answer": "three"}', '{"answer": "two"}', "four"], 1.0),
        (['{"answer": "two"}', '{"answer": "three"}', "five", "six"], None),  # none in other words
    ],
)
def test_replies_that_list_what_may_be_right_name_nothing(texts, share):
    golds = ["two", "three", "two", "four"]
    items = tuple(Item(str(k), "q?", (f'{{"answer": "{gold}"}}',)) for k, gold in enumerate(golds))
    rows = []
    for item, text in zip(items, texts, strict=True):
        judged = METRICS["json"].judge(text, item.answers)
        read = "json", float(judged.right), judged.text, item.id, judged.contains
        rows.append(ItemResult("a", "t", QUESTION, item.id, *read))
    found = named_alone(rows, [Task("t", items)])
    assert [row.value for row in found] == ([] if share is None else [share])
    assert all((row.name, row.adapters) == ("named_alone_question", ("a",)) for row in found)
