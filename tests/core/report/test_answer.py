"""The answer: it is short and complete, and nothing in it contradicts the verdict."""

import re
import shlex

import pytest
from evidences import (
    KINDS,
    N,
    any_evidence,
    both,
    changed,
    codes,
    evidence,
    evidence_of,
    guards,
    known,
    replaced,
    score,
    skills,
    unit,
)
from first_rounds import Chances, case
from first_rounds import measured as planted
from first_rounds import score as of_kind
from hypothesis import given, settings
from hypothesis import strategies as st

from loraprobe.records import (
    QUESTION,
    AdapterSummary,
    Attribution,
    Audit,
    Command,
    Compatibility,
    Coverage,
    Gain,
    Issue,
    ItemPart,
    LearnedWeights,
    Measurement,
    Provenance,
    Reply,
    Rounds,
    Sample,
    TaskSummary,
)
from loraprobe.report.answer import MOST_ROWS, answer, chosen
from loraprobe.report.headline import deciding, lies
from loraprobe.report.parts import Answer
from loraprobe.report.sections import guards_unasked, scores
from loraprobe.verdict import Evidence, Request, decide, next_command
from loraprobe.verdict.next_command import may_stop
from loraprobe.verdict.reasons import CODES, HEADLINES

ACTIONS = (
    "merge route step-by-step chain use-single use-base switch-adapters train-target-adapter "
    "gather-evidence fix"
).split()
NEAR = Measurement("cosine", ("a", "b"), 0.998)
UNEVEN = Measurement("norm_ratio", ("a", "b"), 24.6)


def audit_of(found: Evidence, command: str = "merge-and-eval", **request) -> Audit:
    """The audit of two adapters with the verdict on this evidence."""
    verdict = decide(found, [Chances()])
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
        gains.append(Gain(None, QUESTION, name, "a", difference, ci, ci, 2 * N))
    return evidence_of(scores=tuple(rows), gains=tuple(gains), level="evaluation", tasks=2)


@st.composite
def evidences(draw):
    """Evidence of every level with warnings, findings and causes of failure."""
    found = draw(several_tasks() | any_evidence())
    level = draw(
        st.sampled_from(["evaluation"] * 4 + ["pilot"] * 2 + ["base", "probes", "weights"])
    )
    if level in ("probes", "weights"):
        found = evidence_of()
    causes = ("solved", "interference", "not_composed")
    counts = {cause: draw(st.integers(0, 50)) for cause in causes}
    severity = draw(st.sampled_from(["error"] + ["warning", "note"] * 4))
    issue = Issue(severity, "x-y", ("a", "b"), "The two are odd. " * 3, "Do something.")
    return replaced(
        found,
        level=level,
        margin=draw(st.sampled_from([0.0, 0.05, 0.2])),
        compatibility=Compatibility((issue,) * draw(st.integers(0, 3))),
        diagnostics=draw(st.sampled_from([(), (NEAR,), (UNEVEN,), (NEAR, UNEVEN)])),
        attribution=tuple(Attribution(name, "t", **counts) for name in ("uniform", "sum", "arrow")),
    )


def lines(told: Answer, label: str) -> list[str]:
    return [str(text) for name, text in told.lines if name == label]


def line(told: Answer, label: str) -> str:
    return next(iter(lines(told, label)), "")


@settings(max_examples=150)
@given(evidences())
def test_no_report_contradicts_itself(found):
    audit = audit_of(found)
    verdict, told = audit.verdict, answer(audit)
    head, single = verdict.action.kind, verdict.action.adapter
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
    if verdict.decision == "inconclusive" and not may_stop(verdict):
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
    if verdict.probability is not None:
        assert verdict.decision != "inconclusive"
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


@settings(max_examples=200)
@given(evidences())
def test_a_headline_says_no_more_than_its_interval(found):
    """That a gain is below the margin is said only where the interval excludes it.

    Where it does not, the headline of `unlikely` has the code that decides, and the answer has the
    probability, if there is one.
    """
    audit = audit_of(found)
    verdict, told = audit.verdict, answer(audit)
    if verdict.evidence not in ("pilot", "evaluation") or verdict.decision == "incompatible":
        return
    code, where = deciding(verdict), lies(verdict)
    assert code in {one.code for one in verdict.reasons if one.severity == "decisive"}
    if verdict.decision == "unlikely":
        assert (code == "gain-below-margin") == (where == "below")
    chances = {verdict.probability, verdict.gain.probability if verdict.gain else None} - {None}
    printed = [told.headline, line(told, "how sure"), line(told, "forecast")]
    inapplicable = verdict.decision == "unlikely" and verdict.probability is None
    assert not chances or "probability" in "".join(printed) or inapplicable
    assert ("probability" in told.headline) <= (where == "open")


@pytest.mark.parametrize("decision", HEADLINES)
def test_every_reason_that_can_decide_has_a_headline(decision):
    assert HEADLINES[decision].keys() <= CODES.keys()
    for sentences in HEADLINES[decision].values():
        assert "any" in sentences


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
    assert audit.verdict.next.in_python or max(map(len, rows)) <= longest
    assert " ".join(str(audit.verdict.next).split()) in joined(rows)
    sentences = [one for one in told.lines if isinstance(one[1], str) and one[0] != "fill in"]
    assert len(list(Answer("", "", tuple(sentences)).rows(80))) <= MOST_ROWS
    assert (
        audit.verdict.missing == "answers"
        or {"use", "gain"} & {label for label, _ in told.lines}
        or (found.level != "evaluation" or told.decision == "incompatible")
    )


@pytest.mark.parametrize(
    ("lines", "kept"),
    [
        # what changes more stays, in the order of reading
        (["use", "gain", "watch:4", "lacks:4", "forecast"], "use gain lacks forecast"),
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


def test_a_gain_is_rounded_last_and_its_scores_agree_where_digits_allow():
    for a in (0.033, 1 / 3, 0.045, 0.5):
        for own in (0.03, 2 / 3, 0.04, 0.767):
            asked = known(evidence({"base": 0.0, "a": a, "uniform": own}))
            told = line(answer(audit_of(asked)), "gain")
            shown = [float(x) for x in re.findall(r"(?<![\d.\[])[+-]?\d\.\d+", told)[:3]]
            digits = 3 if re.search(r"\d\.\d{3}", told) else 2
            assert shown[2] == pytest.approx(own - a, abs=0.5001 * 10**-digits), told
            off = shown[2] - (shown[0] - shown[1])
            assert abs(off) < 1e-9 or (digits == 3 and abs(off) < 0.0011), told


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
    assert len(lines(told, "watch")) == min(3, counted)
    assert ("--explain" in told.headline) == (counted > 3)
    assert line(told, "licence") == "Terms."
    assert ("0.10" in line(told, "also")) == (not diagnostics)


def test_what_the_items_lack_is_said():
    asked = both(evidence(LOW), evidence(LOW, part="steps"))
    hop = replaced(asked.measured.scores[0], part=ItemPart("hop1"))
    whole = replaced(asked, scores=(*asked.measured.scores, hop))
    lacking = {"steps-missing", "hops-missing"}
    assert lacking & {*codes(decide(evidence(LOW)))} == lacking
    assert not lacking & {*codes(decide(whole))}


LOW = {"base": 0.0, "a": 0.05, "uniform": 0.05, "random-partner": 0.05}
WORKS = {"base": 0.0, "a": 0.1, "uniform": 0.6, "random-partner": 0.1}
NEEDED = evidence({**WORKS, "uniform": 0.16}, half=0.1)
FEW = changed(changed(evidence({**WORKS, "uniform": 0.3}, half=0.3), n=8), rows="gains", n=8)
EARLY = replaced(
    evidence({**dict.fromkeys(KINDS, 0.05), "arrow": 0.8}), rounds=Rounds(2, 3, N, 150, 0.99)
)
CAUSES = (Attribution("uniform", "t", not_composed=95),)
NO_GAIN = replaced(
    known(evidence(dict.fromkeys(KINDS, 0.05), attribution=CAUSES)), rounds=EARLY.measured.rounds
)
TASKS = skills(
    {"base": (0.05, 0.05), "a": (1.0, 0.08), "b": (0.05, 0.9), "arrow": (0.8, 0.8)}, 0.05
)
NORMS = (Measurement("norm", ("a",), 54.0), Measurement("norm", ("b",), 2.0))
SAME = Measurement("cosine", ("a", "b"), 1.0)
SEED = Measurement("shared_initialisation", ("a", "b"), 1.0)
TWICE = Issue("warning", "duplicate", ("a", "b"), "a and b are the same update.", "Drop one.")


def template(without):
    """Adapters that answer 0.9 with the chat template, and so much without."""
    return evidence(WORKS, coverage=(Coverage("chat_template", "t", 0.9, 32, baseline=without),))


def test_what_was_learned_stands_in_the_answer():
    found = LearnedWeights({"a": 1.5, "b": 0.2}, 0.66, 0.6, 0.9, 40, 12, 12, 36)
    audit = replaced(audit_of(weights(SEED), "merge"), notes=("Merged.",), search=found)
    told = line(answer(audit), "learned")
    assert all(figure in told for figure in ("1.5", "0.600", "0.875", "12"))


def weights(*rows, issues=()):
    return evidence_of(diagnostics=rows, compatibility=Compatibility(issues))


HOPELESS = planted(-0.02, 0.09, level="evaluation")
ROUND_SCORES = (*case().measured.scores, replaced(of_kind("sum", "merge", 0.5), n=30))
ROUND_GAIN = Gain("t", QUESTION, "sum", "a", 0.2, (-0.1, 0.5), (-0.1, 0.5), 30, 200)
ROUND = case(scores=ROUND_SCORES, gains=(ROUND_GAIN,), level="pilot")
# Evidence, the decision, and what stands in the lines of a label; None for a label without a line.
LINES = {
    "the best so far is a composition, whose gain is decided": (
        evidence({"base": 0.03, "a": 0.07, "b": 0.03, "sum": 0.67, "uniform": 0.11}),
        "inconclusive", {"use": ["so far sum (a merge)"], "gain": ["0.67"], "decide": None},
    ),
    "what hops would tell comes before what explains": (
        changed(evidence(LOW), cut=0.5, contains=0.05), "inconclusive", {"lacks": ["`hops`"]},
    ),
    "only a shrunk adapter answers": (
        evidence({**dict.fromkeys(("base", "a", "b", "sum"), 0.0), "shrunk:a": 0.5}),
        "inconclusive",
        {"headline": ["only the shrunk a ", "scale of a "], "why": ["1/2", "0.50"], "close": None,
         "next": ["loraprobe merge ./a --method task_arithmetic --weights 0.5 "]},
    ),
    "the best of both forms does not come near a chain": (
        known(both(evidence({**LOW, "sum": 0.05, "chain": 0.95}, half=0.08), evidence(
            {**dict.fromkeys(LOW, 0.3), "a": 0.34, "sum": 0.32}, part="steps", half=0.08))),
        "unlikely", {"headline": ["best 0.32"], "use": ["0.32 for sum step by step"]},
    ),
    "a bound is told from the margin": (
        evidence({"base": 0.0, "a": 0.5, "b": 0.1, "sum": 0.6}, half=0.052),
        "inconclusive", {"gain": ["+0.100 [0.048, 0.152]"]},
    ),
    "a bound is told from the retention": (
        changed(TASKS, lambda r: r.system == "arrow", retention=0.85, retention_ci95=(0.798, 0.9)),
        "inconclusive", {"why": ["0.850 [0.798, 0.900]"]},
    ),
    "the best so far is an adapter": (evidence({"base": 0.03, "a": 0.27, "b": 0.03, "sum": 0.3}),
        "inconclusive", {"use": ["so far a alone"], "close": ["sum"]}),
    "until several tasks are decided": (changed(TASKS, lambda r: r.system == "arrow", retention=0.8,
        retention_ci95=(0.7, 0.9)), "inconclusive", {"use": ["so far", " for ", "one at a time"]}),
    "stopped early": (EARLY, "likely",
        {"gain": [f"{N} of 150"], "stopped": ["2 of 3", "--all-items"]}),
    "stopped early without a gain": (
        NO_GAIN, "unlikely", {"gain": [f"{N} of 150"], "stopped": ["2 of 3", "--all-items"],
                              "why": ["Of 95 wrong answers"]},
    ),
    "a guard is lost, and the gain is open": (
        replaced(evidence({**WORKS, "uniform": 0.16}, half=0.1, guards=guards(uniform=-0.3)),
            guarded=("g",)),
        "unlikely", {"headline": ["composing makes g worse", "open"]},
    ),
    "a guard is lost by what gains": (
        evidence(WORKS, guards=guards(uniform=-0.3), guarded=("g",)),
        "unlikely", {"headline": ["composing gains what you asked for but makes g worse"]},
    ),
    "a chain that loses a guard is not better": (
        evidence({**WORKS, "sum": 0.8, "chain": 1.0}, guarded=("g",), part="question",
            guards=guards(uniform=0.0, sum=-0.3, chain=-0.3)),
        "likely",
        {"better": None, "use": ["uniform"], "why": ["a chain 1.00 (g 0.50)", "sum 0.80"]},
    ),
    "all that answers loses a guard": (
        evidence({**LOW, "sum": 0.06, "chain": 0.9}, half=0.1, guarded=("g",),
            guards=guards(sum=0.0, uniform=0.0, chain=-0.3)),
        "inconclusive",
        {"headline": ["a chain (0.90) loses g"], "use": ["nothing yet", "keeps every guard"],
         "why": ["a chain 0.90 (g 0.50)"], "better": None},
    ),
    "nothing was composed, and a chain answers few questions": (
        changed(changed(evidence({"base": 0.0, "a": 0.05, "b": 0.04, "chain": 0.9}), n=12),
            rows="gains", n=12),
        "inconclusive",
        {"headline": ["12 questions", "whether a chain gains"], "use": ["so far a chain"]},
    ),
    "nothing was composed, and nothing is shown to answer": (
        known(evidence({"base": 0.0, "a": 0.03, "b": 0.04})), "inconclusive",
        {"headline": ["MEASURED", "were not asked"], "use": ["nothing yet"]},
    ),
    "a chain is advised that may lose a guard": (
        evidence({**LOW, "uniform": 0.04, "chain": 0.9}, half=0.02, guarded=("g",),
            guards=guards(half=0.3, uniform=0.0, chain=-0.2)),
        "unlikely", {"use": ["a chain"], "guard": ["chain may lose g: 0.60"]},
    ),
    "what scores more and is no option yet is close": (
        evidence({**WORKS, "arrow": 0.66}, half=0.08), "likely",
        {"use": ["uniform"], "close": ["arrow scores 0.66"]},
    ),
    "after every round": (replaced(EARLY, rounds=Rounds(3, 3, N, N, 0.96)), "likely",
        {"gain": [f"on {N} questions"], "stopped": None}),
    "a chain is better still": (evidence({**WORKS, "chain": 1.0}), "likely",
        {"better": ["1.00"], "controls": ["a random partner", "+0.50"]}),
    "a chain is worse": (evidence({**WORKS, "chain": 0.5}), "likely", {"better": None}),
    "a single adapter is better": (
        evidence({"base": 0.0, "a": 0.9, "b": 0.1, "uniform": 0.4, "random-partner": 0.5}),
        "unlikely", {"use": ["0.90", "0.40"], "in Python": ["PeftModel", "'./a'"],
                     "why": ["random partner"]},
    ),
    "less than was asked": (
        evidence({"base": 0.0, "a": 0.02, "sum": 0.8, "random-partner": 0.02}, part="steps",
                 margin=0.9),
        "unlikely", {"use": ["sum", "step by step"], "next": ["loraprobe merge "]},
    ),
    "few questions": (changed(FEW, rows="gains", n_needed=320), "inconclusive",
        {"decide": None, "watch": ["8 questions"]}),
    "copies of a question": (replaced(FEW, items=40, repeated=32), "inconclusive",
        {"watch": ["8 questions", "32 of 40"]}),
    "more questions than anybody has": (changed(NEEDED, rows="gains", n_needed=None),
        "inconclusive", {"decide": ["--margin 0.17", "5,000"]}),
    "more clusters": (changed(NEEDED, rows="gains", n_needed=340, clusters=20), "inconclusive",
        {"decide": ["48 more clusters", "20", "if the adapters know more"]}),
    "no hope of a gain": (HOPELESS, "inconclusive",
        {"decide": None, "how sure": ["you may stop here", "0.0"], "fill in": None}),
    "no hope of a gain in a first round": (replaced(HOPELESS, level="pilot"), "inconclusive",
        {"decide": None, "forecast": ["you may stop here"], "known": None, "fill in": None}),
    "a first round": (
        ROUND, "inconclusive",
        {"headline": ["INCONCLUSIVE", "first round on 30 questions"], "decide": None,
         "gain": ["first round on 30 questions", "+0.20 [-0.10, 0.50]"], "next": ["--resume"]},
    ),
    "the chat template matters": (template(0.1), "likely", {"watch": ["template", "0.90", "0.10"]}),
    "or not": (template(0.85), "likely", {"watch": None}),
    "weights": (
        weights(NEAR, UNEVEN), "inconclusive",
        {"headline": ["2 warnings"], "watch": ["0.998", "24.6", ": compare"],
         "next": ["--probe auto"], "questions": ["--task"], "known": ["603", "0.05"]},
    ),
    "the adapter that hardly shows": (weights(replaced(UNEVEN, value=27.0), *NORMS), "inconclusive",
        {"watch": ["b may hardly show", "a is 27.0 times larger"]}),
    "equal updates once": (
        weights(SEED, SAME, issues=(TWICE,)), "inconclusive", {"headline": ["1 warning"]},
    ),
    "another pair is another fact": (weights(replaced(SEED, adapters=("a", "c")), SAME,
        issues=(TWICE,)), "inconclusive", {"headline": ["2 warnings"]}),
}  # fmt: skip


@pytest.mark.parametrize("name", LINES)
def test_what_stands_in_the_lines(name):
    found, decision, wanted = LINES[name]
    told = answer(audit_of(found, "merge-and-eval" if found.measured.scores else "inspect"))
    assert told.decision == decision
    for label, parts in wanted.items():
        texts = [told.headline] if label == "headline" else lines(told, label)
        assert bool(texts) == (parts is not None)
        assert all(part in "; ".join(texts) for part in parts or ())
    counted = re.findall(r"(\d+) warning", told.headline)
    assert not counted or int(counted[0]) == len(lines(told, "watch"))


@pytest.mark.parametrize(
    ("asked", "told"), [({"uniform": 0.0}, True), ({"a": 0.0, "uniform": 0.0}, False)]
)
def test_a_guard_that_was_not_asked_says_so(asked, told):
    values = {"base": 0.0, "a": 0.1, "uniform": 0.6}
    audit = audit_of(evidence(values, guarded=("g",), guards=guards(**asked)))
    cells = {row[0]: row[-1] for row in scores(audit).rows}
    assert ("not asked" in cells["a"]) == bool(guards_unasked(audit)) == told
    assert "not asked" not in cells["base"] + cells["uniform"]


@pytest.mark.parametrize(("items", "warned"), [(199, True), (200, False), (0, False)])
def test_a_first_round_says_that_the_items_at_hand_may_not_decide(items, warned):
    """The gain of this round takes 200 questions to be decided."""
    audit = audit_of(ROUND)
    made = replaced(audit.provenance, tasks=(TaskSummary("t", "t.jsonl", None, "", items),))
    told = line(answer(replaced(audit, provenance=made)), "decide")
    assert ("199" in told and "200" in told) if warned else not told


def test_who_names_the_right_answer_without_its_form_is_told_with_a_reply():
    values = {"base": 0.0, "a": 0.1, "b": 0.0, "sum": 0.3}
    asked = changed(known(evidence(values)), contains=0.0, cut=0.0)
    asked = changed(asked, lambda row: row.system == "b", contains=1.0)
    replies = (Reply("a", "no", False), Reply("b", "Russia", False, contains=True))
    sample = Sample("t", QUESTION, "1", "Where?", ('{"a": "Russia"}',), replies)
    audit = audit_of(asked, "merge-and-eval")
    (told,) = lines(answer(replaced(audit, samples=(sample,))), "close")
    assert "b alone" in told and "Russia" in told and "1.00" in told
