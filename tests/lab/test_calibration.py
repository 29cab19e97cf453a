"""The calibration: cases from worlds, fit, left-out groups, and what ships of the stored cases."""

import dataclasses
import json
import math
import random
from pathlib import Path

import making
import numpy as np
import pytest
from evidences import SMALL
from extensions.forecast.documents import DOCUMENT, calibration, calibration_of
from scipy import integrate
from tiny_worlds import tiny_world

from loraprobe.defaults import BY_PROMPT, BY_TEXT, MARGIN
from loraprobe.errors import UsageError
from loraprobe.evaluation import System, measure_gains
from loraprobe.extensions.forecast.probability import Probabilities, shipped_calibration
from loraprobe.records import ItemPart, ItemResult
from loraprobe.verdict import decide
from loraprobe.verdict.evidence import TaskKind
from loraprobe_lab.calibration import cases as cased
from loraprobe_lab.calibration import collect as collecting
from loraprobe_lab.calibration import fit as fitting
from loraprobe_lab.world import World, shipped_world
from loraprobe_lab.worlds.spec import build_world

UNIT = 0.05
PLANTED = {"intercept": 0.4, "baseline": -1.5, "spread": 0.5}
STORED = Path(__file__).parents[2] / "examples" / "calibration" / "cases.jsonl.gz"
STORED_SETS = STORED.with_name(fitting.SETS)


def case(**changed):
    """A case with ordinary values for all fields that are not given."""
    where = {"base": "base-00", "architecture": "llama", "scenario": "two-hop", "world": "base-00"}
    asked = {"adapters": 2, "tasks": 1, "hops": 2, "metric": "exact_match", "part": "question"}
    measured = {"baseline": 0.2, "gain": 0.3, "ci95": (0.2, 0.4), "n": 300}
    values = {"adapter_set": "t0", "method": "uniform", **where, **asked, **measured}
    return cased.Case(**{**values, **changed})


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


@pytest.fixture(scope="module")
def stored():
    return cased.read_cases(STORED)


# cases and the fit


def test_planted_coefficients_are_found_and_errors_are_not_taken_for_spread():
    found = fitting.fit(synthetic(bases=40, sets=12))
    wanted = (PLANTED["intercept"], PLANTED["baseline"])
    assert (found.intercept, found.baseline) == pytest.approx(wanted, abs=0.08)
    assert found.spread == pytest.approx(PLANTED["spread"], rel=0.08)
    rng, noisy = random.Random(1), []
    for one in synthetic(bases=40, sets=12, spread=0.1):
        gain = one.gain + rng.gauss(0, 0.04)
        ci95 = (gain - 1.96 * 0.04, gain + 1.96 * 0.04)
        noisy.append(dataclasses.replace(one, gain=gain, ci95=ci95))
    quiet = [dataclasses.replace(c, ci95=(c.gain - 1e-6, c.gain + 1e-6)) for c in noisy]
    assert fitting.fit(noisy).spread < fitting.fit(quiet).spread / 1.3


def test_the_density_is_that_of_the_map():
    """The map's probability is the integral of the density, for a gain that nobody measured."""
    fitted, one = fitting.fit(synthetic()), case(baseline=0.3)

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


def test_planted_sets_are_foretold_and_shuffled_gains_are_not():
    key, sets = fitting.LEFT_OUT["bases"], cased.sets_of(synthetic())
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
    with pytest.raises(cased.CaseError, match="base-00"):
        fitting.left_out(cased.sets_of(synthetic(bases=1)), key)


def test_figures_are_those_by_hand_and_of_scikit_learn():
    from sklearn.metrics import roc_auc_score  # which takes a second to import

    rows = [("s", 1, 0.95), ("s", 0, 0.1)]
    rows += [("t", 1, 0.6), ("t", 0, 0.92), ("t", 0, 0.2), ("t", None, 0)]
    ends = {1: (0.2, 0.4), 0: (-0.2, 0.0), None: (0.0, 0.2)}
    own = [a_set(ends[label], scenario=s) for s, label, _ in rows]
    found = fitting.figures_of(own, np.array([[p for *_, p in rows]]))
    assert (found.decided, found.likely, found.wrong, found.called) == (5, 2, 0.5, 0.5)
    assert found.auroc == pytest.approx((1.0 + 0.5) / 2)
    assert found.brier == pytest.approx(np.mean([0.05**2, 0.1**2, 0.4**2, 0.92**2, 0.2**2]))
    assert found.reference == pytest.approx(0.4 * 0.6)
    rng = np.random.default_rng(0)
    y, kinds = rng.random(60) < 0.4, rng.integers(0, 3, 60)
    p = rng.integers(0, 6, (4, 60)) / 10  # with ties
    wanted = [roc_auc_score(y[kinds == k], row[kinds == k]) for k in range(3) for row in p]
    own = [a_set(ends[int(one)], scenario=str(k)) for one, k in zip(y, kinds, strict=True)]
    assert fitting.figures_of(own, p).auroc == pytest.approx(np.mean(wanted))


KINDS = {"base": "base", "a": "adapter", "b": "adapter", "uniform": "merge", "arrow": "router"}


def answers(rates, n, seed=0, tasks=("t",), part="question"):
    """Results of systems that are right with given rates [a task], independently."""
    rng = np.random.default_rng(seed)
    return [
        ItemResult(
            s, t, ItemPart(part), str(i), "exact_match", float(rng.random() < p[k]), "", str(i)
        )
        for s, p in rates.items()
        for k, t in enumerate(tasks)
        for i in range(n)
    ]


def answered_set(uniform, arrow=(0.0, 0.0), n=120, base="one", name="set", singles=1.0):
    """Two tasks, of which a knows the first and b the second; shares that the others keep."""
    rates = {"base": (0.0, 0.0), "a": (singles, 0.0), "b": (0.0, singles)}
    rows = answers(rates | {"uniform": uniform, "arrow": arrow}, n, tasks="tu")
    return cased.AnsweredSet(base, "llama", "keep-both", base, name, KINDS, tuple(rows))


@pytest.mark.parametrize(
    ("answered", "outcome"),
    [
        (answered_set((0.97, 0.97)), 1),
        (answered_set((0.97, 0.3)), 0),  # a gain of the mean is not enough
        (answered_set((0.97, 0.3), (0.96, 0.98)), 1),
        (answered_set((0.8, 0.97)), None),
        (answered_set((1.0, 1.0), n=14), None),  # too few items
        (answered_set((0.9, 0.9), singles=0.0, n=30), None),  # nobody is a specialist
    ],
)
def test_the_outcome_is_that_of_the_best_composition_on_all_items(answered, outcome):
    assert answered.outcome == outcome


def test_a_first_round_has_the_probability_of_a_verdict():
    known = calibration(several={"small": DOCUMENT["accuracy"]["small"]})
    rng, coefficients = np.random.default_rng(0), known.coefficients
    for uniform in ((0.9, 0.9), (0.85, 0.7), (0.2, 0.9)):
        one = answered_set(uniform, n=40)
        evidence = dataclasses.replace(one.evidence(one.results), hidden_size=SMALL)
        found = decide(evidence, [Probabilities(known)])
        assert one.first_round(40, rng, coefficients) == pytest.approx(found.gain.probability)
    few = [answered_set((0.9, 0.8)).first_round(30, rng, coefficients) for _ in range(8)]
    assert len(set(few)) > 1, "items are drawn"


# what ships


def test_the_shipped_calibration_is_the_fit_of_the_stored_cases(stored):
    fitted, ships = fitting.fit(stored), shipped_calibration()
    own = ships.coefficients
    assert (own.intercept, own.baseline, own.spread) == pytest.approx(
        (fitted.intercept, fitted.baseline, fitted.spread), abs=1e-3
    )
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


def test_the_classes_that_ship_are_shares_of_adapter_sets(stored):
    """The best of a set's compositions counts, once; with several tasks that of answered sets."""
    answered = cased.read_sets(STORED_SETS)
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
    alone = {s for s in means if one.kinds[s] in ("base", "adapter")}
    return float(max(means[s] for s in means if s not in alone) - max(means[s] for s in alone))


def test_what_ships_is_what_the_page_tells_of_the_stored_sets():
    sets, known = cased.read_sets(STORED_SETS), shipped_calibration().several
    page = (STORED.parent / "report.md").read_text(encoding="utf-8").partition("## Several")[2]
    page = page.partition("\n## ")[0]
    rows = [line.split(" | ") for line in page.splitlines() if line.startswith("| ")]
    kinds = {row[0].removeprefix("| "): row for row in rows}
    for kind in fitting.SET_WHERE:
        own, row = [one for one in sets if one.base_kind == kind], kinds[kind]
        assert row[1] == f"{len(own)}, {len({one.base for one in own})}"
        decided = int(kinds[kind + fitting.DEFAULT][2].partition(",")[0])
        assert (kind in known) == (decided >= fitting.FEWEST_DECIDED)
        if kind in known:
            told, brier = known[kind], float(row[5].partition(" ")[0])
            assert (told.sets, told.items, told.brier) == (decided, 30, brier)


def test_the_command_writes_everything_from_stored_cases(tmp_path, monkeypatch):
    cases, output = synthetic(bases=4, sets=6), tmp_path / "out"
    monkeypatch.setattr(fitting, "DRAWS", 2)
    cased.write_cases(tmp_path / "mine.jsonl", cases)
    call = ["lab", "calibrate", "--cases", str(tmp_path / "mine.jsonl"), "-o", str(output)]
    result = making.call(*call)
    assert result.exit_code == 0, result.output
    assert result.stdout.strip() == str(output / "calibration.json")
    names = "calibration.json cases.jsonl.gz figure.svg report.md"
    assert {p.name for p in output.iterdir()} == set(names.split())
    assert cased.read_cases(output / "cases.jsonl.gz") == cases
    document = json.loads((output / "calibration.json").read_text())
    assert calibration_of(document).cases == len(cases)
    assert str(tmp_path) not in (output / "report.md").read_text() + json.dumps(document)


# from worlds to cases


def test_truth_is_the_gain_of_the_better_form_over_the_best_of_base_and_singles():
    kinds = KINDS | {"sum": "merge"}
    rates = {"base": [0.1], "a": [0.4], "b": [0.2], "uniform": [0.8], "sum": [0.99]}
    rows = answers(rates, 300)
    found = cased.measured_gain(rows, kinds, "uniform")
    others = [r for r in rows if r.system != "sum"]
    gains = measure_gains(others, [System(n, k) for n, k in KINDS.items()])
    row = next(g for g in gains if g.system == "uniform")
    assert (found["gain"], found["ci95"], found["n"]) == (row.difference, row.ci95, 300)
    plain = answers({name: [0] for name in ("base", "a", "b", "uniform")}, 40)
    steps = answers({"base": [0], "a": [0], "b": [0], "uniform": [0.9]}, 40, part="steps")
    found = cased.measured_gain(plain + steps, KINDS, "uniform")
    assert found["gain"] == pytest.approx(0.9, abs=0.15) and found["ci95"][0] > MARGIN
    few = [dataclasses.replace(row, value=0.0) for row in steps if int(row.item) < 8]
    low, high = cased.measured_gain(plain + few, KINDS, "uniform")["ci95"]
    assert low < MARGIN < high, "an undecided form leaves it open"


@pytest.fixture
def seen(monkeypatch):
    """Sets answer without a model; the names of those that were asked."""
    names, kinds = [], KINDS | {"sum": "merge"}
    rates = {"base": 0.1, "a": 0.2, "b": 0.2, "uniform": 0.9, "sum": 0.1, "arrow": 0.9}

    def made(self, scenario, limit):
        names.append(scenario.name)
        tasks = [path.stem for path in scenario.tasks]
        return kinds, answers({s: [p] * 2 for s, p in rates.items()}, 100, tasks=tasks)

    monkeypatch.setattr(collecting.WorldAnswers, "of", made)
    return names


def test_sets_become_cases_are_asked_once_and_replace_older_ones(tmp_path, seen):
    path = shipped_world().path
    collecting.collect([path], tmp_path)
    assert sorted(seen) == sorted(World.load(path).scenarios)
    cases = [one for kept in collecting.kept_sets(tmp_path) for one in kept.cases()]
    labels = {(c.method, c.label(MARGIN)) for c in cases}
    assert labels == {("sum", 0), ("uniform", 1), ("arrow", 1)}
    assert {(c.adapter_set, c.tasks, c.hops, c.n) for c in cases} == {
        ("disjoint", 1, 2, 100),
        ("keep-both", 2, 0, 200),
        ("skill-and-facts", 1, 2, 100),
        ("target-adapter", 1, 2, 100),
    }
    seen.clear()
    collecting.collect([path], tmp_path)
    assert seen == []
    collecting.collect([path], tmp_path, collecting.SampleSizes(limit=7))
    assert len(seen) == 4
    with pytest.raises(UsageError, match="Two worlds are called small-world"):
        collecting.collect([path] * 2, tmp_path)
    elsewhere = [dataclasses.replace(case, world="elsewhere", n=7) for case in cases]
    old = [*elsewhere, *(dataclasses.replace(case, n=7) for case in cases)]
    file = tmp_path / "stored" / "cases.jsonl.gz"
    cased.write_cases(file, old)
    found, _ = collecting.gather([path], tmp_path / "one", stored=file)
    assert found == cased.read_cases(tmp_path / "one" / "cases.jsonl.gz") == elsewhere + cases


def test_tiny_worlds_are_asked_for_real(tmp_path):
    """Both forms, without hops and without the items that routers learn from."""
    names = ("skill-and-facts", "keep-both")
    tiny = tiny_world(names, only=names)
    build_world(tiny, tmp_path / "tiny")
    sizes = collecting.SampleSizes(limit=44, max_new_tokens=3)
    collecting.collect([tmp_path / "tiny"], tmp_path / "out", sizes)
    both, one = collecting.kept_sets(tmp_path / "out")
    assert (both.tasks, one.tasks) == (2, 1)
    assert {row.part for row in one.results} == {"question", "steps"}
    assert set(one.kinds) == {"base", "newcomers", "steps", "uniform", "sum", "arrow"}
    assert {c.n for c in one.cases()} == {min(44, len(tiny.tasks["newcomers"]))}
    assert {BY_PROMPT, BY_TEXT} <= {*both.kinds}
    asked = {(row.task, row.item) for row in both.results}
    wanted = {"tiny.last": 33, "tiny.count": 33}
    assert {t: sum(task == t for task, _ in asked) for t in wanted} == wanted
