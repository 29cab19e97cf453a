"""Right worked answers in the form in which an adapter writes them."""

from __future__ import annotations

from loraprobe.probes import with_worked_answers
from loraprobe.tasks import Hop, Item, Task

PEOPLE = [
    ("Ada", "Bo", "Rome"),
    ("Cem", "Dee", "Oslo"),
    ("Eva", "Fox", "Bern"),
    ("Gus", "Hal", "Rome"),
]


def task(hops: int = 2) -> Task:
    """Questions about the city of somebody's spouse, with worked steps."""
    return Task(
        "homes",
        tuple(
            Item(
                a,
                f"Where does the spouse of {a} live?",
                (city,),
                hops=(
                    Hop(f"Who is the spouse of {a}?", (b,)),
                    Hop("Where does {1} live?", (city,)),
                )[:hops],
                cot_prompt=f"Where does the spouse of {a} live? Think step by step.",
            )
            for a, b, city in PEOPLE
        ),
    )


def right(a: str, b: str, city: str) -> str:
    return f"The spouse of {a} is {b}. {b} lives in {city}."


def test_right_answers_take_the_places_of_wrong_names():
    """Every name is wrong, one text has another form, and one item was answered with nothing."""
    texts = {
        "Ada": " The spouse of Ada is Xan. Xan lives in Lima.",
        "Cem": " The spouse of Cem is Yul. Yul lives in Kyiv.",
        "Eva": " The spouse of Eva is Eva.",
    }
    made = with_worked_answers(task(), texts)
    assert made is not None and made.name == "homes"
    assert [item.answers for item in made.items] == [(right(*row),) for row in PEOPLE]
    assert [item.prompt for item in made.items] == [item.cot_prompt for item in task().items]
    assert not any(item.hops or item.cot_prompt for item in made.items)


def test_a_form_has_a_place_for_each_hop():
    told = {a: f"{a} is married." for a, _, _ in PEOPLE}
    assert with_worked_answers(task(), told) is None
    three = {a: f"{a} Xan{a} Yul{a} Kyiv{a}" for a, _, _ in PEOPLE}
    assert with_worked_answers(task(), three) is None
    assert with_worked_answers(task(hops=0), {a: right(a, b, c) for a, b, c in PEOPLE}) is None
    assert with_worked_answers(task(), {}) is None
