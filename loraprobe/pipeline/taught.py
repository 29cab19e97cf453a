"""Where the prompts stand from which a router learned, so that `verify` can read them again.

A card keeps no prompt: it names each file with its sha256 and the places of the prompts in it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

from loraprobe.cache import file_hash
from loraprobe.errors import LoraprobeError, UsageError
from loraprobe.options import Options
from loraprobe.pipeline.task_files import read_prompts
from loraprobe.report.cards import LearnedRecord, PromptFile
from loraprobe.session import Session
from loraprobe.tasks import FieldMap, Task, load_task


@dataclass(frozen=True)
class Taught:
    """Prompts of each adapter, and the card's record of how they were read; None where no file
    holds them all."""

    prompts: Mapping[str, Sequence[str]]
    record: LearnedRecord | None

    @property
    def plain(self) -> Mapping[str, Any] | None:
        """The record as plain data."""
        return None if self.record is None else self.record.model_dump()


def taught_by(
    prompts: Mapping[str, Sequence[str]], tasks: Sequence[Task], session: Session, chat: bool
) -> Taught:
    """The prompts that a router has learned from, with their record.

    There is no record without prompts, where an adapter wrote some itself, for a task that is no
    local file, and for a quantised base. chat: whether they were read as user turns.
    """
    options, rows = session.options, list[PromptFile]()
    if not prompts or options.quantize != "none":
        return Taught(prompts, None)
    own = {name: Path(file) for name, file in options.router_prompts}
    left = {name: list(lines) for name, lines in prompts.items()}
    for file, fields in _files(tasks, options):
        with suppress(LoraprobeError):
            places = {line: at for at, line in enumerate(_lines(file, fields))}
            held = {
                name: [places[line] for line in lines if line in places]
                for name, lines in left.items()
                if own.get(name) == (file if fields is None else None)
            }
            left |= {name: [x for x in left[name] if x not in places] for name in held}
            if held := {name: found for name, found in held.items() if found}:
                rows.append(
                    PromptFile(file=file.name, sha256=file_hash(file), fields=fields, places=held)
                )
    if any(left.values()):
        return Taught(prompts, None)
    how = {"chat": chat, "dtype": session.dtype, "files": rows}
    return Taught(prompts, LearnedRecord.model_validate(how))


def prompts_at(record: LearnedRecord, files: Sequence[Path]) -> Taught:
    """The prompts that a record names, read from its files in their order.

    Raises LoraprobeError for a file that cannot be read and a place that is not in it.
    """
    prompts: dict[str, list[str]] = {}
    for row, file in zip(record.files, files, strict=True):
        lines = _lines(file, row.fields)
        for name, places in row.places.items():
            if max(places, default=0) >= len(lines):
                raise UsageError(f"{row.file} has {len(lines)} prompts, fewer than the card says.")
            prompts.setdefault(name, []).extend(lines[at] for at in places)
    return Taught(prompts, record)


def _files(tasks: Sequence[Task], options: Options) -> list[tuple[Path, str | None]]:
    """Local files of prompts: with None where each line is one, with the text of --fields for a
    task."""
    texts = options.fields * (len(tasks) if len(options.fields) == 1 else 1)
    local: list[tuple[Any, str]] = [*zip_longest(tasks, texts[: len(tasks)], fillvalue="")]
    of_tasks = [(Path(t.path), text) for t, text in local if t.path and t.commit is None]
    given = [(Path(file), None) for _, file in options.router_prompts]
    return list(dict.fromkeys([*given, *of_tasks]))


def _lines(file: Path, fields: str | None) -> list[str]:
    """The prompts of a file, as they are read for a router."""
    if fields is None:
        return read_prompts(file)
    return [item.prompt for item in load_task(file, layout=FieldMap.of(fields)).items]
