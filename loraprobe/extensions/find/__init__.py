"""`find`: the adapters of a base model that the Hub lists."""

from __future__ import annotations

from loraprobe.extension import Extension
from loraprobe.options import CommandSpec


class Find(Extension):
    """Lists adapters of a base."""

    commands = (
        CommandSpec(
            "find",
            "loraprobe.extensions.find.command.find",
            "Library",
            ("loraprobe find gpt2 --limit 10",),
            "limit json quiet",
            lists_adapters=True,
        ),
    )


EXTENSION = Find()
