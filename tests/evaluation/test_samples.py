"""The answers of all systems, as records and as a file."""

from __future__ import annotations

import json
from collections import defaultdict

import pytest
from test_evaluation import FakeScorer, single

from loraprobe.errors import OutputError
from loraprobe.evaluation import Ledger, Samples, System, run_systems
from loraprobe.evaluation.samples import LONGEST
from loraprobe.records import Reply
from loraprobe.report.documents import check_samples, write_samples
from loraprobe.tasks import Hop, Item, Task

SYSTEMS = [
    System("base", "base"),
    System("a", "adapter", single("a")),
    System("m", "merge", single("m")),
]
CAUSES = ("solved", "lost", "lost too", "apart")


def a_task() -> Task:
    """One item solved, two whose second hop the merge loses, one whose hops it does not join."""
    hops = {name: (Hop(f"{name} 1", ("x",)), Hop(f"{name} 2", ("x",))) for name in CAUSES}
    items = (Item(name, f"{name}?", ("x", "z"), hops=hops[name]) for name in CAUSES)
    return Task("t", tuple(items))


@pytest.fixture
def samples() -> Samples:
    answers = {("a", f"{name} {k}"): "x" for name in CAUSES for k in (1, 2)}
    answers |= {("m", f"{name} {k}"): "x" for name in CAUSES for k in (1, 2)}
    answers |= {("m", "lost 2"): "y", ("m", "lost too 2"): "y", ("m", "solved?"): "x"}
    answers |= {("m", "lost?"): "w" * 1000}
    ledger, task = Ledger(), a_task()
    results = run_systems(FakeScorer(answers), SYSTEMS, [task], ledger)
    return Samples.of(results, SYSTEMS, [task], None)


def test_every_question_with_every_answer(samples):
    found = {(sample.item, sample.part): sample for sample in samples}
    assert len(found) == 4 * 3
    solved = found["solved", "question"]
    assert (solved.question, solved.gold) == ("solved?", ("x", "z"))
    assert [reply.system for reply in solved.replies] == ["base", "a", "m"]
    assert solved.replies[2] == Reply("m", "x", True, "solved", contains=True)
    assert [reply.right for reply in solved.replies] == [False, False, True]
    assert found["lost", "hop2"].replies[2] == Reply("m", "y", False, "interference")
    assert found["apart", "question"].replies[2].cause == "not_composed"
    assert found["apart", "question"].replies[0].cause is None


def test_a_few_wrong_answers_show_every_cause(samples):
    wrong = samples.wrong("m", "question", 2)
    assert [(w.item, w.replies[2].cause) for w in wrong] == [
        ("lost", "interference"),
        ("apart", "not_composed"),
    ]
    assert [w.item for w in samples.wrong("m", "question", 9)] == ["lost", "apart", "lost too"]
    assert len(wrong[0].replies[2].text) == LONGEST
    assert samples.wrong("nobody", "question") == ()
    assert {w.part for w in samples.wrong("base", "hop1")} == {"hop1"}


def test_losses_are_no_answers():
    ledger, task = Ledger(), a_task()
    systems = SYSTEMS[:1]
    scorer = FakeScorer({}, defaultdict(lambda: -1.0))
    results = run_systems(scorer, systems, [task], ledger, metric="answer_loss")
    found = Samples.of(results, systems, [task], "answer_loss")
    assert list(found) == [] and found.wrong("base", "question") == ()


def test_the_file_has_a_question_a_line(samples, tmp_path):
    file = tmp_path / "deep" / "samples.jsonl"
    write_samples(samples, file)
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    assert len(rows) == 12
    assert rows[0]["replies"][2] == {
        "system": "m",
        "text": "x",
        "right": True,
        "cause": "solved",
        "contains": True,
        "cut": False,
    }
    assert len(rows[3]["replies"][2]["text"]) == 1000, "whole texts"
    write_samples(samples, file)  # samples of an earlier run are replaced
    assert len(file.read_text(encoding="utf-8").splitlines()) == 12


@pytest.mark.parametrize("content", ["years of work\n", "[]\n", '{"prompt": "x"}\n', "[" * 9999])
def test_nothing_else_is_replaced(content, tmp_path, samples):
    file = tmp_path / "samples.jsonl"
    file.write_text(content)
    for refuse in (lambda: check_samples(file), lambda: write_samples(samples, file)):
        with pytest.raises(OutputError):
            refuse()
    assert file.read_text() == content
    with pytest.raises(OutputError):
        check_samples(tmp_path)
