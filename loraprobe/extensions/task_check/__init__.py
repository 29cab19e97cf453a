"""`task new` and `task check`: a starter file of questions, and what a file allows to tell."""

from __future__ import annotations

from loraprobe.extension import Extension
from loraprobe.options import CommandSpec


class Checks(Extension):
    """Writes and checks files of questions."""

    commands = (
        CommandSpec(
            "task new",
            "loraprobe.extensions.task_check.command.new",
            "Start",
            ("loraprobe task new questions.jsonl",),
        ),
        CommandSpec(
            "task check",
            "loraprobe.extensions.task_check.command.check",
            "Start",
            (
                "loraprobe task check questions.jsonl",
                "loraprobe task check questions.jsonl own.jsonl --margin 0.1",
            ),
            "metric margin json",
        ),
    )


EXTENSION = Checks()
