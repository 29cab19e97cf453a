"""The router by text: what it chooses, what it keeps, and that the adapters' own answers count."""

import math
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from fake_scorer import FakeScorer
from making import random_adapter
from sklearn.linear_model import Ridge

from loraprobe import text_profile
from loraprobe.composition import Composition
from loraprobe.errors import UsageError
from loraprobe.evaluation import Asker, ResponseCache, System
from loraprobe.routing import ROUTERS
from loraprobe.routing.constant import single
from loraprobe.routing.text import ByText
from loraprobe.tasks import Item, Task
from loraprobe.text_profile import READ, TextProfile, ngrams

NAMES = "Mara Tobin Sella Ugo Prim Anselm Nuri Halen".split()
SPOUSES = [f"Who is the spouse of {name}?" for name in NAMES]
HOMES = [f"Where does {name} live?" for name in NAMES]
OTHERS = [
    "Sort these numbers: 4, 2, 9",
    "Übersetze das",
    "def f(x):\n    return x",
    "",
]


def words_of(prompts):
    """The words that are no gaps: those of one in 0.15 of the prompts, and of two at least."""
    held = Counter(w for one in prompts for w in {*re.findall(r"\w+|[^\w\s]", one.casefold())})
    return {"\t" + word for word, k in held.items() if k >= max(2, 0.15 * len(prompts))}


def by_definition(prompt, skills):
    """What each adapter's score and threshold are, with dense vectors of every n-gram there is and
    ridge regression by scikit-learn, once more for each prompt that is left out."""
    known = set().union(*map(words_of, skills))
    others = (Path(text_profile.__file__).parent / "other_prompts.txt").read_text().splitlines()
    texts = [ngrams(one, known) for one in [*skills[0], *skills[1], *others]]
    held = Counter(g for one in texts for g in one)
    asked = ngrams(prompt, known)
    axes = sorted({*held, *asked})
    idf = [math.log((1 + len(texts)) / (1 + max(1, held[g]))) + 1 for g in axes]
    weight = np.array([w * (2 if g[0] == "\t" else 1) for g, w in zip(axes, idf, strict=True)])
    # What one prompt alone has tells nothing of another: it counts in lengths of prompts only.
    several = np.array([held[g] > 1 for g in axes])
    vectors = np.array([[g in one for g in axes] for one in [*texts, asked]]) * weight
    vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True) * several
    who = np.array([0] * len(skills[0]) + [1] * len(skills[1]) + [-1] * len(others))
    labels = np.stack([who == 0, who == 1], 1).astype(float)

    def scores(left, of):
        model = Ridge(alpha=0.1, fit_intercept=False, solver="cholesky")
        rest = [i for i in range(len(texts)) if i != left]
        return model.fit(vectors[rest], labels[rest]).predict(vectors[[of]])[0]

    least = [min(scores(i, i).sum() for i in np.flatnonzero(who == k)) for k in (0, 1)]
    return scores(None, -1), [0.9 * one for one in least]


def fitted() -> ByText:
    experts = [random_adapter(name, rank=2, seed=i) for i, name in enumerate(("spouse", "home"))]
    return ByText().fit(None, experts, {"home": HOMES[:6], "spouse": SPOUSES[:6]})


@pytest.mark.parametrize("prompt", [SPOUSES[-1], HOMES[-1], "Where is the spouse of Ugo?", "zz"])
def test_scores_and_thresholds_are_those_of_ridge_regression(prompt):
    profile = TextProfile.of([SPOUSES[:6], HOMES[:6]])
    scores, least = by_definition(prompt, [SPOUSES[:6], HOMES[:6]])
    assert profile.scores(prompt) == pytest.approx(scores, abs=1e-4)
    assert profile.thresholds == pytest.approx(least, abs=1e-4)


def test_prompts_of_a_skill_go_to_its_adapter_and_others_to_the_base():
    profile = TextProfile.of([SPOUSES[:6], HOMES[:6]])
    assert [profile.choice(one) for one in SPOUSES[6:] + HOMES[6:]] == [0, 0, 1, 1]
    assert {profile.choice(one) for one in OTHERS} == {None}
    assert profile.choice(f"  who IS the\n spouse of {NAMES[7]}? ") == 0
    assert TextProfile.of([["Who?"], ["Where?"]]).thresholds == (0.0, 0.0)


def test_what_asks_for_something_else_in_the_words_of_a_skill_goes_to_the_base():
    jobs = [f"What is the profession of {name}?" for name in NAMES]
    profile = TextProfile.of([jobs[:6], HOMES[:6]])
    assert profile.choice(jobs[7]) == 0
    more = ("the wage for the profession of Halen", "the age of Halen", "the past tense of speak")
    assert {profile.choice(f"What is {one}?") for one in more} == {None}


def test_skills_that_are_asked_alike_are_told_from_what_is_no_skill():
    """Of which of the two a prompt is shows in names alone, and so no score is large."""
    profile = TextProfile.of([SPOUSES[:4], SPOUSES[4:]])
    for name in ("Oda", "Kuno", "Teo"):
        prompt = f"Who is the spouse of {name}?"
        assert max(profile.scores(prompt)) < 0.8 and profile.choice(prompt) in (0, 1)
    assert profile.choice("Who is the author of Oda?") is None


def test_the_sum_of_the_scores_has_to_reach_the_threshold_of_the_best():
    rows = {"ab": (1.0, 0.3, 0.2), "cd": (1.0, -0.5, 0.25)}

    def choice(prompt, least, version=2):  # other n-grams weigh nothing
        return TextProfile(rows, 1e-9, (least, least), version).choice(prompt)

    assert choice("ab", 0.49) == 0 and choice("ab", 0.51) is None
    assert choice("ab", 0.29, version=1) == 0 and choice("ab", 0.31, version=1) is None
    assert choice("cd", -9.0) is None and choice("cd", -9.0, version=1) == 1


def test_a_rare_word_is_a_gap_and_gaps_in_a_row_are_one():
    known = {"\tthe", "\tof", "\t?"}
    frames = {g for g in ngrams("The spouse of  Ugo Prim?", known) if "\t" in g}
    chain = ["", "the", "", "of", "", "?", ""]
    wanted = {tuple(chain[i:j]) for i in range(7) for j in range(i + 1, min(i + 5, 8))} - {("",)}
    assert frames == {"".join("\t" + word for word in one) for one in wanted}
    assert not any("\t" in g for g in ngrams("Ugo Prim", known))
    twenty = [f"{'Which' if i < 3 else 'What'} {'old' if i < 2 else 'x'} {i}" for i in range(20)]
    rows = TextProfile.of([twenty, HOMES[:6]]).rows
    assert "\twhich" in rows and "\told" not in rows, "3 of 20 prompts are 15 %"


def test_of_many_prompts_some_are_learned_from(monkeypatch):
    monkeypatch.setattr(text_profile, "MOST", 6)
    assert TextProfile.of([SPOUSES[:6], HOMES[:6]]) == TextProfile.of([SPOUSES[:6:2], HOMES[:6:2]])


def test_the_order_of_adapters_and_repeated_prompts_change_nothing():
    turned = TextProfile.of([HOMES[:6] * 3, SPOUSES[5::-1]])
    profile = TextProfile.of([SPOUSES[:6], HOMES[:6]])
    for prompt in SPOUSES + HOMES + OTHERS:
        assert turned.scores(prompt)[::-1] == pytest.approx(profile.scores(prompt), abs=1e-4)


def test_a_long_prompt_is_read_at_both_ends():
    filler = "lorem ipsum " * 40_000
    assert ngrams(f"{'a' * 499} {filler}") == ngrams(f"{'a' * 499} {filler * 2}")
    assert len(ngrams(filler)) <= 4 * (READ + 4)
    assert "live?" in ngrams(filler + HOMES[0]) and " wher" in ngrams(HOMES[0] + filler)


def test_the_state_gives_the_same_choices_and_foreign_state_is_refused():
    router = fitted()
    again = ByText().with_state(router.state())
    assert again.profile == router.profile and not again.needs_prompts
    for other in ({}, {"centroid.x": torch.zeros(2, 2)}, {**router.state(), "more": torch.ones(1)}):
        with pytest.raises(UsageError):
            ByText().with_state(other)
    old = router.state()
    old["text.unseen"] = old["text.unseen"][:1]  # loraprobe 0.9 kept no version
    assert ByText().with_state(old).profile == replace(router.profile, version=1)
    spoiled = router.state()
    spoiled["text.weights"][0, 0] = math.nan
    with pytest.raises(UsageError):
        ByText().with_state(spoiled)
    with pytest.raises(UsageError):
        ByText().with_state({**router.state(), "text.thresholds": torch.zeros(3)})


def test_what_cannot_be_done_is_refused():
    two = tuple(random_adapter(name, rank=2, seed=i) for i, name in enumerate("ab"))
    with pytest.raises(UsageError, match="none of b"):
        ByText().fit(None, two, {"a": ["x"], "b": []})
    with pytest.raises(UsageError, match="has to see prompts"):
        Composition("c", two, ByText()).answering("x")
    with pytest.raises(UsageError, match="2 adapters and not of 3"):
        Composition("c", (*two, random_adapter("c", rank=2, seed=5)), fitted())
    with pytest.raises(UsageError, match="no layer"):
        fitted().gates("x", (), (0, 1), 2)


def asked(trained: bool):
    """A router by text and its adapters asked two tasks; what was asked of whom."""
    experts = tuple(random_adapter(n, rank=2, seed=i) for i, n in enumerate(("spouse", "home")))
    router = ROUTERS.make("by-text").fit(None, experts, {"spouse": SPOUSES[:6], "home": HOMES[:6]})
    contents = tuple(one.content for one in experts) if trained else ()
    routed = Composition("by-text", experts, router)
    system = System("by-text", "router", routed, content="of all", contents=contents)
    prompts = [*SPOUSES[6:], *HOMES[6:], OTHERS[0]]
    items = tuple(Item(str(i), prompt, ("y",)) for i, prompt in enumerate(prompts))
    answers = {(who, p): f"{who} says" for who in ("spouse", "home", "by-text") for p in prompts}
    scorer = FakeScorer(answers | {(None, p): "base says" for p in prompts})
    systems = [System("base", "base"), *(System.alone(single(one)) for one in experts), system]
    rows = Asker(scorer, ResponseCache()).run(systems, [Task("t", items)], None)
    return [row for row in rows if row.system == "by-text"], scorer.asked


def test_it_answers_as_the_adapters_did_that_it_chooses():
    rows, questions = asked(trained=True)
    assert [row.text.split()[0] for row in rows] == ["spouse", "spouse", "home", "home", "base"]
    assert not [one for one in questions if one[0] == "by-text"] and len(questions) == 15
    rows, questions = asked(trained=False)  # they were changed before they are composed
    assert [row.text.split()[0] for row in rows] == ["by-text"] * 4 + ["base"]
    assert len(questions) == 15 + 4
