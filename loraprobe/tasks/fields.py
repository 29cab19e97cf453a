"""Maps the fields of any data file onto the keys of an item (`--fields` and the templates).

Values of other files are converted: numbers become texts, a list in a cell of a table is JSON, and
an answer may name one of the choices by its label, its letter or its number.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from loraprobe.errors import TaskError, UsageError
from loraprobe.formatting import listing, nearest, shortly
from loraprobe.tasks.answers import compile_pattern, last_match
from loraprobe.tasks.choices import LABELS, name_choices
from loraprobe.tasks.sources import Row

ITEM_KEYS = tuple(
    "id prompt answer choices hops cot_prompt answer_pattern entities group metric".split()
)
_LISTS = ("choices", "entities", LABELS)
_FIELD = re.compile(r"\{\{|\}\}|\{([^{}]*)\}")
# What other files call the keys of an item, the commonest first; compared in lower case.
_CALLED = {
    "prompt": "question query problem input instruction prompt text sentence premise goal ctx",
    "answer": "answer answerkey answer_key answers target targets output response completion "
    "solution label correct gold",
    "choices": "choices options endings",
}
MARK = "####"  # before the gold answer of a worked text, as in gsm8k


@dataclass(frozen=True)
class Layout:
    """How the fields of a file become an item.

    fields: key of an item -> names of the file's fields, none for a key that is left out. prompt: a
    template, in which `{name}` stands for a field of the file. The gold answer is what follows the
    last `after` in the answer's line, or what `pattern` finds last.
    """

    fields: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    prompt: str | None = None
    after: str | None = None
    pattern: str | None = None

    @classmethod
    def of(cls, fields: str, prompt: str = "", after: str = "", pattern: str = "") -> Layout:
        """The layout of the options' texts; an empty text is an option that was not given.

        Raises UsageError for a text that cannot be read.
        """
        if after and pattern:
            raise UsageError(
                "--answer-after and --answer-pattern both find the answer; give one of them."
            )
        if pattern:
            try:
                compile_pattern(pattern)
            except TaskError as error:
                told = str(error.args[0]).replace("answer_pattern", "--answer-pattern")
                raise UsageError(told, "correct the expression") from None
        return cls(
            _read_fields(fields),
            _read_template(prompt),
            after or None,
            pattern or None,
        )

    @property
    def given(self) -> bool:
        """Whether any option was given."""
        return self != Layout()

    def items(self, rows: Iterable[Row]) -> list[Row]:
        """The rows with the keys of an item. Raises TaskError, which names the row."""
        mapped = [Row(row.file, row.unit, row.number, self._item(row)) for row in rows]
        for key, names in self.fields.items():
            missing = not any(key in row.content for row in mapped)
            if mapped and names and missing and key != LABELS:
                raise TaskError(
                    f"{mapped[0].file} has no value in {listing(names)} for {key}; check --fields."
                )
        name_choices([row for row in mapped if LABELS in row.content])
        return mapped

    def _item(self, row: Row) -> dict[str, Any]:
        item: dict[str, Any] = {}
        here = {key: (key,) for key in ITEM_KEYS if key in row.content}
        for key, names in {**here, **self.fields}.items():
            if key == LABELS and len(names) > 1:  # the labels themselves
                item[key] = list(names)
                continue
            values = {name: self._value(row, key, name) for name in names}
            values = {name: value for name, value in values.items() if value is not None}
            if values:
                item[key] = list(values.values()) if len(names) > 1 else values.popitem()[1]
            if len(names) > 1 and key == "choices":
                item[LABELS] = list(values)
        if self.prompt is not None:
            item["prompt"] = _filled(self.prompt, row)
        if item.get("choices") and "answer" in item:
            item.setdefault(LABELS, [])
        else:
            item.pop(LABELS, None)
        return item

    def _value(self, row: Row, key: str, name: str) -> Any:
        """A field's value as the key takes it; None where it is empty."""
        value = _looked_up(row, name, optional=key not in ("prompt", "answer", LABELS))
        if key == "hops":
            return _from_json(value, row, name)
        if key in _LISTS and len(self.fields.get(key, ())) < 2:
            value = _from_json(value, row, name)
        if isinstance(value, list):
            value = [_text(one) for one in value]
        text = _text(value)
        if key == "answer" and text is not None:
            several = text if isinstance(text, list) else [text]
            golds = [self._gold(one, row) if isinstance(one, str) else one for one in several]
            return golds if isinstance(text, list) else golds[0]
        return text

    def _gold(self, answer: str, row: Row) -> str:
        """The gold answer in the text of the answer's field."""
        if self.after is not None:
            _, mark, rest = answer.rpartition(self.after)
            if not mark:
                raise row.error(
                    f"the answer {answer[-60:]!r} has no {self.after!r}; check --answer-after."
                )
            return rest.strip().partition("\n")[0].strip()
        if self.pattern is not None:
            found = last_match(self.pattern, answer)
            if found is None:
                raise row.error(
                    f"--answer-pattern finds nothing in the answer {answer[-60:]!r}; change it."
                )
            return found[1].strip()
        return answer


def suggested(row: Mapping[str, Any]) -> str:
    """The options with which a row of another layout would be read; "" where none is evident."""
    lower = {name.lower(): name for name in row}
    found: dict[str, str] = {}
    for key, called in _CALLED.items():
        name = next((lower[one] for one in called.split() if one in lower), None)
        if name is not None:
            value = row[name]
            if isinstance(value, Mapping) and "text" in value:
                found[key] = f"{name}.text"
                if key == "choices" and "label" in value:
                    found[LABELS] = f"{name}.label"
            else:
                found[key] = name
    if not {"prompt", "answer"} <= found.keys():
        return ""
    changed = ",".join(f"{key}={name}" for key, name in found.items() if key != name)
    answer = row.get(found["answer"])
    marked = f" --answer-after '{MARK}'" if isinstance(answer, str) and MARK in answer else ""
    return f"--fields {changed}{marked}" if changed else ""


def _read_fields(text: str) -> dict[str, tuple[str, ...]]:
    """ "prompt=question,choices=A,B,C" as a mapping; a part without = belongs to the key before."""
    known, found, key = (*ITEM_KEYS, LABELS), dict[str, tuple[str, ...]](), ""
    for part in filter(None, (part.strip() for part in text.split(","))):
        head, equals, name = (piece.strip() for piece in part.partition("="))
        if equals and head not in known and name in known:
            raise UsageError(f"--fields takes the item's key first: write {name}={head}.")
        if equals and head not in known:
            hint = nearest(head, known, f"known are {', '.join(known)}.")
            raise UsageError(f"--fields: an item has no key {head!r}: {hint}")
        if equals and head in found:
            raise UsageError(f"--fields names {head} twice; give it once.")
        if not equals and key not in _LISTS:
            raise UsageError(
                f"--fields takes key=FIELD pairs such as prompt=question, not {part!r}."
            )
        key = head if equals else key
        found[key] = (*found.get(key, ()), *((name if equals else part,) if part else ()))
    return {key: tuple(filter(None, names)) for key, names in found.items()}


def _read_template(text: str) -> str | None:
    r"""A template from a file, or the text itself, in which \n and \t are line feed and tab."""
    if not text:
        return None
    if "{" in text:
        return text.replace("\\n", "\n").replace("\\t", "\t")
    try:
        content = Path(text).read_text(encoding="utf-8-sig")
    except (OSError, ValueError):
        raise UsageError(
            f"--prompt-template: {text!r} is no readable file and names no field; write a field as "
            "{name}."
        ) from None
    if "{" not in content:
        raise UsageError(f"--prompt-template: {text} names no field; write a field as {{name}}.")
    return content.removesuffix("\n").removesuffix("\r")


def _filled(template: str, row: Row) -> str:
    """The template with the row's fields; `{{` and `}}` are braces."""

    def put(found: re.Match[str]) -> str:
        if found[1] is None:
            return found[0][0]
        value = _text(_looked_up(row, found[1].strip()))
        return "" if value is None else value if isinstance(value, str) else json.dumps(value)

    return _FIELD.sub(put, template)


def _looked_up(row: Row, name: str, optional: bool = False) -> Any:
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
            hint = nearest(name, list(row.content), f"there are {shortly(row.content)}.")
            raise row.error(f"there is no field {name!r}: {hint}")
    return value


def _text(value: Any) -> Any:
    """A number, a truth value or a date as text; an empty cell as None; the rest as it is."""
    if isinstance(value, bool):
        return str(value).lower()
    if value is None or value == "":
        return None
    return value if isinstance(value, (str, list, dict)) else str(value)


def _from_json(value: Any, row: Row, name: str) -> Any:
    """A list in the cell of a table, which is written as JSON."""
    if not isinstance(value, str) or not value.strip():
        return value or None
    try:
        found = json.loads(value)
    except ValueError:
        found = None
    if not isinstance(found, list):
        raise row.error(f'{name!r} must hold a JSON list such as ["a", "b"], not {value[:60]!r}.')
    return found
