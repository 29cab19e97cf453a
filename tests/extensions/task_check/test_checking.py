"""`task new` and `task check`: what a file allows to tell, before any model is asked."""

import json

import making
import numpy as np
import pytest

from loraprobe.defaults import FEWEST_ITEMS
from loraprobe.evaluation import System, measure_gains
from loraprobe.extensions.task_check.checking import check_task, questions_needed
from loraprobe.records import ItemResult
from loraprobe.tasks import Hop, Item, Task, with_metrics


def check(*items: Item, metric: str | None = None):
    (task,) = with_metrics([Task("t", items)], metric)
    return check_task(task, 0.05)


def codes(*items: Item, metric: str | None = None) -> set[str]:
    return set(check(*items, metric=metric).findings)


def several(n: int, **changes) -> list[Item]:
    return [Item(str(k), f"q{k}?", (f"x{k}",), **changes) for k in range(n)]


def test_what_a_task_holds_is_counted():
    hops = (Hop("h?", ("y",)), Hop("{1}?", ("x",)))
    items = several(40)
    items[0] = Item("0", "q0?", ("x",), hops=hops, cot_prompt="c", group="g")
    items[1] = Item("1", "q1?", ("x",), choices=("x", "y"), group="g")
    found = check(*items)
    assert found.parts == {"question": 40, "hop1": 1, "hop2": 1, "steps": 1}
    assert found.clusters == 39
    assert found.metrics == {"exact_match": 39, "choice": 1}
    assert not found.findings


ADDED = [  # to fifty questions
    ("q1?", "x1", "repeated-questions"),
    ("q1?", "other", "repeated-questions"),
    ("w?", "1 + 1\n#### 2", "worked-answers"),
    ("w?", "two\nlines", "long-answers"),
    ("w?", "word " * 40, "long-answers"),
    ("w?", "C#", "normalised-answers"),
]
LIMITED = [([*several(50), Item("a", prompt, (gold,))], code) for prompt, gold, code in ADDED]
LIMITED += [(several(50), "no-steps"), (several(50), "no-hops")]
FEW = (several(FEWEST_ITEMS - 1), several(50, group="one"))


@pytest.mark.parametrize(("items", "code"), [*LIMITED, *((few, "few-questions") for few in FEW)])
def test_what_limits_a_task_is_found(items, code):
    assert code in codes(*items)
    kept = several(50, cot_prompt="c", hops=(Hop("h?", ("y",)),))
    assert code not in codes(*kept)


def test_what_is_the_same_and_what_is_not_independent_needs_no_word():
    golds = ("5,600", "5600", "$5600", "x")
    assert "normalised-answers" not in codes(*(Item(g, f"{g}?", (g,)) for g in golds))
    items = several(50, group="g")
    assert "repeated-questions" not in codes(*items, Item("a", "q1?", ("x1",), group="g"))


def test_copies_of_a_question_are_one_question():
    copies = [Item(str(k), "q?", ("x",)) for k in range(40)]
    found = check(*copies)
    assert (found.clusters, found.task.repeated) == (1, 39)
    assert found.findings.keys() >= {"few-questions", "repeated-questions"}
    # copies in two groups make one of both; other choices and, of losses, other texts do not
    ends = Item("a", "q1?", ("x",), group="g"), Item("b", "q2?", ("x",), group="h")
    bridge = Item("c", "q1? ", ("x",), group="h")
    assert check(*ends).clusters == 2 and check(*ends, bridge).clusters == 1
    other = Item("a", "q?", ("y",)), Item("b", "q?", ("x",), choices=("x", "y"))
    assert [check(copies[0], one).clusters for one in other] == [1, 2]
    assert check(copies[0], other[0], metric="answer_loss").clusters == 2


def test_the_numbers_of_questions_follow_from_the_gain():
    needed = [questions_needed(g, 0.05) for g in (0.1, 0.2, 0.3, 1.0)]
    assert needed == sorted(needed, reverse=True) and needed[-1] == FEWEST_ITEMS
    assert questions_needed(0.2, 0.05, lost=0.1) > questions_needed(0.2, 0.05)
    assert questions_needed(0.2, 0.0) < questions_needed(0.2, 0.05) < questions_needed(0.2, 0.1)
    assert questions_needed(0.051, 0.05) is None
    found = check(*several(100))
    assert questions_needed(found.smallest_gain, 0.05) <= 100
    assert questions_needed(found.smallest_gain - 0.01, 0.05) > 100


@pytest.mark.parametrize("lost", [0.0, 0.1])
def test_that_many_questions_decide_four_times_in_five_and_a_third_do_not(lost):
    """The statistics of a verdict, with one composition: 60 runs have a binomial error of 0.05."""
    n = questions_needed(0.2, 0.05, lost)
    assert decided(n, 0.2, lost) > 0.75
    assert decided(n // 3, 0.2, lost) < 0.7


def decided(n: int, true: float, lost: float, runs: int = 60) -> float:
    """The share of runs of n questions in which a true gain is shown to exceed 0.05."""
    random, found = np.random.default_rng(0), 0
    for _ in range(runs):
        draw = random.random(n)
        answers = {"sum": draw < true + lost, "base": draw > 1 - lost}
        rows = [
            ItemResult(system, "t", "question", str(k), "exact_match", float(right[k]), "", str(k))
            for system, right in answers.items()
            for k in range(n)
        ]
        (gain,) = measure_gains(rows, [System("sum", "merge"), System("base", "base")], margin=0.05)
        found += gain.adjusted_ci95[0] > 0.05
    return found / runs


def test_new_and_check_on_the_command_line(tmp_path):
    file = tmp_path / "q.jsonl"
    made = making.call("task", "new", file)
    assert made.exit_code == 0
    for key in json.loads(file.read_text(encoding="utf-8").splitlines()[-1]):
        assert key == "answer" or f"\n{key}" in f"\n{made.stdout}"
    again = making.call("task", "new", file)
    assert again.exit_code == 2 and "exists" in again.stderr
    checked = making.call("task", "check", file, "--json")
    assert checked.exit_code == 0
    (told,) = json.loads(checked.stdout)["tasks"]
    assert told["parts"] == {"question": 3, "hop1": 1, "hop2": 1, "steps": 1}
    assert list(told["findings"]) == ["few-questions"]
    bad = making.call("task", "check", tmp_path / "absent.jsonl")
    assert bad.exit_code == 2 and bad.stderr.startswith("error: ")
    for width in (60, 80):
        shown = making.call("task", "check", file, env={"COLUMNS": str(width)})
        assert max(map(len, shown.stdout.splitlines())) <= width


def test_what_exact_match_spoils_is_a_finding():
    def found(*golds, metric=None):
        items = tuple(Item(str(k), f"q{k}?", (gold,)) for k, gold in enumerate(golds))
        (task,) = with_metrics([Task("t", items)], metric)
        told = check_task(task, 0.05).findings
        return told.get("normalised-answers", "").partition(". ")[2] or None

    assert found('{"a": 1}', metric="exact_match") == "Take --metric json."
    assert found("1.5", "15", metric="exact_match") == "Take --metric numeric."
    assert found("US", "us", metric="exact_match") == "Take --metric strict."
    assert found("US", "us") is None and found("Ulm", metric="exact_match") is None
    assert found(*(f"x{k}" for k in range(30)), "C#") == "Take --metric strict."
