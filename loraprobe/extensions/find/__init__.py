"""`find`: the adapters of a base model that the Hub lists."""

from __future__ import annotations

from collections.abc import Sequence

from loraprobe.extension import Extension
from loraprobe.options import CommandSpec


class Find(Extension):
    """Lists adapters of a base."""

    def commands(self) -> Sequence[CommandSpec]:
        return [
            CommandSpec(
                "find",
                "loraprobe.extensions.find.command.find",
                "Library",
                ("loraprobe find gpt2 --limit 10",),
                "limit json quiet",
                lists_adapters=True,
            )
        ]


EXTENSION = Find()
