"""Reads task files strictly, and the fields of any other data file as the keys of an item.

An unknown key, a wrong type or a reference to a later hop is a TaskError that names the file, the
line and the problem. Blank lines and a byte order mark at the start are allowed.

`--fields` and the template map other fields. Values of other files are converted: numbers become
texts, a list in a cell of a table is JSON, and an answer may name one of the choices by its label,
its letter or its number. Probe files are plain lines.
"""

from __future__ import annotations

import hashlib
import json
import re
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from loraprobe import limits
from loraprobe.defaults import FEWEST_ITEMS, LOSS
from loraprobe.errors import TaskError, UsageError
from loraprobe.formatting import count, listing, nearest, shortly
from loraprobe.tasks.chosen_metric import item_metrics
from loraprobe.tasks.items import REFERENCE, Hop, Item, ProbePrompts, Task
from loraprobe.tasks.metrics import METRICS, compile_pattern
from loraprobe.tasks.sources import (
    TABLES,
    DataRow,
    kind_of,
    read_file,
    read_lines,
    read_rows,
    twice,
)
from loraprobe.untrusted import is_unicode

HOP_KEYS = ("prompt", "answer", "adapter")
ITEM_KEYS = tuple(
    "id prompt answer choices hops cot_prompt answer_pattern entities group metric".split()
)
LABELS = "labels"  # a field of the mapping only: what the answer calls the choices
AFTER = "after"  # of the mapping only: the text before the gold answer in its field
KEYS = (*ITEM_KEYS, LABELS, AFTER)
WINDOW = 500  # characters of a text that are scored together, a hundred tokens or more
MARK = "####"  # before the gold answer of a worked text, as in gsm8k
_WAYS, _FROM_0 = 5, 3  # in which an answer may name a choice, and that of a number from 0
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


@dataclass(frozen=True)
class FieldMap:
    """How the fields of a file become an item.

    fields: key of an item -> names of the file's fields, none for a key that is left out. prompt: a
    template, in which `{name}` stands for a field of the file; None where a field is the prompt.
    The gold answer is what follows the last `after` in its field, up to the end of the line.
    """

    fields: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    prompt: str | None = None
    after: str | None = None

    @classmethod
    def of(cls, fields: str) -> FieldMap:
        """The map of a text of --fields, which may be empty.

        Raises UsageError for a text that cannot be read.
        """
        named, prompt = _read_fields(fields), None
        (after,) = named.pop(AFTER, (None,))
        if "{" in "".join(named.get("prompt", ())):
            (text,) = named.pop("prompt")
            prompt = text.replace("\\n", "\n").replace("\\t", "\t")
        return cls(named, prompt, after)

    def items(self, rows: Iterable[DataRow]) -> list[DataRow]:
        """The rows with the keys of an item. Raises TaskError, which names the row."""
        mapped = [replace(row, content=self._item(row)) for row in rows]
        for key, names in self.fields.items():
            missing = not any(key in row.content for row in mapped)
            if mapped and names and missing and key != LABELS:
                raise TaskError(
                    f"{mapped[0].file} has no value in {listing(names)} for {key}; check --fields."
                )
        _name_choices([row for row in mapped if LABELS in row.content])
        return mapped

    def _item(self, row: DataRow) -> dict[str, Any]:
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
        if item.get("choices") and item.get("answer"):
            item.setdefault(LABELS, [])
        else:
            item.pop(LABELS, None)
        return item

    def _value(self, row: DataRow, key: str, name: str) -> Any:
        """A field's value as the key takes it; None where it is empty."""
        value = _looked_up(row, name, optional=key not in ("prompt", "answer", LABELS))
        if key == "hops":
            return _from_json(value, row, name)
        if key in _LISTS and len(self.fields.get(key, ())) < 2:
            value = _from_json(value, row, name)
        several = value if isinstance(value, list) else [value]
        texts = [_text(text) for text in several]
        if key == "answer":
            texts = [self._gold(text, row) if isinstance(text, str) else text for text in texts]
        return texts if isinstance(value, list) else texts[0]

    def _gold(self, answer: str, row: DataRow) -> str:
        """The gold answer in the text of the answer's field."""
        if self.after is not None:
            _, mark, rest = answer.rpartition(self.after)
            if not mark:
                raise row.error(
                    f"the answer {answer[-60:]!r} has no {self.after!r}; check --fields."
                )
            return rest.strip().partition("\n")[0].strip()
        return answer


def load_task(path: str | Path, limit: int | None = None, layout: FieldMap = FieldMap()) -> Task:
    """Read a task file. limit: keep only the first items; the whole file is checked anyway.

    The task has the name of the file. The id of an item without "id" is its line number. layout:
    how the file's fields become an item. Raises TaskError with the number of the first bad line,
    UsageError for a limit below 1.
    """
    path = Path(path)
    return read_task([path], Task(path.stem, (), str(path)), limit, layout)


def read_task(files: Sequence[Path], task: Task, limit: int | None, layout: FieldMap) -> Task:
    """The task with the items of one or several files; items without id are numbered through."""
    if limit is not None and limit < 1:
        raise UsageError(f"--limit must be at least 1, not {limit}.")
    digest, last, mapped = hashlib.sha256(), 0, layout != FieldMap()
    items: dict[str, tuple[Item, DataRow]] = {}
    for file in files:
        data = read_file(file, "task")
        digest.update(data)
        rows: Iterable[DataRow] = read_rows(file, data)
        if not mapped:
            rows = map(_known, rows)
        if mapped or file.suffix.lower() in TABLES:
            rows = layout.items(rows)
        before = last
        for row in rows:
            last = before + row.number
            if len(items) >= limits.ROWS:
                raise TaskError(f"{file} has more than {limits.ROWS:,} items, which is the most.")
            try:
                item = _item(row.content, last)
            except TaskError as error:
                raise row.error(error) from None
            if item.id in items:
                earlier = items[item.id][1]
                raise row.error(
                    f"id {item.id!r} is also the id of {earlier.unit} {earlier.number}; give every "
                    "item an id of its own (one without is named by its line number)."
                )
            items[item.id] = item, row
    if not items:
        raise TaskError(f"{files[0]} holds no item: write one a line.")
    kept = tuple(item for item, _ in items.values())[:limit]
    return replace(task, items=kept, sha256=digest.hexdigest())


def is_text(path: str | Path) -> bool:
    """Whether a file is a text and no task: by its ending, else by how it begins."""
    path = Path(path)
    if path.suffix.lower() in (".jsonl", ".json", *TABLES) or not path.is_file():
        return False
    with path.open("rb") as file:
        return not file.read(1 << 10).removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"{")


def load_text(path: str | Path, limit: int | None = None) -> Task:
    """A text as a task of its windows, which are judged by their loss; blank lines are left out.

    Raises TaskError for a file that is no text, and for one of fewer than two windows.
    """
    path = Path(path)
    data = read_file(path, "text")
    text = "\n".join(line for _, line in read_lines(data, path))
    windows = textwrap.wrap(
        text, WINDOW, expand_tabs=False, replace_whitespace=False, break_on_hyphens=False
    )
    if len(windows) > 2 and len(windows[-1]) < WINDOW / 2:  # a rest, which is no window
        windows[-2:] = ["\n".join(windows[-2:])]
    if len(windows) < 2:
        raise TaskError(
            f"{path} holds {len(text):,} characters, too few to tell whether its loss grows: give "
            f"a text of at least {2 * WINDOW:,}, better {FEWEST_ITEMS * WINDOW:,}."
        )
    items = [
        Item(str(number), "", (window,), metric=LOSS)
        for number, window in enumerate(windows[:limit], 1)
    ]
    return Task(path.stem, tuple(items), str(path), hashlib.sha256(data).hexdigest())


def load_probe(path: str | Path) -> ProbePrompts:
    """Read a probe file: per line a question or entity and, after a tab, an optional answer."""
    path = Path(path)
    answers: dict[str, str | None] = {}
    for number, line in read_lines(read_file(path, "probe"), path):
        prompt, *rest = (part.strip() for part in line.split("\t"))
        if len(rest) > 1:
            raise TaskError(
                f"{path}, line {number}: more than one tab; write a prompt, a tab, one answer."
            )
        if not prompt:
            raise TaskError(f"{path}, line {number}: there is no prompt before the tab.")
        answers.setdefault(prompt, rest[0] if rest and rest[0] else None)
    if not answers:
        raise TaskError(f"{path} holds no prompt: write one a line.")
    return ProbePrompts(answers)


def _known(row: DataRow) -> DataRow:
    """The row. Raises TaskError for a key that no item has, with the mapping that reads it."""
    unknown = [key for key in row.content if key not in ITEM_KEYS]
    if not unknown:
        return row
    missing = {"prompt", "answer"} - row.content.keys()
    if missing and (options := _suggested(row.content)):
        raise row.error(f"unknown key {unknown[0]!r} in an item: add {options}.")
    hint = nearest(unknown[0], ITEM_KEYS, f"known are {', '.join(ITEM_KEYS)}.")
    if missing and "did you mean" not in hint:
        hint = (
            "name the fields of prompt and answer by --fields=prompt=FIELD,answer=FIELD "
            f"(the file has {shortly(row.content)})."
        )
    raise row.error(f"unknown key {unknown[0]!r} in an item: {hint}")


def _suggested(row: Mapping[str, Any]) -> str:
    """The options with which a row of another layout would be read; "" where none is evident."""
    lower = {name.lower(): name for name in row}
    fields: dict[str, str] = {}
    for key, called in _CALLED.items():
        name = next((lower[word] for word in called.split() if word in lower), None)
        if name is None:
            continue
        value = row[name]
        inside = isinstance(value, Mapping) and "text" in value
        fields[key] = f"{name}.text" if inside else name
        if key == "choices" and inside and "label" in value:
            fields[LABELS] = f"{name}.label"
    changed = ",".join(f"{key}={name}" for key, name in fields.items() if key != name)
    if not {"prompt", "answer"} <= fields.keys() or not changed:
        return ""
    answer = row.get(fields["answer"])
    marked = f",{AFTER}={MARK}" if isinstance(answer, str) and MARK in answer else ""
    return f"--fields={changed}{marked}"


def _item(line: Mapping[str, Any], number: int) -> Item:
    """The item of a line. Raises TaskError, without the line's place."""
    answers, choices = _answers(line), _texts(line, "choices")
    if line.get("choices") is not None:
        _check_choices(choices, answers)
    pattern, metric = _read(line, "answer_pattern"), _read(line, "metric")
    if pattern is not None:
        compile_pattern(pattern)
    if metric is not None:
        if metric not in (known := item_metrics()):
            hint = nearest(metric, known, f"known are {', '.join(known)}.")
            raise TaskError(f"unknown metric {metric!r}: {hint}")
        if metric == "choice" and not choices:
            raise TaskError("metric choice needs 'choices': add them, or choose another metric.")
        METRICS[metric].check(answers, pattern)
    hops = [] if line.get("hops") is None else line["hops"]
    if not isinstance(hops, list):
        raise TaskError(f"'hops' must be a list of objects, not {kind_of(hops)}.")
    return Item(
        id=_label(line, "id") or str(number),
        prompt=_required(line, "prompt"),
        answers=answers,
        choices=choices,
        hops=tuple(_hop(hop, k) for k, hop in enumerate(hops, 1)),
        cot_prompt=_read(line, "cot_prompt"),
        answer_pattern=pattern,
        entities=_texts(line, "entities"),
        group=_label(line, "group"),
        metric=metric,
    )


def _hop(hop: Any, k: int) -> Hop:
    """Hop k, counted from 1, which may refer to the answers of earlier hops."""
    if not isinstance(hop, dict):
        raise TaskError(f"hop {k} must be an object with prompt and answer, not {kind_of(hop)}.")
    if unknown := [key for key in hop if key not in HOP_KEYS]:
        hint = nearest(unknown[0], HOP_KEYS, f"known are {', '.join(HOP_KEYS)}.")
        raise TaskError(f"unknown key {unknown[0]!r} in hop {k}: {hint}")
    place = f"hop {k}: "
    prompt = _required(hop, "prompt", place)
    for reference in REFERENCE.findall(prompt):
        if reference not in map(str, range(1, k)):
            earlier = f"{{1}} to {{{k - 1}}}" if k > 1 else "no earlier hop"
            raise TaskError(
                f"hop {k} refers to {{{reference:.20}}}, which is not the answer of an earlier hop "
                f"(there is {earlier})."
            )
    return Hop(prompt, _answers(hop, place), _read(hop, "adapter", place))


# The fields of a JSON object. `place` stands before the key in messages.


def _read(content: Mapping[str, Any], key: str, place: str = "") -> str | None:
    value = content.get(key)
    return None if value is None else _string(value, f"{place}{key!r}")


def _required(content: Mapping[str, Any], key: str, place: str = "") -> str:
    text = _read(content, key, place)
    if text is None:
        raise TaskError(f"{place}{key!r} is missing.")
    return text


def _label(content: Mapping[str, Any], key: str) -> str | None:
    """A string, or an integer as a string."""
    value = content.get(key)
    is_number = isinstance(value, int) and not isinstance(value, bool)
    return str(value) if is_number else _read(content, key)


def _texts(content: Mapping[str, Any], key: str, place: str = "") -> tuple[str, ...]:
    value = [] if content.get(key) is None else content[key]
    if not isinstance(value, list):
        raise TaskError(f"{place}{key!r} must be a list of strings, not {kind_of(value)}.")
    return tuple(_string(text, f"{place}an entry of {key!r}") for text in value)


def _answers(content: Mapping[str, Any], place: str = "") -> tuple[str, ...]:
    if not isinstance(content.get("answer"), list):
        return (_required(content, "answer", place),)
    answers = _texts(content, "answer", place)
    if not answers:
        raise TaskError(f"{place}'answer' is an empty list: name at least one.")
    return answers


def _check_choices(choices: tuple[str, ...], answers: tuple[str, ...]) -> None:
    if len(choices) > limits.CHOICES:
        raise TaskError(f"{len(choices):,} choices, and {limits.CHOICES:,} are the most.")
    if len(choices) < 2:
        raise TaskError("'choices' must name at least two.")
    if (choice := twice(choices)) is not None:
        raise TaskError(f"choice {choice!r} occurs twice.")
    if not set(choices) & set(answers):
        raise TaskError(f"the answer {answers[0]!r} is not among the choices.")


def _string(value: Any, what: str) -> str:
    if not isinstance(value, str):
        hint = f' (write "{value}")' if isinstance(value, int | float) else ""
        raise TaskError(f"{what} must be a string, not {kind_of(value)}{hint}.")
    if not value.strip():
        raise TaskError(f"{what} is empty.")
    if not is_unicode(value):
        raise TaskError(f"{what} contains half of a surrogate pair, which is not a character.")
    return value


def _read_fields(text: str) -> dict[str, tuple[str, ...]]:
    """ "prompt=question,choices=A,B,C" as a mapping. A prompt with a { is one text."""
    fields = dict[str, tuple[str, ...]]()
    for part in filter(str.strip, _NEXT_KEY.split(text)):
        key, equals, value = (piece.strip() for piece in part.partition("="))
        if key in fields:
            raise UsageError(f"--fields names {key} twice; give it once.")
        if value and (key == AFTER or (key == "prompt" and "{" in value)):
            fields[key] = (part.partition("=")[2],)
            continue
        names = [name.strip() for name in value.split(",")]
        if not equals or key not in KEYS:
            raise _no_pair(part)
        for further in filter(None, names[1:]):
            if key not in _LISTS or "=" in further:
                raise _no_pair(further)
        fields[key] = tuple(filter(None, names))
    return fields


def _no_pair(part: str) -> UsageError:
    """The error of a part of --fields that is no key of an item with the name of a field."""
    key, equals, name = (piece.strip() for piece in part.partition("="))
    if not equals:
        return UsageError(f"--fields takes key=FIELD pairs such as prompt=question, not {key!r}.")
    if name in KEYS:
        return UsageError(f"--fields takes the item's key first: write {name}={key}.")
    hint = nearest(key, KEYS, f"known are {', '.join(KEYS)}.")
    return UsageError(f"--fields: an item has no key {key!r}: {hint}")


def _filled(template: str, row: DataRow) -> str:
    """The template with the row's fields; `{{` and `}}` are braces."""

    def put(found: re.Match[str]) -> str:
        if found[1] is None:
            return found[0][0]
        value = _text(_looked_up(row, found[1].strip()))
        return "" if value is None else value if isinstance(value, str) else json.dumps(value)

    return _FIELD.sub(put, template)


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


def _from_json(value: Any, row: DataRow, name: str) -> Any:
    """A list in the cell of a table, which is written as JSON."""
    if not isinstance(value, str) or not value.strip():
        return value or None
    try:
        content = json.loads(value)
    except ValueError:
        content = None
    if not isinstance(content, list):
        raise row.error(f'{name!r} must hold a JSON list such as ["a", "b"], not {value[:60]!r}.')
    return content


def _name_choices(rows: Sequence[DataRow]) -> None:
    """Replaces answers that name a choice otherwise by its text, in place, and drops the labels.

    One reading holds for a whole file, the first that fits all rows: the text of a choice, its
    label, its letter, its number from 0, its number from 1. Raises TaskError where none fits, and
    where numbers may count from 0 or from 1.
    """
    by_row = [_readings(row) for row in rows]
    fits = [sum(readings[way] is not None for readings in by_row) for way in range(_WAYS)]
    good = [way for way in range(_WAYS) if fits[way] == len(rows)]
    if not good:
        nearly = fits.index(max(fits))
        row = next(
            row for row, readings in zip(rows, by_row, strict=True) if readings[nearly] is None
        )
        answer = row.content["answer"]
        shown = answer if isinstance(answer, str) else json.dumps(answer)
        raise row.error(
            f"the answer {shown[:60]!r} is not among the "
            f"{count(len(row.content['choices']), 'choice')}, and is neither the letter nor the "
            "number of one; check --fields (labels=FIELD names what the answer calls the choices)."
        )
    if rows and good[0] == _FROM_0 and _FROM_0 + 1 in good:
        raise rows[0].error(
            "the answers of this file may count the choices from 0 or from 1; add labels=0,1,2 or "
            "labels=1,2,3, as many as there are choices, to --fields."
        )
    for row, readings in zip(rows, by_row, strict=True):
        texts = readings[good[0]]
        assert isinstance(row.content, dict) and texts is not None
        row.content["answer"] = texts if len(texts) > 1 else texts[0]
        del row.content[LABELS]


def _readings(row: DataRow) -> list[list[str] | None]:
    """The texts of the choices that a row's answers name by each reading; None where one fails."""
    answer, choices = row.content["answer"], row.content["choices"]
    if not isinstance(choices, list):
        raise row.error(f"'choices' must be a list, not {kind_of(choices)}.")
    answers = answer if isinstance(answer, list) else [answer]
    named = [_named(str(one), choices, row.content[LABELS]) for one in answers]
    return [None if None in texts else list(texts) for texts in zip(*named, strict=True)]


def _named(answer: str, choices: list[Any], labels: list[Any]) -> list[Any]:
    """The choice that an answer names by its text, label, letter, number from 0 and from 1."""
    letter = answer.strip("(). ").upper()
    number = int(answer) if re.fullmatch(r"\d{1,4}", answer) else -1
    places = [
        choices.index(answer) if answer in choices else -1,
        labels.index(answer) if answer in labels else -1,
        ord(letter) - ord("A") if re.fullmatch("[A-Z]", letter) else -1,
        number,
        number - 1,
    ]
    return [choices[at] if 0 <= at < len(choices) else None for at in places]
