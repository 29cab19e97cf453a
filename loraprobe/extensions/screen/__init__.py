"""Libraries of many adapters: what of one can be used, and what of it a task needs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

from loraprobe.extension import CommandSpec, Extension


class Screen(Extension):
    """Screens a library."""

    functions: ClassVar[Mapping[str, str]] = {
        "screen": "loraprobe.extensions.screen.functions.screen"
    }

    def commands(self) -> Sequence[CommandSpec]:
        return [
            CommandSpec(
                "screen",
                "loraprobe.extensions.screen.command.screen",
                "Library",
                (
                    "loraprobe screen @library.txt",
                    "loraprobe screen @library.txt --task questions.jsonl",
                ),
            )
        ]


EXTENSION = Screen()
