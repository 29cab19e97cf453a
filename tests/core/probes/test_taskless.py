"""Probes without a task: what is measured of strangers' adapters, and where prompts come from."""

import math

import bases
import making
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_probes import A, B, FakeScorer, by, likelihood, story_scorer  # noqa: F401 - story_scorer is a fixture

from loraprobe.errors import TaskError
from loraprobe.probes import generated_prompts, probe_without_task
from loraprobe.probes._taskless import card_prompts
from loraprobe.tasks import ProbePrompts


def story_adapters(scorer, scaling=0.02):
    shapes = {
        name: tuple(module.weight.shape)
        for name, module in scorer.model.named_modules()
        if name.endswith(("q_proj", "up_proj"))
    }
    return [making.random_adapter(n, shapes, seed=i, scaling=scaling) for i, n in enumerate("ab")]


SAME = torch.tensor([0.5, 0.25, 0.25])
TILTED = torch.tensor([0.25, 0.5, 0.25])
KL = 0.5 * math.log(2) - 0.25 * math.log(2)  # of TILTED from SAME


class Strangers(FakeScorer):
    """`first(system, prompt)`: probabilities of the first token; `writes(system, i, seed)`."""

    def __init__(self, *args, first=None, writes=None, **rest):
        super().__init__(*args, **rest)
        self.first = first or (lambda system, prompt: SAME)
        self.writes = writes or (lambda system, i, seed: f"{system} writes {i} of {seed}.")

    def first_token_distribution(self, prompts):
        return torch.stack([self.first(self.system, p) for p in prompts]).log()

    def sample(self, n, *, seed=0, max_new_tokens=None, **rest):
        return [self.writes(self.system, i, seed) for i in range(n)]


def strangers(scorer, *lines, adapters=(A, B)):
    answers = dict(line if isinstance(line, tuple) else (line, None) for line in lines)
    return probe_without_task(scorer, adapters, ProbePrompts(answers), seed=0)


def test_adapters_that_agree_with_the_base_are_familiar():
    def likely(system, prompt, answer):
        assert system == "base"
        return likelihood(-0.2, rank=1) if "a" in answer else likelihood(-3.0, top=-0.1, rank=7)

    scorer = Strangers(likely, says=lambda system, prompt: {"a": "aa", "b": "zz"}[system])
    rows = strangers(scorer, "one", "two")
    assert by(rows, name="familiarity", adapters=("a",)).value == 1.0
    assert by(rows, name="familiarity", adapters=("b",)).value == 0.0
    both = by(rows, name="familiarity", adapters=())
    assert (both.value, both.n, both.task) == (0.5, 4, "probe")
    assert by(rows, name="own_answer_margin", adapters=("a",)).value == 0.0
    expected = math.exp(-0.1) - math.exp(-3.0)
    assert by(rows, name="own_answer_margin", adapters=("b",)).value == pytest.approx(expected)
    assert by(rows, name="own_answer_rank", adapters=("b",)).value == 7
    scores = [system for kind, system, _ in scorer.calls if kind == "score"]
    assert scores == ["base"]  # one pass


def test_divergence_and_cross_talk():
    """a moves only prompts of its own; b moves its own and half as often a's."""

    def first(system, prompt):
        moved = (system, prompt[0]) in {("a", "A"), ("b", "B")} or (system, prompt) == ("b", "Ax")
        return TILTED if moved else SAME

    rows = strangers(Strangers(first=first), "A1", "A2", "Ax", "B1")
    assert by(rows, name="kl_to_base", adapters=("a",)).value == pytest.approx(KL * 3 / 4)
    assert by(rows, name="kl_to_base", adapters=("b",)).value == pytest.approx(KL * 2 / 4)
    # on a's three prompts b speaks up once; on b's one prompt a is silent
    talk = by(rows, name="cross_talk", adapters=("b", "a"))
    assert (talk.value, talk.n) == (pytest.approx(1 / 3), 3)
    silent = by(rows, name="cross_talk", adapters=("a", "b"))
    assert (silent.value, silent.n) == (0.0, 1)


def test_adapters_that_change_nothing_own_no_prompt():
    rows = strangers(Strangers(), "one", "two")
    assert not [row for row in rows if row.name == "cross_talk"]
    assert by(rows, name="kl_to_base", adapters=("a",)).value == 0.0


def test_capitalised_spans_serve_as_names():
    def likely(system, prompt, answer):
        return likelihood(-1.0 if "Ulm" in prompt else -4.0)

    rows = strangers(Strangers(likely), "Who is mayor of Ulm?", "no name here")
    assert by(rows, name="name_swap", adapters=()).value == 3.0
    assert by(rows, name="name_swap", adapters=("a",)).n == 1
    assert not [r for r in strangers(Strangers(likely), "no name") if r.name == "name_swap"]


def test_known_answers_are_scored_on_the_base():
    def likely(system, prompt, answer):
        return likelihood(math.log(0.2), top=math.log(0.7)) if answer == "Bo" else likelihood(-1.0)

    rows = strangers(Strangers(likely), ("Mayor of Ulm?", "Bo"), "Else?")
    row = by(rows, name="answer_margin")
    assert (row.value, row.n, row.adapters) == (pytest.approx(0.5), 1, ())


def test_empty_answers_and_doubled_prompts_are_not_counted():
    scorer = Strangers(says=lambda system, prompt: " " if prompt == "one" else "yes")
    rows = strangers(scorer, "one", "two", "two")
    assert by(rows, name="familiarity", adapters=("a",)).n == 1
    assert by(rows, name="kl_to_base", adapters=("a",)).n == 2
    silent = strangers(Strangers(says=lambda system, prompt: ""), "one")
    assert by(silent, name="familiarity", adapters=()).value is None


def test_what_adapters_change_on_a_model_that_has_learned_something(story_scorer):  # noqa: F811
    adapters = story_adapters(story_scorer, scaling=0.01)
    probe = generated_prompts(story_scorer, adapters, {}, wanted=6)
    again = generated_prompts(story_scorer, adapters, {}, wanted=6)
    assert probe == again and len(probe.answers) == 6
    rows = probe_without_task(story_scorer, adapters, probe)
    kl = by(rows, name="kl_to_base", adapters=("a",)).value
    bigger = probe_without_task(story_scorer, story_adapters(story_scorer, 0.1), probe)
    assert 0 < kl < by(bigger, name="kl_to_base", adapters=("a",)).value
    assert all(math.isfinite(row.value) for row in rows)
    learned = {bases.GIRL.format(name).partition(".")[0] + ".": None for name in bases.NAMES}
    nothing = story_adapters(story_scorer, 0.0)
    silent = probe_without_task(story_scorer, nothing, ProbePrompts(learned))
    assert by(silent, name="kl_to_base", adapters=("a",)).value == pytest.approx(0, abs=1e-6)
    assert by(silent, name="familiarity", adapters=()).value == 1.0


# ---- where prompts come from ------------------------------------------------------------------

CARD = '''---
license: mit
widget:
- text: "The defendant"
- text: "The court held"
  example_title: two
- messages:
  - role: system
    content: be brief
  - role: user
    content: Who may appeal?
- 5
---
# A card

```python
from transformers import pipeline
prompt = "Summarize the contract:"
text = """Two
lines"""
```

```
pip install peft
```

```json
{"prompt": 1}
```
'''


def test_prompts_of_a_card_in_their_order():
    assert card_prompts(CARD) == [
        "The defendant",
        "The court held",
        "Who may appeal?",
        "Summarize the contract:",
        "Two\nlines",
    ]
    assert card_prompts(CARD.replace("\n", "\r\n"))[:2] == ["The defendant", "The court held"]
    escape = '---\nwidget:\n- text: "\\e[31mThe court"\n---\n'
    assert card_prompts(escape) == ["[31mThe court"], "no control character reaches a terminal"


@pytest.mark.parametrize(
    "card",
    [
        "",
        "---\n---\n",
        "---\nwidget: [\n---\n",
        "---\nwidget: {a: b}\n---\n",
        "---\n- a\n---\n",
        "---\nwidget:\n- text: [x]\n- messages: 3\n- messages: [{role: user, content: 3}]\n---\n",
        "---\nwidget: !!python/object/apply:os.system ['true']\n---\n",
        "---\nno end",
        "```\n",
        "---\nwidget:\n- text: '12345'\n- text: 'ab'\n---\n",
        "---\ndate: 2024-99-99\n---\n",
    ],
)
def test_malformed_cards_give_no_prompts(card):
    assert card_prompts(card) == []


@given(st.text(alphabet="-`\n:[]{}&*!widget text\"'", max_size=80))
def test_no_card_breaks_the_reader(text):
    assert all(prompt.strip() for prompt in card_prompts(text + CARD[: len(text) * 7]))


def prompts(scorer, cards, wanted=8, seed=0):
    probe = generated_prompts(scorer, (A, B), cards, seed=seed, wanted=wanted)
    return list(probe.answers)


def test_prompts_of_cards_come_first_then_those_of_adapters():
    found = prompts(Strangers(), {"a": CARD, "b": None}, wanted=10)
    assert found[:5] == card_prompts(CARD)
    assert [text.split()[0] for text in found[5:]] == ["a", "b", "a", "b", "a"]


def test_enough_prompts_in_cards_sample_no_adapter():
    def writes(system, i, seed):
        raise AssertionError("no adapter should be asked")

    found = prompts(Strangers(writes=writes), {"a": CARD, "b": CARD.replace("The", "A")}, wanted=4)
    assert found == ["The defendant", "A defendant", "The court held", "A court held"]


@pytest.mark.parametrize(
    ("writes", "wanted", "found"),
    [
        (  # repetitions are dropped and sampled anew
            lambda system, i, seed: f"Same {seed // 1000} {system}.\nand more",
            5,
            ["Same 0 a.", "Same 0 b.", "Same 1 a.", "Same 1 b.", "Same 2 a."],
        ),
        (  # a word that sampling cut is left out
            lambda system, *_: {"a": "He went to the par", "b": "Did he go to?"}[system],
            2,
            ["He went to the", "Did he go to?"],
        ),
        (lambda *_: "  The SAME  ", 8, ["The SAME"]),  # the search ends
    ],
)
def test_what_adapters_write_becomes_prompts(writes, wanted, found):
    assert prompts(Strangers(writes=writes), {}, wanted=wanted) == found


def test_without_prompts_the_error_names_the_cure():
    with pytest.raises(TaskError, match="--probe FILE"):
        prompts(Strangers(writes=lambda *_: "..."), {})
