"""Reasons beside the decision: about weights, probes, items and answers; and the table of codes."""

import ast
import re
from pathlib import Path

import pytest
from evidences import N, both, changed, codes, evidence, evidence_of, known, reason, replaced, score
from test_rules import DISJOINT, FAIL, GAIN, NOBODY, UNKNOWN, foreknown, holding

import loraprobe
from loraprobe.records import TOGETHER, Coverage, ItemPart, Measurement
from loraprobe.verdict import decide
from loraprobe.verdict.reasons import CODES, WEIGHT_WARNINGS

# ---- weights -------------------------------------------------------------------------------------


def test_weights_warn_and_never_decide():
    rows = (
        Measurement("norm_ratio", ("a", "b"), 5.0),
        Measurement("norm_ratio", ("a", "b"), 50.0, module="x"),
        Measurement("cosine", ("a", "b"), -0.4),
        Measurement("relative_norm", ("a",), 0.9),
        Measurement("cross_terms", ("a", "b"), None),
    )
    plain, warned = decide(evidence(FAIL)), decide(evidence(FAIL, diagnostics=rows))
    assert (warned.decision, warned.action) == (plain.decision, plain.action)
    new = [reason(warned, code) for code in codes(warned) if code not in codes(plain)]
    assert [r.code for r in new] == ["norm-disparity", "opposed-updates", "large-update"]
    assert all(r.severity == "info" and r.threshold and r.source for r in new)
    assert new[0].value == 5.0 and "5.0" in new[0].message
    balanced = decide(evidence(FAIL, diagnostics=rows, balanced=True))  # --balance norm was given
    assert [code for code in codes(warned) if code not in codes(balanced)] == ["norm-disparity"]


@pytest.mark.parametrize(("value", "idle"), [(0.4, False), (0.02, True)])
def test_an_adapter_that_answers_nothing_and_hardly_shows_is_told(value, idle):
    norms = (Measurement("norm", ("a",), 54.0), Measurement("norm", ("b",), 2.0))
    rows = (Measurement("norm_ratio", ("a", "b"), 27.0), *norms)
    found = decide(evidence({**FAIL, "a": 0.4, "b": value}, diagnostics=rows))
    assert ("answers nothing" in reason(found, "norm-disparity").message) == idle


def test_weights_are_silent_where_a_merge_gains_and_otherwise_compare_with_something():
    rows = (Measurement("norm_ratio", ("a", "b"), 5.0), Measurement("cosine", ("a", "b"), -0.4))
    wanted = {"norm-disparity", "opposed-updates"}
    asked = {
        "nothing asked": (evidence_of(), True, True),
        "a merge gains": (evidence(GAIN), False, False),
        "a router gains": (evidence({**FAIL, "arrow": 0.5}), True, False),
        "a skill is lost": (changed(evidence(GAIN), retention=0.1), True, False),
        "nothing gains": (evidence(FAIL), True, False),
    }
    for name, (found, warns, compares) in asked.items():
        told = [r for r in decide(replaced(found, diagnostics=rows)).reasons if r.code in wanted]
        assert ({r.code for r in told} == wanted) == warns, name
        assert {": compare" in r.message for r in told} == ({compares} if warns else set())
        assert not any("--balance" in r.message or "instead" in r.message for r in told)


SAME = (("cosine", 1.0), ("norm_ratio", 1.0))


@pytest.mark.parametrize(
    ("figures", "has", "lacks"),
    [
        ([("norm_ratio", 0.2)], "norm-disparity", ""),
        ([("norm_ratio", 1.5), ("cosine", 0.2)], "unrelated-updates", "norm-disparity"),
        ([("norm_ratio", 1.5), ("cosine", 0.2)], "unrelated-updates", "opposed-updates"),
        (SAME, "same-adapter", "nearly-equal-updates"),
        ((SAME[0], ("norm_ratio", 2.0)), "nearly-equal-updates", "same-adapter"),
    ],
)
def test_which_weights_warn(figures, has, lacks):
    rows = tuple(Measurement(name, ("a", "b"), value) for name, value in figures)
    found = codes(decide(evidence_of(diagnostics=rows)))
    assert has in found and lacks not in found


@pytest.mark.parametrize(("space", "warns"), [("", False), ("core", False), ("knots", True)])
def test_one_seed_is_a_note_and_warns_in_a_space_that_solves_alone(space, warns):
    rows = (Measurement("shared_initialisation", ("a", "b"), 0.9),)
    found = decide(evidence_of(diagnostics=rows, space=space))
    watched = {code for code in codes(found) if CODES.get(code) and CODES[code].line == "watch"}
    assert "shared-initialisation" in codes(found)
    assert watched == ({"ill-conditioned"} if warns else set())


# ---- what base and adapters know -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("share", "n", "code"),
    [(0.9, 40, "probes-familiar"), (0.5, 40, "probes-mixed"), (0.1, 40, "probes-unfamiliar"),
     (1.0, 2, "probes-too-few")],
)  # fmt: skip
def test_probes_say_how_familiar_it_is(share, n, code):
    found = decide(evidence_of(coverage=(Coverage("familiarity", "", share, n),), level="probes"))
    assert found.decision == "inconclusive"
    assert [one for one in codes(found) if one.startswith("probes-") and one in CODES][1:] == [code]


def swap(hop, value):
    return Coverage("name_swap", "t", value, N, hop, ci95=(value - 1, value + 1))


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        ([swap(None, -2.0), swap(1, 0.1), swap(2, 5.0)],
         [("unfamiliar-names", 0.1), ("familiar-names", 5.0)]),
        ([swap(None, 3.0)], [("familiar-names", 3.0)]),
        ([swap(1, -1.5)], [("unfamiliar-names", -1.5)]),
    ],
)  # fmt: skip
def test_names_are_told_hop_by_hop_where_there_are_hops(rows, told):
    found = decide(evidence_of(coverage=tuple(rows), level="base"))
    assert [(r.code, r.value) for r in found.reasons if r.code.endswith("-names")] == told


def test_what_is_said_in_other_words_leaves_a_hop_in_doubt():
    found = decide(holding(foreknown(UNKNOWN, NOBODY), 0.96, "base"))
    assert "hop-in-doubt" in codes(found) and "hop-unknown" not in codes(found)
    assert "hop-unknown" in codes(decide(foreknown(UNKNOWN, NOBODY)))
    assert "hop-known" in codes(decide(foreknown(DISJOINT, NOBODY)))


# ---- items and answers ---------------------------------------------------------------------------


@pytest.mark.parametrize(("on", "off", "word"), [(0.8, 0.3, "with"), (0.3, 0.8, "without")])
def test_adapters_are_served_as_they_answered_best(on, off, word):
    row = Coverage("chat_template", "t", on, 32, baseline=off)
    told = reason(decide(evidence(GAIN, coverage=(row,))), "template-matters")
    assert told.value == pytest.approx(on - off) and f"Serve {word} it" in told.message


def read(found, system, **figures):
    """The evidence with how the answers of a system that fails were read."""
    return changed(known(found), lambda row: row.system == system, **{"contains": 0.4, **figures})


WORKED = changed(known(both(evidence(FAIL), evidence(FAIL, part="steps"))), cut=0.0, contains=0.4)


@pytest.mark.parametrize(
    ("asked", "wanted"),
    [
        (read(evidence(FAIL), "uniform", cut=0.4), 64),
        (read(replaced(evidence(FAIL), max_new_tokens=50), "uniform", cut=0.4), 100),
        (changed(WORKED, lambda row: row.part == "question", cut=0.4), 256),  # worked ones keep it
        (read(evidence(FAIL), "uniform", cut=0.1), None),
        (read(evidence(FAIL), "shrunk:a", cut=0.9), None),
        # what ended by itself holds no answer, so neither would the rest; of few it tells nothing
        (read(evidence(FAIL), "a", cut=0.49, contains=0.0), None),
        (read(evidence(FAIL), "a", cut=0.95, contains=0.0), 64),
        # a right answer stood there before
        (changed(read(evidence(FAIL), "uniform", cut=0.9), contains=0.95), None),
    ],
)
def test_answers_that_were_cut_are_told_with_the_cure(asked, wanted):
    found = decide(asked)
    assert ("answers-cut" in codes(found)) == (wanted is not None)
    if wanted is not None:
        assert f"--max-new-tokens {wanted}." in reason(found, "answers-cut").message


@pytest.mark.parametrize(
    ("system", "share", "told"),
    [("uniform", 0.9, True), ("a", 0.9, True), ("uniform", 0.45, False), ("base", 0.9, True)],
)
def test_a_gain_or_failure_of_wording_only_is_told(system, share, told):
    asked = changed(evidence(FAIL), lambda row: row.system == system, contains=share, cut=0.0)
    assert ("said-otherwise" in codes(decide(asked))) == told


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"system": "b", "contains": 1.0}, True),  # neither the leader nor its rival
        ({"system": "sum", "contains": 1.0}, True),
        ({"system": "shrunk:a", "contains": 1.0}, False),
        ({"system": "b", "contains": 0.55}, True),
        ({"system": "b", "contains": 0.45}, False),
        ({"system": "b", "contains": 1.0, "alone": 0.4}, False),  # it lists what may be right
        ({"system": "b", "contains": 1.0, "alone": 0.9}, True),
        ({"system": "b", "contains": 0.7, "chance": 0.65}, False),
        ({"system": "b", "contains": 0.7, "base": 0.65}, True),  # the base says it as well
        ({"system": "b", "contains": 0.5, "base": 0.45}, False),
        ({"system": "b", "contains": 1.0, "metric": "numeric"}, True),
        ({"system": "b", "contains": 1.0, "metric": "numeric", "part": "steps"}, False),
    ],
)
def test_who_names_the_right_answer_without_its_form_is_told(changes, told):
    values = {"base": 0.0, "a": 0.1, "b": 0.0, "sum": 0.2, "arrow": 0.4, "shrunk:a": 0.1}
    part = ItemPart(changes.pop("part", "question"))
    chance = (Coverage("guessing", "t", changes.pop("chance", 0.0), N),)
    held, share, name = (changes.pop(key, None) for key in ("base", "alone", "system"))
    if share is not None:
        chance += (Coverage(f"named_alone_{part}", "t", share, N, adapters=(name,)),)
    both_forms = both(evidence(values), evidence(values, part="steps"))
    asked = replaced(changed(known(both_forms), contains=0.0, cut=0.0), coverage=chance)
    asked = changed(asked, lambda row: row.system == "base", contains=held or 0.0)
    asked = changed(asked, lambda row: (row.system, row.part) == (name, part), **changes)
    assert ("right-without-form" in codes(decide(asked))) == told


@pytest.mark.parametrize(("share", "arrow", "told"), [(1.0, 0.6, 1), (1.0, 0.95, 0), (0.9, 0.6, 0)])
def test_two_adapters_of_which_one_is_always_right_are_told(share, arrow, told):
    values = {"base": 0.0, "a": 0.5, "b": 0.5, "sum": 0.55, "arrow": arrow}
    row = Coverage(TOGETHER, "t", share, 100, adapters=("a", "b"))
    assert codes(decide(evidence(values, coverage=(row,)))).count("right-together") == told


def with_items(found, n, clusters=None):
    """The evidence as if it came from so many items and clusters."""
    found = changed(found, n=n, clusters=clusters)
    return changed(found, rows="gains", n=n, clusters=clusters, n_needed=None)


@pytest.mark.parametrize(
    ("value", "half", "decided"),
    [(0.11, 0.1, {0.17: "unlikely"}), (0.13, 0.06, {0.15: "unlikely", 0.01: "likely"})],
)
def test_a_margin_that_the_items_decide_is_named_where_nobody_has_enough(value, half, decided):
    values = {**FAIL, "uniform": value}
    message = reason(decide(with_items(evidence(values, half=half), 100)), "gain-undecided").message
    assert "more than 5,000 items" in message
    assert [float(one) for one in re.findall(r"0\.\d\d(?= or (?:more|less))", message)] == [
        *decided
    ]
    for margin, decision in decided.items():
        assert decide(evidence(values, half=half - 1e-4, margin=margin)).decision == decision


@pytest.mark.parametrize(("n", "clusters", "given"), [(60, None, 60), (80, None, 0), (200, 40, 40)])
def test_a_ceiling_that_so_few_items_cannot_show_is_said(n, clusters, given):
    full = replaced(score("b", 1.0), ci95=(0.94, 1.0))
    asked = evidence_of(scores=(full, score("base", 0.1)), tasks=1, level="base")
    found = decide(with_items(asked, n, clusters=clusters))
    told = [(r.value, r.threshold) for r in found.reasons if r.code == "ceiling-out-of-reach"]
    assert told == ([(given, 73)] if given else [])
    open_ = changed(with_items(evidence({"base": 0.1, "b": 0.99, "uniform": 1.0}), n), n=n)
    codes_ = codes(decide(changed(open_, lambda row: row.value > 0.9, ci95=(0.94, 1.0))))
    assert "ceiling-out-of-reach" not in codes_, "the interval of a gain says what would decide it"


# ---- codes ---------------------------------------------------------------------------------------

FILES = sorted(Path(loraprobe.__file__).parent.rglob("*.py"))


def test_every_code_has_one_sentence():
    assert CODES.keys() - {one.code for one in WEIGHT_WARNINGS} == {
        code for code, one in CODES.items() if one.text != "{text}"
    }


def test_every_code_of_the_table_is_given_somewhere():
    used = {one.code for one in WEIGHT_WARNINGS}
    for file in FILES:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                used.add(node.value)
    composed = re.compile("mostly-.*|probes-.*")  # from parts
    assert not [code for code in CODES.keys() - used if not composed.fullmatch(code)]
