"""When an evaluation stops, and who is asked how much: on planted answers, and by `inspect`."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from planted_answers import Planted

from loraprobe import defaults
from loraprobe.defaults import ROUNDS_FROM
from loraprobe.evaluation import ResponseCache, System, rounds
from loraprobe.evaluation.questions import pilot_round
from loraprobe.options import Options
from loraprobe.pipeline import evaluate
from loraprobe.pipeline.commands import inspect, merge_and_eval
from loraprobe.pipeline.evaluate import SequentialEvaluation
from loraprobe.pipeline.inputs import Inputs
from loraprobe.records import FORMS, QUESTION, ItemResult
from loraprobe.report.answer import answer
from loraprobe.results import NAME
from loraprobe.session import Session
from loraprobe.tasks import Item, Task, with_metrics
from loraprobe.verdict import Evidence, Exclusion, decide, decide_compositions
from loraprobe_lab import shipped_world

N = 240
ALONE = [System("base", "base"), System("a", "adapter"), System("b", "adapter")]
COMPOSED = [System("uniform", "merge"), System("sum", "merge"), System("arrow", "router")]
CONTROLS = [System("shrunk:a", "control"), System("random-partner", "control")]
FAIR = {"base": 0.05, "a": 0.2, "b": 0.1, "chain": 0.5}
FAIR |= {"shrunk:a": 0.15, "shrunk:b": 0.1, "random-partner": 0.1}


def planted(
    shares: dict[str, float] | list[dict[str, float]],
    n: int = N,
    golds: int = N,
    guard: dict[str, float] | None = None,
    guards: int = 400,
    steps: list[dict[str, float]] | None = None,
    **options: Any,
) -> Planted:
    """guard: shares of right answers to the `guards` items of a guard; 0.8 of who is not named.

    steps: those of worked steps, for each task; None where none are asked.
    """
    tasks, answers = [], {}
    rng = np.random.default_rng(5)
    for t, of in enumerate(shares if isinstance(shares, list) else [shares]):
        tasks.append(
            Task(f"t{t}", tuple(Item(str(k), f"p{k}", (f"x{k % golds}",)) for k in range(n)))
        )
        for name, share in {**FAIR, **of}.items():
            answers[name, f"t{t}"] = rng.random(n) < share
        for name, share in {**FAIR, **steps[t]}.items() if steps else ():
            answers[name, f"t{t}", "steps"] = rng.random(n) < share
    session = Session(Options(**options))
    drawn, kept = rng.random(guards), []
    if guard is not None:
        kept = [Task("general", tuple(Item(str(k), f"g{k}", (f"y{k}",)) for k in range(guards)))]
        answers |= {
            (key[0], "general", *key[2:]): drawn < guard.get(key[0], 0.8) for key in [*answers]
        }
    inputs, scorer = Inputs((), (), None, tasks, kept), SimpleNamespace(chat_template=False)
    return Planted(inputs, session, scorer, scorer, ResponseCache(), tasks, answers=answers)  # type: ignore[arg-type]


def asked(evaluator: Planted, systems: list[System] | None = None) -> Any:
    everybody = systems or [*ALONE, *COMPOSED]
    found = SequentialEvaluation(
        evaluator, everybody, evaluator.rounds(), lambda *_: CONTROLS
    ).ask()
    made = found.records()
    names = tuple(guard.name for guard in evaluator.inputs.guards)
    rests_on = Evidence(made, tasks=len(evaluator.tasks), guard_names=names, level="evaluation")
    return found, made, decide_compositions(rests_on)


def items(evaluator: Planted, name: str, guard: bool = False) -> int:
    return sum((task == "general") is guard for task, _ in evaluator.asked.get(name, ()))


def test_a_large_gain_stops_after_the_first_round_with_its_controls():
    evaluator = planted({"uniform": 0.9, "sum": 0.3, "arrow": 0.3})
    _, made, verdict = asked(evaluator)
    assert (verdict.decision, verdict.system) == ("likely", "uniform")
    assert made.rounds.used == 1 < made.rounds.planned
    assert made.rounds.items == 30 and made.rounds.total == N
    assert {items(evaluator, s.name) for s in [*ALONE, *COMPOSED, *CONTROLS]} == {30}
    assert {row.n for row in made.scores} == {30}
    assert made.rounds.level > 0.99
    assert "controls-beaten" in {reason.code for reason in verdict.reasons}


def test_all_items_and_few_items_are_one_round():
    for evaluator in (
        planted({"uniform": 0.9, "sum": 0.3, "arrow": 0.3}, all_items=True),
        planted({"uniform": 0.9, "sum": 0.3, "arrow": 0.3}, n=ROUNDS_FROM - 1),
    ):
        _, made, verdict = asked(evaluator)
        assert verdict.decision == "likely"
        assert made.rounds.used == made.rounds.planned == 1
        assert {row.n for row in made.scores} == {len(evaluator.tasks[0].items)}


def test_what_cannot_win_is_dropped_and_the_baselines_never_are():
    evaluator = planted({"a": 0.5, "uniform": 0.62, "sum": 0.0, "arrow": 0.6})
    found, made, _ = asked(evaluator)
    assert made.rounds.used > 1
    assert items(evaluator, "sum") < items(evaluator, "uniform") == made.rounds.items
    assert made.rounds.dropped == {"sum": 1}
    assert {items(evaluator, s.name) for s in ALONE} == {made.rounds.items}
    assert "sum" not in {gain.system for gain in made.gains}, "it is no candidate"
    counts = {row.system: row.n for row in made.scores}
    assert counts["sum"] == items(evaluator, "sum") and counts["base"] == made.rounds.items
    assert [system.name for system in found.systems][3:6] == ["uniform", "sum", "arrow"]
    assert found.notes() and "sum" in found.notes()[0]


def test_a_clear_failure_stops_early_with_a_first_round_of_controls():
    evaluator = planted({"a": 0.95, "uniform": 0.3, "sum": 0.2, "arrow": 0.2})
    _, made, verdict = asked(evaluator)
    assert verdict.decision == "unlikely"
    assert made.rounds.used < made.rounds.planned
    assert {items(evaluator, s.name) for s in CONTROLS} == {30}


def test_what_guessing_reaches_is_no_answer_before_the_end_either():
    """Of five gold answers one is right for a fifth; the base and the adapters have little more.

    After the first round nothing is shown to answer, and nothing is shown not to.
    """
    shares = {"base": 0.25, "a": 0.25, "b": 0.25, "uniform": 0.0, "sum": 0.0, "arrow": 0.0}
    _, made, verdict = asked(planted(shares, golds=5))
    assert [row.value for row in made.coverage if row.name == "guessing"] == [0.2]
    assert (verdict.decision, verdict.missing) == ("inconclusive", "answers")
    assert made.rounds.used > 1
    _, made, verdict = asked(planted(shares))
    assert (verdict.decision, made.rounds.used) == ("unlikely", 1)
    assert verdict.action.kind.startswith("use-"), "with a gold answer for each item it answers"


def test_a_gain_that_a_control_has_too_is_no_success_and_goes_on():
    evaluator = planted({"uniform": 0.9, "sum": 0.3, "arrow": 0.3, "random-partner": 0.89})
    _, made, verdict = asked(evaluator)
    assert verdict.decision != "likely"
    assert made.rounds.used == made.rounds.planned or verdict.decision == "unlikely"
    assert items(evaluator, "random-partner") == made.rounds.items


def test_retentions_are_decided_too():
    """The mean gains at once, while it stays open for long whether b's skill is kept."""
    first = {"a": 0.9, "b": 0.05, "uniform": 0.9, "sum": 0.1, "arrow": 0.1}
    second = {"a": 0.05, "b": 0.9, "uniform": 0.75, "sum": 0.1, "arrow": 0.1}
    evaluator = planted([first, second])
    _, made, verdict = asked(evaluator)
    assert made.rounds.used > 1
    kept = next(r for r in made.scores if (r.system, r.task) == ("uniform", "t1"))
    gain = next(row for row in made.gains if row.system == "uniform")
    assert gain.adjusted_ci95[0] > 0.05, "the gain alone would have stopped it"
    assert kept.n == items(evaluator, "uniform") // 2
    assert verdict.decision in ("likely", "inconclusive", "unlikely")
    easy = planted([first, {**second, "uniform": 0.9}])
    assert asked(easy)[1].rounds.used <= made.rounds.used


@st.composite
def shares(draw):
    """Of right answers on one task in one form. Some random partners are as good as what they are
    compared with."""
    top, near = draw(st.floats(0.2, 0.9)), st.floats(-0.15, 0.15)
    drawn = {}
    for system in COMPOSED:
        drawn[system.name] = min(top + draw(near), 1.0)
        drawn[f"random-partner:{system.name}"] = max(top + 2 * draw(near) - 0.15, 0.0)
    return drawn | {name: draw(st.sampled_from([0.1, 0.3])) for name in ("a", "b")}


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_controls_belong_to_the_composition_of_the_verdict(data):
    """Whatever leads: on one task or two, in either form, with a guard, and where a composition or
    an adapter cannot be used."""
    names, draw = [system.name for system in COMPOSED], data.draw
    tasks = draw(st.lists(shares(), min_size=1, max_size=2))
    steps = [draw(shares()) for _ in tasks] if draw(st.booleans()) else None
    levels = st.fixed_dictionaries({name: st.sampled_from([0.4, 0.8]) for name in (*names, "a")})
    excluded = draw(st.lists(st.sampled_from([*names, "a"]), max_size=1))
    out = {name: Exclusion("opposed-updates", {"text": "No."}) for name in excluded}
    evaluator = planted(
        tasks, n=80, guard=draw(st.none() | levels), steps=steps, all_items=draw(st.booleans())
    )
    asked_for = {}

    def controls_of(name: str, evidence: Evidence) -> list[System]:
        asked_for[name] = alone = f"shrunk:{evidence.leading('adapter')}"
        content = f"random-partner:{name}"
        partner = System("random-partner", "control", content=content, of=name)
        return [System(alone, "control"), partner]

    systems, rounds = [*ALONE, *COMPOSED], evaluator.rounds()
    run = SequentialEvaluation(evaluator, systems, rounds, controls_of)
    with mock.patch.object(evaluate, "exclusions", lambda *_: out):
        found = run.ask()
        verdict, composed = found.verdict, found.candidates
    owners = {one.name: one.of for one in found.controls if one.of}
    assert verdict.gain.system in owners.values()
    assert verdict.decision != "likely" or verdict.system in owners.values()
    for row in found.measured.comparisons:
        assert row.system == owners.get(row.against, row.system)
    about = verdict.gain.system, verdict.gain.form
    (best,) = [one for one in composed if (one.system, one.part) == about]
    assert {owners.get(name) for name in best.controls} == {None, best.system}
    assert asked_for[best.system] in best.controls
    assert all(one.outcome != "likely" or one.system in owners.values() for one in composed)


def test_the_chain_is_asked_once_on_what_the_others_were_asked():
    evaluator = planted({"uniform": 0.9, "sum": 0.3, "arrow": 0.3})
    _, made, _ = asked(evaluator, [*ALONE, *COMPOSED, System("chain", "chain")])
    assert items(evaluator, "chain") == made.rounds.items
    assert "chain" in {gain.system for gain in made.gains}


SUM_LEADS = {"uniform": 0.7, "sum": 0.95, "arrow": 0.3}
BROKEN = dict.fromkeys(("uniform", "sum", "arrow"), 0.4)
WORSE, FIRM = dict.fromkeys((*BROKEN, "a", "b"), 0.4), {"base": 0.3, "a": 0.5}
SECOND = {"sum", "uniform", "a"}


@pytest.mark.parametrize(
    ("shares", "guard", "more", "decision", "action", "system", "asked_too"),
    [
        (SUM_LEADS, {}, {}, "likely", "merge", "sum", {"sum", "a"}),
        # The next composition leads only where one is shown to lose the guard.
        (SUM_LEADS, {"sum": 0.4}, {}, "likely", "merge", "uniform", SECOND),
        (SUM_LEADS, {"sum": 0.74}, {"guards": 90}, "inconclusive", "merge", "sum", {"sum", "a"}),
        # What is worse than one that loses it goes on.
        ({**SUM_LEADS, "uniform": 0.45}, {"sum": 0.4}, {}, "likely", "merge", "uniform", SECOND),
        # What loses it is not advised; the base never does.
        (SUM_LEADS, BROKEN, {}, "unlikely", "use-single:a", "sum", {*BROKEN, "a"}),
        ({**SUM_LEADS, **FIRM}, WORSE, {}, "unlikely", "use-base", "sum", {*BROKEN, "a"}),
        # An adapter that loses it is nothing to compare with.
        ({**SUM_LEADS, "a": 0.97}, {"a": 0.4}, {}, "likely", "merge", "sum", {"sum", "a", "b"}),
    ],
)
def test_a_guard(shares, guard, more, decision, action, system, asked_too):
    evaluator = planted(shares, guard=guard, **more)
    _, made, verdict = asked(evaluator)
    assert (verdict.decision, str(verdict.action)) == (decision, action)
    assert verdict.gain.system == system
    guarded = {name for name in evaluator.asked if items(evaluator, name, guard=True)}
    assert guarded == {"base", *asked_too}
    rows = {row.system: row for row in made.guards}
    binding = {"likely": "guard-kept", "unlikely": "guard-lost", "inconclusive": "guard-open"}
    assert rows[system].outcome == decision
    told = {(reason.code, reason.severity == "decisive") for reason in verdict.reasons}
    assert (binding[decision], decision != "likely") in told
    assert verdict.gain.against not in made.unsafe
    share = made.rounds.items / N
    assert items(evaluator, "base", guard=True) == pytest.approx(
        share * (more or {"guards": 400})["guards"], abs=1
    )


def test_a_gain_that_the_needed_metric_does_not_show_is_not_likely():
    """Of 50 JSON answers exact match calls 38 right of which 6 are JSON, as its kept texts show."""
    items = [Item(str(k), f"p{k}", (f'{{"city": "C{k}"}}',)) for k in range(50)]
    right = {"base": (1, 1), "a": (4, 4), "uniform": (38, 6), "shrunk:a": (2, 2), "sum": (38, 30)}

    @dataclass(frozen=True)
    class Texts(Planted):
        def run(self, systems: Any, *_: Any, **__: Any) -> list[ItemResult]:
            found = []
            for name in (system.name for system in systems if system.name in right):
                for k, item in enumerate(items):
                    texts = item.answers[0], f"{{city: C{k}}}", "dunno"
                    text = texts[(k >= right[name][1]) + (k >= right[name][0])]
                    of = (name, "t", QUESTION, item.id, "exact_match")
                    found.append(ItemResult(*of, float(text != "dunno"), text, item.cluster))
            return found

    def judged(merge: str, metric: str) -> Any:
        (task,) = with_metrics([Task("t", tuple(items))], metric)
        session, scorer = Session(), SimpleNamespace(chat_template=False)
        evaluator = Texts(
            Inputs((), (), None, [task]), session, scorer, scorer, ResponseCache(), [task]
        )  # type: ignore[arg-type]
        systems = [*ALONE[:2], System(merge, "merge")]
        run = SequentialEvaluation(evaluator, systems, rounds([task], 0), lambda *_: CONTROLS[:1])
        found = run.ask()
        made = found.records()
        evidence = Evidence(made, tasks=1, level="evaluation")
        return made, decide_compositions(evidence)

    made, verdict = judged("uniform", "exact_match")
    gain = made.gains[0]
    assert (gain.difference, gain.checked) == pytest.approx((0.68, 0.04))
    assert gain.adjusted_ci95[0] > 0.05 > gain.checked_ci95[0]
    assert verdict.decision == "inconclusive"
    assert made.rounds.used == made.rounds.planned, "it goes on where exact match would stop"
    told = {reason.code: reason for reason in verdict.reasons}
    assert told["answers-normalised"].severity == "decisive"
    assert told["answers-normalised"].value == gain.checked_ci95[0]
    assert judged("sum", "exact_match")[1].decision == "likely", "JSON shows a gain too"


@pytest.fixture(scope="module")
def inspected(tmp_path_factory):
    """The audit of two one-hop adapters, and how many answers it took."""
    chosen = shipped_world().scenario("disjoint")
    state = tmp_path_factory.mktemp("state")
    audit = inspect(
        list(chosen.adapters.values()),
        Session(Options(threads=1), state=state),
        base=str(shipped_world().path / "base"),
        tasks=list(chosen.tasks),
    ).audit
    return audit, (state / NAME).read_text().count("\n") - 1


def test_a_sample_is_asked_and_the_compositions_a_first_round(inspected):
    audit, answers = inspected
    alone = {(s.n, s.part) for s in audit.evaluation.scores if s.kind in ("base", "adapter")}
    composed = {(s.n, s.part) for s in audit.evaluation.scores if s.kind in ("merge", "router")}
    assert composed == {(defaults.PILOT_ITEMS, "question"), (defaults.PILOT_ITEMS, "steps")}
    short = {(defaults.HOP_ITEMS, part) for part in ("question", "hop1", "hop2")}
    assert alone == short | {(defaults.PILOT_ITEMS, "steps")}
    # A chain asks nothing more where its members' answers to the hops are right.
    assert answers == 3 * 3 * defaults.HOP_ITEMS + 3 * 3 * defaults.PILOT_ITEMS
    # merge-and-eval asks base, two adapters, three compositions and two controls all four parts
    # of all 200 items.
    assert answers < 8 * 4 * 200 / 3
    assert audit.verdict.decision == "unlikely"
    assert audit.verdict.action.kind == "chain"
    free = ("hop_accuracy", "guessing")  # read from the answers
    probed = {row.n for row in audit.evaluation.coverage if row.name not in free}
    assert max(probed) == defaults.PROBED_ITEMS
    assert "set_adapter" in str(audit.verdict.next)


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_an_evaluation_goes_on_from_the_verdict_of_a_first_round(data):
    """On the same answers the two agree in all but what they rest on; more answers are asked where
    the first round leaves the case open, else controls at most."""
    tasks = data.draw(st.lists(shares(), min_size=1, max_size=2))
    steps = [data.draw(shares()) for _ in tasks] if data.draw(st.booleans()) else None
    evaluator = planted(tasks, n=data.draw(st.sampled_from([20, 30, 80])), steps=steps)
    systems, schedule = [*ALONE, *COMPOSED], evaluator.rounds()

    def controls_of(name: str, evidence: Evidence) -> list[System]:
        content = f"random-partner:{name}"
        partner = System("random-partner", "control", content=content, of=name)
        return [System(f"shrunk:{evidence.leading('adapter')}", "control"), partner]

    first = pilot_round(evaluator.tasks, 0)
    assert replace(first, guards=()) == schedule[0]
    given_first = SequentialEvaluation(
        evaluator, systems, [first], controls_of, parts=FORMS, level="pilot"
    ).ask_round(first)
    pilot = decide(replace(given_first.evidence, measured=given_first.records()))
    run = SequentialEvaluation(evaluator, systems, schedule, controls_of)
    found = run.ask()
    verdict = decide(replace(found.evidence, measured=found.records()))
    about = [(v.decision, v.action, v.system, v.gain, v.missing) for v in (pilot, verdict)]
    assert pilot.decision != "likely" or found.round is schedule[0]
    if found.round is schedule[0] and set(found.systems) == set(given_first.systems):
        assert about[0] == about[1]
    elif found.round is schedule[0]:
        assert pilot.decision != "likely" and pilot.gain == verdict.gain


def test_a_first_round_is_one_look_with_the_controls_of_its_composition(tmp_path):
    chosen = shipped_world().scenario("skill-and-facts")
    base, session = str(shipped_world().path / "base"), Session(Options(threads=1), state=tmp_path)
    audit = inspect([*chosen.adapters.values()], session, base=base, tasks=chosen.tasks).audit
    verdict, measured = audit.verdict, audit.evaluation
    assert verdict.decision == "likely" and "controls-beaten" in {r.code for r in verdict.reasons}
    assert measured.rounds.level > 0.99, "merge-and-eval may look again"
    owners = {row.system for row in measured.comparisons if row.against == "random-partner"}
    assert owners == {verdict.gain.system} == {verdict.system}


def test_a_first_round_asks_the_router_that_an_evaluation_of_several_tasks_asks(tmp_path):
    """It learns from the items that `merge-and-eval` sets apart, and answers the same questions."""
    chosen = shipped_world().scenario("keep-both")
    refs = [f"{name}={path}" for name, path in chosen.adapters.items()]
    base = str(shipped_world().path / "base")
    options = Options(limit=60, threads=1)
    audit = inspect(refs, Session(options, state=tmp_path), base=base, tasks=chosen.tasks).audit
    again = Session(options, state=tmp_path, resume=True)
    whole = merge_and_eval(refs, again, base=base, tasks=chosen.tasks).audit
    rows = [one.evaluation.scores for one in (audit, whole)]
    routers = [{score.system for score in of if score.kind == "router"} for of in rows]
    assert routers[0] == routers[1] > {"arrow"}
    assert audit.verdict.decision == whole.verdict.decision == "likely"
    assert audit.verdict.system == whole.verdict.system
    # The router by text is asked as the adapters that it chooses, which answer for themselves.
    asked = sum(score.n for score in audit.evaluation.scores if score.system != "by-text")
    assert any(note.startswith(f"{asked} results of earlier runs") for note in whole.notes)


@pytest.mark.parametrize("form", ["ANSWER={}", '{{"answer": "{}"}}', "{}"])
@pytest.mark.parametrize("command", [inspect, merge_and_eval])
def test_what_no_system_answers_is_shown_and_decides_nothing(command, form, tmp_path):
    """`count` was trained on exactly these questions, and on gold answers of another form."""
    world, task = shipped_world(), tmp_path / "t.jsonl"
    items = [json.loads(line) for line in (world.path / "tasks/count.jsonl").open()][:60]
    made = [{**one, "answer": form.format(one["answer"])} for one in items]
    task.write_text("\n".join(map(json.dumps, made)))
    refs = [world.path / "adapters" / name for name in ("count", "last")]
    options = Options(threads=1, methods=("sum",), routers=())
    session = Session(options, state=tmp_path / "state")
    audit = command(refs, session, base=str(world.path / "base"), tasks=[task]).audit
    verdict = audit.verdict
    assert (verdict.missing == "answers") == (form != "{}")
    if form == "{}":
        return
    assert (verdict.decision, verdict.action.kind) == ("inconclusive", "gather-evidence")
    assert verdict.probability is verdict.gain is None
    (shown,) = [one for one in audit.samples[0].replies if one.system == "count"]
    assert form.format(shown.text) in audit.samples[0].gold and not shown.right
    printed = answer(audit)
    told = [str(text) for label, text in printed.lines if label in ("gold", "replied")]
    assert told[0] == audit.samples[0].gold[0] and told[1] == f"{shown.text} (count)"
    (close,) = [text for label, text in printed.lines if label == "close"] or [""]
    assert ("in this form" in printed.headline) == (form != "ANSWER={}")
    if form == "ANSWER={}":
        assert str(verdict.next).startswith("loraprobe task sample t.jsonl --base ") and not close
    else:
        assert str(verdict.next).endswith(" --metric contains")
        assert close.startswith("count alone ") and " 1.00 " in close and shown.text in close
    assert command is inspect or audit.evaluation.rounds.early, "the rest would be wrong too"
