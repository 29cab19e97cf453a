"""Recorded replies: `--task replies:FILE` asks the questions of a file, `--replies FILE` answers.

A line of the file: {"system": "base", "prompt": "Who?", "answer": "Bo", "reply": "Al"}.
"""

import json
from dataclasses import dataclass
from pathlib import Path

from loraprobe.extension import Engine, Extension, TaskSource
from loraprobe.options import AddedOptions, option


def read(file):
    return [json.loads(line) for line in Path(file).read_text().splitlines()]


class Questions(TaskSource):
    help = "replies:FILE"

    def claims(self, reference):
        return reference.startswith("replies:")

    def open(self, reference, options, layout):
        from loraprobe.tasks import Item, Task

        asked = {row["prompt"]: row["answer"] for row in read(reference.removeprefix("replies:"))}
        items = [Item(str(at), *(p, (a,))) for at, (p, a) in enumerate(asked.items())]
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

    def chosen(self, options):
        return options.of_extension(RepliesOptions).replies is not None

    def open(self, work, session, local):
        from loraprobe_replies.scorer import Recorded

        session.engine = "recorded replies"
        rows = read(session.options.of_extension(RepliesOptions).replies)
        return Recorded(local, {(row["system"], row["prompt"]): row["reply"] for row in rows})


class Replies(Extension):
    options = RepliesOptions
    task_sources = (Questions(),)
    backends = (Recorder(),)


EXTENSION = Replies()
