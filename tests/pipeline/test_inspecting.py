"""The sample that `inspect` asks: spread over clusters, nested, and by how much it is smaller."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from dataclasses import replace

import pytest
import torch

import loraprobe
from loraprobe import defaults
from loraprobe.base import open_base
from loraprobe.evaluation.asking import ask
from loraprobe.evaluation.kept import NAME
from loraprobe.evaluation.plan import questions
from loraprobe.evaluation.schedule import rounds, spread_sample
from loraprobe.options import Options
from loraprobe.pipeline.commands import inspect, merge_and_eval
from loraprobe.pipeline.conclusion import requested
from loraprobe.pipeline.evaluator import known_form, open_evaluator
from loraprobe.pipeline.inputs import open_inputs
from loraprobe.pipeline.session import Session
from loraprobe.pipeline.systems import baseline_systems, plan_of
from loraprobe.records import Verdict
from loraprobe.tasks import Item, Task, load_task
from loraprobe.verdict import next_command
from loraprobe_lab import shipped_world


def task(sizes):
    """Clusters of these sizes, whose items alternate in the file."""
    rows = [(k, c) for k in range(max(sizes)) for c, size in enumerate(sizes) if k < size]
    return Task("t", tuple(Item(f"{c}-{k}", "?", ("!",), group=str(c)) for k, c in rows))


@pytest.mark.parametrize("most", [5, 20, 33, 41])
def test_a_sample_takes_items_from_as_many_clusters_as_possible(most):
    whole = task([3, 1, 4, 2, 5] * 4)  # 20 clusters, of which 16 have a second item
    found = spread_sample(whole, most, 0)
    drawn = Counter(item.group for item in found.items)
    sizes = Counter(item.group for item in whole.items)
    assert len(found.items) == most and len(drawn) == min(most, 20)
    fullest = max(drawn.values())  # nobody gives another item before all others gave theirs
    assert all(drawn[group] >= min(size, fullest - 1) for group, size in sizes.items())
    assert [i for i in whole.items if i in found.items] == list(found.items)  # the file's order


def test_a_smaller_sample_is_part_of_a_larger_one_and_the_seed_draws():
    whole = task([1] * 100)
    few, more, other = (spread_sample(whole, n, seed) for n, seed in ((20, 0), (40, 0), (20, 1)))
    assert set(few.items) < set(more.items) and set(few.items) != set(other.items)
    assert set(few.items) != set(whole.items[:20])
    assert spread_sample(whole, 100, 0).items == whole.items


def test_a_sample_is_asked_in_the_first_rounds_of_an_evaluation():
    for size in (1, 3):
        whole = task([size] * 100)
        first, *_ = rounds([whole], 0)
        few = spread_sample(whole, first.items // size, 0)
        assert {item.group for item in few.items} == {item.group for item in first.tasks[0].items}


def test_of_one_large_cluster_no_more_than_the_sample_is_asked():
    assert len(spread_sample(task([500]), 40, 0).items) == 40


@pytest.fixture(scope="module")
def inspected(tmp_path_factory):
    """The audit of two one-hop adapters, and how many answers it took."""
    chosen = shipped_world().scenario("disjoint")
    state = tmp_path_factory.mktemp("state")
    audit = inspect(
        list(chosen.adapters.values()),
        base=str(shipped_world().path / "base"),
        tasks=list(chosen.tasks),
        options=Options(state=state, threads=1),
    )
    return audit, (state / NAME).read_text().count("\n") - 1


def test_a_sample_is_asked_and_the_compositions_a_first_round(inspected):
    audit, answers = inspected
    alone = {s.n for s in audit.evaluation if s.kind in ("base", "adapter")}
    composed = {(s.n, s.part) for s in audit.evaluation if s.kind in ("merge", "router")}
    assert alone == {defaults.HOP_ITEMS}
    assert composed == {(defaults.PILOT_ITEMS, "question"), (defaults.PILOT_ITEMS, "steps")}
    # A chain is asked too: an answer to the question, and two to its hops, which were asked before.
    chain = 3 * defaults.PILOT_ITEMS
    assert answers == 3 * 4 * defaults.HOP_ITEMS + 3 * 2 * defaults.PILOT_ITEMS + chain
    # merge-and-eval asks base, two adapters, three compositions and two controls all four parts
    # of all 200 items.
    assert answers < 8 * 4 * 200 / 3
    assert audit.verdict.decision == "unlikely" and not audit.forecasts
    assert audit.verdict.action == "chain"
    free = ("hop_accuracy", "guessing")  # read from the answers
    probed = {row.n for row in audit.coverage if row.name not in free}
    assert max(probed) == defaults.PROBED_ITEMS
    assert "set_adapter" in audit.verdict.next


def test_choices_are_forecast_from_the_passes_of_the_single_adapters(tmp_path, monkeypatch):
    """No logits of several systems are computed together, and the forecast is that of the sum."""
    chosen = shipped_world().scenario("keep-both")
    whole = load_task(chosen.tasks[0], 24)
    pool = sorted({item.answers[0] for item in whole.items})
    items = [
        replace(item, choices=(item.answers[0], next(p for p in pool if p != item.answers[0])))
        for item in whole.items
    ]
    task = Task("choices", tuple(items))
    call = {"base": str(shipped_world().path / "base"), "tasks": [task]}
    adapters = list(chosen.adapters.values())
    monkeypatch.setattr("loraprobe.scoring.score_rows", None)
    audit = inspect(adapters, **call, options=Options(state=tmp_path / "a", threads=1))
    (told,) = audit.forecasts
    assert (told.system, told.n, told.part) == ("sum", 24, "question")
    assert audit.verdict.forecast.system == "sum" and audit.verdict.probability is None
    monkeypatch.undo()
    options = Options(state=tmp_path / "b", threads=1, methods=("sum",), routers=())
    opened = open_inputs(adapters, base=call["base"], tasks=[task], options=options)
    plan = plan_of(options, opened.adapters, [task])
    with open_evaluator(opened, plan, Session("inspect", options)) as evaluator:
        alone = baseline_systems(opened.adapters)
        results = evaluator.run(alone)
        added = [answer_of_added_logits(evaluator.scorer, alone, item) for item in items]
    right = [text == item.answers[0] for text, item in zip(added, items, strict=True)]
    values = [[r.value for r in results if r.system == one.name] for one in alone]
    gain = sum(right) / len(items) - max(sum(own) / len(own) for own in values)
    # Rounding moves a choice only between two that are nearly equally likely.
    assert told.gain == pytest.approx(gain, abs=1.5 / 24)


def answer_of_added_logits(scorer, alone, item):
    """The choice that is likeliest by a token, each adapter's change of the logits added."""
    means = {}
    for choice in item.choices:
        ((ids, start),) = scorer.encoded([(item.prompt, f" {choice}")])
        read = []
        for system in alone:
            with torch.no_grad(), scorer.with_composition(system.composition):
                read.append(scorer.model(torch.tensor([ids])).logits[0, start - 1 : -1].double())
        z = read[0] + sum(own - read[0] for own in read[1:])
        gold = torch.tensor(ids[start:])[:, None]
        means[choice] = float(z.log_softmax(-1).gather(-1, gold).mean())
    return max(means, key=means.__getitem__)


def test_answers_that_choose_the_chat_template_serve_the_evaluation(tmp_path, monkeypatch):
    chosen, base = shipped_world().scenario("disjoint"), tmp_path / "base"
    shutil.copytree(shipped_world().path / "base", base)
    settings = json.loads((base / "tokenizer_config.json").read_text())
    settings["chat_template"] = "{% for turn in messages %}{{ turn.content }}{% endfor %}"
    (base / "tokenizer_config.json").write_text(json.dumps(settings))
    task = load_task(chosen.tasks[0], 4)  # 4 questions with two hops each: all are asked
    adapters = list(chosen.adapters.values())

    def opened(resume):
        options = Options(state=tmp_path / "kept", threads=1, resume=resume, max_new_tokens=3)
        inputs = open_inputs(adapters, base=str(base), tasks=[task], options=options)
        plan = plan_of(options, inputs.adapters, inputs.tasks)
        return open_evaluator(inputs, plan, Session("inspect", options))

    with opened(False) as evaluator:
        own = [row for row in evaluator.ledger if row.system in chosen.adapters]
        assert {row.part for row in own} == {"question", "hop1", "hop2", "steps"}
        assert {row.system for row in own} == set(chosen.adapters) and len(own) == 2 * (3 * 4 + 1)
        first = sorted(map(repr, evaluator.ledger)), evaluator.template
        asked = evaluator.scorer.with_template(False)
        question = next(q for q in questions([task]) if q.part == "hop1")
        single_ = baseline_systems(evaluator.inputs.adapters)[1]
        with asked.with_composition(single_.composition):
            (again,) = ask(asked, [question], single_.name, 3)
        assert again in list(evaluator.ledger)
    monkeypatch.setattr("loraprobe.scoring.Scorer.write_all", None)
    with opened(True) as evaluator:
        assert (sorted(map(repr, evaluator.ledger)), evaluator.template) == first


TRL = 'pipeline("text-generation")([{"role": "user", "content": question}])'
PLAIN = "model.generate(**tokenizer(text))"
TEMPLATE = "{% for message in messages %}{{ message }}{% endfor %}"
SHOWN = [
    ({}, False, "no card"),
    ({"one/README.md": "# An adapter of messages"}, False, "no card"),
    ({"one/README.md": TRL}, True, "the card of one"),
    ({"two/README.md": "tokenizer.apply_chat_template(m)"}, True, "the card of two"),
    ({"one/README.md": PLAIN, "base/README.md": TRL}, False, "the card of one"),
    ({"base/README.md": TRL}, True, "the card of the base"),
    ({"two/chat_template.jinja": TEMPLATE, "base/README.md": PLAIN}, True, "beside two"),
    ({"two/tokenizer_config.json": '{"chat_template": "x"}'}, True, "the tokenizer beside two"),
    ({"two/tokenizer_config.json": "{}", "base/README.md": PLAIN}, False, "the card of the base"),
]


@pytest.mark.parametrize(("files", "form", "source"), SHOWN)
def test_cards_and_tokenizers_show_the_form_of_prompts(files, form, source, tmp_path):
    world = shipped_world()
    places = dict(zip(("one", "two"), world.scenario("disjoint").adapters.values(), strict=True))
    for name, place in {**places, "base": world.path / "base"}.items():
        shutil.copytree(place, tmp_path / name)
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    adapters = [loraprobe.load(tmp_path / name) for name in places]
    found, why = known_form(adapters, open_base(tmp_path / "base"))
    assert (found, source in why) == (form, True)


def test_the_next_command_repeats_what_kept_answers_depend_on():
    """Without these options merge-and-eval would not find the answers of `inspect`."""
    chosen, base = shipped_world().scenario("disjoint"), str(shipped_world().path / "base")
    texts = {"dtype": "bfloat16", "metric": "contains", "chat_template": "off"}
    numbers = {"limit": 40, "max_new_tokens": 24, "seed": 3, "margin": 0.1, "retention": 0.7}
    given = Options(**texts, **numbers, methods=("uniform", "ties:density=0.3"), threads=1)
    inputs = open_inputs(
        list(chosen.adapters.values()), base=base, tasks=chosen.tasks[:1], options=given
    )
    verdict = Verdict("inconclusive", "pilot")
    words = next_command(verdict, requested(given, inputs, "merge")).split()
    for name, value in (texts | numbers).items():
        assert words[words.index("--" + name.replace("_", "-")) + 1] == str(value)
    assert words.count("--method") == 2 and "ties:density=0.3" in words
    assert words[-1] == "--resume" and "--threads" not in words
    few = requested(replace(given, limit=8), inputs, "merge")  # which decide nothing
    assert "--limit" not in next_command(verdict, few)
    plain = requested(Options(), inputs, "merge")
    assert "--limit" not in next_command(verdict, plain) and not plain.kept
    more = next_command(replace(verdict, evidence="evaluation"), requested(given, inputs, "merge"))
    for told in ("--retention 0.7", "--chat-template off", "--margin 0.1", "--metric contains"):
        assert told in more and "MORE-" in more  # further questions are asked in the same way


def test_a_first_round_asks_the_router_that_an_evaluation_of_several_tasks_asks(tmp_path):
    """It learns from the items that `merge-and-eval` sets apart, and answers the same questions."""
    chosen = shipped_world().scenario("keep-both")
    refs = [f"{name}={path}" for name, path in chosen.adapters.items()]
    base = str(shipped_world().path / "base")
    options = Options(limit=60, state=tmp_path, threads=1)
    audit = inspect(refs, base=base, tasks=chosen.tasks, options=options)
    whole = merge_and_eval(
        refs, base=base, tasks=chosen.tasks, options=replace(options, resume=True)
    ).audit
    routers = [{s.system for s in a.evaluation if s.kind == "router"} for a in (audit, whole)]
    assert routers[0] == routers[1] > {"arrow"}
    assert audit.verdict.decision == whole.verdict.decision == "likely"
    assert audit.verdict.system == whole.verdict.system
    asked = sum(score.n for score in audit.evaluation)
    assert any(note.startswith(f"{asked} results of an earlier run") for note in whole.notes)
