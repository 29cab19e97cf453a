"""What choosing the right adapter for every item would score, and what guessing would."""

from __future__ import annotations

import pytest

from loraprobe.evaluation import System, guessing, oracles, score
from loraprobe.records import ItemResult
from loraprobe.tasks import Item, Task

SYSTEMS = [System("base", "base"), System("a", "adapter"), System("b", "adapter")]


def results(columns, metric="exact_match", task="t", part="question"):
    return [
        ItemResult(system, task, part, str(i), metric, float(value), "", f"item:{i}")
        for system, values in columns.items()
        for i, value in enumerate(values)
    ]


def test_an_item_counts_if_any_adapter_answers_it():
    rows = results({"base": [1] * 40, "a": [1] * 20 + [0] * 20, "b": [0] * 20 + [1] * 19 + [0]})
    (found,) = oracles(rows, SYSTEMS)
    assert (found.task, found.part, found.adapters, found.n) == ("t", "question", ("a", "b"), 40)
    assert found.value == pytest.approx(39 / 40)  # the base does not count
    assert found.independent == pytest.approx(1 - 0.5 * (1 - 19 / 40))
    whole = results({"x": [1] * 39 + [0]})
    (alike,) = score(whole, [System("x", "adapter")])
    assert found.ci95 == alike.ci95


def test_only_items_that_all_adapters_answered_count():
    rows = results({"a": [1, 0, 0, 1], "b": [0, 1]})
    (found,) = oracles(rows, SYSTEMS)
    assert (found.n, found.value) == (2, 1.0)
    assert oracles(results({"a": [1]}), SYSTEMS[:2]) == ()
    assert oracles(results({"a": [0.5], "b": [0.2]}, "answer_loss"), SYSTEMS) == ()


def test_guessing_takes_a_random_choice_or_the_commonest_answer():
    choices = [Item(str(i), "?", ("x",), choices=("x", "y", "z", "w")) for i in range(3)]
    (row,) = guessing([Task("t", tuple(choices))])
    assert (row.name, row.value, row.n) == ("guessing", 0.25, 3)
    golds = ["Bo", "bo.", "Cy", "Di"]
    written = Task("u", tuple(Item(str(i), "?", (gold,)) for i, gold in enumerate(golds)))
    (row,) = guessing([written])
    assert row.value == 0.5  # "Bo" and "bo." are one answer
    assert guessing([written], "answer_loss") == ()
