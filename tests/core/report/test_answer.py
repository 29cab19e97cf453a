"""The answer is short and complete, and nothing in it contradicts the verdict; what Python shows of
loraprobe's objects."""

import re
import shlex
from dataclasses import replace

import making
import pytest
from evidences import (
    KINDS,
    N,
    any_evidence,
    both,
    codes,
    evidence,
    evidence_of,
    known,
    replaced,
    score,
    unit,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from transcripts import LOW, NEAR, UNEVEN, audit_of

import loraprobe
from loraprobe.records import QUESTION, Attribution, Command, Compatibility, Gain, Issue, ItemPart
from loraprobe.report.answer import MOST_ROWS, answer, chosen, unplaced
from loraprobe.report.headline import ON_GAIN, deciding, lies
from loraprobe.report.parts import AlwaysShown, Answer
from loraprobe.verdict import decide
from loraprobe.verdict.next_command import may_stop
from loraprobe.verdict.reasons import CODES, HEADLINES

ACTIONS = (
    "merge route step-by-step chain use-single use-base switch-adapters train-target-adapter "
    "gather-evidence fix"
).split()


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
    for code, sentences in HEADLINES[decision].items():
        assert "any" in sentences
        told = [{"{chance}", "{more}"} & {*re.findall("{.*?}", one)} for one in sentences.values()]
        assert all(told) if code in ON_GAIN else not any(told)  # the probability of a gain


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
        (["use", "gain", "watch:4", "lacks:4", "forecast*"], "use gain lacks forecast"),
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
    """A line of the cases is LABEL:ROWS; ! is a command, * is kept."""
    given = []
    for one in lines:
        label, _, rows = one.partition(":")
        words = tuple(f"{'w' * 60}{k}" for k in range(int(rows or 1)))
        content = Command("inspect", words) if label.endswith("!") else " ".join(words)
        content = AlwaysShown(content) if label.endswith("*") else content
        given.append((label.strip("!*"), content))
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


LONG = "a-name-" + "x" * 400


def shown(thing: object) -> str:
    told = repr(thing)
    whole = " ".join(told.replace("\\", " ").split())
    assert len(told.splitlines()) <= 15 and len(told) <= 1500
    return whole


@pytest.mark.parametrize("names", [("a", "b"), (LONG, "b", *map(str, range(30)))])
def test_adapters_and_what_is_made_of_them(names):
    adapters = [making.random_adapter(name, seed=seed) for seed, name in enumerate(names)]
    told = shown(adapters[0])
    assert names[0][:50] in told and "14 modules" in told and "rank 4" in told
    for made in (
        loraprobe.merge(adapters),
        loraprobe.compose(adapters),
        loraprobe.compose(adapters).composition,
    ):
        assert names[0][:50] in shown(made)
    assert "weights" in repr(loraprobe.merge(adapters))


def test_the_next_command_of_a_repr_has_the_places_that_were_given(tmp_path, monkeypatch):
    """Below the working directory they stay; of others the record has names, since it may be
    published."""
    making.saved_pair(tmp_path / "my runs")
    monkeypatch.chdir(tmp_path)
    refs = ["my runs/a", "my runs/b"]
    for adapters in (refs, list(map(loraprobe.load, refs))):
        audit = loraprobe.inspect(adapters)
        command = "loraprobe inspect 'my runs/a' 'my runs/b'"
        assert str(tmp_path) not in audit.to_json()
        assert str(audit.verdict.next).startswith(command) and command in shown(audit)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    for place in ("..", tmp_path):
        audit = loraprobe.inspect([f"{place}/my runs/a", f"{place}/my runs/b"])
        assert "my runs" not in audit.to_json() and "inspect a b" in str(audit.verdict.next)
        assert f"loraprobe inspect '{place}/my runs/a'" in shown(audit)
    assert unplaced(audit)
    pinned = [replace(row, commit="c" * 40) for row in audit.adapters]
    assert not unplaced(replace(audit, adapters=tuple(pinned)))


@pytest.mark.parametrize(
    ("base", "named", "command"),
    [
        ("/somewhere/llama", None, "inspect ./a OTHER"),
        ("llama", "./llama", "inspect ./a OTHER"),
        (None, None, "inspect ./a OTHER"),
    ],
)
def test_nobody_looks_on_the_hub_for_adapters_of_a_local_base(
    base, named, command, tmp_path, monkeypatch
):
    making.write_adapter(tmp_path / "a", {}, base_model_name_or_path=base)
    making.random_adapter("a", base_model=base).save(tmp_path / "a", overwrite=True)
    making.edit(tmp_path / "a" / "adapter_config.json", base_model_name_or_path=base)
    making.tiny_llama().save_pretrained(tmp_path / "llama")
    monkeypatch.chdir(tmp_path)
    audit = loraprobe.inspect("./a", base=named)
    lines = dict(answer(audit, audit.places).lines)
    assert str(lines.get("next", "")).removeprefix("loraprobe ") == command
    assert ("fill in" in lines) == ("OTHER" in command)


def test_the_rows_of_a_program_stand_together_behind_their_label():
    program = "# base\nmodel = 1\ndef ask():\n    return model"
    serve = Command("shell", text="vllm serve base")
    told = Answer("", "H", (("in Python", Command("python", text=program)), ("serve", serve)))
    _, *rows = told.rows(80)
    assert "\n".join(rows[:4]) == program and rows[4].endswith("vllm serve base")
