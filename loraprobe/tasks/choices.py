"""Answers of other files that name one of the choices by its label, its letter or its number."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from loraprobe.formatting import count
from loraprobe.tasks.sources import Row, kind_of

LABELS = "labels"  # a field of the mapping only: what the answer calls the choices


def name_choices(rows: Sequence[Row]) -> None:
    """Replaces answers that name a choice otherwise by its text, in place, and drops the labels.

    One reading holds for a whole file, the first that fits all rows: the text of a choice, its
    label, its letter, its number from 0, its number from 1. Raises TaskError where none fits, and
    where numbers may count from 0 or from 1.
    """
    fits = {how: [_chosen(row, find) for row in rows] for how, find in _READINGS.items()}
    good = [how for how, found in fits.items() if None not in found]
    if not rows:
        return
    if not good:
        nearly = max(fits, key=lambda how: len(rows) - fits[how].count(None))
        row = rows[fits[nearly].index(None)]
        answer = row.content["answer"]
        shown = answer if isinstance(answer, str) else json.dumps(answer)
        raise row.error(
            f"the answer {shown[:60]!r} is not among the "
            f"{count(len(row.content['choices']), 'choice')}, and is neither the letter nor the "
            "number of one; check --fields (labels=FIELD names what the answer calls the choices)."
        )
    if good[0] == "number from 0" and "number from 1" in good:
        raise rows[0].error(
            "the answers of this file may count the choices from 0 or from 1; add labels=0,1,2 or "
            "labels=1,2,3, as many as there are choices, to --fields."
        )
    for row, texts in zip(rows, fits[good[0]], strict=True):
        assert isinstance(row.content, dict) and texts is not None
        row.content["answer"] = texts if len(texts) > 1 else texts[0]
        del row.content[LABELS]


def _chosen(row: Row, find: Callable[[str, list[Any], list[Any]], Any]) -> list[str] | None:
    """The texts of the choices that the answers of a row name by one reading; None for none."""
    answer, choices = row.content["answer"], row.content["choices"]
    if not isinstance(choices, list):
        raise row.error(f"'choices' must be a list, not {kind_of(choices)}.")
    answers = answer if isinstance(answer, list) else [answer]
    texts = [find(str(one), choices, row.content[LABELS]) for one in answers]
    return None if None in texts else texts


def _at(choices: list[Any], index: int) -> Any:
    return choices[index] if 0 <= index < len(choices) else None


def _by_letter(answer: str, choices: list[Any], _: list[Any]) -> Any:
    letter = answer.strip("(). ").upper()
    return _at(choices, ord(letter) - ord("A")) if re.fullmatch("[A-Z]", letter) else None


def _by_number(answer: str, choices: list[Any], _: list[Any], first: int = 0) -> Any:
    return _at(choices, int(answer) - first) if re.fullmatch(r"\d{1,4}", answer) else None


_READINGS: Mapping[str, Callable[[str, list[Any], list[Any]], Any]] = {
    "text": lambda answer, choices, _: answer if answer in choices else None,
    "label": lambda answer, choices, labels: (
        _at(choices, labels.index(answer)) if answer in labels else None
    ),
    "letter": _by_letter,
    "number from 0": _by_number,
    "number from 1": functools.partial(_by_number, first=1),
}
