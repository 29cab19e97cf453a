"""The router by text: what it chooses, what it keeps, and that the adapters' own answers count."""

import math
from collections import Counter

import pytest
import torch
from fake_scorer import FakeScorer
from making import random_adapter

from loraprobe.composition import Composition
from loraprobe.errors import UsageError
from loraprobe.evaluation import Asker, ResponseCache, System
from loraprobe.evaluation.gate_statistics import gate_statistics
from loraprobe.routing import ROUTERS
from loraprobe.routing.constant import single
from loraprobe.routing.text import ByText
from loraprobe.tasks import Item, Task
from loraprobe.text_profile import READ, SHARE, TextProfile, ngrams

NAMES = "Mara Tobin Sella Ugo Prim Anselm Nuri Halen".split()
SPOUSES = [f"Who is the spouse of {name}?" for name in NAMES]
HOMES = [f"Where does {name} live?" for name in NAMES]
OTHERS = [
    "Sort these numbers: 4, 2, 9",
    "Übersetze das",
    "def f(x):\n    return x",
    "",
]


def cosine(prompt, prompts, all_prompts):
    """What a similarity is by definition, with dense vectors of every n-gram there is."""
    held = Counter(g for one in dict.fromkeys(all_prompts) for g in ngrams(one))
    n = len(dict.fromkeys(all_prompts))
    weight = {g: math.log((1 + n) / (1 + k)) + 1 for g, k in held.items()}
    axes = sorted({*held, *ngrams(prompt)})

    def vector(text):
        own = ngrams(text)
        v = torch.tensor([weight.get(g, math.log((1 + n) / 2) + 1) * (g in own) for g in axes])
        return v.double() / v.double().norm()

    # What one prompt alone has tells nothing of another: it counts in lengths of prompts only.
    several = torch.tensor([held[g] > 1 for g in axes])
    mean = sum(vector(one) * several for one in prompts) / len(prompts)
    return float(vector(prompt) @ mean / mean.norm())


def fitted() -> ByText:
    experts = [random_adapter(name, rank=2, seed=i) for i, name in enumerate(("spouse", "home"))]
    return ByText().fit(None, experts, {"home": HOMES[:6], "spouse": SPOUSES[:6]})


@pytest.mark.parametrize("prompt", [SPOUSES[-1], HOMES[-1], "Where is the spouse of Ugo?", "zz"])
def test_similarities_are_cosines_with_mean_prompts(prompt):
    profile = TextProfile.of([SPOUSES[:6], HOMES[:6]])
    both = SPOUSES[:6] + HOMES[:6]
    wanted = [cosine(prompt, own, both) for own in (SPOUSES[:6], HOMES[:6])]
    assert profile.similarities(prompt) == pytest.approx(wanted, abs=1e-5)


def test_prompts_of_a_skill_go_to_its_adapter_and_others_to_the_base():
    profile = TextProfile.of([SPOUSES[:6], HOMES[:6]])
    assert [profile.choice(one) for one in SPOUSES[6:] + HOMES[6:]] == [0, 0, 1, 1]
    assert {profile.choice(one) for one in OTHERS} == {None}
    assert profile.choice(f"  who IS the\n spouse of {NAMES[7]}? ") == 0
    least = [profile.thresholds[0] / SHARE, profile.thresholds[1] / SHARE]
    assert all(0 < one < 1 for one in least)
    assert TextProfile.of([["Who?"], ["Where?"]]).thresholds == (0.0, 0.0)


def test_the_order_of_adapters_and_repeated_prompts_change_nothing():
    turned = TextProfile.of([HOMES[:6] * 3, SPOUSES[5::-1]])
    profile = TextProfile.of([SPOUSES[:6], HOMES[:6]])
    for prompt in SPOUSES + HOMES + OTHERS:
        assert turned.similarities(prompt)[::-1] == pytest.approx(profile.similarities(prompt))


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


def test_gates_are_how_often_each_adapter_is_chosen():
    experts = tuple(random_adapter(n, rank=2, seed=i) for i, n in enumerate(("spouse", "home")))
    routed = System("by-text", "router", Composition("by-text", experts, fitted()))
    prompts = [*SPOUSES[6:], HOMES[6], OTHERS[0]]
    tasks = [Task("t", tuple(Item(str(i), p, ("y",)) for i, p in enumerate(prompts)))]

    class Reader:
        context = None

        class encoder:
            prompts = staticmethod(lambda texts: [[1]] * len(texts))

    (row,), _ = gate_statistics(Reader(), [routed], tasks)
    assert row.share == {"spouse": 0.5, "home": 0.25} and row.n == 4
