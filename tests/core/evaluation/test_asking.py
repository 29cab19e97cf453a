"""What systems are asked and how chains walk; which form of prompts is chosen; what is kept on the
disk, so that nothing is asked twice, and what is refused there."""

import dataclasses
import json
import math

import pytest
from fake_scorer import (
    BASE,
    HOMES,
    SYSTEMS,
    FakeScorer,
    adapters,
    chain,
    mayors,
    results,
    single,
    values,
)

from loraprobe.errors import OutputError, TaskError, UsageError
from loraprobe.evaluation import (
    Asker,
    ResponseCache,
    System,
    asking,
    chain_notes,
    choose_template,
    score,
)
from loraprobe.evaluation.questions import questions, rounds, spread_sample
from loraprobe.records import QUESTION, ItemResult
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


def row(item="1", value=1.0) -> ItemResult:
    answer = "exact_match", value, "ü", f"item:{item}"
    return ItemResult("base", "t", QUESTION, item, *answer, request=f"base {item} question")


def test_a_line_cut_short_is_dropped_and_overwritten(tmp_path):
    path = tmp_path / "run" / "r.jsonl"
    ResponseCache(path, fingerprint={"seed": 0}).append([row("1"), row("2")])
    whole = path.read_bytes()
    path.write_bytes(whole[:-9])
    responses = ResponseCache(path, resume=True, fingerprint={"seed": 0})
    assert [r.item for r in responses.results.values()] == ["1"]
    responses.append([row("2")])
    assert path.read_bytes() == whole
    responses.close()
    path.write_bytes(whole[:5])
    assert len(ResponseCache(path, resume=True, fingerprint={"seed": 1}).results) == 0
    assert json.loads(path.read_text())["fingerprint"] == {"seed": 1}


def test_damage_and_other_runs_are_refused(tmp_path):
    path = tmp_path / "r.jsonl"
    ResponseCache(path, fingerprint={"base": {"sha": "x"}, "seed": 0}).append([row()])
    with pytest.raises(UsageError, match=r'base.sha was "x", is "y"'):
        ResponseCache(path, resume=True, fingerprint={"base": {"sha": "y"}, "seed": 0})
    with pytest.raises(UsageError, match=r"base.sha changed"):
        ResponseCache(path, resume=True, fingerprint={"base": {"sha": "y" * 64}, "seed": 0})
    path.write_text("something else\n")
    with pytest.raises(OutputError, match="remove the file"):
        ResponseCache(path, resume=True)
    assert len(ResponseCache(path).results) == 0
    (tmp_path / "file").write_text("x")
    (tmp_path / "directory.jsonl").mkdir()
    for place in ("file/r.jsonl", "directory.jsonl"):
        for resume in (False, True):
            with pytest.raises(OutputError):
                ResponseCache(tmp_path / place, resume)


def test_a_refused_file_is_free_again(tmp_path):
    """As long as somebody holds the error, its frames hold the response cache."""
    ResponseCache(tmp_path / "results.jsonl", fingerprint={"seed": 0}).append([row()])
    with pytest.raises(UsageError) as refused:
        ResponseCache(tmp_path / "results.jsonl", resume=True, fingerprint={"seed": 1})
    assert (
        len(ResponseCache(tmp_path / "results.jsonl", resume=True, fingerprint={"seed": 0}).results)
        == 1
    ), refused


def test_what_other_runs_keep_is_read_while_they_use_it(tmp_path):
    """But for answers of systems that only their own run knows, and for damaged files."""
    files = [tmp_path / name for name in ("a.jsonl", "b.jsonl", "c.jsonl")]
    named = dataclasses.replace(row("2"), request="named:uniform 2 question")
    runs = [ResponseCache(file, fingerprint={"of": file.name}) for file in files[:2]]
    runs[0].append([row("1"), named])
    runs[1].append([row("3")])
    files[1].write_bytes(files[1].read_bytes() + b"{}\n")
    third = ResponseCache(files[2], fingerprint={"of": "c"}, others=files[:2])
    assert third.get(row("1").request) == row("1") and third.reused == {row("1").request}
    assert third.get(named.request) is third.get(row("3").request) is None
    runs[0].append([row("4")])
    assert {r.item for r in ResponseCache(tmp_path / "d.jsonl", others=files).results.values()} == {
        "1",
        "4",
    }


SOUND = json.loads(json.dumps(dataclasses.asdict(row())))
DAMAGE = {
    "text": {"value": "1"},
    "null": {"value": None},
    "nan": {"value": math.nan},
    "infinite": {"value": math.inf, "metric": "answer_loss"},
    "huge": {"value": 7e9},
    "huge loss": {"value": 7e9, "metric": "answer_loss"},
    "half": {"value": 0.5},
    "negative": {"value": -1.0, "metric": "answer_loss"},
    "boolean": {"value": True},
    "many digits": {"value": 10**400},
    "list": {"text": ["x"]},
    "number": {"item": 1},
    "metric": {"metric": "bleu"},
    "part": {"part": "hop0"},
    "surrogate": {"text": "\ud800"},
    "more": {"extra": 1},
    "flag": {"cut": 1},
    "request": {"request": None},
}


LINES = {name: json.dumps(SOUND | change).encode() for name, change in DAMAGE.items()}
LINES |= {str(k): line for k, line in enumerate([b"[" * 3000, b"\xff", b"", b"{}", b"[]", b"null"])}
LINES |= {"open": b"{", "endless": b"1e999"}


@pytest.mark.parametrize("line", LINES.values(), ids=LINES)
def test_a_line_that_no_run_writes_is_damage(tmp_path, line):
    path = tmp_path / "r.jsonl"
    ResponseCache(path).append([row()])
    path.write_bytes(path.read_bytes() + line + b"\n" + json.dumps(SOUND).encode() + b"\n")
    with pytest.raises(OutputError, match=r"r\.jsonl, line 3"):
        ResponseCache(path, resume=True)


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
