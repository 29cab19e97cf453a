"""Forecasts of sets of adapters against logits that are added explicitly, over all tokens."""

import itertools
from pathlib import Path

import making
import numpy as np
import pytest
import torch
import words

from loraprobe.evaluation import System
from loraprobe.evaluation.asking import ask
from loraprobe.evaluation.questions import questions
from loraprobe.extensions.screen import forecasting
from loraprobe.extensions.screen.forecasting import AdditiveForecast, ForecastTexts, NextTokens
from loraprobe.routing.constant import single
from loraprobe.scoring import ModelScorer
from loraprobe.tasks import Item, Task, with_metrics

NAMES = ["a", "b", "c"]
SETS = [(0, 1), (0, 2), (1, 2), (0, 1, 2)]
APART = 0.05  # of a text's log-probability: all other tokens have a share of at least 0.01


@pytest.fixture(scope="module")
def scorer():
    tokenizer = words.word_tokenizer()
    return ModelScorer(making.sharpened(making.tiny_llama(vocab=len(tokenizer))), tokenizer)


@pytest.fixture(scope="module")
def singles():
    adapters = [making.random_adapter(n, seed=k, scaling=0.02) for k, n in enumerate(NAMES)]
    return {"base": None} | {a.name: single(a) for a in adapters}


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
    reading = ForecastTexts.of(scorer, with_metrics([task], metric))
    kept = {}
    for name, composition in singles.items():
        with scorer.with_composition(composition):
            kept[name] = reading.read(scorer, System(name, "adapter"))
    given = [given for given, _ in kept.values()]
    found = AdditiveForecast.of(scorer, reading, len(given), lambda k: given[k])
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
def test_generated_answers_are_those_of_added_logits(scorer, singles, metric):
    task = generated_task(scorer, singles)
    reading, found, _ = forecast_of(scorer, singles, task, metric)
    vocabulary = range(scorer.vocab_size)
    ends = torch.tensor([not any(map(str.isalnum, scorer.decode([i]))) for i in vocabulary])
    seen = set()
    for members in SETS:
        hard, soft = found.values(np.array([members]))
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
            assert np.log(soft[0, k]) == pytest.approx(float(logprob), abs=APART)
            seen.add(right)
    assert seen == {True, False}


def choice_task():
    texts = ("ada", "bo lives", "in ulm .", "cy")
    items = [Item(str(k), p, (texts[k % 4],), choices=texts) for k, p in enumerate(prompts())]
    return Task("t", tuple(items))


@pytest.mark.parametrize("metric", ["choice", "answer_loss"])
def test_likelihoods_are_those_of_added_logits(scorer, singles, metric):
    task = choice_task()
    _, found, answers = forecast_of(scorer, singles, task, metric)
    asked = questions(with_metrics([task], metric))
    for name, composition in singles.items():  # one pass serves answers and forecast
        with scorer.with_composition(composition):
            rows = ask(scorer, asked, System(name, "adapter"))
            for row, other in zip(rows, answers[name], strict=True):
                assert (row.text, row.system) == (other.text, other.system)
                assert row.value == pytest.approx(other.value, abs=1e-4)
    for members in SETS:
        hard, _ = found.values(np.array([members]))
        for k, question in enumerate(asked):
            scores = []
            for text in question.continuations:
                (ids, start), *_ = scorer.encoded([(question.prompt, text)])
                z = logits(scorer, singles, ids, members)[start - 1 : -1].log_softmax(-1)
                gold = z.gather(-1, torch.tensor([ids[start:]]).T)
                scores.append((float(gold.sum()), len(gold)))
            wanted = question.scored("x", scores).value
            sign = -1 if metric == "answer_loss" else 1
            assert sign * hard[0, k] == pytest.approx(wanted, abs=APART)


@pytest.mark.parametrize("limit", ["SUPPORT", "TOP"])
def test_other_tokens_count_by_the_probability_that_is_left(scorer, singles, monkeypatch, limit):
    task = choice_task()
    _, whole, _ = forecast_of(scorer, singles, task, "answer_loss")
    monkeypatch.setattr(forecasting, limit, 5)  # of 18
    _, part, _ = forecast_of(scorer, singles, task, "answer_loss")
    sets = np.array(SETS[:3])
    found, wanted = part.values(sets)[0], whole.values(sets)[0]
    assert found == pytest.approx(wanted, abs=0.5) and (found != wanted).any()


@pytest.mark.parametrize("capped", [True, False])
def test_effects_on_capped_logits_and_by_adapters_of_the_head_are_added(scorer, singles, capped):
    """Added are log-probabilities, whatever makes them."""
    if capped:
        tokenizer = words.word_tokenizer()
        options = {"vocab_size": len(tokenizer), "head_dim": 4, "final_logit_softcapping": 0.5}
        scorer = ModelScorer(making.sharpened(making.tiny_model("Gemma2", **options)), tokenizer)
        own = {"base": None, "a": None}
    else:
        shapes = {"lm_head": (scorer.vocab_size, 16)}
        head = making.random_adapter("h", shapes, scaling=1.0, kinds={"lm_head": "linear"})
        own = {"base": None, "a": single(head)}
    _, found, answers = forecast_of(scorer, own, choice_task(), "answer_loss")
    alone = [-row.value for row in answers["a"]]
    assert found.values(np.array([(0,)]))[0][0] == pytest.approx(alone, abs=APART)


def test_kept_next_tokens_are_read_again_if_they_are_whole_and_of_the_same_texts(
    scorer, singles, tmp_path
):
    reading = ForecastTexts.of(scorer, [choice_task()])
    given, _ = reading.read(scorer, System("base", "base"))
    path = tmp_path / "deep" / "base.safetensors"
    given.save(path, reading.mark)
    again = NextTokens.load(path, reading.mark)
    assert all(torch.equal(one, vars(given)[name]) for name, one in vars(again).items())
    assert NextTokens.load(path, "other") is None
    path.write_bytes(path.read_bytes()[:-9])
    assert NextTokens.load(path, reading.mark) is None
    assert NextTokens.load(tmp_path / "none", reading.mark) is None


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_next_tokens_on_a_full_disk_are_an_error_of_the_system(scorer, singles, tmp_path):
    """The error of safetensors would be told as a defect."""
    reading = ForecastTexts.of(scorer, [choice_task()])
    given, _ = reading.read(scorer, System("base", "base"))
    (tmp_path / "base.part").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left"):
        given.save(tmp_path / "base.safetensors", reading.mark)
    assert not (tmp_path / "base.safetensors").exists()
