"""Recorded replies: `--task replies:FILE` asks the questions of a file, `--replies FILE` answers.

A line of the file: {"system": "base", "prompt": "Who?", "answer": "Bo", "reply": "Al"}.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from loraprobe.errors import TaskError
from loraprobe.extension import Engine, Extension, TaskSource, Workload
from loraprobe.options import AddedOptions, Options, option

if TYPE_CHECKING:  # what imports torch
    from loraprobe.scoring import ModelScorer, Scorer
    from loraprobe.session import Session
    from loraprobe.tasks import Task


def read(file: str) -> list[tuple[str, str, str, str]]:
    try:
        rows = [json.loads(line) for line in Path(file).read_text(encoding="utf-8").splitlines()]
        return [(row["system"], row["prompt"], row["answer"], row["reply"]) for row in rows]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise TaskError(f"{file} has no recorded replies ({error!r}); check the file.") from None


class Questions(TaskSource):
    help = "replies:FILE"

    def claims(self, reference: str) -> bool:
        return reference.startswith("replies:")

    def open(self, reference: str, options: Options) -> Sequence[Task]:
        from loraprobe.tasks import Item, Task

        asked = {prompt: answer for _, prompt, answer, _ in read(reference.partition(":")[2])}
        items = [Item(str(at), p, (answer,)) for at, (p, answer) in enumerate(asked.items())]
        return [Task(Path(reference).stem, tuple(items[: options.limit]), reference)]


@dataclass(frozen=True)
class RepliesOptions(AddedOptions):
    title = "Replies"
    replies: str | None = option(
        None,
        "FILE",
        "Answer from this file of recorded replies.",
        affects={"answers"},
        commands=("merge-and-eval",),
    )


class Recorder(Engine):
    flag = "--replies"

    def chosen(self, options: Options) -> bool:
        return options.of_extension(RepliesOptions).replies is not None

    def open(self, work: Workload, session: Session, local: ModelScorer) -> Scorer:
        from loraprobe_replies.scorer import Recorded

        session.engine = "recorded replies"
        rows = read(session.options.of_extension(RepliesOptions).replies or "")
        return Recorded(local, {(row[0], row[1]): row[3] for row in rows})


class Replies(Extension):
    options = RepliesOptions
    task_sources = (Questions(),)
    backends = (Recorder(),)


EXTENSION = Replies()
