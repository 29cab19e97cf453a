"""The right worked answer of each item, in the form in which an adapter of a library writes it.

A task gives the right answers of a question and of its hops, seldom the text of a worked answer.
The form is taken from what one adapter writes: words that most of its answers share are the form, a
word of the question stands for its place there, and the other words are the names that it filled
in, right or wrong. With the right answers of the hops in their places, in order, the form gives a
text for every item. So the effects of adapters can be added on worked answers too.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from loraprobe.tasks import Item, Task

COMMON = 0.5  # a word of more of the texts than this belongs to the form
PIECE = re.compile(r"\w+|\W+")
Slot = tuple[str, int] | str  # a piece of the form, or ("asked", place) or ("hop", place)


def with_worked_answers(task: Task, texts: Mapping[str, str]) -> Task | None:
    """The items that ask for worked steps, as plain questions with a worked text as right answer.

    texts: item id -> what one adapter wrote. None where they have no form with a place for each
    hop.
    """
    asked = [item for item in task.items if item.cot_prompt is not None and item.hops]
    shared = _common(texts.values()), _common(item.cot_prompt or "" for item in asked)
    forms = Counter(
        form for item in asked if (form := _form(texts.get(item.id, ""), item, *shared)) is not None
    )
    if not forms:
        return None
    form = forms.most_common(1)[0][0]
    items = [_plain(item, right) for item in asked if (right := _filled(form, item, shared[1]))]
    return replace(task, items=tuple(items)) if items else None


def likely_worked(task: Task) -> Task | None:
    """The same with texts of about the length of worked answers; None where none are read.

    It tells what reading worked answers will take, before any has been written.
    """
    asked = [item for item in task.items if item.cot_prompt is not None and item.hops]
    items = [
        _plain(item, " ".join([item.prompt, *(hop.answers[0] for hop in item.hops)]))
        for item in asked
    ]
    return replace(task, items=tuple(items)) if items else None


def _plain(item: Item, right: str) -> Item:
    """The item as a plain question that is answered by this text."""
    return replace(
        item,
        prompt=item.cot_prompt or "",
        answers=(right,),
        hops=(),
        cot_prompt=None,
        answer_pattern=None,
        metric="contains",
    )


def _common(texts: Iterable[str]) -> set[str]:
    """The words of more than a share COMMON of the texts."""
    every = [set(_words(text)) for text in texts]
    often = Counter(word for words in every for word in words)
    return {word for word, times in often.items() if times > COMMON * len(every)}


def _words(text: str) -> list[str]:
    return [piece for piece in PIECE.findall(text) if piece[0].isalnum()]


def _own(item: Item, common: set[str]) -> list[str]:
    """The words of the item's prompt that other prompts lack."""
    return [word for word in dict.fromkeys(_words(item.cot_prompt or "")) if word not in common]


def _form(text: str, item: Item, common: set[str], asked: set[str]) -> tuple[Slot, ...] | None:
    """The form of a text; None unless it names as many things as the item has hops."""
    own, named, form = _own(item, asked), list[str](), list[Slot]()
    for piece in PIECE.findall(text):
        if piece in own:
            form.append(("asked", own.index(piece)))
        elif piece in common or not piece[0].isalnum():
            form.append(piece)
        else:
            named += [piece] if piece not in named else []
            form.append(("hop", named.index(piece)))
    return tuple(form) if len(named) == len(item.hops) else None


def _filled(form: Sequence[Slot], item: Item, asked: set[str]) -> str | None:
    """The form with this item's words and right answers; None if its prompt lacks a word."""
    own, pieces = _own(item, asked), []
    for slot in form:
        if isinstance(slot, str):
            pieces.append(slot)
        elif slot[0] == "hop" and slot[1] < len(item.hops):
            pieces.append(item.hops[slot[1]].answers[0])
        elif slot[0] == "asked" and slot[1] < len(own):
            pieces.append(own[slot[1]])
        else:
            return None
    return "".join(pieces).strip()
