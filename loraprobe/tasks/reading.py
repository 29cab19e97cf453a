"""Reads task files (JSONL) and probe files (plain lines) strictly.

An unknown key, a wrong type or a reference to a later hop is a TaskError that names the file, the
line and the problem. Blank lines and a byte order mark at the start are allowed.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from loraprobe.errors import TaskError, UsageError
from loraprobe.formatting import nearest
from loraprobe.json_types import is_unicode
from loraprobe.limits import how_to_raise, limits
from loraprobe.tasks.answers import compile_pattern
from loraprobe.tasks.choosing import ITEM_METRICS
from loraprobe.tasks.items import REFERENCE, Hop, Item, Probe, ProbeItem, Task
from loraprobe.tasks.metrics import check_answers

_ITEM_KEYS = tuple(
    "id prompt answer choices hops cot_prompt answer_pattern entities group metric".split()
)
_HOP_KEYS = ("prompt", "answer", "adapter")
_KINDS = {
    type(None): "null",
    bool: "true or false",
    int: "a number",
    float: "a number",
    str: "a string",
    list: "a list",
    dict: "an object",
}


def load_task(path: str | Path, limit: int | None = None) -> Task:
    """Read a task file. limit: keep only the first items; the whole file is checked anyway.

    The task has the name of the file. The id of an item without "id" is its line number. Raises
    TaskError with the number of the first bad line, UsageError for a limit below 1.
    """
    if limit is not None and limit < 1:
        raise UsageError(f"--limit must be at least 1, not {limit}.")
    path = Path(path)
    data = _read(path, "task")
    items: list[Item] = []
    lines: dict[str, int] = {}
    for number, line in _lines(data, path):
        try:
            item = _item(_object(line), number)
        except TaskError as error:
            raise TaskError(f"{path}, line {number}: {error}") from None
        if item.id in lines:
            raise TaskError(
                f"{path}, line {number}: id {item.id!r} is also the id of line {lines[item.id]}; "
                "give every item an id of its own (one without is named by its line number)."
            )
        lines[item.id] = number
        items.append(item)
    if not items:
        raise TaskError(f"{path} holds no item: write one JSON object a line.")
    return Task(path.stem, tuple(items[:limit]), str(path), hashlib.sha256(data).hexdigest())


def load_probe(path: str | Path) -> Probe:
    """Read a probe file: per line a question or entity and, after a tab, an optional answer."""
    path = Path(path)
    data = _read(path, "probe")
    items = []
    for number, line in _lines(data, path):
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


def _read(path: Path, noun: str) -> bytes:
    try:
        size = path.stat().st_size
        if size > limits().items:
            raise TaskError(
                f"The {noun} file {path} has {size:,} bytes, at most "
                f"{limits().items:,} are read; {how_to_raise('items', size)}."
            )
        return path.read_bytes()
    except FileNotFoundError:
        raise TaskError(f"There is no {noun} file {path}: check the path.") from None
    except IsADirectoryError:
        raise TaskError(f"{path} is a directory: name the {noun} file in it.") from None
    except OSError as error:
        raise TaskError(f"The {noun} file {path} cannot be read: {error.strerror}.") from None


def _lines(data: bytes, path: Path) -> Iterator[tuple[int, str]]:
    """Numbered lines that are not blank, split only at line feeds, as JSONL requires."""
    for number, raw in enumerate(data.removeprefix(b"\xef\xbb\xbf").split(b"\n"), 1):
        if len(raw) > limits().line:
            raise TaskError(
                f"{path}, line {number}: {len(raw):,} bytes in one line, at most "
                f"{limits().line:,} are read; write one item a line, or "
                f"{how_to_raise('line', len(raw))}."
            )
        try:
            line = raw.decode("utf-8")
        except UnicodeDecodeError as error:
            raise TaskError(
                f"{path}, line {number}: not UTF-8 (byte {error.start + 1}); save it as UTF-8."
            ) from None
        if "\x00" in line:
            raise TaskError(f"{path}, line {number}: holds a zero byte; is this a text file?")
        if line.strip():
            yield number, line.rstrip("\r")


def _object(line: str) -> dict[str, Any]:
    try:
        value = json.loads(line, object_pairs_hook=_unique_keys)
    except json.JSONDecodeError as error:
        raise TaskError(f"not JSON ({error.msg} at column {error.colno}).") from None
    except ValueError:
        raise TaskError("a number has thousands of digits; write it as a string.") from None
    except RecursionError:
        raise TaskError("not an item: brackets are nested too deeply.") from None
    if not isinstance(value, dict):
        raise TaskError(f"{_kind(value)} where a JSON object with prompt and answer belongs.")
    return value


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if (key := _twice([key for key, _ in pairs])) is not None:
        raise TaskError(f"key {key!r} occurs twice in one object.")
    return dict(pairs)


def _twice(texts: Sequence[str]) -> str | None:
    """The first text that occurs more than once."""
    return next((text for text, times in Counter(texts).items() if times > 1), None)


class _Fields:
    """The fields of one JSON object. `place` stands before the key in messages."""

    def __init__(
        self, content: Mapping[str, Any], known: Sequence[str], what: str, place: str = ""
    ) -> None:
        for key in content:
            if key not in known:
                hint = nearest(key, known, f"known are {', '.join(known)}.")
                raise TaskError(f"unknown key {key!r} in {what}: {hint}")
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
            raise TaskError(f"{self.place}{key!r} must be a list of strings, not {_kind(value)}.")
        return tuple(_string(text, f"{self.place}an entry of {key!r}") for text in value)

    def answers(self) -> tuple[str, ...]:
        if not isinstance(self.content.get("answer"), list):
            return (self.required("answer"),)
        answers = self.texts("answer")
        if not answers:
            raise TaskError(f"{self.place}'answer' is an empty list: name at least one.")
        return answers


def _item(line: Mapping[str, Any], number: int) -> Item:
    fields = _Fields(line, _ITEM_KEYS, "an item")
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
        raise TaskError(f"'hops' must be a list of objects, not {_kind(hops)}.")
    return tuple(_hop(hop, k) for k, hop in enumerate(hops, 1))


def _hop(hop: Any, k: int) -> Hop:
    """Hop k, counted from 1, which may refer to the answers of earlier hops."""
    if not isinstance(hop, dict):
        raise TaskError(f"hop {k} must be an object with prompt and answer, not {_kind(hop)}.")
    fields = _Fields(hop, _HOP_KEYS, f"hop {k}", f"hop {k}: ")
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
    if len(choices) < 2:
        raise TaskError("'choices' must name at least two.")
    if (choice := _twice(choices)) is not None:
        raise TaskError(f"choice {choice!r} occurs twice.")
    if not set(choices) & set(answers):
        raise TaskError(f"the answer {answers[0]!r} is not among the choices.")


def _string(value: Any, what: str) -> str:
    if not isinstance(value, str):
        hint = f' (write "{value}")' if isinstance(value, int | float) else ""
        raise TaskError(f"{what} must be a string, not {_kind(value)}{hint}.")
    if not value.strip():
        raise TaskError(f"{what} is empty.")
    if not is_unicode(value):
        raise TaskError(f"{what} contains half of a surrogate pair, which is not a character.")
    return value


def _kind(value: Any) -> str:
    return _KINDS[type(value)]
