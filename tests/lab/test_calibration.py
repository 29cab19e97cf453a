"""The calibration: cases, fit, left-out groups, page, on planted cases and on the stored ones."""

import dataclasses
import gzip
import json
import math
import random
from pathlib import Path

import numpy as np
import pytest
from extensions.forecast.documents import DOCUMENT, calibration, calibration_of
from first_rounds import SMALL
from scipy import integrate
from typer.testing import CliRunner

from loraprobe.cli import app
from loraprobe.extensions.forecast.probability import Probabilities, shipped_calibration
from loraprobe.records import ItemResult
from loraprobe.verdict import decide
from loraprobe.verdict.evidence import TaskKind
from loraprobe_lab.calibration import cases as cased
from loraprobe_lab.calibration import collect as run
from loraprobe_lab.calibration import fit as fitting

UNIT = 0.05
PLANTED = {"intercept": 0.4, "baseline": -1.5, "spread": 0.5}


def synthetic(bases=10, sets=8, seed=0, spread=PLANTED["spread"], error=1e-3):
    """Cases whose t(gain) is logistic around the planted centre; errors are small."""
    rng = random.Random(seed)
    cases = []
    for b in range(bases):
        for s in range(sets):
            baseline = rng.random()
            for method in cased.METHODS:
                centre = PLANTED["intercept"] + PLANTED["baseline"] * baseline
                u = rng.uniform(1e-6, 1 - 1e-6)
                gain = UNIT * math.sinh(centre + spread * math.log(u / (1 - u)))
                where = {"base": f"base-{b:02d}", "world": f"base-{b:02d}", "adapter_set": f"t{s}"}
                where["architecture"] = ("llama", "gpt2")[b % 2]
                where["scenario"] = ("two-hop", "math", "keep-both")[s % 3]
                figures = {"baseline": baseline, "gain": gain}
                figures["ci95"] = (gain - 1.96 * error, gain + 1.96 * error)
                cases.append(case(method=method, **where, **figures))
    return cases


def case(**changed):
    """A case with ordinary values for all fields that are not given."""
    where = {"base": "base-00", "architecture": "llama", "scenario": "two-hop", "world": "base-00"}
    asked = {"adapters": 2, "tasks": 1, "hops": 2, "metric": "exact_match", "part": "question"}
    measured = {"baseline": 0.2, "gain": 0.3, "ci95": (0.2, 0.4), "n": 300}
    values = {"adapter_set": "t0", "method": "uniform", **where, **asked, **measured}
    return cased.Case(**{**values, **changed})


STORED = Path(__file__).parents[2] / "examples" / "calibration" / "cases.jsonl.gz"


@pytest.fixture(scope="module")
def cases():
    return synthetic()


@pytest.fixture(scope="module")
def stored():
    return cased.read_cases(STORED)


# cases


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"gain": None}, "gain"),
        ({"method": "max"}, "method"),
        ({"adapters": True}, "adapters"),
        ({"colour": "red"}, "colour"),
        ({"ci95": [0.5, 0.1]}, "ci95"),
        ({"gain": float("nan")}, "gain"),
    ],
)
def test_a_bad_line_is_named(tmp_path, cases, change, says):
    path = tmp_path / "cases.jsonl"
    cased.write_cases(path, cases[:1])
    with path.open("a") as file:
        file.write(json.dumps(dataclasses.asdict(cases[0]) | change) + "\n")
    with pytest.raises(cased.CaseError, match=f"line 2, is no case: .*{says}"):
        cased.read_cases(path)


def test_files_that_are_no_cases_are_named(tmp_path):
    (tmp_path / "broken.jsonl.gz").write_bytes(b"no gzip")
    (tmp_path / "text.jsonl").write_text("hello\n")
    for name in ("broken.jsonl.gz", "text.jsonl", "missing.jsonl"):
        with pytest.raises(cased.CaseError, match=name):
            cased.read_cases(tmp_path / name)


# the fitting.fit


def test_planted_coefficients_are_found():
    found = fitting.fit(synthetic(bases=40, sets=12))
    wanted = (PLANTED["intercept"], PLANTED["baseline"])
    assert (found.intercept, found.baseline) == pytest.approx(wanted, abs=0.08)
    assert found.spread == pytest.approx(PLANTED["spread"], rel=0.08)


def test_errors_of_measured_gains_are_not_taken_for_spread():
    """Gains measured with noise: a fitting.fit that is told of it finds the spread without it."""
    rng = random.Random(1)
    noisy = []
    for one in synthetic(bases=40, sets=12, spread=0.1):
        gain = one.gain + rng.gauss(0, 0.04)
        ci95 = (gain - 1.96 * 0.04, gain + 1.96 * 0.04)
        noisy.append(dataclasses.replace(one, gain=gain, ci95=ci95))
    told = fitting.fit(noisy).spread
    quiet = [dataclasses.replace(c, ci95=(c.gain - 1e-6, c.gain + 1e-6)) for c in noisy]
    assert told < fitting.fit(quiet).spread / 1.3


def test_the_density_is_that_of_the_map(cases):
    """The map's probability is the integral of the density, for a gain that nobody measured."""
    fitted, one = fitting.fit(cases), case(baseline=0.3)

    def density(gain):
        at = dataclasses.replace(one, gain=gain, ci95=(gain, gain))
        return math.exp(fitting.log_density(fitted, *fitting.columns_of([at]))[0])

    total, _ = integrate.quad(density, -60, 60, points=[0, 0.2], limit=800)
    assert total == pytest.approx(1, abs=5e-3)  # some of it lies beyond
    above, _ = integrate.quad(density, 0.05, 0.7, points=[0.2], limit=800)
    inside, _ = integrate.quad(density, -1, 0.7, points=[0, 0.2], limit=800)
    said = fitted.exceeds(0.05, 0.3, 0.0, fitting.UNKNOWN)
    assert said == pytest.approx(above / inside, abs=5e-3)


# adapter sets and left-out groups


def a_set(*ends, **changes):
    """An adapter set whose compositions have these intervals of their gains."""
    return cased.MeasuredSet(
        tuple(
            case(method=method, gain=sum(ci95) / 2, ci95=ci95, **changes)
            for method, ci95 in zip(cased.METHODS, ends, strict=False)
        )
    )


@pytest.mark.parametrize(
    ("ends", "label"),
    [
        ([(0.06, 0.2), (-0.2, 0.0)], 1),
        ([(-0.1, 0.04), (-0.2, 0.0)], 0),
        ([(-0.1, 0.04), (0.0, 0.2)], None),
        ([(0.06, 0.1), (0.0, 0.3)], 1),
    ],
)
def test_a_set_gains_if_one_composition_does_and_fails_if_none_does(ends, label):
    assert a_set(*ends).outcome.label(0.05) == label


def test_a_first_round_has_the_mean_and_the_error_of_its_items():
    one = a_set((0.1 - 1.96 * 0.03, 0.1 + 1.96 * 0.03))
    rng = np.random.default_rng(0)
    drawn = [one.first_round(30, rng)[1] for _ in range(4000)]
    error = 0.03 * math.sqrt(300 / 30)  # the gain was measured on 300 items
    assert np.mean(drawn) == pytest.approx(0.1, abs=4 * error / math.sqrt(4000))
    assert np.std(drawn) == pytest.approx(error, rel=0.05)
    assert {round(gain * 30, 9) % 1 for gain in drawn} == {0.0}
    assert one.first_round(30, rng)[2] == pytest.approx(error, rel=0.1)


@pytest.mark.parametrize("baseline", [0.0, 0.1, 0.5, 0.9])
@pytest.mark.parametrize("gain", [-0.4, -0.1, 0.0, 0.1, 0.4])
def test_no_items_deviate_more_than_right_and_wrong_answers_allow(baseline, gain):
    """However wide the interval of clustered items is; by trying every share of lost items."""
    if not 0 <= baseline + gain <= 1:
        return
    (wide,) = a_set((gain - 0.5, gain + 0.5), baseline=baseline).cases
    wide = dataclasses.replace(wide, n=100_000)
    possible = [
        gain + 2 * lost - gain**2
        for lost in np.linspace(0, 1, 1001)
        if lost <= baseline + 1e-9 and 0 <= gain + lost <= 1 - baseline + 1e-9
    ]
    assert cased.item_deviation(wide) == pytest.approx(math.sqrt(max(possible)), abs=0.01)
    narrow = dataclasses.replace(wide, n=100, ci95=(gain - 0.01, gain + 0.01))
    assert cased.item_deviation(narrow) == pytest.approx(0.1 / 1.96, rel=1e-3)


def test_planted_sets_are_foretold_and_shuffled_gains_are_not(cases):
    key, sets = fitting.LEFT_OUT["bases"], cased.sets_of(cases)
    alone = fitting.figures_of(sets, fitting.left_out(sets, key, 0))
    assert alone.auroc > 0.7 > alone.null
    first = fitting.figures_of(sets, fitting.left_out(sets, key))
    assert first.brier < alone.brier and first.wrong < 0.05 and first.called > 0.2
    rng, shuffled = random.Random(0), [one.outcome for one in sets]
    rng.shuffle(shuffled)
    mixed = [
        cased.MeasuredSet(
            tuple(dataclasses.replace(c, gain=told.gain, ci95=told.ci95) for c in one.cases)
        )
        for one, told in zip(sets, shuffled, strict=True)
    ]
    found = fitting.figures_of(mixed, fitting.left_out(mixed, key, 0))
    assert found.auroc < found.null


def test_a_single_group_has_none_to_leave_out():
    sets = cased.sets_of(synthetic(bases=1))
    with pytest.raises(cased.CaseError, match="base-00"):
        fitting.left_out(sets, fitting.LEFT_OUT["bases"])


def test_figures_by_hand():
    """Two kinds: one ranked rightly, one with a pair in the wrong order; one undecided set, and one
    with several tasks."""
    rows = [("s", 1, 0.95), ("s", 0, 0.1)]
    rows += [("t", 1, 0.6), ("t", 0, 0.92), ("t", 0, 0.2), ("t", None, 0)]
    ends = {1: (0.2, 0.4), 0: (-0.2, 0.0), None: (0.0, 0.2)}
    own = [a_set(ends[label], scenario=s) for s, label, _ in rows]
    own.append(a_set(ends[1], scenario="s", tasks=2))
    found = fitting.figures_of(own, np.array([[*(p for *_, p in rows), 0.0]]))
    assert (found.decided, found.likely, found.wrong, found.called) == (5, 2, 0.5, 0.5)
    assert found.auroc == pytest.approx((1.0 + 0.5) / 2)
    assert found.brier == pytest.approx(np.mean([0.05**2, 0.1**2, 0.4**2, 0.92**2, 0.2**2]))
    assert found.reference == pytest.approx(0.4 * 0.6)
    nothing = fitting.figures_of(own[:1], np.array([[0.5]]))
    assert math.isnan(nothing.auroc) and math.isnan(nothing.wrong)


def test_the_auroc_is_that_of_scikit_learn():
    from sklearn.metrics import roc_auc_score  # which takes a second to import

    rng = np.random.default_rng(0)
    y, kinds = (rng.random(60) < 0.4).astype(float), rng.integers(0, 3, 60)
    p = rng.integers(0, 6, (4, 60)) / 10  # with ties
    wanted = [roc_auc_score(y[kinds == k], row[kinds == k]) for k in range(3) for row in p]
    own = [
        a_set((0.2, 0.4) if one else (-0.2, 0.0), scenario=str(k))
        for one, k in zip(y, kinds, strict=True)
    ]
    assert fitting.figures_of(own, p).auroc == pytest.approx(np.mean(wanted))


# what ships


def test_the_shipped_calibration_is_the_fit_of_the_stored_cases(stored):
    fitted, ships = fitting.fit(stored), shipped_calibration()
    own = ships.coefficients
    assert (own.intercept, own.baseline) == pytest.approx(
        (fitted.intercept, fitted.baseline), abs=1e-3
    )
    assert own.spread == pytest.approx(fitted.spread, abs=1e-3)
    assert (ships.cases, ships.bases) == (len(stored), len({c.base for c in stored}))
    made = calibration_of(fitting.document_of(fitted, stored, "a test", {}))
    one_task = [row for row in ships.classes if row.tasks == 1]
    assert [row for row in made.classes if row.tasks == 1] == one_task
    assert made.gained == ships.gained


def test_the_accuracy_that_ships_is_that_of_left_out_kinds(stored):
    """On each kind of base apart; a kind with fewer than 15 decided sets has no accuracy."""
    sets = cased.sets_of(stored)
    p = fitting.left_out(sets, fitting.LEFT_OUT["kinds"])
    results = fitting.Results(tuple(stored), tuple(sets), {}, {"kinds": p, "bases": p})
    told = {kind: vars(row) for kind, row in shipped_calibration().accuracy.items()}
    made = results.accuracy()
    assert made.keys() == told.keys()
    for kind, row in made.items():
        rounded = {"auroc": row["auroc"], "brier": row["brier"]}
        assert rounded == pytest.approx({name: told[kind][name] for name in rounded}, abs=2e-3)
        assert row | rounded == told[kind] | rounded
        at = [i for i, one in enumerate(sets) if one.cases[0].base_kind == kind]
        own = fitting.figures_of([sets[i] for i in at], p[:, at])
        assert own.decided == row["sets"] >= 15
        assert own.brier == pytest.approx(row["brier"], abs=1e-3)
        assert (row["auroc"] is None) == (own.auroc <= own.null)


def test_the_classes_that_ship_are_shares_of_adapter_sets(stored):
    """The best of a set's compositions counts, once; with several tasks that of answered sets."""
    answered = cased.read_sets(STORED.with_name(fitting.SETS))
    for told in shipped_calibration().classes:
        kind = TaskKind(told.tasks, told.hops, told.metric)
        own = [c for c in stored if (c.base_kind, c.kind) == (told.base, kind)]
        best = {}
        for one in own:
            best[one.set_key] = max(one.gain, best.get(one.set_key, -1.0))
        if told.tasks == 2:
            own = [one for one in answered if one.base_kind == told.base]
            best = {one.set_key: best_of(one) for one in own}
        assert told.sets == len(best) and told.bases == len({c.base for c in own})
        for margin, share in told.gained:
            assert share == pytest.approx(np.mean([g > margin for g in best.values()]), abs=1e-4)


def best_of(one) -> float:
    """The largest mean of a composition less that of base and single adapters, from the marks."""
    marks = {}
    for row in one.results:
        marks.setdefault(row.system, {}).setdefault(row.task, []).append(row.value)
    means = {s: np.mean([np.mean(own) for own in tasks.values()]) for s, tasks in marks.items()}
    alone = [mean for s, mean in means.items() if one.kinds[s] in ("base", "adapter")]
    return float(max(means[s] for s in means if one.kinds[s] not in ("base", "adapter"))) - max(
        alone
    )


# page, figure, command


def test_the_command_writes_everything_from_stored_cases(tmp_path, monkeypatch):
    cases = synthetic(bases=4, sets=6)
    measured, measure = [], fitting.measure
    monkeypatch.setattr(fitting, "DRAWS", 2)
    monkeypatch.setattr(
        run, "measure", lambda cases: measured.append(measure(cases)) or measured[-1]
    )
    cased.write_cases(tmp_path / "mine.jsonl", cases)
    output = tmp_path / "out"
    call = ["lab", "calibrate", "--cases", str(tmp_path / "mine.jsonl"), "-o", str(output)]
    result = CliRunner().invoke(app, call)
    assert result.exit_code == 0, result.output
    assert result.stdout.strip() == str(output / "calibration.json")
    names = "calibration.json cases.jsonl.gz figure.svg report.md"
    assert {p.name for p in output.iterdir()} == set(names.split())
    assert cased.read_cases(output / "cases.jsonl.gz") == cases
    document = json.loads((output / "calibration.json").read_text())
    assert calibration_of(document).cases == len(cases)
    text = (output / "report.md").read_text()
    assert str(tmp_path) not in text and str(tmp_path) not in json.dumps(document)
    for words in ("two-hop", "keep-both", "architectures", "a first round of 30 items (shipped)"):
        assert words in text
    assert (output / "figure.svg").read_text("utf-8") == measured[0].figure(), "drawn again"


STORED_SETS = Path(__file__).parents[2] / "examples" / "calibration" / fitting.SETS
KINDS = {"base": "base", "a": "adapter", "b": "adapter", "uniform": "merge", "arrow": "router"}


def answered_set(uniform, arrow=(0.0, 0.0), n=120, seed=0, base="one", name="set", singles=1.0):
    """Two tasks, of which a knows the first and b the second; shares that the others keep."""
    rng = np.random.default_rng(seed)
    rates = {"base": (0.0, 0.0), "a": (singles, 0.0), "b": (0.0, singles)}
    rates |= {"uniform": uniform, "arrow": arrow}
    rows = [
        ItemResult(s, t, "question", str(i), "exact_match", float(rng.random() < p[k]), "", str(i))
        for s, p in rates.items()
        for k, t in enumerate("tu")
        for i in range(n)
    ]
    return cased.AnsweredSet(base, "llama", "keep-both", base, name, KINDS, tuple(rows))


def test_the_outcome_is_that_of_the_best_composition_on_all_items():
    assert answered_set((0.97, 0.97)).outcome == 1
    assert answered_set((0.97, 0.3)).outcome == 0, "a gain of the mean is not enough"
    assert answered_set((0.97, 0.3), (0.96, 0.98)).outcome == 1
    assert answered_set((0.8, 0.97)).outcome is None
    assert answered_set((1.0, 1.0), n=14).outcome is None, "too few items"
    assert answered_set((0.9, 0.9), singles=0.0, n=30).outcome is None, "nobody is a specialist"


def test_a_first_round_has_the_probability_of_a_verdict():
    known = calibration(several={"small": DOCUMENT["accuracy"]["small"]})
    rng, coefficients = np.random.default_rng(0), known.coefficients
    for one in (
        answered_set((0.9, 0.9), n=40),
        answered_set((0.85, 0.7), n=40),
        answered_set((0.2, 0.9), n=40),
    ):
        found = decide(
            dataclasses.replace(one.evidence(one.results), hidden_size=SMALL),
            [Probabilities(known)],
        )
        assert one.first_round(40, rng, coefficients) == pytest.approx(found.gain.probability)
    assert math.isnan(answered_set((0.0, 0.0), singles=0.0).first_round(30, rng, coefficients))
    few = [answered_set((0.9, 0.8)).first_round(30, rng, coefficients) for _ in range(8)]
    assert len(set(few)) > 1, "items are drawn"


def test_left_out_bases_and_their_figures(monkeypatch):
    monkeypatch.setattr(fitting, "SET_DRAWS", 3)
    good = [answered_set((0.97, 0.97), seed=k, base=f"b{k % 3}", name=f"good{k}") for k in range(4)]
    bad = [answered_set((0.9, 0.5), seed=k, base=f"b{k % 3}", name=f"bad{k}") for k in range(4)]
    none = [answered_set((0.0, 0.0), singles=0.0, base="b0", name="none")]
    rows = fitting.measure_sets([*good, *bad, *none], synthetic())
    sets, found = rows["small"]
    assert (len(sets), found.decided, found.gained) == (9, 18, 8), "every set in both forms"
    assert [row.decided for _, row in rows.values()] == [18, 9, 9]
    assert found.silent == pytest.approx(1 / 9) and found.auroc > 0.95 > found.null
    assert found.brier < 0.1 < found.reference
    assert found.likely > 2 and found.wrong == 0 and found.called > 0.5
    assert fitting.set_errors(rows) == {}, "too few sets were decided"
    enough = dataclasses.replace(rows["small" + fitting.DEFAULT][1], decided=15)
    (row,) = fitting.set_errors({**rows, "small" + fitting.DEFAULT: (sets, enough)}).values()
    assert row["sets"] == 15 and row["items"] == 30 and row["where"] == fitting.SET_WHERE["small"]
    calibration(several={"small": row})


def test_what_ships_is_what_the_page_tells_of_the_stored_sets():
    sets, known = cased.read_sets(STORED_SETS), shipped_calibration().several
    assert {one.outcome for one in sets[:4]} <= {0, 1}
    page = (STORED_SETS.parent / "report.md").read_text(encoding="utf-8").partition("## Several")[2]
    page = page.partition("\n## ")[0]
    rows = [line.split(" | ") for line in page.splitlines() if line.startswith("| ")]
    kinds = {row[0].removeprefix("| "): row for row in rows}
    for kind in fitting.SET_WHERE:
        own, row = [one for one in sets if one.base_kind == kind], kinds[kind]
        assert row[1] == f"{len(own)}, {len({one.base for one in own})}"
        decided = int(kinds[kind + fitting.DEFAULT][2].partition(",")[0])
        brier = float(row[5].partition(" ")[0])
        assert (kind in known) == (decided >= fitting.FEWEST_DECIDED)
        if kind in known:
            told = known[kind]
            assert (told.sets, told.items, told.brier) == (decided, 30, brier)


def test_sets_survive_writing_and_replace_older_ones(tmp_path):
    path, one = tmp_path / "several.jsonl.gz", answered_set((0.9, 0.9), n=12)
    other = answered_set((0.1, 0.2), n=12, name="other")
    cased.write_sets(path, [one, other])
    back = cased.read_sets(path)
    assert [sorted(s.results, key=str) for s in back] == [
        sorted(s.results, key=str) for s in (one, other)
    ]
    assert back[0].kinds == KINDS and back[0].set_key == ("one", "set")
    new = dataclasses.replace(one, results=other.results)
    assert cased.merged(back, [new])[1] == new and len(cased.merged(back, [new])) == 2
    for content in (b"nothing", gzip.compress(b"{}\n"), gzip.compress(json.dumps([1]).encode())):
        path.write_bytes(content)
        with pytest.raises(cased.CaseError, match="no file of answered sets"):
            cased.read_sets(path)
