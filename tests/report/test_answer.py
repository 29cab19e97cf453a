"""The answer: it is short and complete, and nothing in it contradicts the verdict."""

from __future__ import annotations

import re
import shlex

import pytest
from calibrations import calibration
from evidences import (
    KINDS,
    N,
    any_evidence,
    both,
    changed,
    evidence,
    evidence_of,
    replaced,
    score,
    skills,
    unit,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from loraprobe.records import (
    AdapterSummary,
    Attribution,
    Audit,
    Command,
    Compatibility,
    Coverage,
    Forecast,
    Gain,
    Issue,
    Measurement,
    Provenance,
    Rounds,
)
from loraprobe.report.answer import MOST_ROWS, answer, chosen
from loraprobe.report.parts import Answer
from loraprobe.verdict import Evidence, Request, decide, next_command

ACTIONS = (
    "merge route step-by-step chain use-single use-base switch-adapters train-target-adapter "
    "gather-evidence fix"
).split()
NEAR = Measurement("cosine", ("a", "b"), 0.998)
UNEVEN = Measurement("norm_ratio", ("a", "b"), 24.6)


def audit_of(found: Evidence, command: str = "merge-and-eval", **request) -> Audit:
    """The audit of two adapters with the verdict on this evidence."""
    verdict = decide(found, calibration())
    kind = KINDS.get(verdict.system or "", "merge")
    given = {"adapters": ("./a", "owner/b"), "tasks": ("t.jsonl",), **request}
    asked = Request(kind=kind, **given)
    rows = [
        AdapterSummary(name, name, None, "gpt2", {"min": 8, "max": 8}, 36, 100, 1.0)
        for name in ("a", "b")
    ]
    return Audit(
        command,
        Provenance("0", "2", ()),
        adapters=tuple(rows),
        compatibility=found.compatibility,
        diagnostics=found.diagnostics,
        evaluation=found.measured,
        verdict=replaced(verdict, next=next_command(verdict, asked)),
    )


@st.composite
def several_tasks(draw):
    """Evidence of two tasks, with the retention of every composition."""
    rows, gains = [], []
    for task in ("t", "u"):
        for name in KINDS:
            kept = draw(st.none() | st.floats(0, 1.2)) if name in ("uniform", "arrow") else None
            ends = None if kept is None else (kept - 0.1, kept + 0.1)
            rows.append(score(name, draw(unit), task=task, retention=kept, retention_ci95=ends))
    for name in ("uniform", "arrow"):
        half, difference = draw(st.floats(0.01, 0.2)), draw(st.floats(-0.5, 0.5))
        ci = (difference - half, difference + half)
        gains.append(Gain(None, "question", name, "a", difference, ci, ci, 2 * N))
    return evidence_of(scores=tuple(rows), gains=tuple(gains), level="evaluation", tasks=2)


@st.composite
def evidences(draw):
    """Evidence of every level with warnings, findings, causes of failure and a forecast."""
    found = draw(several_tasks() | any_evidence())
    level = draw(
        st.sampled_from(["evaluation"] * 4 + ["pilot"] * 2 + ["base", "probes", "weights"])
    )
    if level in ("probes", "weights"):
        found = evidence_of()
    causes = ("solved", "interference", "not_composed")
    counts = {cause: draw(st.integers(0, 50)) for cause in causes}
    gain, half = draw(st.floats(-0.5, 0.5)), draw(st.floats(0.01, 0.2))
    forecasts = (Forecast("sum", gain, (gain - half, gain + half), 60, "question", "a"),)
    severity = draw(st.sampled_from(["error"] + ["warning", "note"] * 4))
    issue = Issue(severity, "x-y", ("a", "b"), "The two are odd. " * 3, "Do something.")
    return replaced(
        found,
        level=level,
        margin=draw(st.sampled_from([0.0, 0.05, 0.2])),
        compatibility=Compatibility((issue,) * draw(st.integers(0, 3))),
        diagnostics=draw(st.sampled_from([(), (NEAR,), (UNEVEN,), (NEAR, UNEVEN)])),
        attribution=tuple(Attribution(name, "t", **counts) for name in ("uniform", "sum", "arrow")),
        forecasts=forecasts,
    )


def test_until_more_is_known_the_best_measured_option_is_named():
    """A composition too; what it gains is decided, so no more questions are asked for."""
    found = evidence({"base": 0.03, "a": 0.07, "b": 0.03, "sum": 0.67, "uniform": 0.11})
    told = answer(audit_of(found))
    assert told.decision == "inconclusive", "no control was scored"
    assert line(told, "use").startswith("so far sum (a merge)") and "0.67" in line(told, "gain")
    assert not line(told, "decide")
    nearly = answer(audit_of(evidence({"base": 0.03, "a": 0.27, "b": 0.03, "sum": 0.3})))
    assert "so far a alone" in line(nearly, "use") and "sum" in line(nearly, "close")


def line(told: Answer, label: str) -> str:
    return next((str(text) for name, text in told.lines if name == label), "")


def texts(told: Answer, label: str) -> list[str]:
    return [str(text) for name, text in told.lines if name == label]


@settings(max_examples=150)
@given(evidences())
def test_no_report_contradicts_itself(found):
    audit = audit_of(found)
    verdict, told = audit.verdict, answer(audit)
    head, _, single = verdict.action.partition(":")
    command = line(told, "next") or line(told, "in Python")
    assert head in ACTIONS and verdict.next and command == str(verdict.next)
    assert bool(line(told, "in Python")) != command.startswith("loraprobe ")
    assert told.decision == verdict.decision
    if verdict.decision == "incompatible":
        assert head == "fix" and verdict.gain is None and line(told, "why") and line(told, "fix")
        return
    # the decision against the decisive gain
    gain = verdict.gain
    if gain is not None:
        assert gain.system == verdict.system or verdict.composes
        assert gain.form in ("question", "steps")
        low, high = gain.ci95
        assert low <= gain.difference <= high
        if verdict.decision == "likely":
            assert low > verdict.margin
        if verdict.decision == "inconclusive" and not low <= verdict.margin <= high:
            assert any(r.severity == "decisive" for r in verdict.reasons)
    # the action against the decision
    if verdict.decision == "likely":
        assert head in ("merge", "route", "step-by-step")
        assert (head == "step-by-step") == (gain.form == "steps")
        assert verdict.system in verdict.next.words
    if head == "gather-evidence":
        assert verdict.decision == "inconclusive"
    if verdict.decision == "inconclusive":
        assert head == "chain" or not verdict.next.in_python
        assert head in ("gather-evidence", "chain") or line(told, "use").startswith("so far")
    elif single:
        assert single in command and f"{single} alone" in line(told, "use")
    elif head == "use-base":
        full = any(r.code in ("base-suffices", "nothing-to-gain") for r in verdict.reasons)
        fill = "HARDER-t.jsonl" if full else "NEW"
        assert fill in verdict.next.words and fill in line(told, "fill in")
        assert "base alone" in line(told, "use")
    if head == "chain":
        assert "chain" in line(told, "use") and not line(told, "better")
    # the probability is the decision's own
    several = len({row.task for row in audit.evaluation.scores}) > 1
    if verdict.probability is not None:
        assert verdict.decision != "inconclusive" and not several
        assert verdict.probability >= 0.5
        if gain is not None:
            own = gain.probability if verdict.decision == "likely" else 1 - gain.probability
            assert verdict.probability == pytest.approx(own)
    # a control that is better is not called as good, and advice follows the action
    for reason in verdict.reasons:
        if reason.code == "partner-adds-nothing":
            assert verdict.decision != "likely"
            compared = [
                c.adjusted_ci95[1]
                for c in audit.evaluation.comparisons
                if KINDS[c.against] == "control" and (c.system, c.part) == (gain.system, gain.form)
            ]
            better = compared and max(compared) < 0
            assert not (better and "as good" in reason.message)
        unadvised = ("use-single", "use-base", "gather-evidence")
        if reason.code.startswith("mostly-") and head in unadvised:
            assert ": " not in reason.message
    told_why = [label for label, _ in told.lines if label in ("why", "watch")]
    assert len(told_why) <= 3


def joined(rows) -> str:
    """The text of rows, with commands in one piece."""
    return " ".join(" ".join(row.strip().removesuffix("\\") for row in rows).split())


@st.composite
def references(draw):
    """Two to twelve references, from short ones to such that fill a line."""
    part = st.text("abcdefghijklmnopqrstuvwxyz-", min_size=1, max_size=draw(st.integers(1, 45)))
    one = st.builds("{}/x{}".format, part.map(lambda text: "o" + text), part)
    return tuple(draw(st.lists(one, min_size=2, max_size=12, unique=True)))


@settings(max_examples=80)
@given(evidences(), references(), st.sampled_from([40, 60, 80, 160]))
def test_sentences_wrap_and_commands_are_whole_at_every_width(found, given, width):
    audit = audit_of(found, adapters=given, tasks=("questions-about-" + given[0][2:] + ".jsonl",))
    told = answer(audit)
    rows = list(told.rows(width))
    for label, text in told.lines:
        assert " ".join(str(text).split()) in joined(Answer("", "", ((label, text),)).rows(width))
    pieces = {len(piece) for _, text in told.lines for piece in getattr(text, "pieces", ())}
    longest = max([width, *(12 + 4 + size for size in pieces)])
    assert "…" not in joined(rows)
    assert audit.verdict.next.verb == "ask" or max(map(len, rows)) <= longest
    assert str(audit.verdict.next) in joined(rows)
    sentences = [one for one in told.lines if isinstance(one[1], str) and one[0] != "fill in"]
    assert len(list(Answer("", "", tuple(sentences)).rows(80))) <= MOST_ROWS
    assert {"use", "gain"} & {label for label, _ in told.lines} or (
        found.level != "evaluation" or told.decision == "incompatible"
    )


@pytest.mark.parametrize(
    ("lines", "kept"),
    [
        # what changes more stays, in the order of reading
        (["use", "gain", "lacks:4", "watch:4", "forecast"], "use gain watch forecast"),
        (["use", "gain:3", "known:4", "watch:5", "next!"], "use gain watch next"),
        # a second line of one label counts less than the first of another
        (["why:5", "why:3", "watch:3"], "why watch"),
        (["made:2", "watch:2", "also", "known:2", "licence:2", "next!", "fill in"],
         "made watch also known licence next fill in"),
        # a command stays however long it is
        (["use", "why:9", "next!:30"], "use why next"),
    ],
)  # fmt: skip
def test_those_lines_stay_that_change_most(lines, kept):
    """A line of the cases is LABEL:ROWS; ! is a command."""
    given = []
    for one in lines:
        label, _, rows = one.partition(":")
        words = tuple(f"{'w' * 60}{k}" for k in range(int(rows or 1)))
        command = Command("inspect", words) if label.endswith("!") else " ".join(words)
        given.append((label.strip("!"), command))
    assert " ".join(label for label, _ in chosen(given)) == kept


def test_references_are_shown_as_they_were_typed():
    audit = audit_of(evidence({"base": 0.0, "a": 0.9, "b": 0.1, "uniform": 0.4}), adapters=("a",))
    command = Command(
        "merge-and-eval", ("c=ckpt", "ckpt", "owner/b"), (("--task", "q"), ("--task", "q"))
    )
    places = {"ckpt": ["my dir/ckpt"], "c=ckpt": ["c=three/ckpt"], "q": ["one/q", "two/q"]}
    verdict = replaced(audit.verdict, next=command)
    told = answer(replaced(audit, verdict=verdict), places)
    words = ["c=three/ckpt", "my dir/ckpt", "owner/b", "--task", "one/q", "--task", "two/q"]
    assert shlex.split(line(told, "next"))[2:] == words
    assert "'out/a'" in line(answer(audit, {"a": ["out/a"]}), "in Python")


@pytest.mark.parametrize("best", [0.0, 0.8])
def test_the_answer_says_that_a_run_stopped_early_and_how_to_ask_the_rest(best):
    values = {**dict.fromkeys(KINDS, 0.05), "arrow": best}
    early = evidence(values, rounds=Rounds(2, 3, N, 150, 0.99))
    told = dict(answer(audit_of(replaced(early, diagnostics=(UNEVEN,)))).lines)
    assert f"{N} of 150" in told["gain"]
    assert "2 of 3" in told["stopped"] and "--all-items" in told["stopped"]
    whole = audit_of(replaced(early, rounds=Rounds(3, 3, N, N, 0.96)))
    assert "stopped" not in dict(answer(whole).lines)
    assert f"on {N} questions" in line(answer(whole), "gain")


def test_gain_and_scores_agree_as_they_are_printed():
    for a in (0.035, 1 / 3, 0.045, 0.5):
        for own in (0.03, 2 / 3, 0.04, 0.505):
            told = line(answer(audit_of(evidence({"base": 0.0, "a": a, "uniform": own}))), "gain")
            shown = [float(x) for x in re.findall(r"(?<![\d.\[])[+-]?\d\.\d+", told)[:3]]
            assert shown[2] == pytest.approx(shown[0] - shown[1], abs=1e-9), told


def test_equal_updates_are_told_once():
    seed = Measurement("shared_initialisation", ("a", "b"), 1.0)
    same = Measurement("cosine", ("a", "b"), 1.0)
    issue = Issue("warning", "duplicate", ("a", "b"), "a and b are the same update.", "Drop one.")
    found = evidence_of(diagnostics=(seed, same), compatibility=Compatibility((issue,)))
    told = answer(audit_of(found, "inspect"))
    assert "1 warning" in told.headline
    assert len([label for label, _ in told.lines if label == "watch"]) == 1
    other = replaced(seed, adapters=("a", "c"))
    told = answer(audit_of(evidence_of(diagnostics=(other, same)), "inspect"))
    assert "2 warnings" in told.headline  # another pair is another fact


@pytest.mark.parametrize(
    ("request_", "command"),
    [
        ({"adapters": ("a", "b", "c"), "fitting": ("a", "b")}, "loraprobe inspect a b"),
        ({"adapters": ("a", "b", "c"), "bases": ("p/x", "p/y")}, "loraprobe find p/x"),
        ({"fitting": ("a",), "bases": ("p/x",), "unlike": True}, "loraprobe find p/x"),
        ({"fitting": ("a",), "unlike": True}, "loraprobe find BASE"),
    ],
)  # fmt: skip
def test_a_conflict_is_followed_by_the_adapters_that_fit(request_, command):
    found = evidence_of(
        compatibility=Compatibility((Issue("error", "x-y", ("c",), "No.", "Mend."),))
    )
    audit = audit_of(found, **request_)
    assert str(audit.verdict.next) == command
    assert ("BASE" in command) == ("BASE" in line(answer(audit), "fill in"))


def test_weights_end_in_a_verdict_with_warnings_and_two_commands():
    found = audit_of(evidence_of(diagnostics=(NEAR, UNEVEN)), "inspect")
    told = answer(found)
    assert (told.decision, found.verdict.action) == ("inconclusive", "gather-evidence")
    watched = [text for label, text in told.lines if label == "watch"]
    assert "0.998" in watched[0] and "24.6" in watched[1] and "--balance norm" in watched[1]
    assert len(watched) == 2 and "2 warnings" in told.headline
    assert "--probe auto" in line(told, "next") and "--task" in line(told, "questions")
    assert "603" in line(told, "known") and "0.05" in line(told, "known")


@pytest.mark.parametrize("warnings", range(4))
@pytest.mark.parametrize("diagnostics", [(), (UNEVEN,), (NEAR, UNEVEN)])
def test_a_headline_lists_as_many_warnings_as_it_counts(warnings, diagnostics):
    """Neither a licence nor a cosine that warns of nothing is one of them."""
    issues = [Issue("warning", f"x-{i}", ("a",), f"Odd {i}.", "Do.") for i in range(warnings)]
    issues += [Issue("warning", "licence-terms", ("a",), "Terms.", "Read.")]
    issues += [Issue("note", "y", ("a",), "Fine.", "")]
    related = diagnostics or (replaced(NEAR, value=0.1),)
    found = evidence_of(diagnostics=related, compatibility=Compatibility(tuple(issues)))
    told = answer(audit_of(found, "merge"))
    counted = sum(map(int, re.findall(r"(\d+) warning", told.headline)))
    assert counted == warnings + len(diagnostics)
    watched = [text for label, text in told.lines if label == "watch"]
    more = re.findall(r"^(\d+) more warnings?: --explain$", watched[-1]) if watched else []
    assert len(watched) - len(more) + sum(map(int, more)) == counted
    assert line(told, "licence") == "Terms."
    assert ("0.10" in line(told, "also")) == (not diagnostics)


def test_the_adapter_that_hardly_shows_is_named():
    norms = (Measurement("norm", ("a",), 54.0), Measurement("norm", ("b",), 2.0))
    uneven = Measurement("norm_ratio", ("a", "b"), 27.0)
    (told,) = [
        text
        for label, text in answer(
            audit_of(evidence_of(diagnostics=(uneven, *norms)), "inspect")
        ).lines
        if label == "watch"
    ]
    assert told.startswith("b hardly shows") and "a is 27.0 times larger" in told


def test_a_better_chain_is_named_beside_a_composition_that_works():
    gains = {"base": 0.0, "a": 0.1, "uniform": 0.6, "chain": 1.0, "random-partner": 0.1}
    told = answer(audit_of(evidence(gains)))
    assert told.decision == "likely" and "1.00" in line(told, "better")
    assert "a random partner" in line(told, "sure") and "+0.50" in line(told, "sure")
    worse = answer(audit_of(evidence({**gains, "chain": 0.5})))
    assert not line(worse, "better")


def test_both_options_are_compared_where_a_single_adapter_is_better():
    values = {"base": 0.0, "a": 0.9, "b": 0.1, "uniform": 0.4, "random-partner": 0.5}
    told = answer(audit_of(evidence(values)))
    assert "0.90" in line(told, "use") and "0.40" in line(told, "use")
    assert "PeftModel" in line(told, "in Python") and "'./a'" in line(told, "in Python")


def test_an_open_decision_says_what_would_decide():
    few = evidence({"base": 0.0, "a": 0.1, "uniform": 0.3, "random-partner": 0.1}, half=0.3)
    few = changed(changed(few, n=8), rows="gains", n=8, n_needed=320)
    told = answer(audit_of(few))
    assert told.decision == "inconclusive"
    assert "320" in line(told, "decide") and "8" in line(told, "decide")
    assert any("8 questions" in text for label, text in told.lines if label == "watch")


def test_until_several_tasks_are_decided_each_task_has_its_own_adapter():
    table = {"base": (0.05, 0.05), "a": (1.0, 0.08), "b": (0.05, 0.9), "arrow": (0.8, 0.8)}
    undecided = {"retention": 0.8, "retention_ci95": (0.7, 0.9)}
    found = changed(skills(table, 0.05), lambda row: row.system == "arrow", **undecided)
    told = answer(audit_of(found))
    assert told.decision == "inconclusive" and "each task's own adapter" in line(told, "use")


def test_a_composition_that_gains_less_than_was_asked_is_named_with_its_command():
    steps = {"base": 0.0, "a": 0.02, "sum": 0.8, "random-partner": 0.02}
    told = answer(audit_of(evidence(steps, part="steps", margin=0.9)))
    assert told.decision == "unlikely"
    assert "sum" in line(told, "use") and "step by step" in line(told, "use")
    assert line(told, "next").startswith("loraprobe merge ")


def test_more_questions_than_anybody_has_are_not_asked_for():
    found = evidence({"base": 0.0, "a": 0.1, "uniform": 0.16, "random-partner": 0.1}, half=0.1)
    told = answer(audit_of(changed(found, rows="gains", n_needed=None)))
    assert "--margin 0.17" in line(told, "decide") and "5,000" in line(told, "decide")
    told = answer(audit_of(changed(found, rows="gains", n_needed=340, clusters=20)))
    assert "48 more clusters" in line(told, "decide") and "20" in line(told, "decide")


def test_what_the_items_lack_is_said_with_its_cure():
    failing = {"base": 0.0, "a": 0.05, "uniform": 0.05, "random-partner": 0.05}
    codes = {r.code for r in decide(evidence(failing)).reasons}
    assert {"steps-missing", "hops-missing"} <= codes
    asked = both(evidence(failing), evidence(failing, part="steps"))
    hop = replaced(asked.measured.scores[0], part="hop1")
    asked = replaced(asked, scores=(*asked.measured.scores, hop))
    assert not {"steps-missing", "hops-missing"} & {r.code for r in decide(asked).reasons}


@pytest.mark.parametrize(("without", "warned"), [(0.1, True), (0.85, False)])
def test_a_chat_template_that_changes_the_answers_is_said(without, warned):
    row = Coverage("chat_template", "t", 0.9, 32, baseline=without)
    values = {"base": 0.0, "a": 0.1, "uniform": 0.6, "random-partner": 0.1}
    told = answer(audit_of(evidence(values, coverage=(row,))))
    watched = [text for label, text in told.lines if label == "watch" and "template" in text]
    assert bool(watched) == warned
    assert not warned or ("0.90" in watched[0] and "0.10" in watched[0])
