"""Which form of prompts is chosen, by how many answers of the adapters alone."""

import pytest
from fake_scorer import HOMES, FakeScorer, mayors, single

from loraprobe.evaluation import Asker, ResponseCache, System, choose_template
from loraprobe.evaluation.questions import questions, rounds, spread_sample
from loraprobe.tasks import Hop, Item, Task

TURNS = {(*key, "chat"): text for key, text in HOMES.items()}


def test_the_better_prompt_format_is_chosen():
    both = [single("homes"), single("town")]
    used, why, _ = choose_template(FakeScorer(HOMES), both, [mayors()])
    assert not used and "off" in why
    used, why, _ = choose_template(FakeScorer(TURNS), both, [mayors()])
    assert used and "0.50 with it and 0.00 without" in why
    assert "2 question, 2 hop 1 and 2 hop 2" in why
    used, _, row = choose_template(FakeScorer(HOMES | TURNS), both[:1], [mayors()])
    assert not used and row.value == row.baseline > 0, "a tie leaves prompts as they are"


def test_the_answers_that_choose_the_prompt_format_are_kept():
    scorer, kept, task = FakeScorer(TURNS), ResponseCache(), mayors()
    both = [single("homes"), single("town")]
    first = choose_template(scorer, both, [task], kept=kept)
    asked = len(scorer.asked)
    # Two forms and two adapters, questions and hops; what homes answered town is not asked.
    assert asked == len(kept.results) == 2 * 2 * 6 - 1
    assert choose_template(scorer, both, [task], kept=kept) == first
    assert len(scorer.asked) == asked
    hop = next(q for q in questions([task]) if q.part == "hop1")
    for form, value in ((True, 1.0), (False, 0.0)):
        asker = Asker(scorer.with_template(form), kept)
        assert asker.get(System.alone(both[0]), hop).value == value


def test_every_part_is_sampled_for_the_prompt_format():
    """96 items of three parts: the template ruins hop 1, and nobody answers the question."""
    names = [f"p{k}" for k in range(96)]
    second = Hop("mayor of {1}?", ("Bo",))
    hops = {name: (Hop(f"home of {name}?", ("Ulm",)), second) for name in names}
    task = Task("t", tuple(Item(name, f"{name}?", ("Bo",), hops=hops[name]) for name in names))
    said = {("homes", f"home of {n}?"): "Ulm" for n in names}
    said |= {("homes", f"home of {n}?", "chat"): "Ulm" for n in names[::4]}
    scorer = FakeScorer(said)
    used, why, row = choose_template(scorer, [single("homes")], [task])
    assert not used and row.baseline == pytest.approx(1 / 3) and row.value < 0.2
    assert "4 question, 4 hop 1 and 4 hop 2" in why
    first = {item.id for item in rounds([task], 0)[0].tasks[0].items}
    assert {asked.split()[-1][:-1] for _, asked in scorer.asked if "home" in asked} <= first


@pytest.mark.parametrize("form", [True, False])
def test_the_known_prompt_format_is_taken_where_both_are_as_good(form):
    known, homes = (form, "the card shows it"), [single("homes")]
    found = choose_template(FakeScorer({}), homes, [mayors()], known=lambda: known)
    assert found[0] is form and "0.00 with it and 0.00 without; the card shows it" in found[1]
    unasked = {"known": lambda: pytest.fail("not needed")}
    assert not choose_template(FakeScorer(HOMES), homes, [mayors()], **unasked)[0]


@pytest.mark.parametrize(
    ("plain", "turns", "n"),
    [
        (3, 0, 5),
        (0, 5, 5),
        (5, 2, 5),
        (5, 5, 33),
        (6, 6, 12),
        (7, 4, 12),
        (2, 0, 30),
        (0, 1, 30),
        (1, 1, 33),
        (0, 0, 33),
    ],
)
def test_no_more_is_asked_than_tells_the_better_prompt_format(plain, turns, n):
    """So many of 40 are right in each form: a lead of 3, or half right, is enough."""
    items = tuple(Item(str(k), f"{k}?", ("Bo",), cot_prompt=f"{k}, by steps?") for k in range(40))
    task = Task("t", items)
    samples = [spread_sample(task, few, 0).items for few in (2, 3, 4, 5, 6, 7)]
    first = list(dict.fromkeys(item.prompt for sample in samples for item in sample))
    said = {("homes", prompt): "Bo" for prompt in first[:plain]}
    said |= {("homes", prompt, "chat"): "Bo" for prompt in first[:turns]}
    used, why, row = choose_template(FakeScorer(said), [single("homes")], [task])
    assert (used, row.n) == (turns > plain, n)
    assert ("3 step by step" in why) == (n == 33), "they are long"


def test_a_hop_that_is_said_in_other_words_counts_for_the_prompt_format():
    said = {
        ("homes", f"Where does {name} live?", "chat"): f"In {city}, I think"
        for name, city in (("Ada", "Ulm"), ("Eve", "Rom"))
    }
    used, _, row = choose_template(FakeScorer(said), [single("homes")], [mayors()])
    assert used and row.value == pytest.approx(2 / 6) and row.baseline == 0
