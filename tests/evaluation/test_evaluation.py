"""Running systems: what is asked, how chains walk, and that nothing is asked twice."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from loraprobe.errors import OutputError, TaskError, UsageError
from loraprobe.evaluation import (
    Ledger,
    System,
    attribute,
    chain_notes,
    choose_template,
    gains,
    run_systems,
    score,
    stored_as,
)
from loraprobe.evaluation import asking as asking_module
from loraprobe.evaluation.plan import questions
from loraprobe.evaluation.schedule import rounds
from loraprobe.records import Attribution, ItemResult
from loraprobe.scoring.generation import Written
from loraprobe.tasks import Hop, Item, Task, metrics

CUT = "[cut]"  # at the end of a text: it ended at the limit of tokens


@dataclass
class FakeScorer:
    """Answers from a dictionary: (composition or None, prompt) -> text, and counts what is asked.

    `likelihoods`: (composition or None, prompt, continuation) -> log-likelihood.
    """

    answers: dict
    likelihoods: dict = field(default_factory=dict)
    template: bool = False
    asked: list = field(default_factory=list)
    limits: set = field(default_factory=set)
    entered: list = field(default_factory=list)
    now: str | None = None
    fail_after: int | None = None

    def with_template(self, chat_template):
        return FakeScorer(
            self.answers, self.likelihoods, chat_template, asked=self.asked, entered=self.entered
        )

    @contextlib.contextmanager
    def with_composition(self, composition):
        assert self.now is None, "compositions do not nest"
        self.now = None if composition is None else composition.name
        self.entered.append(self.now)
        try:
            yield self
        finally:
            self.now = None

    def write_all(self, prompts, *, max_new_tokens=None, until_newline=False, until=None):
        self.limits.add((max_new_tokens, until_newline))
        texts = []
        for prompt in prompts:
            if self.fail_after is not None and len(self.asked) >= self.fail_after:
                raise KeyboardInterrupt
            self.asked.append((self.now, prompt))
            key = (self.now, prompt, "chat") if self.template else (self.now, prompt)
            text = self.answers.get(key, "dunno")
            texts.append(Written(text.removesuffix(CUT), text.endswith(CUT)))
        return texts

    def loglikelihood(self, pairs):
        self.asked += [(self.now, *pair) for pair in pairs]
        return [
            SimpleNamespace(logprob=self.likelihoods[(self.now, *pair)], tokens=len(pair[1]))
            for pair in pairs
        ]


def single(name):
    return SimpleNamespace(name=name)


def mayors(*, adapters=(None, None), **item) -> Task:
    """Two people; the mayor of a person's city."""
    items = []
    for person, city, mayor in [("Ada", "Ulm", "Bo"), ("Eve", "Rom", "Cy")]:
        hops = (
            Hop(f"Where does {person} live?", (city,), adapters[0]),
            Hop("Who is the mayor of {1}?", (mayor,), adapters[1]),
        )
        items.append(
            Item(
                person,
                f"Mayor of {person}'s city?",
                (mayor,),
                hops=hops,
                cot_prompt=f"Mayor of {person}'s city? Think.",
                **item,
            )
        )
    return Task("mayors", tuple(items))


HOMES = {
    ("homes", "Where does Ada live?"): " Ulm\n",
    ("homes", "Where does Eve live?"): " Paris",
    ("town", "Who is the mayor of Ulm?"): "Bo.",
    ("town", "Who is the mayor of Rom?"): "Cy",
    ("town", "Who is the mayor of Paris?"): "Di",
    ("both", "Mayor of Ada's city?"): "Bo",
    ("both", "Mayor of Eve's city? Think."): "Eve lives in Rom. The mayor is Cy.",
}
SYSTEMS = [
    System("chain", "chain", chain=(single("homes"), single("town"))),
    System("base", "base"),
    System("homes", "adapter", single("homes")),
    System("town", "adapter", single("town")),
    System("uniform", "merge", single("both"), compression_error=0.25),
]


def values(results):
    return {(r.system, r.part, r.item): (r.value, r.text) for r in results}


def test_every_system_is_scored_on_every_part():
    scorer = FakeScorer(HOMES)
    results = run_systems(scorer, SYSTEMS, [mayors()], Ledger())
    found = values(results)
    assert found["homes", "hop1", "Ada"] == (1.0, "Ulm")
    assert found["homes", "hop1", "Eve"] == (0.0, "Paris")
    assert found["town", "hop2", "Eve"] == (1.0, "Cy"), "the gold city is asked, not Paris"
    assert found["uniform", "question", "Ada"] == (1.0, "Bo")
    assert found["uniform", "steps", "Eve"] == (1.0, "The mayor is Cy.")
    assert found["base", "question", "Ada"] == (0.0, "dunno")
    for name in ("base", "homes", "town", "uniform"):
        parts = [(r.part, r.item) for r in results if r.system == name]
        assert sorted(parts) == sorted(
            (part, item)
            for part in ("question", "hop1", "hop2", "steps")
            for item in ("Ada", "Eve")
        )
    assert [r.system for r in results] == sorted(
        (r.system for r in results), key=[s.name for s in SYSTEMS].index
    )
    assert scorer.limits == {(32, True), (256, False)}
    assert scorer.entered[:4] == [None, "homes", "town", "both"], "one entry a system"
    assert {r.group for r in results} == {"item:Ada", "item:Eve"}


def test_the_chain_puts_generated_answers_into_the_next_hop():
    scorer = FakeScorer(HOMES)
    results = run_systems(scorer, SYSTEMS, [mayors()], Ledger())
    found = values(results)
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
    for task in (mayors(), mayors(adapters=("homes", "town"))):
        scorer = FakeScorer(knows)
        found = values(run_systems(scorer, SYSTEMS, [task], Ledger()))
        assert found["chain", "hop2", "Eve"] == (1.0, "Cy")
        assert found["chain", "question", "Eve"] == (1.0, "Cy")
        assert scorer.entered.count(None) == 1, "the base's answers are not asked again"


def test_of_members_that_are_as_good_the_one_that_the_task_names_answers():
    same = {**HOMES, ("town", "Where does Ada live?"): "Ulm"}
    for adapters, said in ((("town", None), "dunno"), ((None, None), "Paris")):
        results = run_systems(FakeScorer(same), SYSTEMS, [mayors(adapters=adapters)], Ledger())
        assert values(results)["chain", "hop1", "Eve"] == (0.0, said)


def test_a_name_in_the_task_does_not_outweigh_a_better_answer():
    swapped = mayors(adapters=("town", "homes"))
    results = run_systems(FakeScorer(HOMES), SYSTEMS, [swapped], Ledger())
    assert values(results)["chain", "hop1", "Ada"] == (1.0, "Ulm")
    assert chain_notes(SYSTEMS, [swapped]) == ()


def test_the_chain_answers_hops_whose_adapter_is_missing():
    strange = mayors(adapters=("gone", None))
    results = run_systems(FakeScorer(HOMES), SYSTEMS, [strange], Ledger())
    assert values(results)["chain", "question", "Ada"] == (1.0, "Bo"), "the best single answers it"
    (note,) = chain_notes(SYSTEMS, [strange])
    assert "'gone'" in note and "homes, town" in note


def test_a_chain_alone_measures_its_adapters_hops_first():
    scorer = FakeScorer(HOMES)
    results = run_systems(scorer, SYSTEMS[:1], [mayors()], Ledger())
    assert {r.system for r in results} == {"chain"}
    assert values(results)["chain", "question", "Ada"] == (1.0, "Bo")
    assert not any("Mayor of" in prompt for _, prompt in scorer.asked)


def test_chains_of_three_hops_and_items_without():
    answers = {("a", "A?"): "x", ("b", "B x?"): "y", ("c", "C x y?"): "z"}
    # the item's answer counts, also where its last hop's is another
    hops = (Hop("A?", ("x",)), Hop("B {1}?", ("y",)), Hop("C {1} {2}?", ("w",), "c"))
    short = (Hop("A?", ("x",)),)
    task = Task(
        "t",
        (
            Item("1", "P?", ("z",), hops=hops),
            Item("2", "Q?", ("q",)),
            Item("3", "R?", ("x",), hops=short),
        ),
    )
    singles = [System(name, "adapter", single(name)) for name in "abc"]
    chain = System("chain", "chain", chain=tuple(single(name) for name in "abc"))
    found = values(run_systems(FakeScorer(answers), [*singles, chain], [task], Ledger()))
    assert found["chain", "question", "1"] == (1.0, "z")
    assert found["chain", "question", "3"] == (1.0, "x")
    assert ("chain", "question", "2") not in found


def choosing():
    task = Task("t", (Item("1", "P?", ("no", "nope"), choices=("yes indeed", "no")),))
    likelihoods = {
        (None, "P?", "yes indeed"): -8.0,
        (None, "P?", "no"): -2.0,
        (None, "P?", "nope"): -2.0,
    }
    return task, likelihoods


def test_choices_are_taken_by_likelihood_per_character():
    task, likelihoods = choosing()
    base = [System("base", "base")]
    (result,) = run_systems(FakeScorer({}, likelihoods), base, [task], Ledger())
    assert (result.metric, result.text, result.value) == ("choice", "yes indeed", 0.0)
    likelihoods[None, "P?", "no"] = -1.5
    (result,) = run_systems(FakeScorer({}, likelihoods), base, [task], Ledger())
    assert (result.text, result.value) == ("no", 1.0)
    answers = {(None, "P?"): "Nope."}
    (result,) = run_systems(FakeScorer(answers), base, [task], Ledger(), metric="exact_match")
    assert (result.metric, result.text, result.value) == ("exact_match", "Nope", 1.0)


def test_answer_loss_is_nats_per_token_of_the_cheapest_answer():
    task, likelihoods = choosing()
    base = [System("base", "base")]
    results = run_systems(FakeScorer({}, likelihoods), base, [task], Ledger(), metric="answer_loss")
    assert [(r.metric, r.value, r.text) for r in results] == [("answer_loss", 0.5, "nope")]
    (row,) = score(results, base)
    assert (row.metric, row.value) == ("answer_loss", 0.5)


def test_wrong_calls_are_named(monkeypatch):
    monkeypatch.setattr(metrics, "PATTERN_SECONDS", 0.1)
    base = [System("base", "base")]
    with pytest.raises(UsageError, match="needs choices"):
        run_systems(FakeScorer({}), base, [mayors()], Ledger(), metric="choice")
    with pytest.raises(UsageError, match="Unknown metric 'bleu'"):
        run_systems(FakeScorer({}), base, [mayors()], Ledger(), metric="bleu")
    with pytest.raises(UsageError, match="Two systems"):
        run_systems(FakeScorer({}), base * 2, [mayors()], Ledger())
    with pytest.raises(UsageError, match="Two tasks"):
        run_systems(FakeScorer({}), base, [mayors()] * 2, Ledger())
    slow = {(None, "Mayor of Ada's city? Think."): "a" * 40 + "!"}
    with pytest.raises(TaskError, match=r"Task mayors, item 'Ada': .*took longer"):
        run_systems(
            FakeScorer(slow), base, [mayors(answer_pattern=r"(a|aa)+$|(?:(?:a+)+)+b")], Ledger()
        )


def test_resuming_repeats_no_question(tmp_path, monkeypatch):
    monkeypatch.setattr(asking_module, "BATCH", 2)
    first = FakeScorer(HOMES, fail_after=13)
    interrupted = Ledger(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        run_systems(first, SYSTEMS, [mayors()], interrupted)
    interrupted.close()
    kept = list(Ledger(tmp_path, resume=True))
    assert len(kept) == 12, "whole batches of two are kept"

    second = FakeScorer(HOMES)
    ledger = Ledger(tmp_path, resume=True)
    results = run_systems(second, SYSTEMS, [mayors()], ledger)
    assert not set(first.asked[:12]) & set(second.asked)
    assert results == run_systems(FakeScorer(HOMES), SYSTEMS, [mayors()], Ledger())
    ledger.close()

    third = FakeScorer(HOMES)
    again = run_systems(third, SYSTEMS, [mayors()], Ledger(tmp_path, resume=True))
    assert third.asked == [] and third.entered == [] and again == results


def row(item="1", value=1.0) -> ItemResult:
    return ItemResult("base", "t", "question", item, "exact_match", value, "ü", f"item:{item}")


def test_a_line_cut_short_is_dropped_and_overwritten(tmp_path):
    path = tmp_path / "run" / "r.jsonl"
    Ledger(path, fingerprint={"seed": 0}).append([row("1"), row("2")])
    whole = path.read_bytes()
    path.write_bytes(whole[:-9])
    ledger = Ledger(path, resume=True, fingerprint={"seed": 0})
    assert [r.item for r in ledger] == ["1"]
    ledger.append([row("2")])
    assert path.read_bytes() == whole
    ledger.close()
    Ledger(tmp_path / "run.v1").append([row("1")])
    assert len(Ledger(tmp_path / "run.v1" / "results.jsonl", resume=True)) == 1
    path.write_bytes(whole[:5])
    assert len(Ledger(path, resume=True, fingerprint={"seed": 1})) == 0
    assert json.loads(path.read_text())["fingerprint"] == {"seed": 1}


def test_damage_and_other_runs_are_refused(tmp_path):
    path = tmp_path / "r.jsonl"
    Ledger(path, fingerprint={"base": {"sha": "x"}, "seed": 0}).append([row()])
    with pytest.raises(UsageError, match=r'base.sha was "x", is "y"'):
        Ledger(path, resume=True, fingerprint={"base": {"sha": "y"}, "seed": 0})
    with pytest.raises(UsageError, match=r"base.sha changed"):
        Ledger(path, resume=True, fingerprint={"base": {"sha": "y" * 64}, "seed": 0})
    path.write_text("something else\n")
    with pytest.raises(OutputError, match="remove the file"):
        Ledger(path, resume=True)
    assert len(Ledger(path)) == 0
    (tmp_path / "file").write_text("x")
    (tmp_path / "directory.jsonl").mkdir()
    for place in ("file/r.jsonl", "directory.jsonl"):
        for resume in (False, True):
            with pytest.raises(OutputError):
                Ledger(tmp_path / place, resume)


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
}


def test_rows_of_earlier_versions_have_no_flags(tmp_path):
    path = tmp_path / "r.jsonl"
    Ledger(path).append([row()])
    old = {key: value for key, value in SOUND.items() if key not in ("contains", "cut")}
    path.write_text(path.read_text() + json.dumps(old | {"item": "2"}) + "\n")
    (_, found) = Ledger(path, resume=True)
    assert (found.item, found.contains, found.cut, found.stands) == ("2", False, False, True)


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_row_that_no_run_writes_is_damage(tmp_path, damage):
    path = tmp_path / "r.jsonl"
    Ledger(path).append([row()])
    with path.open("a") as file:
        file.write(json.dumps(SOUND | DAMAGE[damage]) + "\n")
    with pytest.raises(OutputError, match=r"r\.jsonl, line 3"):
        Ledger(path, resume=True)


@pytest.mark.parametrize("line", [b"[" * 3000, b"\xff", b"", b"{}", b"[]", b"null", b"{", b"1e999"])
def test_a_line_that_is_no_row_is_damage(tmp_path, line):
    path = tmp_path / "r.jsonl"
    Ledger(path).append([row()])
    path.write_bytes(path.read_bytes() + line + b"\n" + json.dumps(SOUND).encode() + b"\n")
    with pytest.raises(OutputError, match=r"r\.jsonl, line 3"):
        Ledger(path, resume=True)


def test_results_of_other_items_do_not_count_and_those_of_another_question_are_damage(tmp_path):
    path, (base,) = tmp_path / "r.jsonl", [s for s in SYSTEMS if s.name == "base"]
    Ledger(path).append(
        [ItemResult("base", "mayors", "question", "Zoe", "exact_match", 1.0, "Bo", "item:Zoe")]
    )
    found = run_systems(FakeScorer(HOMES), [base], [mayors()], Ledger(path, resume=True))
    assert {r.item for r in found} == {"Ada", "Eve"}
    for metric, group in (("choice", "item:Ada"), ("exact_match", "item:Eve")):
        Ledger(path).append(
            [ItemResult("base", "mayors", "question", "Ada", metric, 1.0, "", group)]
        )
        with pytest.raises(OutputError, match="Ada"):
            run_systems(FakeScorer(HOMES), [base], [mayors()], Ledger(path, resume=True))


def test_each_item_falls_to_the_first_cause_that_fits():
    names = ["solved", "step", "unknown", "interference", "lost"]
    task = Task(
        "t",
        tuple(
            Item(
                name,
                f"{name}?",
                ("x",),
                hops=(Hop(f"{name} 1", ("x",)), Hop(f"{name} 2", ("x",))),
                cot_prompt=f"{name} think",
            )
            for name in names
        ),
    )
    # a later cause fits as well, except to the last two
    answers = {("a", f"{name} 1"): "x" for name in names}
    answers |= {(None, f"{name} 2"): "x" for name in names if name not in ("step", "unknown")}
    answers |= {("m", f"{name} 1"): "x" for name in names}
    answers |= {("m", f"{name} 2"): "x" for name in ("solved", "step", "lost")}
    answers |= {("m", f"{name} think"): "so x." for name in ("solved", "step")}
    answers["m", "solved?"] = "x"
    systems = [
        System("base", "base"),
        System("a", "adapter", single("a")),
        System("m", "merge", single("m")),
        System("c", "control", single("m")),
    ]
    results = run_systems(FakeScorer(answers), systems, [task], Ledger())
    assert attribute(results, systems, [task]) == (Attribution("m", "t", 1, 1, 1, 1, 1),)
    fewer = [r for r in results if (r.system, r.part) != ("a", "hop2")]
    assert attribute(fewer, systems, [task]) == (), "what was not measured is not attributed"
    assert attribute(results, systems[2:], [task]) == ()


def caused(question="y", hop1="x", hop2="x", steps="y", alone="x"):
    """The cause of one item, from the replies of the composition and of the only adapter."""
    hops = (Hop("1?", ("x",)), Hop("2?", ("x",)))
    task = Task("t", (Item("i", "q?", ("x",), hops=hops, cot_prompt="think"),))
    answers = {("m", "1?"): hop1, ("m", "2?"): hop2, ("m", "q?"): question, ("m", "think"): steps}
    answers |= {("a", "1?"): alone, ("a", "2?"): alone}
    systems = [
        System("base", "base"),
        System("a", "adapter", single("a")),
        System("m", "merge", single("m")),
    ]
    results = run_systems(FakeScorer(answers), systems, [task], Ledger())
    (row,) = attribute(results, systems, [task])
    (cause,) = (f.name for f in dataclasses.fields(row)[2:] if getattr(row, f.name))
    return cause


def test_lost_said_otherwise_and_cut_off_are_told_apart():
    assert caused() == "not_composed"
    assert caused(question="It is x, surely") == "said_otherwise"
    assert caused(question="It is x, surely", steps="so x") == "step_by_step"
    assert caused(alone="It is x") == "not_composed", "a hop is known in whatever words"
    assert caused(hop1="It is x, surely") == "not_composed", "no hop is lost by a change of style"
    assert caused(hop1="y") == "interference"
    assert caused(hop1="y" + CUT) == "cut_off"
    assert caused(question="y" + CUT) == "cut_off"
    assert caused(question="x" + CUT) == "solved"
    assert caused(hop1="It is x" + CUT) == "not_composed", "what stands there was not cut off"
    assert caused(question="y" + CUT, hop1="y") == "interference", "the hop is lost anyway"
    assert caused(alone="y", question="y" + CUT) == "unknown"


def test_scores_tell_how_many_answers_hold_the_right_one_and_how_many_were_cut():
    items = tuple(Item(str(k), f"{k}?", ("x",), choices=("x", "y") * (k > 3)) for k in range(5))
    replies = {(None, "0?"): "x", (None, "1?"): "an x" + CUT, (None, "2?"): "so x"}
    likely = {(None, "4?", "x"): -1.0, (None, "4?", "y"): -2.0}
    base = [System("base", "base")]
    results = run_systems(FakeScorer(replies, likely), base, [Task("t", items)], Ledger())
    assert [(r.value, r.contains, r.cut) for r in results[:3]] == [
        (1.0, True, False),
        (1.0, True, True),
        (0.0, True, False),
    ]
    (row,) = score(results, base)
    assert (row.metric, row.value, row.contains, row.cut) == ("choice+exact_match", 0.6, 0.75, 0.25)
    assert row.contains_ci95[0] < 0.75 < row.contains_ci95[1]
    (chosen,) = score([r for r in results if r.metric == "choice"], base)
    assert chosen.contains is chosen.contains_ci95 is chosen.cut is None


def test_metrics_of_items_come_before_those_of_tasks_and_of_all():
    def metrics(metric, name="t"):
        hops = (Hop("h?", ("x",)),)
        items = (
            Item("own", "a?", ("1",), hops=hops, cot_prompt="b", metric="numeric"),
            Item("plain", "c?", ("1",), hops=hops, cot_prompt="d"),
        )
        return [q.metric for q in questions([Task(name, items)], metric)]

    hop = "exact_match"
    assert metrics(None) == ["numeric", hop, "numeric", "exact_match", hop, "exact_match"]
    assert metrics("strict") == ["numeric", hop, "numeric", "strict", hop, "strict"]
    assert metrics("strict,t=json") == ["numeric", hop, "numeric", "json", hop, "json"]
    assert metrics("u=json") == metrics(None)
    assert metrics("answer_loss") == ["answer_loss"] * 4, "a loss is never mixed with shares"


def test_replies_are_read_as_far_as_their_metric_needs():
    def asked(metric, answer):
        scorer = FakeScorer({(None, "q?"): '{"a":\n 1}\nmore'})
        task = Task("t", (Item("i", "q?", (answer,), metric=metric),))
        (found,) = run_systems(scorer, [System("base", "base")], [task], Ledger())
        return found.value, found.text, scorer.limits

    assert asked("json", '{"a": 1}') == (1.0, '{"a":\n 1}', {(32, False)})
    assert asked("strict", '{"a":\n 1}') == (1.0, '{"a":\n 1}', {(32, False)})
    assert asked("strict", '{"a": 1}') == (0.0, '{"a":', {(32, True)})


def test_a_chain_is_judged_by_the_metric_of_the_item():
    hops = (Hop("A?", ("x",)), Hop("B {1}?", ("y",), "b"))
    answers = {("a", "A?"): "x", ("b", "B x?"): "It is y."}
    singles = [System(name, "adapter", single(name)) for name in "ab"]
    chain = System("chain", "chain", chain=tuple(single(name) for name in "ab"))

    def value(**item):
        task = Task("t", (Item("1", "P?", ("y",), hops=hops, **item),))
        found = run_systems(FakeScorer(answers), [*singles, chain], [task], Ledger())
        return values(found)["chain", "question", "1"]

    assert value() == (0.0, "It is y")
    assert value(metric="contains") == (1.0, "It is y.")


def test_results_of_another_metric_are_not_mixed_in(tmp_path):
    base, task = [System("base", "base")], Task("t", (Item("1", "P?", ("y",)),))
    run_systems(FakeScorer({}), base, [task], Ledger(tmp_path))
    Ledger(tmp_path, resume=True).close()
    with pytest.raises(OutputError, match="does not fit"):
        run_systems(FakeScorer({}), base, [task], Ledger(tmp_path, resume=True), metric="strict")


def test_what_follows_the_answer_that_was_asked_for_is_not_read():
    text = "2 + 3 = 5\n#### 5\n\nQuestion: 3 + 4?\n#### 7\n"
    item = Item("1", "q?", ("5",), cot_prompt="Think. End with #### and the answer.")
    other = dataclasses.replace(item, cot_prompt="Think.")

    def judged(item, text):
        (question,) = (q for q in questions([Task("t", (item,))]) if q.part == "steps")
        return question.judged("base", text).value, question.ended is not None

    assert judged(item, text) == judged(item, "2 + 3 = 5\n#### 5\n") == (1.0, True)
    assert judged(other, text) == (0.0, False), "without the mark in the prompt the last one counts"


PIECES = ["#### ", "5", "\\boxed{7}", "\\boxed{", "}", "The answer is ", ".", "\n", " x", "Bo"]


@given(st.lists(st.sampled_from(PIECES), max_size=12))
@example(["\\boxed{", "\\boxed{7}", "\n", "#### ", "}", "\n"])
def test_a_text_is_read_alike_whether_or_not_writing_stopped(pieces):
    """Writing stops at some line end where `ended` is true; the rest must not matter."""
    text = "".join(pieces)
    asked = "End with #### x, \\boxed{x} or: the answer is x."
    item = Item("1", "q?", ("5",), cot_prompt=asked)
    (question,) = (q for q in questions([Task("t", (item,))]) if q.part == "steps")
    whole = question.judged("base", text)
    for at in (k + 1 for k, sign in enumerate(text) if sign == "\n"):
        if question.ended(text[:at]):
            assert question.judged("base", text[:at]) == whole


def test_scores_include_the_compression_error_of_their_system():
    results = run_systems(FakeScorer(HOMES), SYSTEMS, [mayors()], Ledger())
    rows = {(s.system, s.part): s for s in score(results, SYSTEMS)}
    assert rows["uniform", "question"].compression_error == 0.25
    assert (rows["uniform", "question"].value, rows["uniform", "question"].n) == (0.5, 2)
    assert rows["town", "hop2"].value == 1.0 and rows["town", "hop2"].ci95[0] < 1
    assert rows["uniform", "question"].retention is None, "one task shows no retention"
    found = {(g.system, g.part): g for g in gains(results, SYSTEMS)}
    assert set(found) == {("uniform", "question"), ("uniform", "steps"), ("chain", "question")}
    assert found["uniform", "steps"].difference == 0.5


def test_the_better_prompt_format_is_chosen():
    task = mayors()
    plain = FakeScorer(HOMES)
    used, why, _ = choose_template(plain, [single("homes"), single("town")], [task])
    assert not used and "off" in why
    turns = {(*key, "chat"): text for key, text in HOMES.items()}
    used, why, _ = choose_template(FakeScorer(turns), [single("homes"), single("town")], [task])
    assert used and "0.43 with it and 0.00 without" in why
    used, _, row = choose_template(FakeScorer(HOMES | turns), [single("homes")], [task])
    assert not used and row.value == row.baseline > 0, "a tie leaves prompts as they are"
    many = FakeScorer(HOMES | turns)
    choose_template(many, [single("town")], [task], sample=3)
    assert len(many.asked) == 2 * (3 + 1), "one worked question"


def test_the_answers_that_choose_the_prompt_format_are_kept():
    scorer, kept = FakeScorer({(*key, "chat"): text for key, text in HOMES.items()}), Ledger()
    singles, task = [single("homes"), single("town")], mayors()
    first = choose_template(scorer, singles, [task], kept=kept)
    asked = len(scorer.asked)
    assert asked == len(kept) == 2 * 2 * 7  # forms, adapters; questions, hops, one worked
    assert choose_template(scorer, singles, [task], kept=kept) == first
    assert len(scorer.asked) == asked
    row = kept.get(stored_as("homes", True), task.name, "hop1", task.items[0].id)
    assert row.value == 1.0
    assert kept.get(stored_as("homes", False), task.name, "hop1", task.items[0].id).value == 0.0


def test_every_part_is_sampled_for_the_prompt_format():
    """96 items of three parts: the template ruins hop 1, and nobody answers the question."""
    names = [f"p{k}" for k in range(96)]
    items = []
    for name in names:
        hops = (Hop(f"home of {name}?", ("Ulm",)), Hop("mayor of {1}?", ("Bo",)))
        items.append(Item(name, f"{name}?", ("Bo",), hops=hops))
    task = Task("t", tuple(items))
    said = {("homes", f"home of {n}?"): "Ulm" for n in names}
    said |= {("homes", f"home of {n}?", "chat"): "Ulm" for n in names[::4]}
    likely = {("homes", q.prompt, q.answers[0]): -9.0 for q in questions([task])}

    class Likelier(FakeScorer):
        """Finds every gold answer likelier with the template."""

        def with_template(self, chat_template):
            values = {key: value / 3 if chat_template else value for key, value in likely.items()}
            return Likelier(self.answers, values, chat_template, asked=self.asked)

    scorer = Likelier(said)
    used, why, row = choose_template(scorer, [single("homes")], [task], sample=32)
    assert not used and row.baseline == pytest.approx(1 / 3) and row.value < 0.2
    assert "10 question, 10 hop 1 and 10 hop 2" in why
    first = {item.id for item in rounds([task], 0)[0].tasks[0].items}
    assert {asked.split()[-1][:-1] for _, asked in scorer.asked if "home" in asked} <= first


@pytest.mark.parametrize("form", [True, False])
def test_the_known_prompt_format_is_taken_where_both_are_as_good(form):
    found = choose_template(
        FakeScorer({}), [single("homes")], [mayors()], known=lambda: (form, "the card shows it")
    )
    assert found[0] is form and "0.00 with it and 0.00 without; the card shows it" in found[1]
    better = choose_template(
        FakeScorer(HOMES), [single("homes")], [mayors()], known=lambda: pytest.fail("not needed")
    )
    assert not better[0]


def test_few_worked_questions_are_sampled_for_the_prompt_format():
    items = [dataclasses.replace(mayors().items[0], id=str(k)) for k in range(40)]
    scorer = FakeScorer({})
    _, why, row = choose_template(scorer, [single("homes")], [Task("t", tuple(items))])
    assert row.n == 33 and "3 step by step" in why
    alone = choose_template(scorer, [single("homes")], [mayors()])[1]
    assert "2 question, 2 hop 1, 2 hop 2 and 1 step by step" in alone


def test_a_hop_that_is_said_in_other_words_counts_for_the_prompt_format():
    said = {
        ("homes", f"Where does {name} live?", "chat"): f"In {city}, I think"
        for name, city in (("Ada", "Ulm"), ("Eve", "Rom"))
    }
    used, _, row = choose_template(FakeScorer(said), [single("homes")], [mayors()])
    assert used and row.value == pytest.approx(2 / 7) and row.baseline == 0
