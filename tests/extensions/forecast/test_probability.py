"""Forecast and probability: in the verdict, by numerical integration, their file, by commands.

The calibrations here are made up by hand for the tests; none of them ships.
"""

import copy
import functools
import json
import math
import operator

import making
import numpy as np
import pytest
from evidences import case, evidence_of, guards, measured, replaced, score
from extensions.forecast.documents import DOCUMENT, calibration
from scipy import integrate, stats

from loraprobe.defaults import PILOT_ITEMS
from loraprobe.errors import UsageError
from loraprobe.extensions.forecast.probability import (
    LEAST,
    Probabilities,
    read_calibration,
    shipped_calibration,
)
from loraprobe.options import Options
from loraprobe.records import (
    QUESTION,
    STEPS,
    Audit,
    Comparison,
    Gain,
    ItemPart,
    Provenance,
    Rounds,
    Score,
)
from loraprobe.records.measurements import Z95
from loraprobe.report.answer import answer
from loraprobe.verdict import rules


def decide(evidence, known, prior=None):
    """The verdict with the probability by a calibration."""
    return rules.decide(evidence, [Probabilities(known, prior)])


def by_code(verdict, code):
    return [reason for reason in verdict.reasons if reason.code == code]


def test_without_compositions_there_is_no_probability():
    found = decide(case(), calibration())
    assert found.probability is None and found.prior is None


def test_a_first_round_has_the_probability_of_its_gain():
    found = decide(measured(), calibration())
    said = calibration().probability(0.05, 0.3, 0.2, 0.15 / Z95)
    assert found.decision == "inconclusive" and found.prior == 0.4
    assert found.gain.probability == pytest.approx(said)
    assert found.probability is None  # nothing is decided, so no decision has a probability
    (told,) = by_code(found, "probability-measured-on")
    assert told.value == pytest.approx(said) and (told.threshold, told.severity) == (0.9, "info")
    for figure in ("0.91", "0.12", "8 adapter sets", "12%", "no bases at all", "40 items"):
        assert figure in told.message


@pytest.mark.parametrize("level", ["pilot", "evaluation"])
def test_a_decision_has_its_own_probability(level):
    failed = decide(measured(-0.2, level=level), calibration())
    assert failed.decision == "unlikely"
    assert failed.probability == pytest.approx(1 - failed.gain.probability)
    assert failed.probability > 0.9


def test_a_decision_against_a_gain_has_none():
    """`unlikely` because a control is as good, although the gain is sure."""
    control = score("shrunk:a", 0.7)
    row = Comparison("uniform", "shrunk:a", "t", QUESTION, 0.0, (-0.02, 0.02), n=30)
    evidence = measured(0.4, 0.1)
    evidence = replaced(evidence, scores=(*evidence.measured.scores, control), comparisons=(row,))
    found = decide(evidence, calibration())
    assert found.decision == "unlikely" and found.gain.probability > 0.9
    assert found.probability is None


def test_a_prior_that_is_set_is_the_one_that_is_told():
    low, high = (decide(measured(), calibration(), p) for p in (0.1, 0.9))
    assert (low.prior, high.prior) == (0.1, 0.9)
    assert low.gain.probability < high.gain.probability


def test_the_probability_is_that_of_the_gain_that_decides():
    """The decisive gain, which another form or another composition may exceed by a little."""
    evidence = measured()
    steps = replaced(evidence.measured.gains[0], part=STEPS, difference=0.24)
    scores = (*evidence.measured.scores, score("uniform", 0.54, "steps"))
    scores = (*scores, score("sum", 0.9))
    control = score("shrunk:a", 0.9)
    row = Comparison("sum", "shrunk:a", "t", QUESTION, 0.0, (-0.02, 0.02), n=30)
    sums = replaced(evidence.measured.gains[0], system="sum", difference=0.6)
    both = replaced(
        evidence,
        gains=(sums, *evidence.measured.gains, steps),
        scores=(*scores, control),
        comparisons=(row,),
    )
    one, two = (decide(e, calibration()) for e in (evidence, both))
    assert two.gain == one.gain and two.gain.system == "uniform" and two.gain.form == "question"


def test_what_has_to_be_beaten_is_the_better_form_of_the_best_baseline():
    steps = (score("base", 0.6, "steps"), score("a", 0.1, "steps"))
    scores = (*case().measured.scores, *steps)
    assert case(scores=scores).baseline == pytest.approx(0.6)
    compositions = (*scores, score("uniform", 0.9))
    assert case(scores=compositions).baseline == pytest.approx(0.6)


def test_of_several_tasks_the_best_system_on_all_of_them_counts():
    rows = [score("base", 0.1, task=t) for t in "tu"]
    rows += [score("a", 0.9), score("a", 0.1, task="u")]
    rows += [score("b", 1.0, task="u")]  # was not asked the other task
    found = evidence_of(scores=tuple(rows), level="base")
    assert found.baseline == pytest.approx(0.5)
    assert (found.kind_of_task.tasks, found.kind_of_task.metric) == (2, "exact_match")


def as_losses(scores):
    """The scores as if they were losses of answers."""
    return tuple(replaced(one, metric="answer_loss") for one in scores)


def test_the_errors_told_are_those_of_the_kind_of_base():
    """A natural base has a probability once its errors were measured, with these errors."""
    own = {"where": "published models", "sets": 60, "auroc": None, "brier": 0.27}
    own = {**DOCUMENT["accuracy"]["small"], **own, "likely": 0, "wrong": None}
    both = calibration(accuracy={**DOCUMENT["accuracy"], "natural": own})
    found = decide(measured(hidden_size=576), both)
    (told,) = by_code(found, "probability-measured-on")
    assert "0.27" in told.message and "published models" in told.message
    assert "0.12" not in told.message and "AUROC" not in told.message
    small = decide(measured(), both)
    assert small.gain.probability == found.gain.probability
    large = decide(measured(hidden_size=4096), both)
    assert large.probability is None and large.gain.probability is None
    assert by_code(large, "outside-calibration") and large.decision == found.decision
    assert "0.12" in by_code(small, "probability-measured-on")[0].message


def kept_of(first, second, level="pilot", **rest):
    """A first round of two tasks, in which an average keeps so much of each specialist's skill."""
    rows = [score("base", 0.0, task=t) for t in "tu"]
    for name, own in (("a", "t"), ("b", "u")):
        rows += [score(name, float(task == own), task=task) for task in "tu"]
    for task, (value, ends) in zip("tu", (first, second), strict=True):
        one = score("uniform", 0.9, task=task)
        rows.append(replaced(one, retention=value, retention_ci95=ends))
    gain = Gain(None, QUESTION, "uniform", "a", 0.4, (0.3, 0.5), (0.3, 0.5), 60)
    made = {"scores": tuple(rows), "gains": (gain,), "tasks": 2, "level": level}
    return case(**{**made, **rest})


def test_of_several_tasks_the_probability_is_of_keeping_every_skill_too():
    own = {**DOCUMENT["accuracy"]["small"], "where": "two skills", "brier": 0.33}
    known = calibration(several={"small": own})
    alone = known.probability(0.05, 0.5, 0.4, 0.1 / Z95)
    z = Z95 / 0.15
    for first, second, chances in [
        ((1.0, (0.9, 1.1)), (0.95, (0.8, 1.0)), [stats.norm.cdf(2 * Z95), 0.975]),
        ((0.8, (0.7, 0.9)), (0.7, (0.6, 0.8)), [0.5, 0.025]),
        (
            (0.9, (0.75, 0.95)),
            (0.6, (0.5, 0.75)),
            [stats.norm.cdf(0.1 * z), stats.norm.cdf(-0.2 * z)],
        ),
    ]:
        found = decide(kept_of(first, second), known)
        (told,) = by_code(found, "probability-measured-on")
        assert told.value == pytest.approx(alone * math.prod(chances), rel=1e-6)
        assert "0.33" in told.message and "two skills" in told.message
        assert found.gain.probability == told.value
    wide = Rounds(1, 2, 30, 100, 0.999)  # the intervals of an early look are wider
    early = decide(kept_of((1.0, (0.9, 1.1)), (0.9, (0.8, 1.0)), rounds=wide), known)
    chances = stats.norm.cdf(stats.norm.ppf(0.9995) * np.array([2.0, 1.0]))
    assert early.gain.probability == pytest.approx(alone * math.prod(chances), rel=1e-6)


def test_the_upper_end_of_one_of_several_guards_has_its_share_of_the_error():
    """The interval of a guard reaches 0.02 below and above; 0.06 is lost where 0.05 may be."""
    known, one = calibration(), guards(uniform=-0.06, half=0.02)
    alone = decide(measured(), known).gain.probability
    for rows, error in ((one, 0.05), (one + guards(task="h", uniform=0.5, half=0.02), 0.025)):
        names = tuple(row.task for row in rows)
        found = decide(measured(guards=rows, guard_names=names), known)
        kept = stats.norm.cdf(stats.norm.ppf(1 - error / 2) * -0.01 / 0.02)
        assert found.gain.probability == pytest.approx(alone * kept, rel=1e-6)


FIRST_GAIN = measured().measured.gains[0]
BOTH_KEPT = (1.0, (0.9, 1.1)), (1.0, (0.9, 1.1))
KNOWN = calibration(several={"small": DOCUMENT["accuracy"]["small"]})
NOT_MEASURED = {
    "unknown base": measured(hidden_size=None),
    "natural base": measured(hidden_size=576),
    "few items": measured(gains=(replaced(FIRST_GAIN, n=29),)),
    "few clusters": measured(gains=(replaced(FIRST_GAIN, clusters=29),)),
    "losses": measured(scores=as_losses(measured().measured.scores)),
    "several tasks": kept_of(*BOTH_KEPT),
    "several tasks on a natural base": (kept_of(*BOTH_KEPT, hidden_size=576), KNOWN),
    "several tasks, one without a specialist": (kept_of(BOTH_KEPT[0], (None, None)), KNOWN),
    "weights": case(level="weights"),
    "probes": case(level="probes"),
}


@pytest.mark.parametrize("name", NOT_MEASURED)
def test_what_was_not_measured_has_no_probability(name):
    asked, known = NOT_MEASURED[name], calibration()
    asked, known = asked if isinstance(asked, tuple) else (asked, known)
    found = decide(asked, known)
    assert found.probability is None and found.prior is None
    assert found.gain is None or found.gain.probability is None
    assert len(by_code(found, "outside-calibration")) == (asked.rests_on == "pilot")
    assert not by_code(found, "probability-measured-on")


def test_what_measured_sets_gained_stands_beside_an_open_verdict_alone():
    (told,) = by_code(decide(case(), calibration()), "measured-elsewhere")
    assert told.value == pytest.approx(0.3) and "20 adapter sets" in told.message
    one = [{**DOCUMENT["classes"][0], "bases": 1}]
    (single,) = by_code(decide(case(), calibration(classes=one)), "measured-elsewhere")
    assert "on 1 small base," in single.message
    (wide,) = by_code(decide(case(margin=0.25), calibration()), "measured-elsewhere")
    assert wide.value == pytest.approx(0.1)
    for other in ({"hidden_size": 576}, {"hidden_size": None}):
        assert not by_code(decide(case(**other), calibration()), "measured-elsewhere")
    ceiling = (score("base", 0.99), score("a", 1.0), score("b", 1.0))
    ceiling = tuple(replaced(s, ci95=(0.97, 1.0)) for s in ceiling)
    decided = decide(case(scores=ceiling), calibration())
    assert decided.decision == "unlikely" and not by_code(decided, "measured-elsewhere")
    few = [{**DOCUMENT["classes"][0], "sets": 9}]
    assert not by_code(decide(case(), calibration(classes=few)), "measured-elsewhere")


@pytest.mark.parametrize("gain", [0.2, -0.2])
def test_the_answer_shows_the_probability_once(gain):
    verdict = decide(measured(gain), calibration())
    audit = Audit(
        "inspect", Provenance("0", "2", ()), evaluation=measured().measured, verdict=verdict
    )
    told = [text for label, text in answer(audit).lines if label == "forecast"]
    shown = verdict.gain.probability if gain > 0 else verdict.probability
    assert len(told) == 1 and (f"{shown:.2f}" in told[0] or "above 0.99" in told[0])
    assert (verdict.decision in told[0]) == (gain < 0)


# ---- the numbers: against integration, their limits, their file ----------------------------------

GIVEN = DOCUMENT["coefficients"]
NOBODY = 1e6  # the standard error of a gain that nobody measured


def density(gain, baseline):
    """The density of gains by scipy's logistic distribution of t(gain), before the cut."""
    centre = GIVEN["intercept"] + GIVEN["baseline"] * baseline
    t = np.arcsinh(gain / GIVEN["unit"])
    return stats.logistic.pdf(t, centre, GIVEN["spread"]) / np.hypot(gain, GIVEN["unit"])


@pytest.mark.parametrize("margin", [-0.1, 0.0, 0.05, 0.3])
@pytest.mark.parametrize(
    ("gain", "error"), [(0.0, NOBODY), (0.2, 0.1), (-0.1, 0.05), (0.05, 0.2), (0.4, 0.03)]
)
def test_it_is_the_integral_of_spread_times_error(margin, gain, error):
    def product(at):
        return density(at, 0.2) * stats.norm.pdf(gain, at, error) * error

    # The integrals start at -1 and end at 0.8, because no score exceeds 1.
    points = [0.0, gain]
    above, _ = integrate.quad(product, margin, 0.8, points=points, limit=400)
    below, _ = integrate.quad(product, -1, margin, points=points, limit=400)
    said = calibration().probability(margin, 0.2, gain, error)
    assert said == pytest.approx(above / (above + below), abs=0.01)


def test_a_gain_rises_with_what_was_measured_and_falls_with_margin_and_baseline():
    found = calibration()
    found = found.coefficients
    gains = [found.exceeds(0.05, 0.2, g, 0.1) for g in np.linspace(-0.5, 0.7, 25)]
    margins = [found.exceeds(m, 0.2, 0.2, 0.1) for m in np.linspace(-0.2, 0.5, 25)]
    baselines = [found.exceeds(0.05, b, 0.1, 0.1) for b in np.linspace(0, 0.9, 25)]
    assert all(np.diff(gains) > 0) and all(np.diff(margins) < 0) and all(np.diff(baselines) < 0)


def test_nothing_is_gained_over_a_perfect_baseline():
    for baseline, gain in ((1.0, 0.0), (0.97, 0.03)):
        assert calibration().coefficients.exceeds(0.05, baseline, gain, 0.1) == 0.0
        assert calibration().probability(0.05, baseline, gain, 0.1) == LEAST


@pytest.mark.parametrize("prior", [0.01, 0.4, 0.5, 0.93])
@pytest.mark.parametrize(("margin", "share"), [(0.05, 0.4), (-1, 0.6), (0.15, 0.3), (0.9, 0.2)])
def test_another_prior_multiplies_the_odds_of_its_margin(prior, margin, share):
    found = calibration()
    assert found.prior(margin) == pytest.approx(share)
    margin = max(margin, -0.5)  # all gains lie above -1
    own = found.probability(margin, 0.05, 0.2, 0.3)
    other = found.probability(margin, 0.05, 0.2, 0.3, prior)
    ratio = (prior / (1 - prior)) / (found.prior(margin) / (1 - found.prior(margin)))
    assert other / (1 - other) == pytest.approx(own / (1 - own) * ratio)


def with_value(*path, value):
    document = copy.deepcopy(DOCUMENT)
    functools.reduce(operator.getitem, path[:-1], document)[path[-1]] = value
    return document


def without(*path):
    document = copy.deepcopy(DOCUMENT)
    del functools.reduce(operator.getitem, path[:-1], document)[path[-1]]
    return document


@pytest.mark.parametrize(
    ("document", "what"),
    [
        (with_value("format", value=1), "format"),
        (with_value("coefficients", "spread", value=0), "greater than 0"),
        (with_value("coefficients", "unit", value=-1), "greater than 0"),
        (with_value("coefficients", "intercept", value=math.nan), "number"),
        (with_value("coefficients", "baseline", value="steep"), "number"),
        (without("coefficients", "baseline"), "coefficients.baseline"),
        (without("measured"), "measured"),
        (with_value("gained", value=[[0.1, 0.5], [0.0, 0.6]]), "do not rise"),
        (with_value("gained", value=[]), "do not rise"),
        (with_value("gained", 0, value=[0.0, 1.0]), "gained[0][1]"),
        (with_value("accuracy", "small", value={"where": ""}), "accuracy.small.sets"),
        (with_value("classes", 0, "gained", value=[]), "do not rise"),
        (without("classes"), "classes"),
    ],
)
def test_a_file_that_is_no_calibration_is_one_sentence(tmp_path, document, what):
    path = tmp_path / "c.json"
    path.write_text(json.dumps(document))
    with pytest.raises(UsageError) as error:
        read_calibration(path)
    assert what in str(error.value) and str(path) in str(error.value)
    assert "lab calibrate" in str(error.value)


def test_files_that_cannot_be_read_are_one_sentence(tmp_path):
    (tmp_path / "broken.json").write_text("{")
    (tmp_path / "list.json").write_text("[]")
    for name in ("broken.json", "list.json", "missing.json"):
        with pytest.raises(UsageError, match=name):
            read_calibration(tmp_path / name)


def test_what_ships_has_at_most_eight_coefficients_and_tells_what_was_measured():
    found = shipped_calibration()
    assert len(vars(found.coefficients)) <= 8
    assert found.cases > 200 and "small" in found.accuracy
    for told in found.accuracy.values():
        assert 15 <= told.sets <= found.cases and told.items == PILOT_ITEMS
        assert 0 < told.brier < 0.25 and (told.auroc is None or 0.5 < told.auroc <= 1)


# ---- the command line ----------------------------------------------------------------------------


@pytest.mark.parametrize("prior", ["0", "1", "1.5", "-0.2", "nan"])
@pytest.mark.parametrize("command", ["inspect", "merge-and-eval"])
def test_a_prior_that_is_no_probability_is_refused_at_once(command, prior):
    result = making.call(command, "nowhere", "nobody", f"--prior={prior}")
    assert result.exit_code == 2 and not result.stdout
    assert "--prior" in result.stderr and f"not {float(prior)}" in result.stderr
    with pytest.raises(UsageError, match="prior"):
        Options.of({"prior": float(prior)})


def test_a_calibration_that_is_none_is_refused_at_once():
    unreadable = {"LORAPROBE_CALIBRATION": "missing.json"}
    result = making.call("inspect", "nowhere", "nobody", env=unreadable)
    assert result.exit_code == 2 and "missing.json" in result.stderr


def test_a_command_tells_the_probability_of_its_gain_for_prior_and_margin(tmp_path):
    (tmp_path / "c.json").write_text(json.dumps(DOCUMENT))
    files = {"LORAPROBE_CACHE": str(tmp_path), "LORAPROBE_CALIBRATION": str(tmp_path / "c.json")}
    options = "--json --quiet --limit 30 --prior 0.3 --margin 0.1".split()
    call = ["inspect", *making.shipped("skill-and-facts"), *options]
    document = json.loads(making.call(*call, env=files).stdout)
    verdict, own = document["verdict"], document["verdict"]["gain"]
    assert (verdict["evidence"], verdict["prior"]) == ("pilot", 0.3)
    assert "probability-measured-on" in {reason["code"] for reason in verdict["reasons"]}
    (best,) = (
        row
        for row in document["gains"]
        if (row["system"], row["part"]) == (own["system"], own["form"])
    )
    rows = [Score(**row | {"part": ItemPart(row["part"])}) for row in document["evaluation"]]
    alone, error = evidence_of(scores=tuple(rows), tasks=1), np.diff(best["ci95"])[0] / 2 / Z95
    said = calibration().probability(0.1, alone.baseline, best["difference"], error, 0.3)
    assert said == pytest.approx(own["probability"], abs=1e-9)
