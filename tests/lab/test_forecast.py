"""The forecast: answers of added effects done the long way, and their gain as evaluation has it."""

from __future__ import annotations

import dataclasses
import functools

import making
import pytest
import torch
from composing import experts
from words import word_tokenizer

from loraprobe.composition import Composition
from loraprobe.records import ItemResult
from loraprobe.routing.arrow import Arrow
from loraprobe.routing.constant import ConstantGates
from loraprobe.scoring import Scorer
from loraprobe.tasks import Item, Task, answered, normalize_answer
from loraprobe_lab.calibration.forecast import forecast

SUBJECTS = ("ada", "cy", "the mayor", "who", "lives", "in ulm")
TOKENS = 3
AVERAGE, SUM, WEIGHTED = (0.5, 0.5), (1.0, 1.0), (0.7, 0.3)


@pytest.fixture(scope="module")
def scorer():
    return Scorer(making.sharpened(making.tiny_llama()), word_tokenizer(), batch_size=4)


@pytest.fixture(scope="module")
def pair():
    first, second = experts(2, scaling=0.15)
    lacking = {p: second.modules[p] for p in list(second.modules)[:-3]}
    return first, making.adapter_of("e1", lacking)


@functools.cache
def at_gates(adapters, *gates):
    return Composition("gates", adapters, ConstantGates(gates))


@functools.cache
def added_line(scorer, adapters, prompt, gates, tokens=TOKENS):
    """The first tokens of what the adapters' added effects write, without caches or batches."""
    ids, new = scorer.encoder.prompts([prompt])[0], []
    while len(new) < tokens:
        z = []
        for own in [(0.0, 0.0), (gates[0], 0.0), (0.0, gates[1])]:
            with torch.no_grad(), scorer.with_composition(at_gates(adapters, *own)):
                z.append(scorer.model(torch.tensor([ids + new])).logits[0, -1].double())
        token = int((z[1] + z[2] - z[0]).argmax())
        if token in scorer.stops:
            break
        new.append(token)
    return scorer.decode(new)


@pytest.fixture(scope="module")
def task(scorer, pair):
    """On two items of three, right is what added effects say, at several gates in either form."""
    items = []
    for i, who in enumerate(SUBJECTS):
        prompt, cot = f"{who} lives in", f"where is {who} ?"
        said = [added_line(scorer, pair, prompt, gates) for gates in (AVERAGE, SUM)]
        said += [added_line(scorer, pair, cot, gates) for gates in (SUM, WEIGHTED)]
        right = tuple(filter(normalize_answer, said)) if i % 3 else ()
        items.append(Item(str(i), prompt, right or ("nowhere",), cot_prompt=cot))
    return Task("t", tuple(items))


def measured(task, systems=("base", "e0", "e1"), metric="exact_match", **values):
    """Results of everybody on every part: 0.0, or what is given for SYSTEM_PART."""
    return [
        ItemResult(s, task.name, part, i.id, metric, values.get(f"{s}_{part}", 0.0), "?", i.cluster)
        for s in systems
        for i in task.items
        for part in task.parts
    ]


def forecasts(scorer, adapters, tasks, compositions, results, **rest):
    tasks = [tasks] if isinstance(tasks, Task) else tasks
    rows = forecast(
        scorer, adapters, tasks, compositions, results=results, max_new_tokens=TOKENS, **rest
    )
    return {row.system: row for row in rows}


def hits(scorer, adapters, task, part, gates):
    """Right or wrong of every item, by the long way."""
    worked = part == "steps"
    prompts = [i.cot_prompt if worked else i.prompt for i in task.items]
    said = [added_line(scorer, adapters, prompt, gates) for prompt in prompts]
    return [
        float(answered(text, item.answers, cot=worked))
        for text, item in zip(said, task.items, strict=True)
    ]


def share(values):
    return sum(values) / len(values)


@pytest.mark.parametrize("gates", [AVERAGE, SUM, WEIGHTED])
def test_the_gain_is_that_of_the_texts_of_added_effects(scorer, pair, task, gates):
    (row,) = forecasts(scorer, pair, task, {"m": gates}, measured(task)).values()
    plain, steps = (share(hits(scorer, pair, task, part, gates)) for part in ("question", "steps"))
    part = "question" if plain >= steps else "steps"
    assert (row.part, row.n, row.gain) == (part, len(SUBJECTS), pytest.approx(max(plain, steps)))
    assert -1 <= row.ci95[0] <= row.gain <= row.ci95[1] <= 1
    results = measured(task, e0_question=1.0)
    (row,) = forecasts(scorer, pair, task, {"m": gates}, results).values()
    assert row.gain == pytest.approx(max(plain, steps) - 1.0)
    assert (row.against, row.against_part) == ("e0", "question")


def test_the_gains_differ_and_are_not_all_zero(scorer, pair, task):
    """Else the tests above would show little."""
    found = {
        (part, gates): share(hits(scorer, pair, task, part, gates))
        for part in ("question", "steps")
        for gates in (AVERAGE, SUM, WEIGHTED)
    }
    assert sum(0 < value < 1 for value in found.values()) >= 3
    assert found["steps", WEIGHTED] > found["question", WEIGHTED] == 0 < found["question", AVERAGE]


def test_compositions_scored_in_one_batch_keep_their_own_answers(scorer, pair, task):
    results, both = measured(task), {"average": AVERAGE, "weighted": WEIGHTED}
    together = forecasts(scorer, pair, task, both, results)
    assert together["average"].part != together["weighted"].part
    for name, gates in both.items():
        assert together[name] == forecasts(scorer, pair, task, {name: gates}, results)[name]


def test_an_adapter_without_effect_adds_nothing(scorer, pair, task):
    """With one of two adapters empty, the added effects at gate 1 are the other adapter alone."""
    silent = making.adapter_of("e1", {p: u.scaled(0.0) for p, u in pair[0].modules.items()})
    task = dataclasses.replace(
        task, items=tuple(dataclasses.replace(i, cot_prompt=None) for i in task.items)
    )
    found = forecasts(scorer, (pair[0], silent), task, {"sum": SUM}, measured(task))
    with scorer.with_composition(Composition("e0", pair[:1], ConstantGates.ones(1))):
        said = scorer.generate([i.prompt for i in task.items], max_new_tokens=TOKENS)
    right = [answered(text, i.answers) for text, i in zip(said, task.items, strict=True)]
    assert found["sum"].gain == pytest.approx(share(right))


def test_choices_are_taken_by_added_logits(scorer, pair):
    choices = ("bo", "ulm . who", "cy is")
    items = tuple(
        Item(str(i), f"{who} lives in", (choices[i % 3],), choices=choices)
        for i, who in enumerate(SUBJECTS)
    )
    task = Task("c", items)
    taken = []
    for item in items:
        scores = []
        for choice in choices:
            ids, start = scorer.encoder.pairs([(item.prompt, choice)])[0]
            z = []
            for gates in [(0.0, 0.0), (1.0, 0.0), (0.0, 1.0)]:
                with torch.no_grad(), scorer.with_composition(at_gates(pair, *gates)):
                    z.append(scorer.model(torch.tensor([ids])).logits[0].double())
            logp = (z[1] + z[2] - z[0]).log_softmax(-1)
            total = sum(float(logp[t - 1, ids[t]]) for t in range(start, len(ids)))
            scores.append(total / len(choice))
        taken.append(choices[scores.index(max(scores))])
    right = share([c in i.answers for c, i in zip(taken, items, strict=True)])
    known = measured(task, metric="choice")
    found = forecasts(scorer, pair, task, {"sum": SUM}, known)
    assert found["sum"].gain == pytest.approx(right)
    # --metric exact_match: the same items, answered in words
    in_words = forecasts(scorer, pair, task, {"sum": SUM}, measured(task), metric="exact_match")
    assert in_words["sum"].n == len(items)


def test_losses_and_lone_adapters_have_no_forecast(scorer, pair, task):
    losses = measured(task, metric="answer_loss")
    assert forecasts(scorer, pair, task, {"sum": SUM}, losses, metric="answer_loss") == {}
    alone = measured(task, ("base", "e0"))
    assert forecasts(scorer, pair[:1], task, {"sum": (1.0,)}, alone) == {}
    assert forecasts(scorer, pair, task, {}, measured(task)) == {}


def test_a_router_between_equal_twins_gives_each_half(scorer, pair, task):
    twins = (pair[0], pair[0].renamed("e1"))
    compositions = {"arrow": Arrow(), "uniform": AVERAGE}
    found = forecasts(scorer, twins, task, compositions, measured(task))
    assert list(found) == ["arrow", "uniform"]
    assert found["arrow"] == dataclasses.replace(found["uniform"], system="arrow")


def test_of_several_tasks_the_mean_counts_against_one_system(scorer, pair, task):
    """The baseline is one system on all tasks: here each adapter knows one of them."""
    task = dataclasses.replace(
        task, items=tuple(dataclasses.replace(i, cot_prompt=None) for i in task.items)
    )
    other = dataclasses.replace(task, name="u", items=task.items[:4])
    known = measured(task, e0_question=1.0) + measured(other, e1_question=1.0)
    found = forecasts(scorer, pair, [task, other], {"uniform": AVERAGE}, known)["uniform"]
    right = hits(scorer, pair, task, "question", AVERAGE)
    assert found.gain == pytest.approx((share(right) + share(right[:4])) / 2 - 0.5)
    assert found.n == len(right) + 4


def test_it_depends_on_neither_batches_nor_order_and_samples_by_the_seed(scorer, pair, task):
    small = Scorer(scorer.model, scorer.tokenizer, batch_size=1)
    compositions, known = {"uniform": AVERAGE, "arrow": Arrow()}, measured(task, e1_question=1.0)
    once = forecasts(scorer, pair, task, compositions, known, items=3, seed=1)
    assert {row.n for row in once.values()} == {3}
    assert once == forecasts(small, pair, task, compositions, known, items=3, seed=1)
    assert once == forecasts(scorer, pair[::-1], task, compositions, known, items=3, seed=1)
    gains = {
        forecasts(scorer, pair, task, {"m": AVERAGE}, measured(task), items=2, seed=seed)["m"].gain
        for seed in range(4)
    }
    assert len(gains) > 1
