"""Forecasts of sets of adapters against logits that are added explicitly, over all tokens; right
worked answers in the form in which an adapter writes them."""

from __future__ import annotations

import itertools
import tracemalloc
from pathlib import Path

import making
import numpy as np
import pytest
import torch
import words

from loraprobe.evaluation.asking import ask
from loraprobe.evaluation.plan import questions
from loraprobe.probes import (
    AdditiveForecast,
    ScreenedTexts,
    _forecast,
    with_worked_answers,
)
from loraprobe.routing.constant import single
from loraprobe.scoring import Scorer
from loraprobe.scoring import states as states_file
from loraprobe.scoring.states import States
from loraprobe.tasks import Hop, Item, Task

NAMES = ["a", "b", "c"]
SETS = [(0, 1), (0, 2), (1, 2), (0, 1, 2)]
ROUNDING = 0.05  # of a text's log-probability: the states are kept in float16


@pytest.fixture(scope="module")
def scorer():
    tokenizer = words.word_tokenizer()
    return Scorer(making.sharpened(making.tiny_llama(vocab=len(tokenizer))), tokenizer)


@pytest.fixture(scope="module")
def singles():
    adapters = [making.random_adapter(n, seed=k, scaling=0.02) for k, n in enumerate(NAMES)]
    return {"base": None} | {a.name: single(a) for a in adapters}


@pytest.fixture
def every_token(monkeypatch):
    """All tokens are in the support, so that nothing is approximate."""
    monkeypatch.setattr(states_file, "TOP", 99)


def logits(scorer, singles, ids, members):
    """Logits [len(ids), vocab] with the effects of the members added."""

    def alone(name):
        with scorer.with_composition(singles[name]), torch.inference_mode():
            return scorer.model(input_ids=torch.tensor([ids])).logits[0].double()

    base = alone("base")
    return base + sum(alone(NAMES[m]) - base for m in members)


def greedy(scorer, singles, prompt, members, length=2):
    """The words that added effects write, as long as these are words."""
    ids, start = list(scorer.encoder.prompts([prompt])[0]), 0
    start = len(ids)
    for _ in range(length):
        ids.append(int(logits(scorer, singles, ids, members)[-1].argmax()))
    return scorer.decode(ids[start:])


def forecast_of(scorer, singles, task, metric=None):
    reading = ScreenedTexts.of(scorer, [task], metric)
    kept = {}
    for name, composition in singles.items():
        with scorer.with_composition(composition):
            kept[name] = reading.read(scorer, name)
    states = [states for states, _ in kept.values()]
    found = AdditiveForecast.of(scorer, [reading], len(states), lambda _, k: states[k])
    return reading, found, {name: answers for name, (_, answers) in kept.items()}


def prompts():
    return [f"{one} {other}" for one, other in itertools.permutations(words.WORDS[:5], 2)][:16]


def generated_task(scorer, singles):
    """Half of the answers are what one of the sets writes, the others what nobody writes."""
    items = []
    for k, prompt in enumerate(prompts()):
        said = greedy(scorer, singles, prompt, SETS[k % 4], 1 + k // 4 % 2)
        answer = said if k % 2 and said.strip(" !\n") else words.WORDS[k % 12]
        items.append(Item(str(k), prompt, (answer,)))
    return Task("t", tuple(items))


@pytest.mark.parametrize("metric", ["exact_match", "contains"])
def test_generated_answers_are_those_of_added_logits(scorer, singles, metric, every_token):
    task = generated_task(scorer, singles)
    reading, found, _ = forecast_of(scorer, singles, task, metric)
    vocabulary = range(scorer.vocab_size)
    ends = torch.tensor([not any(map(str.isalnum, scorer.decode([i]))) for i in vocabulary])
    seen = set()
    for members in SETS:
        hard, soft = found.parts[0].values(np.array([members]))
        for k, text in enumerate(reading.texts):
            ids, start = reading.rows[text.row]
            z = logits(scorer, singles, ids, members)[start - 1 :]
            gold = z.gather(-1, torch.tensor([text.tokens]).T)
            right = bool((gold[:, 0] >= z[: len(gold)].amax(-1) - 1e-3).all())
            logprob = (gold[:, 0] - z[: len(gold)].logsumexp(-1)).sum()
            if metric == "exact_match":
                right &= bool(ends[z[len(gold)].argmax()])
                logprob += z[len(gold)][ends].logsumexp(-1) - z[len(gold)].logsumexp(-1)
            assert hard[0, k] == right
            assert np.log(soft[0, k]) == pytest.approx(float(logprob), abs=ROUNDING)
            seen.add(right)
    assert seen == {True, False}


def choice_task():
    texts = ("ada", "bo lives", "in ulm .", "cy")
    items = [Item(str(k), p, (texts[k % 4],), choices=texts) for k, p in enumerate(prompts())]
    return Task("t", tuple(items))


@pytest.mark.parametrize("metric", ["choice", "answer_loss"])
def test_likelihoods_are_those_of_added_logits(scorer, singles, metric, every_token):
    task = choice_task()
    _, found, answers = forecast_of(scorer, singles, task, metric)
    asked = questions([task], metric)
    for name, composition in singles.items():  # one pass serves answers and forecast
        with scorer.with_composition(composition):
            for row, other in zip(ask(scorer, asked, name), answers[name], strict=True):
                assert (row.text, row.system) == (other.text, other.system)
                assert row.value == pytest.approx(other.value, abs=1e-4)
    for members in SETS:
        hard, _ = found.parts[0].values(np.array([members]))
        for k, question in enumerate(asked):
            scores = []
            for text in question.continuations:
                (ids, start), *_ = scorer.encoded([(question.prompt, text)])
                z = logits(scorer, singles, ids, members)[start - 1 : -1].log_softmax(-1)
                gold = z.gather(-1, torch.tensor([ids[start:]]).T)
                scores.append((float(gold.sum()), len(gold)))
            wanted = question.scored("x", scores).value
            sign = -1 if metric == "answer_loss" else 1
            assert sign * hard[0, k] == pytest.approx(wanted, abs=ROUNDING)


def test_tokens_beyond_the_support_count_by_the_probability_that_is_left(
    scorer, singles, monkeypatch
):
    task = choice_task()
    _, whole, _ = forecast_of(scorer, singles, task, "answer_loss")
    monkeypatch.setattr(_forecast, "SUPPORT", 5)  # of 18
    _, part, _ = forecast_of(scorer, singles, task, "answer_loss")
    (part,), (whole,) = part.parts, whole.parts
    assert part.logits.shape[-1] < whole.logits.shape[-1]
    sets = np.array(SETS[:3])
    assert part.values(sets)[0] == pytest.approx(whole.values(sets)[0], abs=0.5)
    assert part.logits.softmax(-1)[..., -1].max() > 0.1  # otherwise nothing was left out


def test_a_head_that_is_not_linear_is_not_added(singles):
    tokenizer = words.word_tokenizer()
    options = {"vocab_size": len(tokenizer), "head_dim": 4, "final_logit_softcapping": 0.5}
    model = making.sharpened(making.tiny_model("Gemma2", **options))
    own = {"base": None, "a": None}
    assert forecast_of(Scorer(model, tokenizer), own, choice_task())[1] is None


def test_an_adapter_of_the_head_is_named(scorer, singles):
    head = making.random_adapter(
        "h", {"lm_head": (scorer.vocab_size, 16)}, scaling=1.0, kinds={"lm_head": "linear"}
    )
    _, found, _ = forecast_of(scorer, {**singles, "h": single(head)}, choice_task())
    assert found.linear.tolist() == [True, True, True, False]
    assert found.added(np.array([(0, 1), (0, 3)])).tolist() == [True, False]


def test_results_of_many_sets_take_no_further_memory(scorer, singles, monkeypatch):
    """The number of pairs grows with the square of a library."""
    (found,) = forecast_of(scorer, singles, choice_task())[1].parts
    many = np.repeat(np.array([(0, 1)]), 10_000, 0)
    hard, soft = found.values(many)
    wanted, size = (hard + soft) / 2, hard.nbytes
    monkeypatch.setattr(type(found), "values", lambda self, _: (hard, soft))
    tracemalloc.start()
    scores = found.scores(many)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < size / 10 and (scores == wanted).all()


def test_kept_states_are_read_again_if_they_are_whole_and_of_the_same_texts(
    scorer, singles, tmp_path
):
    reading = ScreenedTexts.of(scorer, [choice_task()], None)
    states, _ = reading.read(scorer, "base")
    path = tmp_path / "deep" / "base.safetensors"
    states.save(path, reading.mark)
    again = States.load(path, reading.mark)
    assert torch.equal(again.hidden, states.hidden) and torch.equal(again.top, states.top)
    assert again.linear and torch.equal(again.total, states.total)
    assert States.load(path, "other") is None
    path.write_bytes(path.read_bytes()[:-9])
    assert States.load(path, reading.mark) is None
    assert States.load(tmp_path / "none", reading.mark) is None


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_states_on_a_full_disk_are_an_error_of_the_system(scorer, singles, tmp_path):
    """The error of safetensors would be told as a defect."""
    reading = ScreenedTexts.of(scorer, [choice_task()], None)
    states, _ = reading.read(scorer, "base")
    (tmp_path / "base.part").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left"):
        states.save(tmp_path / "base.safetensors", reading.mark)
    assert not (tmp_path / "base.safetensors").exists()


# Worked answers.

PEOPLE = [tuple(row.split()) for row in ("Ada Bo Rome", "Cem Dee Oslo", "Eva Fox Bern")]
PEOPLE += [("Gus", "Hal", "Rome")]


def homes(hops: int = 2) -> Task:
    """Questions about the city of somebody's spouse, with worked steps."""
    items = []
    for a, b, city in PEOPLE:
        asked = f"Where does the spouse of {a} live?"
        both = Hop(f"Who is the spouse of {a}?", (b,)), Hop("Where does {1} live?", (city,))
        worked = {"hops": both[:hops], "cot_prompt": f"{asked} Think step by step."}
        items.append(Item(a, asked, (city,), **worked))
    return Task("homes", tuple(items))


def right(a: str, b: str, city: str) -> str:
    return f"The spouse of {a} is {b}. {b} lives in {city}."


def test_right_answers_take_the_places_of_wrong_names():
    """Every name is wrong, one text has another form, and one item was answered with nothing."""
    texts = {
        "Ada": " The spouse of Ada is Xan. Xan lives in Lima.",
        "Cem": " The spouse of Cem is Yul. Yul lives in Kyiv.",
        "Eva": " The spouse of Eva is Eva.",
    }
    made = with_worked_answers(homes(), texts)
    assert made is not None and made.name == "homes"
    assert [item.answers for item in made.items] == [(right(*row),) for row in PEOPLE]
    assert [item.prompt for item in made.items] == [item.cot_prompt for item in homes().items]
    assert not any(item.hops or item.cot_prompt for item in made.items)


def test_a_form_has_a_place_for_each_hop():
    told = {a: f"{a} is married." for a, _, _ in PEOPLE}
    assert with_worked_answers(homes(), told) is None
    three = {a: f"{a} Xan{a} Yul{a} Kyiv{a}" for a, _, _ in PEOPLE}
    assert with_worked_answers(homes(), three) is None
    assert with_worked_answers(homes(hops=0), {a: right(a, b, c) for a, b, c in PEOPLE}) is None
    assert with_worked_answers(homes(), {}) is None
