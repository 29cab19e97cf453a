"""The answer: it fits, it is complete, and nothing in it contradicts the verdict."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

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

from loraprobe.formatting import wrapped
from loraprobe.records import (
    AdapterSummary,
    Attribution,
    Audit,
    Compatibility,
    Coverage,
    Forecast,
    Gain,
    Issue,
    Measurement,
    Provenance,
    Rounds,
)
from loraprobe.report.answer import MOST_LINES, Answer, answer
from loraprobe.report.showing import typed_references
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
    return next((text for name, text in told.lines if name == label), "")


@settings(max_examples=150)
@given(evidences())
def test_no_report_contradicts_itself(found):
    audit = audit_of(found)
    verdict, told = audit.verdict, answer(audit)
    head, _, single = verdict.action.partition(":")
    command = line(told, "next") or line(told, "in Python")
    assert head in ACTIONS and verdict.next and command == verdict.next
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
        assert verdict.system in shlex.split(verdict.next)
    if head == "gather-evidence":
        assert verdict.decision == "inconclusive"
    if verdict.decision == "inconclusive":
        assert head == "chain" or verdict.next.startswith("loraprobe ")
        assert head in ("gather-evidence", "chain") or line(told, "use").startswith("so far")
    elif single:
        assert single in verdict.next and f"{single} alone" in line(told, "use")
    elif head == "use-base":
        full = any(r.code in ("base-suffices", "nothing-to-gain") for r in verdict.reasons)
        fill = "HARDER-t.jsonl" if full else "NEW"
        assert fill in verdict.next and fill in line(told, "fill in")
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


def rows(laid: list[str], width: int) -> int:
    """The rows of a terminal that these lines take."""
    return sum(-(-len(one) // width) for one in laid)


def joined(laid: list[str]) -> str:
    """The text of lines, with commands in one piece."""
    return " ".join(" ".join(row.strip().removesuffix("\\") for row in laid).split())


@settings(max_examples=80)
@given(evidences(), st.sampled_from([60, 80, 160]))
def test_the_answer_fits_and_its_command_can_be_copied(found, width):
    audit = audit_of(found)
    laid = answer(audit).laid_out(width)
    assert len(laid) <= MOST_LINES and max(map(len, laid)) <= width
    assert audit.verdict.next in joined(laid)


@st.composite
def references(draw):
    """Two to twelve references, from short ones to such that fill a line."""
    part = st.text("abcdefghijklmnopqrstuvwxyz-", min_size=1, max_size=draw(st.integers(1, 45)))
    one = st.builds("{}/x{}".format, part.map(lambda text: "o" + text), part)
    return tuple(draw(st.lists(one, min_size=2, max_size=12, unique=True)))


@settings(max_examples=80)
@given(evidences(), references(), st.sampled_from([60, 80, 160]))
def test_the_answer_fits_with_many_adapters_and_long_references(found, given, width):
    audit = audit_of(found, adapters=given, tasks=("questions-about-" + given[0][2:] + ".jsonl",))
    told = answer(audit)
    laid = told.laid_out(width)
    assert rows(laid, width) <= MOST_LINES
    shown = {label for label, _ in told.kept(width)}
    expected = {"next", "in Python", "why", "fix", "use", "gain"} & {n for n, _ in told.lines}
    assert expected <= shown
    if "ADAPTERS" in joined(laid):
        assert f"ADAPTERS: the {len(given)} references that you gave" in joined(laid)
        command = audit.verdict.next.replace(shlex.join(given), "ADAPTERS")
        assert audit.verdict.next in joined(told.in_full(width))
    else:
        command = audit.verdict.next
        assert not told.in_full(width)
    assert command in joined(laid)


@pytest.mark.parametrize("width", [60, 80])
def test_long_names_and_paths_leave_twelve_lines(width):
    long = "a-very-long-organisation-name/an-even-longer-adapter-name-for-legal-questions-v2"
    asked = {"adapters": (long, long + "-b"), "base": "/models/" + long}
    asked["tasks"] = (long + ".jsonl",)
    found = audit_of(evidence({"base": 0.1, "a": 0.2, "uniform": 0.22, "sum": 0.2}), **asked)
    laid = answer(found).laid_out(width)
    assert rows(laid, width) <= MOST_LINES
    assert long in "".join(laid)
    conflict = Issue("error", "x-y", ("a", "b"), f"{long} does not fit {long}-b. " * 3, "Do it.")
    broken = audit_of(evidence_of(compatibility=Compatibility((conflict,) * 3)), **asked)
    kept = [label for label, _ in answer(broken).kept(width)]
    assert kept.count("fix") == kept.count("why") == 1  # a conflict leaves with its cure
    laid = answer(broken).laid_out(width)
    assert rows(laid, width) <= MOST_LINES and "x-y" in joined(laid) and "Do it." in joined(laid)


@pytest.mark.parametrize("width", [60, 80, 160])
@pytest.mark.parametrize("best", [0.0, 0.8])
def test_the_answer_says_that_a_run_stopped_early_and_how_to_ask_the_rest(width, best):
    values = {**dict.fromkeys(KINDS, 0.05), "arrow": best}
    early = evidence(values, rounds=Rounds(2, 3, N, 150, 0.99))
    told = dict(answer(audit_of(replaced(early, diagnostics=(UNEVEN,)))).kept(width))
    assert f"{N} of 150" in told["gain"]
    if width > 60 or best:  # the narrowest answer has no room for both
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


def test_what_measured_compositions_gained_stands_beside_weights_and_probes():
    for level in ("weights", "probes"):
        audit = audit_of(evidence_of(level=level, diagnostics=(NEAR, UNEVEN)), "inspect")
        for width in (80, 160):  # at 60 two warnings take its place
            known = dict(answer(audit).kept(width))["known"]
            assert "603" in known and "19 %" in known and "arXiv" in known


def test_only_an_abridged_command_is_told_again():
    """Several commands of one label that the answer shows as they are stand there once."""
    told = Answer("", "H.", (("serve", "vllm serve a"), ("serve", "ollama create a")))
    assert told.kept(80) == list(told.lines) and not told.in_full(80)
    told = Answer("", "H.", (*told.lines, *(("why", "w " * 600),) * 3))
    assert told.in_full(80) == ["ollama create a"]


@pytest.mark.parametrize("text", ["loraprobe inspect 'a b", "loraprobe inspect '' " + "x" * 900])
def test_any_text_may_stand_where_a_command_does(text):
    found = audit_of(evidence_of(diagnostics=(NEAR,)), "inspect")
    audit = replaced(found, verdict=replaced(found.verdict, next=text))
    assert len(answer(audit).typed({"a": "./a"}).laid_out(60)) <= MOST_LINES


def test_a_conflict_is_followed_by_the_adapters_that_fit():
    found = evidence_of(
        compatibility=Compatibility((Issue("error", "x-y", ("c",), "No.", "Mend."),))
    )
    audit = audit_of(found, adapters=("a", "b", "c"), fitting=("a", "b"))
    assert audit.verdict.next == "loraprobe inspect a b"
    audit = audit_of(found, adapters=("a", "b", "c"), fitting=("a",), bases=("p/x", "p/y"))
    assert audit.verdict.next == "loraprobe find p/x"
    audit = audit_of(found, fitting=("a",), bases=("p/x",), unlike=True)
    assert audit.verdict.next == "loraprobe find p/x"
    audit = audit_of(found, fitting=("a",), unlike=True)
    assert audit.verdict.next == "loraprobe find BASE" and "BASE" in line(answer(audit), "fill in")


def test_weights_end_in_a_verdict_with_warnings_and_two_commands():
    found = audit_of(evidence_of(diagnostics=(NEAR, UNEVEN)), "inspect")
    told = answer(found)
    assert (told.decision, found.verdict.action) == ("inconclusive", "gather-evidence")
    watched = [text for label, text in told.lines if label == "watch"]
    assert "0.998" in watched[0] and "24.6" in watched[1] and "--balance norm" in watched[1]
    assert len(watched) == 2 and "2 warnings" in told.headline
    assert "--probe auto" in line(told, "next") and "--task" in line(told, "questions")
    assert "603" in line(told, "known") and "0.05" in line(told, "known")


@pytest.mark.parametrize("width", [80, 160])
@pytest.mark.parametrize("warnings", range(4))
@pytest.mark.parametrize("diagnostics", [(), (UNEVEN,), (NEAR, UNEVEN)])
def test_a_headline_lists_as_many_warnings_as_it_counts(width, warnings, diagnostics):
    """Neither a licence nor a cosine that warns of nothing is one of them."""
    issues = [Issue("warning", f"x-{i}", ("a",), f"Odd {i}.", "Do.") for i in range(warnings)]
    issues += [Issue("warning", "licence-terms", ("a",), "Terms.", "Read.")]
    issues += [Issue("note", "y", ("a",), "Fine.", "")]
    related = diagnostics or (replaced(NEAR, value=0.1),)
    found = evidence_of(diagnostics=related, compatibility=Compatibility(tuple(issues)))
    told = answer(audit_of(found, "merge"))
    counted = sum(map(int, re.findall(r"(\d+) warning", told.headline)))
    assert counted == warnings + len(diagnostics)
    watched = [text for label, text in told.kept(width) if label == "watch"]
    more = re.findall(r"^(\d+) more warnings?: --explain$", watched[-1]) if watched else []
    assert len(watched) - len(more) + sum(map(int, more)) == counted
    assert line(told, "licence") == "Terms."
    assert ("0.10" in line(told, "also")) == (not diagnostics)


@pytest.mark.parametrize(
    ("next_", "label"),
    [
        ("loraprobe route a b -o DIR", "next"),
        ("loraprobe.load_composition('out').into(model)", "in Python"),
        ("PeftModel.from_pretrained(base, 'a')", "in Python"),
    ],
)
def test_next_is_a_command_of_a_shell(next_, label):
    found = audit_of(evidence_of(diagnostics=(NEAR,)), "inspect")
    audit = replaced(found, verdict=replaced(found.verdict, next=next_))
    assert (label, next_) in answer(audit).lines


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


def test_references_are_shown_as_they_were_typed():
    told = Answer("likely", "H.", (("next", "loraprobe merge a owner/b -o DIR"), ("use", "a")))
    typed = told.typed({"a": "out/my dir/a"})
    assert line(typed, "next") == "loraprobe merge 'out/my dir/a' owner/b -o DIR"
    assert line(typed, "use") == "a"


def test_adapters_and_tasks_of_one_name_keep_their_own_directories(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for place in ("one/ckpt", "two/ckpt", "three/ckpt", "one/q", "two/q"):
        Path(place).mkdir(parents=True)
    refs = ("c=three/ckpt", "one/ckpt", "two/ckpt", "--task", "one/q", "--task", "two/q")
    command = "loraprobe merge-and-eval c=ckpt ckpt ckpt-2=ckpt --task q --task q"
    told = Answer("unlikely", "H.", (("next", command),)).typed(typed_references(refs))
    words = line(told, "next").split()[2:]
    assert words == [*refs[:2], "ckpt-2=two/ckpt", *refs[3:]]


@pytest.mark.parametrize("width", range(24, 90))
def test_an_option_and_its_value_stay_together(width):
    text = "legal is 24.6 times larger than news, which hardly shows: try --balance norm."
    lines = wrapped(text, width)
    assert " ".join(lines) == text and max(map(len, lines)) <= width
    assert any("--balance norm." in row for row in lines)


@pytest.mark.parametrize("width", range(24, 90))
def test_a_number_of_a_long_word_stays_whole(width):
    lines = wrapped("by ties:density=0.3,election=total,lambda=1.0,variant=peft in full", width)
    assert max(map(len, lines)) <= width
    assert all(any(number in row for row in lines) for number in ("0.3", "1.0"))


def test_a_long_command_drops_no_first_warning():
    command = "loraprobe merge-and-eval " + " ".join(f"owner/adapter-{i:030}" for i in range(7))
    lines = (("use", "a"), ("gain", "1"), ("why", "w"), ("watch", "first"), ("watch", "second"))
    laid = Answer("unlikely", "H.", (*lines, ("next", command))).laid_out(60)
    assert any("first" in row for row in laid) and not any("second" in row for row in laid)
    assert len(laid) <= MOST_LINES
    warning = ("watch", "first is larger, so " + "it hardly shows " * 20)
    laid = Answer("unlikely", "H.", (*lines[:3], warning, ("next", "loraprobe env"))).laid_out(60)
    assert len(laid) <= MOST_LINES and {"w", "larger."} <= {row.split()[-1] for row in laid}


@pytest.mark.parametrize("label", ["lacks", "known"])
def test_other_lines_leave_before_the_probability(label):
    long = " ".join(["word"] * 30)
    lines = (("use", "a"), ("gain", long), (label, long), ("watch", long), ("forecast", "0.49"))
    told = Answer("inconclusive", "H.", (*lines, ("next", "loraprobe env")))
    assert [label for label, _ in told.kept(80)] == ["use", "gain", "watch", "forecast", "next"]
