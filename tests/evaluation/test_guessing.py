"""What guessing would score."""

from __future__ import annotations

from loraprobe.evaluation import guessing
from loraprobe.tasks import Item, Task


def test_guessing_takes_a_random_choice_or_the_commonest_answer():
    choices = [Item(str(i), "?", ("x",), choices=("x", "y", "z", "w")) for i in range(3)]
    (row,) = guessing([Task("t", tuple(choices))])
    assert (row.name, row.value, row.n) == ("guessing", 0.25, 3)
    golds = ["Bo", "bo.", "Cy", "Di"]
    written = Task("u", tuple(Item(str(i), "?", (gold,)) for i, gold in enumerate(golds)))
    (row,) = guessing([written])
    assert row.value == 0.5  # "Bo" and "bo." are one answer
    assert guessing([written], "answer_loss") == ()
