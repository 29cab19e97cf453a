"""What systems are asked and how chains walk; nothing is asked twice."""

import dataclasses

import pytest
from fake_scorer import BASE, HOMES, SYSTEMS, FakeScorer, adapters, chain, mayors, results, values

from loraprobe.errors import TaskError, UsageError
from loraprobe.evaluation import ResponseCache, System, asking, chain_notes, score
from loraprobe.tasks import Hop, Item, Task, metrics


def test_every_system_is_scored_on_every_part():
    scorer = FakeScorer(HOMES)
    rows = results(scorer)
    found = {(r.system, r.part, r.item): (r.value, r.text) for r in rows}
    assert found["homes", "hop1", "Ada"] == (1.0, "Ulm")
    assert found["homes", "hop1", "Eve"] == (0.0, "Paris")
    assert found["town", "hop2", "Eve"] == (1.0, "Cy"), "the gold city is asked, not Paris"
    assert found["uniform", "question", "Ada"] == (1.0, "Bo")
    assert found["uniform", "steps", "Eve"] == (1.0, "The mayor is Cy.")
    assert found["base", "question", "Ada"] == (0.0, "dunno")
    parts = {(part, item) for part in ("question", "hop1", "hop2", "steps") for item in _items()}
    for name in ("base", "homes", "town", "uniform"):
        own = [(r.part, r.item) for r in rows if r.system == name]
        assert set(own) == parts and len(own) == len(parts)
    order = [s.name for s in SYSTEMS]
    assert [r.system for r in rows] == sorted((r.system for r in rows), key=order.index)
    assert scorer.limits == {(32, True), (256, False)}
    assert scorer.entered[:4] == [None, "homes", "town", "both"], "one entry a system"
    assert {r.group for r in rows} == {"item:Ada", "item:Eve"}
    errors = {row.system: row.compression_error for row in score(rows, SYSTEMS)}
    assert errors["uniform"] == 0.25 and errors["town"] is None


def _items():
    return [item.id for item in mayors().items]


def test_the_chain_puts_generated_answers_into_the_next_hop():
    scorer = FakeScorer(HOMES)
    found = values(scorer)
    assert found["chain", "question", "Ada"] == (1.0, "Bo")
    assert found["chain", "question", "Eve"] == (0.0, "Di"), "the wrong city has another mayor"
    assert ("town", "Who is the mayor of Paris?") in scorer.asked
    assert found["chain", "hop1", "Eve"] == (0.0, "Paris")
    assert found["chain", "hop2", "Eve"] == (1.0, "Cy")
    assert ("chain", "steps", "Ada") not in found


def test_the_base_is_a_member_of_every_chain():
    """An adapter that lost a hop is not asked for it where the base answers it better."""
    knows = {
        (None, "Who is the mayor of Ulm?"): "Bo",
        (None, "Who is the mayor of Rom?"): "Cy",
        ("homes", "Where does Ada live?"): "Ulm",
        ("homes", "Where does Eve live?"): "Rom",
        ("town", "Who is the mayor of Ulm?"): "Bo",
    }
    for named in ((None, None), ("homes", "town")):
        scorer = FakeScorer(knows)
        found = values(scorer, tasks=[mayors(adapters=named)])
        assert found["chain", "hop2", "Eve"] == found["chain", "question", "Eve"] == (1.0, "Cy")
        assert scorer.entered.count(None) == 1, "the base's answers are not asked again"


@pytest.mark.parametrize(
    ("named", "known", "asked", "said"),
    [
        (("town", None), {("town", "Where does Ada live?"): "Ulm"}, "Eve", (0.0, "dunno")),
        ((None, None), {("town", "Where does Ada live?"): "Ulm"}, "Eve", (0.0, "Paris")),
        (("town", "homes"), {}, "Ada", (1.0, "Ulm")),
    ],
    ids=["of equals the named one", "of equals the first", "a name does not outweigh an answer"],
)
def test_who_answers_a_hop(named, known, asked, said):
    task = mayors(adapters=named)
    assert values(HOMES | known, tasks=[task])["chain", "hop1", asked] == said
    assert chain_notes(SYSTEMS, [task]) == []


def test_the_chain_answers_hops_whose_adapter_is_missing():
    strange = mayors(adapters=("gone", None))
    assert values(tasks=[strange])["chain", "question", "Ada"] == (1.0, "Bo")
    (note,) = chain_notes(SYSTEMS, [strange])
    assert "'gone'" in note and "homes, town" in note


def test_a_chain_alone_measures_its_adapters_hops_first():
    scorer = FakeScorer(HOMES)
    found = values(scorer, SYSTEMS[:1])
    assert {system for system, _, _ in found} == {"chain"}
    assert found["chain", "question", "Ada"] == (1.0, "Bo")
    assert not any("Mayor of" in prompt for _, prompt in scorer.asked)


def test_chains_of_three_hops_and_items_without():
    answers = {("a", "A?"): "x", ("b", "B x?"): "y", ("c", "C x y?"): "z"}
    # the item's answer counts, also where its last hop's is another
    hops = (Hop("A?", ("x",)), Hop("B {1}?", ("y",)), Hop("C {1} {2}?", ("w",), "c"))
    items = (
        Item("1", "P?", ("z",), hops=hops),
        Item("2", "Q?", ("q",)),
        Item("3", "R?", ("x",), hops=hops[:1]),
    )
    found = values(answers, [*adapters(*"abc"), chain(*"abc")], [Task("t", items)])
    assert found["chain", "question", "1"] == (1.0, "z")
    assert found["chain", "question", "3"] == (1.0, "x")
    assert ("chain", "question", "2") not in found


def test_a_chain_is_judged_by_the_metric_of_the_item():
    hops = (Hop("A?", ("x",)), Hop("B {1}?", ("y",), "b"))
    answers = {("a", "A?"): "x", ("b", "B x?"): "It is y."}
    for metric, said in ((None, (0.0, "It is y")), ("contains", (1.0, "It is y."))):
        task = Task("t", (Item("1", "P?", ("y",), hops=hops, metric=metric),))
        found = values(answers, [*adapters(*"ab"), chain(*"ab")], [task])
        assert found["chain", "question", "1"] == said


LIKELY = {(None, "P?", text): -2.0 for text in ("no", "nope")} | {(None, "P?", "yes indeed"): -8.0}


@pytest.mark.parametrize(
    ("likely", "metric", "found"),
    [
        (LIKELY, None, ("choice", 0.0, "yes indeed")),  # by character
        (LIKELY | {(None, "P?", "no"): -1.5}, None, ("choice", 1.0, "no")),
        (LIKELY, "exact_match", ("exact_match", 1.0, "Nope")),
        (LIKELY, "answer_loss", ("answer_loss", 0.5, "nope")),  # nats a token of the cheapest
    ],
)
def test_what_is_judged_by_likelihood(likely, metric, found):
    task = Task("t", (Item("1", "P?", ("no", "nope"), choices=("yes indeed", "no")),))
    (row,) = results({(None, "P?"): "Nope."}, [BASE], [task], likelihoods=likely, metric=metric)
    assert (row.metric, row.value, row.text) == found
    (scored,) = score([row], [BASE])
    assert (scored.metric, scored.value) == found[:2]


def test_replies_are_read_as_far_as_their_metric_needs():
    for metric, answer, found in (
        ("json", '{"a": 1}', (1.0, '{"a":\n 1}', {(32, False)})),
        ("strict", '{"a":\n 1}', (1.0, '{"a":\n 1}', {(32, False)})),
        ("strict", '{"a": 1}', (0.0, '{"a":', {(32, True)})),
    ):
        scorer = FakeScorer({(None, "q?"): '{"a":\n 1}\nmore'})
        task = Task("t", (Item("i", "q?", (answer,), metric=metric),))
        (row,) = results(scorer, [BASE], [task])
        assert (row.value, row.text, scorer.limits) == found


def test_wrong_calls_are_named(monkeypatch):
    monkeypatch.setattr(metrics, "PATTERN_SECONDS", 0.1)
    slow = {(None, "Mayor of Ada's city? Think."): "a" * 40 + "!"}
    pattern = mayors(answer_pattern=r"(a|aa)+$|(?:(?:a+)+)+b")
    for error, match, given in (
        (UsageError, "needs choices", {"metric": "choice"}),
        (UsageError, "Unknown metric 'bleu'", {"metric": "bleu"}),
        (UsageError, "Two systems", {"systems": [BASE] * 2}),
        (UsageError, "Two tasks", {"tasks": [mayors()] * 2}),
        (TaskError, r"Task mayors, item 'Ada': .*took longer", {"tasks": [pattern]}),
    ):
        with pytest.raises(error, match=match):
            results(slow, **({"systems": [BASE]} | given))


def test_resuming_repeats_no_question(tmp_path, monkeypatch):
    monkeypatch.setattr(asking, "BATCH", 2)
    first = FakeScorer(HOMES, fail_after=13)
    interrupted = ResponseCache(tmp_path / "results.jsonl")
    with pytest.raises(KeyboardInterrupt):
        results(first, responses=interrupted)
    interrupted.close()
    kept = ResponseCache(tmp_path / "results.jsonl", resume=True).results
    assert len(kept) == 12, "whole batches of two are kept"

    second, responses = FakeScorer(HOMES), ResponseCache(tmp_path / "results.jsonl", resume=True)
    found = results(second, responses=responses)
    assert not set(first.asked[:12]) & set(second.asked)
    assert found == results()
    responses.close()

    third = FakeScorer(HOMES)
    again = results(third, responses=ResponseCache(tmp_path / "results.jsonl", resume=True))
    assert third.asked == [] and third.entered == [] and again == found


ONE = Item("1", "P?", ("yes",), cot_prompt="P? Think.", metric="strict")
RENAMED = Task("u", (dataclasses.replace(ONE, id="2", group="g"),))
CHANGES = [
    ([BASE], [Task("t", (ONE,))], {}, 0),
    ([System("other", "base", content="base")], [RENAMED], {}, 0),
    ([*adapters("homes"), BASE], [Task("t", (ONE,))], {}, 2),
    ([BASE], [Task("t", (dataclasses.replace(ONE, prompt="Q?"),))], {}, 2),
    ([BASE], [Task("t", (dataclasses.replace(ONE, answers=("no",)),))], {}, 2),
    ([BASE], [Task("t", (dataclasses.replace(ONE, metric="contains"),))], {}, 2),
    ([BASE], [Task("t", (ONE, Item("2", "Q?", ("x",))))], {}, 1),
    ([BASE], [Task("t", (ONE,))], {"max_new_tokens": 9}, 2),
    ([BASE], [Task("t", (ONE,))], {"chat": True}, 2),
]


@pytest.mark.parametrize(("systems", "tasks", "form", "new"), CHANGES)
def test_only_what_was_not_asked_before_is_asked(systems, tasks, form, new):
    """Whatever the names of systems, tasks and items are, and whatever else is asked."""
    responses = ResponseCache()
    results(FakeScorer({}), [BASE], [Task("t", (ONE,))], responses=responses)
    scorer = FakeScorer({}, chat_template=form.pop("chat", False))
    rows = results(scorer, systems, tasks, responses=responses, **form)
    assert len(scorer.asked) == new
    assert [row.key for row in rows] == [
        (system.name, task.name, part, item.id)
        for system in systems
        for task in tasks
        for item in task.items
        for part in ("question", "steps")[: 1 + (item.cot_prompt is not None)]
    ]
    assert {row.group for row in rows} == {item.cluster for t in tasks for item in t.items}
