"""Reads task files of our own form, strictly, texts and probe files.

An unknown key, a wrong type or a reference to a later hop is a TaskError that names the file, the
line and the problem. Blank lines and a byte order mark at the start are allowed. Extensions read
files of other forms, as rows with the keys of an item. Probe files are plain lines.
"""

from __future__ import annotations

import hashlib
import json
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from loraprobe import untrusted, wiring
from loraprobe.defaults import FEWEST_ITEMS, LOSS
from loraprobe.errors import TaskError, UsageError
from loraprobe.formatting import nearest
from loraprobe.tasks.items import REFERENCE, Hop, Item, ProbePrompts, Task
from loraprobe.tasks.metrics import ITEM_METRICS, METRICS, compile_pattern
from loraprobe.untrusted import error_line, first_problem, is_unicode, unique_keys


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
WINDOW = 500  # characters of a text that are scored together, a hundred tokens or more
TABLES = (".csv", ".tsv", ".parquet")  # which an extension reads


@dataclass(frozen=True)
class DataRow:
    """One row with its place in its file; `number` counts what `unit` says, as "line".

    Raises TaskError for content that is no object.
    """

    file: Path
    unit: str
    number: int
    content: Mapping[str, Any]

    def __post_init__(self) -> None:
        if not isinstance(self.content, Mapping):
            raise self.error("there is no JSON object with prompt and answer.")

    def error(self, problem: str, cure: str = "") -> TaskError:
        """The error that names this row."""
        return TaskError(problem, cure).at(self.place)

    @property
    def place(self) -> str:
        """The row as errors name it."""
        return f"{self.file}, {self.unit} {self.number}"


def load_task(path: str | Path, limit: int | None = None) -> Task:
    """Read a task file. limit: keep only the first items; the whole file is checked anyway.

    The task has the name of the file. The id of an item without "id" is its line number. Raises
    TaskError with the number of the first bad line, UsageError for a limit below 1.
    """
    path = Path(path)
    if path.suffix.lower() in TABLES:
        raise TaskError(f"{path} is a table, which no extension here reads:", "write it as JSONL.")
    return read_task([path], Task(path.stem, (), str(path)), limit)


def item_rows(path: Path, data: bytes) -> Iterable[DataRow]:
    """The rows of a file of our own form, whose bytes are `data`. Raises TaskError."""
    return map(with_known_keys, read_rows(path, data))


def read_task(
    files: Sequence[Path],
    task: Task,
    limit: int | None,
    rows_of: Callable[[Path, bytes], Iterable[DataRow]] = item_rows,
) -> Task:
    """The task with the items of one or several files; items without id are numbered through.

    rows_of: gives the rows of a file and its bytes, which have the keys of an item.
    """
    if limit is not None and limit < 1:
        raise UsageError(f"--limit must be at least 1, not {limit}.")
    digest, last = hashlib.sha256(), 0
    items: dict[str, tuple[Item, DataRow]] = {}
    for file in files:
        data = read_file(file, "task")
        digest.update(data)
        before = last
        for row in rows_of(file, data):
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


def with_known_keys(row: DataRow) -> DataRow:
    """The row. Raises TaskError for a key that no item has, with how extensions would read it."""
    for unknown in (key for key in row.content if key not in ITEM_KEYS):
        sources = (source for one in wiring.extensions() for source in one.task_sources)
        hints = filter(None, (source.hint(row.content, unknown) for source in sources))
        known = f"known are {', '.join(ITEM_KEYS)}; {TaskError.remedy}"
        hint = next(hints, "") or nearest(unknown, ITEM_KEYS, known)
        raise row.error(f"unknown key {unknown!r} in an item:", hint)
    return row


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
        if metric not in ITEM_METRICS:
            known = f"known are {', '.join(ITEM_METRICS)}; {TaskError.remedy}"
            hint = nearest(metric, ITEM_METRICS, known)
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


# ---- files, lines and rows -----------------------------------------------------------------------


def read_file(path: Path, noun: str) -> bytes:
    """The bytes of a file. Raises TaskError if it cannot be read or is too large."""
    if untrusted.is_endless(path):
        raise TaskError(f"{path} is a pipe or a device; write the {noun} into a file.")
    try:
        size = path.stat().st_size
        if size > untrusted.ITEMS:
            raise TaskError(
                f"The {noun} file {path} has {size:,} bytes, at most "
                f"{untrusted.ITEMS:,} are read; split it."
            )
        return path.read_bytes()
    except FileNotFoundError:
        raise TaskError(f"There is no {noun} file {path}:", "check the path.") from None
    except IsADirectoryError:
        raise TaskError(f"{path} is a directory:", f"name the {noun} file in it.") from None
    except OSError as error:
        raise TaskError(f"The {noun} file {path} cannot be read: {error.strerror}.") from None


def read_lines(data: bytes, path: Path) -> Iterator[tuple[int, str]]:
    """Numbered lines that are not blank, split only at line feeds, as JSONL requires."""
    for number, raw in enumerate(data.removeprefix(b"\xef\xbb\xbf").split(b"\n"), 1):
        if len(raw) > untrusted.LINE:
            raise TaskError(
                f"{path}, line {number}: {len(raw):,} bytes in one line, at most "
                f"{untrusted.LINE:,} are read; write one item a line."
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


def read_rows(path: Path, data: bytes) -> Iterator[DataRow]:
    """The rows of a file of JSONL whose bytes are `data`.

    Raises TaskError with the place of the first row that cannot be read.
    """
    for number, line in read_lines(data, path):
        yield DataRow(path, "line", number, parse_json(path, line, number))


def parse_json(path: Path, text: str, line: int | None = None) -> Any:
    """The JSON value of a line, or of a whole file. Raises TaskError with its place."""
    try:
        return json.loads(text, object_pairs_hook=unique_keys)
    except json.JSONDecodeError as error:
        place, problem = line or error.lineno, f"{error.msg} at column {error.colno}"
    except (ValueError, RecursionError) as error:
        place, problem = line or 1, error_line(error)
    raise TaskError(f"{path}, line {place}: not JSON ({problem}).")
