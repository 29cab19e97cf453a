"""Reads the fields of data files as the keys of an item, as `--fields` says, and suggests it.

Values of other files are converted: numbers become texts, a list in a cell of a table is JSON, and
an answer may name one of the choices by its label, its letter or its number.
"""

from __future__ import annotations

import difflib
import json
import re
import shlex
import string
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from loraprobe.errors import TaskError, UsageError
from loraprobe.extensions.data_sets.tables import data_rows
from loraprobe.formatting import count, listing, nearest, shortly
from loraprobe.tasks.reading import ITEM_KEYS, TABLES, DataRow, with_known_keys

LABELS = "labels"  # a field of the mapping only: what the answer calls the choices
AFTER = "after"  # of the mapping only: the text before the gold answer in its field
KEYS = (*ITEM_KEYS, LABELS, AFTER)
MARK = "####"  # before the gold answer of a worked text, as in gsm8k
_LISTS = ("choices", "entities", LABELS)
_NEXT_KEY = re.compile(rf",(?=\s*(?:{'|'.join(KEYS)})\s*=)")
_FIELD = re.compile(r"\{\{|\}\}|\{([^{}]*)\}")
# What other files call the keys of an item, the commonest first; compared in lower case.
_CALLED = {
    "prompt": "question query problem input instruction prompt text sentence premise goal ctx",
    "answer": "answer answerkey answer_key answers target targets output response completion "
    "solution label correct gold",
    "choices": "choices options endings",
}
# Fields of other files that make one prompt, in this order.
_TOGETHER = (("instruction", "input"), ("context", "question"), ("passage", "question"))
_NUMBERED = re.compile(r"(.*?)(\d+|[A-Za-z])")
_SERIES = (
    *(string.ascii_lowercase, string.ascii_uppercase),
    *([*map(str, range(first, 27))] for first in (0, 1)),
)
_ASSISTANT = ("assistant", "gpt", "model")  # who answers in a conversation


@dataclass(frozen=True)
class FieldMap:
    """How the fields of a file become an item.

    fields: key of an item -> names of the file's fields, none for a key that is left out.
    templates: of prompt and cot_prompt, where a text is given in place of a field; `{name}` stands
    in it for a field of the file. The gold answer is what follows the last `after` in its field, up
    to the end of the line.
    """

    fields: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    templates: Mapping[str, str] = field(default_factory=dict)
    after: str = ""

    @classmethod
    def of(cls, text: str) -> FieldMap:
        """The map of a text of --fields, such as "prompt=question,choices=A,B,C"; it may be empty.

        A prompt or cot_prompt with a { is a template. Raises UsageError for a text that cannot be
        read.
        """
        fields, templates, after = dict[str, tuple[str, ...]](), dict[str, str](), ""
        for part in filter(str.strip, _NEXT_KEY.split(text)):
            key, _, value = part.partition("=")
            key, names = key.strip(), tuple(name.strip() for name in value.split(","))
            if key in ("prompt", "cot_prompt") and key not in templates and "{" in value:
                templates[key] = value.replace("\\n", "\n").replace("\\t", "\t")
            elif key == AFTER and value:
                after = value
            elif (
                key in fields
                or key in templates
                or key not in KEYS
                or "=" not in part
                or "=" in value
            ):
                raise UsageError(
                    "--fields takes each key once, as in prompt=question,answer=target; "
                    f"{part.strip()!r} is none of {', '.join(KEYS)} with the name of a field."
                )
            elif len(names) > 1 and key not in _LISTS:
                raise UsageError(f"--fields takes one field for {key}, not {listing(names)}.")
            else:
                fields[key] = tuple(filter(None, names))
        return cls(fields, templates, after)

    def rows(self, path: Path, data: bytes) -> Iterable[DataRow]:
        """The rows of a file, whose bytes are `data`, with the keys of an item. Raises TaskError.

        A map of nothing reads a file that has these keys; a table has no types of ours.
        """
        rows = data_rows(path, data)
        if self != FieldMap():
            return self._items(rows)
        known = map(with_known_keys, rows)
        return self._items(known) if path.suffix.lower() in TABLES else known

    def _items(self, rows: Iterable[DataRow]) -> list[DataRow]:
        """The rows with the keys of an item. Raises TaskError, which names the row."""
        rows, mapped, of_choices = list(rows), list[DataRow](), list[tuple[DataRow, list[str]]]()
        for key in ("choices", "entities"):  # a row may lack one of several columns
            names = self.fields.get(key, ())
            for name in names if rows and len(names) > 1 else ():
                if all(_looked_up(row, name, optional=True) is None for row in rows):
                    raise _no_field(rows[0], name)
        for row in rows:
            item, labels = self._item(row)
            mapped.append(replace(row, content=item))
            if item.get("choices") and item.get("answer"):
                of_choices.append((mapped[-1], labels))
        for key, names in self.fields.items():
            if mapped and names and key != LABELS and not any(key in row.content for row in mapped):
                raise TaskError(
                    f"{mapped[0].file} has no value in {listing(names)} for {key}; check --fields."
                )
        _name_choices(of_choices)
        if not of_choices and "prompt" not in self.templates:
            _check_choices_are_seen(rows, mapped)
        return mapped

    def _item(self, row: DataRow) -> tuple[dict[str, Any], list[str]]:
        """The keys of an item that have a value, and what its answers may call the choices."""
        fields = {key: (key,) for key in ITEM_KEYS if key in row.content} | dict(self.fields)
        labels, item = list(fields.pop(LABELS, ())), dict[str, Any]()
        if len(labels) == 1:
            labels = self._value(row, LABELS, labels[0]) or []
        for key, names in fields.items():
            values = {name: self._value(row, key, name) for name in names}
            present = {name: value for name, value in values.items() if value is not None}
            if present:
                item[key] = list(present.values()) if len(names) > 1 else present[names[0]]
            if key == "choices" and len(names) > 1:
                labels = labels or list(present)
        for key, template in self.templates.items():
            item[key] = _filled(template, row)
        return item, labels

    def _value(self, row: DataRow, key: str, name: str) -> Any:
        """A field's value as the key takes it; None where it is empty."""
        value = _looked_up(row, name, optional=key not in ("prompt", "answer", LABELS))
        one_field = len(self.fields.get(key, ())) < 2
        if key == "hops" or (key in _LISTS and one_field):
            value = _from_json(value, row, name)
        if isinstance(value, list) and key != "hops":
            return [self._text(row, key, text) for text in value]
        return value if key == "hops" else self._text(row, key, value)

    def _text(self, row: DataRow, key: str, value: Any) -> Any:
        """A value as text; of an answer what follows the mark before it."""
        text = _as_text(value)
        if key != "answer" or not self.after or not isinstance(text, str):
            return text
        _, mark, rest = text.rpartition(self.after)
        if not mark:
            raise row.error(f"the answer {text[-60:]!r} has no {self.after!r}; check --fields.")
        return rest.strip().partition("\n")[0].strip()


def hint(row: Mapping[str, Any], unknown: str) -> str:
    """The --fields that read a row of another layout, as the cure of an unknown key.

    "" where none is evident and the key looks like a misspelt one.
    """
    fields, needed = _of_conversation(row) or _of_columns(row), {"prompt", "answer"}
    changed = ",".join(f"{key}={name}" for key, name in fields.items() if key != name)
    if changed and needed <= fields.keys():
        answer = row.get(fields["answer"])
        changed += f",{AFTER}={MARK}" if isinstance(answer, str) and MARK in answer else ""
        words = changed if re.fullmatch(r"[\w.,=#-]+", changed) else shlex.quote(changed)
        return f"add --fields={words}."
    if needed <= row.keys() or difflib.get_close_matches(unknown, ITEM_KEYS, 1):
        return ""
    return f"name its fields by --fields=prompt=FIELD,answer=FIELD (it has {shortly(row)})."


def _of_columns(row: Mapping[str, Any]) -> dict[str, str]:
    """Key of an item -> the field of a row that is called so, or several of them."""
    lower = {name.lower(): name for name in row}
    fields: dict[str, str] = {}
    for key, called in _CALLED.items():
        name = next((lower[word] for word in called.split() if word in lower), None)
        if name is None or {"prompt", "answer"} <= row.keys():
            name = key if key in row else None
        if name is None:
            continue
        value = row[name]
        inside = isinstance(value, Mapping) and "text" in value
        fields[key] = f"{name}.text" if inside else name
        if key == "choices" and inside and "label" in value:
            fields[LABELS] = f"{name}.label"
    pair = next((p for p in _TOGETHER if p[-1] in lower and p[0] in lower), ())
    if pair and "prompt" not in row:
        fields["prompt"] = "\\n".join(f"{{{lower[name]}}}" for name in pair)
    answer = row.get(fields["answer"]) if "answer" in fields else None
    if "choices" not in fields and isinstance(answer, str | int):
        fields |= _of_choices(row, str(answer))
    return fields


def _of_choices(row: Mapping[str, Any], answer: str) -> dict[str, str]:
    """Choices that stand in fields of their own, such as A, B, C, where the answer is one."""
    said = answer.strip("(). ")
    for ends in _series(row):
        choices = {"choices": ",".join(ends)}
        named = answer in ends or answer in [row[name] for name in ends]
        if not named and said.isdecimal() and said in ends.values():
            return choices | {LABELS: ",".join(ends.values())}
        if named or (len(said) == 1 and said.upper() in string.ascii_uppercase[: len(ends)]):
            return choices
    return {}


def _series(row: Mapping[str, Any]) -> list[dict[str, str]]:
    """Fields that are called alike but for a letter or a number at the end, counted through: of
    each series the names with these ends."""
    alike: dict[str, dict[str, str]] = {}
    for match in filter(None, map(_NUMBERED.fullmatch, row)):
        alike.setdefault(match[1], {})[match[0]] = match[2]
    return [
        ends
        for ends in alike.values()
        if len(ends) > 1 and any([*ends.values()] == [*way[: len(ends)]] for way in _SERIES)
    ]


def _of_conversation(row: Mapping[str, Any]) -> dict[str, str]:
    """The first answer of a conversation, and what stands before it as one prompt."""
    turns = []
    for name, value in row.items():
        for k, turn in enumerate(value if isinstance(value, list) else ()):
            turn = turn if isinstance(turn, Mapping) else {}
            said = next((key for key in ("content", "value") if isinstance(turn.get(key), str)), "")
            who = turn.get("role", turn.get("from"))
            turns += [(who, f"{name}.{k}.{said}")] if who and said else []
    first = next((k for k, (who, _) in enumerate(turns) if who in _ASSISTANT), 0)
    if not first:
        return {}
    before, answer = [place for _, place in turns[:first]], turns[first][1]
    template = "\\n".join(f"{{{place}}}" for place in before)
    return {"prompt": before[0] if len(before) == 1 else template, "answer": answer}


def _check_choices_are_seen(rows: Sequence[DataRow], mapped: Sequence[DataRow]) -> None:
    """Raises TaskError where all gold answers name fields of the file, which the prompt has not."""
    golds = [row.content.get("answer") for row in mapped]
    named = {
        gold
        for row, gold in zip(rows, golds, strict=True)
        if isinstance(gold, str) and gold in row.content
    }
    if rows and len(named) and all(gold in named for gold in golds):
        series = next((names for names in _series(rows[0].content) if named <= {*names}), None)
        choices = ",".join(series or sorted(named))
        raise rows[0].error(
            f"the answers name the fields {listing(sorted(named))}, which no prompt shows; add "
            f"choices={choices} to --fields."
        )


def _filled(template: str, row: DataRow) -> str:
    """The template with the row's fields; `{{` and `}}` are braces.

    A line of nothing but fields that are empty is left out.
    """

    def put(field: re.Match[str]) -> str:
        if field[1] is None:
            return field[0][0]
        value = _as_text(_looked_up(row, field[1].strip()))
        return "" if value is None else value if isinstance(value, str) else json.dumps(value)

    lines = [(line, _FIELD.sub(put, line)) for line in template.split("\n")]
    return "\n".join(filled for line, filled in lines if filled or not line)


def _looked_up(row: DataRow, name: str, optional: bool = False) -> Any:
    """The value of a field, or of `field.key` and `field.0` inside one.

    Raises TaskError where there is none; with `optional` it is None.
    """
    if name in row.content:
        return row.content[name]
    value: Any = row.content
    for part in name.split("."):
        if isinstance(value, Mapping) and part in value:
            value = value[part]
        elif isinstance(value, list) and part.isdecimal() and int(part) < len(value):
            value = value[int(part)]
        elif optional:
            return None
        else:
            raise _no_field(row, name)
    return value


def _no_field(row: DataRow, name: str) -> TaskError:
    hint = nearest(name, list(row.content), f"there are {shortly(row.content)}.")
    return row.error(f"there is no field {name!r}:", hint)


def _as_text(value: Any) -> Any:
    """A number, a truth value or a date as text; an empty cell as None; the rest as it is."""
    if isinstance(value, bool):
        return str(value).lower()
    if value is None or value == "":
        return None
    return value if isinstance(value, (str, list, dict)) else str(value)


def _from_json(value: Any, row: DataRow, name: str) -> Any:
    """A list in the cell of a table, which is written as JSON."""
    if not isinstance(value, str) or not value.strip():
        return value or None
    try:
        content = json.loads(value)
    except (ValueError, RecursionError):
        content = None
    if not isinstance(content, list):
        raise row.error(f'{name!r} must hold a JSON list such as ["a", "b"], not {value[:60]!r}.')
    return content


def _name_choices(rows: Sequence[tuple[DataRow, list[str]]]) -> None:
    """Replaces answers that name a choice otherwise by its text, in place.

    rows: with what the answers may call the choices. One reading holds for a whole file, the first
    that fits all rows: the text of a choice, its label, its letter, its number from 0, its number
    from 1. Raises TaskError where none fits, and where numbers may count from 0 or from 1.
    """
    by_row = [_readings(row, labels) for row, labels in rows]
    fits = [sum(texts is not None for texts in way) for way in zip(*by_row, strict=True)]
    good = [way for way, number in enumerate(fits) if number == len(rows)]
    if rows and not good:
        nearly = fits.index(max(fits))
        row = next(r for (r, _), ways in zip(rows, by_row, strict=True) if ways[nearly] is None)
        raise row.error(
            f"the answer {str(row.content['answer'])[:60]!r} is not among the "
            f"{count(len(row.content['choices']), 'choice')}, and is neither the letter nor the "
            "number of one; check --fields (labels=FIELD names what the answer calls the choices)."
        )
    if good[:2] == [3, 4]:
        raise rows[0][0].error(
            "the answers of this file may count the choices from 0 or from 1; add labels=0,1,2 or "
            "labels=1,2,3, as many as there are choices, to --fields."
        )
    for (row, _), ways in zip(rows, by_row, strict=True):
        assert isinstance(row.content, dict)
        row.content["answer"] = ways[good[0]]


def _readings(row: DataRow, labels: Sequence[str]) -> list[list[str] | None]:
    """The choices that a row's answers name by each reading; None where one names none."""
    given, choices = row.content["answer"], row.content["choices"]
    answers = [str(one) for one in (given if isinstance(given, list) else [given])]
    if not (isinstance(choices, list) and all(isinstance(one, str) for one in choices)):
        raise row.error("'choices' must be a list of texts.")
    letters = [answer.strip("(). ").upper() for answer in answers]
    numbers = [str(number) for number in range(len(choices) + 1)]
    ways = [
        (choices, answers),
        (labels, answers),
        (string.ascii_uppercase, letters),
        (numbers, answers),
        (numbers[1:], answers),
    ]
    choices_by = [(dict(zip(called, choices, strict=False)), said) for called, said in ways]
    return [[of[x] for x in said] if of.keys() >= {*said} else None for of, said in choices_by]
