"""Reads task files and probe files (plain lines) strictly.

An unknown key, a wrong type or a reference to a later hop is a TaskError that names the file, the
line and the problem. Blank lines and a byte order mark at the start are allowed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from loraprobe import limits
from loraprobe.errors import TaskError, UsageError
from loraprobe.formatting import nearest, shortly
from loraprobe.json_types import is_unicode
from loraprobe.tasks.answers import compile_pattern
from loraprobe.tasks.choosing import ITEM_METRICS
from loraprobe.tasks.fields import ITEM_KEYS, Layout, suggested
from loraprobe.tasks.items import REFERENCE, Hop, Item, Probe, ProbeItem, Task
from loraprobe.tasks.metrics import check_answers
from loraprobe.tasks.sources import (
    TABLES,
    Row,
    kind_of,
    read_file,
    read_lines,
    read_rows,
    twice,
)

HOP_KEYS = ("prompt", "answer", "adapter")


def load_task(path: str | Path, limit: int | None = None, layout: Layout = Layout()) -> Task:
    """Read a task file. limit: keep only the first items; the whole file is checked anyway.

    The task has the name of the file. The id of an item without "id" is its line number. layout:
    how the file's fields become an item. Raises TaskError with the number of the first bad line,
    UsageError for a limit below 1.
    """
    path = Path(path)
    return read_task([path], Task(path.stem, (), str(path)), limit, layout)


def read_task(files: Sequence[Path], task: Task, limit: int | None, layout: Layout) -> Task:
    """The task with the items of one or several files; items without id are numbered through."""
    if limit is not None and limit < 1:
        raise UsageError(f"--limit must be at least 1, not {limit}.")
    digest, last = hashlib.sha256(), 0
    items: dict[str, tuple[Item, Row]] = {}
    for file in files:
        data = read_file(file, "task")
        digest.update(data)
        found: Iterable[Row] = read_rows(file, data)
        if not layout.given:
            found = map(_known, found)
        if layout.given or file.suffix.lower() in TABLES:
            found = layout.items(found)
        before = last
        for row in found:
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


def _known(row: Row) -> Row:
    """The row. Raises TaskError for a key that no item has, with the mapping that reads it."""
    unknown = [key for key in row.content if key not in ITEM_KEYS]
    if not unknown:
        return row
    missing = {"prompt", "answer"} - row.content.keys()
    if missing and (options := suggested(row.content)):
        raise row.error(f"unknown key {unknown[0]!r} in an item: add {options}.")
    hint = nearest(unknown[0], ITEM_KEYS, f"known are {', '.join(ITEM_KEYS)}.")
    if missing and "did you mean" not in hint:
        hint = (
            f"name the fields of prompt and answer by --fields prompt=FIELD,answer=FIELD, or write "
            f"a --prompt-template (the file has {shortly(row.content)})."
        )
    raise row.error(f"unknown key {unknown[0]!r} in an item: {hint}")


def load_probe(path: str | Path) -> Probe:
    """Read a probe file: per line a question or entity and, after a tab, an optional answer."""
    path = Path(path)
    data = read_file(path, "probe")
    items = []
    for number, line in read_lines(data, path):
        prompt, *answers = (part.strip() for part in line.split("\t"))
        if len(answers) > 1:
            raise TaskError(
                f"{path}, line {number}: more than one tab; write a prompt, a tab, one answer."
            )
        if not prompt:
            raise TaskError(f"{path}, line {number}: there is no prompt before the tab.")
        items.append(ProbeItem(prompt, answers[0] if answers and answers[0] else None))
    if not items:
        raise TaskError(f"{path} holds no prompt: write one a line.")
    return Probe(tuple(items), str(path), hashlib.sha256(data).hexdigest())


class _Fields:
    """The fields of one JSON object. `place` stands before the key in messages."""

    def __init__(self, content: Mapping[str, Any], place: str = "") -> None:
        self.content, self.place = content, place

    def text(self, key: str) -> str | None:
        value = self.content.get(key)
        return None if value is None else _string(value, f"{self.place}{key!r}")

    def required(self, key: str) -> str:
        text = self.text(key)
        if text is None:
            raise TaskError(f"{self.place}{key!r} is missing.")
        return text

    def label(self, key: str) -> str | None:
        """A string, or an integer as a string."""
        value = self.content.get(key)
        is_number = isinstance(value, int) and not isinstance(value, bool)
        return str(value) if is_number else self.text(key)

    def texts(self, key: str) -> tuple[str, ...] | None:
        value = self.content.get(key)
        if value is None:
            return None
        if not isinstance(value, list):
            raise TaskError(f"{self.place}{key!r} must be a list of strings, not {kind_of(value)}.")
        return tuple(_string(text, f"{self.place}an entry of {key!r}") for text in value)

    def answers(self) -> tuple[str, ...]:
        if not isinstance(self.content.get("answer"), list):
            return (self.required("answer"),)
        answers = self.texts("answer")
        if not answers:
            raise TaskError(f"{self.place}'answer' is an empty list: name at least one.")
        return answers


def _item(line: Mapping[str, Any], number: int) -> Item:
    fields = _Fields(line)
    answers, choices = fields.answers(), fields.texts("choices")
    if choices is not None:
        _check_choices(choices, answers)
    pattern = fields.text("answer_pattern")
    if pattern is not None:
        compile_pattern(pattern)
    metric = fields.text("metric")
    if metric is not None:
        _check_metric(metric, answers, choices or (), pattern)
    return Item(
        id=fields.label("id") or str(number),
        prompt=fields.required("prompt"),
        answers=answers,
        choices=choices or (),
        hops=_hops(line.get("hops")),
        cot_prompt=fields.text("cot_prompt"),
        answer_pattern=pattern,
        entities=fields.texts("entities") or (),
        group=fields.label("group"),
        metric=metric,
    )


def _check_metric(
    metric: str, answers: tuple[str, ...], choices: tuple[str, ...], pattern: str | None
) -> None:
    """Raises TaskError for a metric that an item cannot have, or that its answers do not suit."""
    if metric not in ITEM_METRICS:
        hint = nearest(metric, ITEM_METRICS, f"known are {', '.join(ITEM_METRICS)}.")
        raise TaskError(f"unknown metric {metric!r}: {hint}")
    if metric == "choice" and not choices:
        raise TaskError("metric choice needs 'choices': add them, or choose another metric.")
    check_answers(metric, answers, pattern)


def _hops(hops: Any) -> tuple[Hop, ...]:
    if hops is None:
        return ()
    if not isinstance(hops, list):
        raise TaskError(f"'hops' must be a list of objects, not {kind_of(hops)}.")
    return tuple(_hop(hop, k) for k, hop in enumerate(hops, 1))


def _hop(hop: Any, k: int) -> Hop:
    """Hop k, counted from 1, which may refer to the answers of earlier hops."""
    if not isinstance(hop, dict):
        raise TaskError(f"hop {k} must be an object with prompt and answer, not {kind_of(hop)}.")
    if unknown := [key for key in hop if key not in HOP_KEYS]:
        hint = nearest(unknown[0], HOP_KEYS, f"known are {', '.join(HOP_KEYS)}.")
        raise TaskError(f"unknown key {unknown[0]!r} in hop {k}: {hint}")
    fields = _Fields(hop, f"hop {k}: ")
    prompt = fields.required("prompt")
    for reference in REFERENCE.findall(prompt):
        if reference not in map(str, range(1, k)):
            earlier = f"{{1}} to {{{k - 1}}}" if k > 1 else "no earlier hop"
            raise TaskError(
                f"hop {k} refers to {{{reference:.20}}}, which is not the answer of an earlier hop "
                f"(there is {earlier})."
            )
    return Hop(prompt, fields.answers(), fields.text("adapter"))


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
