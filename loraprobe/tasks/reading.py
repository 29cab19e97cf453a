"""Reads task files strictly, and the fields of any other data file as the keys of an item.

An unknown key, a wrong type or a reference to a later hop is a TaskError that names the file, the
line and the problem. Blank lines and a byte order mark at the start are allowed.

`--fields` and the template map other fields. Values of other files are converted: numbers become
texts, a list in a cell of a table is JSON, and an answer may name one of the choices by its label,
its letter or its number. Probe files are plain lines.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import re
import shlex
import string
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from loraprobe import untrusted
from loraprobe.defaults import FEWEST_ITEMS, LOSS
from loraprobe.errors import TaskError, UsageError
from loraprobe.formatting import count, listing, nearest, shortly
from loraprobe.tasks.items import REFERENCE, Hop, Item, ProbePrompts, Task
from loraprobe.tasks.metrics import METRICS, compile_pattern, item_metrics
from loraprobe.tasks.sources import TABLES, DataRow, read_file, read_lines, read_rows
from loraprobe.untrusted import first_problem, is_unicode


def _checked(text: str) -> str:
    if not text.strip():
        raise ValueError("it is empty")
    if not is_unicode(text):
        raise ValueError("it holds half of a surrogate pair, which is no character")
    return text


def _listed(value: Any) -> Any:
    return value if isinstance(value, list) else [value]


NotBlank = Annotated[str, AfterValidator(_checked)]
Label = Annotated[
    NotBlank, BeforeValidator(lambda label: str(label) if type(label) is int else label)
]
GoldAnswers = Annotated[list[NotBlank], BeforeValidator(_listed), Field(min_length=1)]


class _HopKeys(BaseModel):
    """The keys of a hop in a task file."""

    model_config = ConfigDict(strict=True, extra="forbid")

    prompt: NotBlank
    answer: GoldAnswers
    adapter: NotBlank | None = None


class _ItemKeys(BaseModel):
    """The keys of an item in a task file."""

    model_config = ConfigDict(strict=True, extra="forbid")

    id: Label | None = None
    prompt: NotBlank
    answer: GoldAnswers
    choices: Annotated[list[NotBlank], Field(min_length=2, max_length=untrusted.CHOICES)] | None = (
        None
    )
    hops: Annotated[list[_HopKeys], Field(max_length=untrusted.HOPS)] | None = None
    cot_prompt: NotBlank | None = None
    answer_pattern: NotBlank | None = None
    entities: list[NotBlank] | None = None
    group: Label | None = None
    metric: NotBlank | None = None


ITEM_KEYS = tuple(_ItemKeys.model_fields)
LABELS = "labels"  # a field of the mapping only: what the answer calls the choices
AFTER = "after"  # of the mapping only: the text before the gold answer in its field
KEYS = (*ITEM_KEYS, LABELS, AFTER)
WINDOW = 500  # characters of a text that are scored together, a hundred tokens or more
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
_SERIES = (string.ascii_lowercase, string.ascii_uppercase, [*map(str, range(27))])
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
    after: str | None = None

    @classmethod
    def of(cls, text: str) -> FieldMap:
        """The map of a text of --fields, such as "prompt=question,choices=A,B,C"; it may be empty.

        A prompt or cot_prompt with a { is a template. Raises UsageError for a text that cannot be
        read.
        """
        fields, templates = dict[str, tuple[str, ...]](), dict[str, str]()
        after = None
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

    def items(self, rows: Iterable[DataRow]) -> list[DataRow]:
        """The rows with the keys of an item. Raises TaskError, which names the row."""
        mapped, of_choices = list[DataRow](), list[tuple[DataRow, list[str]]]()
        rows = list(rows)
        self._check_columns(rows)
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

    def _check_columns(self, rows: Sequence[DataRow]) -> None:
        """Raises TaskError for a name among several that no row has; a row may lack one."""
        for key in ("choices", "entities"):
            names = self.fields.get(key, ())
            for name in names if rows and len(names) > 1 else ():
                if all(_looked_up(row, name, optional=True) is None for row in rows):
                    raise _no_field(rows[0], name)

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
        if key == "hops":
            return value
        if isinstance(value, list):
            return [self._text(row, key, text) for text in value]
        return self._text(row, key, value)

    def _text(self, row: DataRow, key: str, value: Any) -> Any:
        """A value as text; of an answer what follows the mark before it."""
        text = _as_text(value)
        if key != "answer" or self.after is None or not isinstance(text, str):
            return text
        _, mark, rest = text.rpartition(self.after)
        if not mark:
            raise row.error(f"the answer {text[-60:]!r} has no {self.after!r}; check --fields.")
        return rest.strip().partition("\n")[0].strip()


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
            if len(items) >= untrusted.ROWS:
                raise TaskError(
                    f"{file} has more than {untrusted.ROWS:,} items, which is the most."
                )
            try:
                item = _item(row.content, last)
            except TaskError as error:
                raise error.at(row.place) from None
            if item.id in items:
                earlier = items[item.id][1]
                raise row.error(
                    f"id {item.id!r} is also the id of {earlier.unit} {earlier.number}; give every "
                    "item an id of its own (one without is named by its line number)."
                )
            items[item.id] = item, row
    if not items:
        raise TaskError(f"{files[0]} holds no item:", "write one a line.")
    first = tuple(item for item, _ in items.values())[:limit]
    return replace(task, items=first, sha256=digest.hexdigest())


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
            f"{path} holds {len(text):,} characters, too few to tell whether its loss grows:",
            f"give a text of at least {2 * WINDOW:,}, better {FEWEST_ITEMS * WINDOW:,}.",
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
        raise TaskError(f"{path} holds no prompt:", "write one a line.")
    return ProbePrompts(answers)


def _known(row: DataRow) -> DataRow:
    """The row. Raises TaskError for a key that no item has, with the mapping that reads it."""
    unknown = next((key for key in row.content if key not in ITEM_KEYS), None)
    if unknown is None:
        return row
    hint = nearest(unknown, ITEM_KEYS, f"known are {', '.join(ITEM_KEYS)}; {TaskError.remedy}")
    if fields := _suggested(row.content):
        words = fields if re.fullmatch(r"[\w.,=#-]+", fields) else shlex.quote(fields)
        hint = f"add --fields={words}."
    elif not (
        {"prompt", "answer"} <= row.content.keys()
        or difflib.get_close_matches(unknown, ITEM_KEYS, 1)
    ):
        has = shortly(row.content)
        hint = f"name its fields by --fields=prompt=FIELD,answer=FIELD (it has {has})."
    raise row.error(f"unknown key {unknown!r} in an item:", hint)


def _suggested(row: Mapping[str, Any]) -> str:
    """The --fields with which a row of another layout would be read; "" where none is evident."""
    fields = _of_conversation(row) or _of_columns(row)
    changed = ",".join(f"{key}={name}" for key, name in fields.items() if key != name)
    if not {"prompt", "answer"} <= fields.keys() or not changed:
        return ""
    answer = row.get(fields["answer"])
    marked = f",{AFTER}={MARK}" if isinstance(answer, str) and MARK in answer else ""
    return changed + marked


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
    for names in _series(row):
        ends = [_ending(name)[1] for name in names]
        said = answer.strip("(). ")
        letters = string.ascii_uppercase[: len(names)]
        if answer in names or answer in [row[name] for name in names]:
            return {"choices": ",".join(names)}
        if said.isdecimal() and said in ends:
            return {"choices": ",".join(names), LABELS: ",".join(ends)}
        if len(said) == 1 and said.upper() in letters:
            return {"choices": ",".join(names)}
    return {}


def _series(row: Mapping[str, Any]) -> list[list[str]]:
    """Fields that are called alike but for a letter or a number at the end, counted through."""
    alike: dict[str, list[str]] = {}
    for name in row:
        if start := _ending(name):
            alike.setdefault(start[0], []).append(name)
    counted = []
    for names in alike.values():
        ends = [_ending(name)[1] for name in names]
        ways = (*_SERIES, _SERIES[-1][1:])
        if len(names) > 1 and any(ends == [*way[: len(ends)]] for way in ways):
            counted.append(names)
    return counted


def _ending(name: str) -> tuple[str, ...]:
    """A name without its last letter or number, and that; empty without either."""
    match = _NUMBERED.fullmatch(name)
    return match.groups() if match else ()


def _of_conversation(row: Mapping[str, Any]) -> dict[str, str]:
    """The first answer of a conversation, and what stands before it as one prompt."""
    turns = []
    for name, value in row.items():
        for k, turn in enumerate(value if isinstance(value, list) else ()):
            if not isinstance(turn, Mapping):
                continue
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


def _item(content: Mapping[str, Any], number: int) -> Item:
    """The item of a row. Raises TaskError, without the row's place."""
    try:
        line = _ItemKeys.model_validate(content)
    except ValidationError as error:
        raise TaskError(f"{first_problem(error)}.") from None
    answers, choices, metric = tuple(line.answer), tuple(line.choices or ()), line.metric
    if choices and len(set(choices)) < len(choices):
        raise TaskError("a choice occurs twice.")
    if choices and not set(choices) & set(answers):
        raise TaskError(f"the answer {answers[0]!r} is not among the choices.")
    if line.answer_pattern is not None:
        compile_pattern(line.answer_pattern)
    if metric is not None:
        if metric not in (known := item_metrics()):
            hint = nearest(metric, known, f"known are {', '.join(known)}; {TaskError.remedy}")
            raise TaskError(f"unknown metric {metric!r}:", hint)
        if metric == "choice" and not choices:
            raise TaskError("metric choice needs 'choices':", "add them, or choose another metric.")
        METRICS[metric].check(answers, line.answer_pattern)
    hops = [Hop(hop.prompt, tuple(hop.answer), hop.adapter) for hop in line.hops or ()]
    for k, hop in enumerate(hops, 1):
        for reference in REFERENCE.findall(hop.prompt):
            if reference not in map(str, range(1, k)):
                raise TaskError(
                    f"hop {k} refers to {{{reference:.20}}}, which is not the answer of an earlier "
                    "hop."
                )
    return Item(
        id=line.id or str(number),
        prompt=line.prompt,
        answers=answers,
        choices=choices,
        hops=tuple(hops),
        cot_prompt=line.cot_prompt,
        answer_pattern=line.answer_pattern,
        entities=tuple(line.entities or ()),
        group=line.group,
        metric=metric,
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
    answers, choices = [str(one) for one in _listed(row.content["answer"])], row.content["choices"]
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
    readings = list[list[str] | None]()
    for called, said in ways:
        choice_of = dict(zip(called, choices, strict=False))
        known = all(one in choice_of for one in said)
        readings.append([choice_of[one] for one in said] if known else None)
    return readings
