"""Files: an adapter written again as peft and servers read it, and directories that are checked
against their cards."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

from loraprobe.extension import CommandSpec, Extension

PLACE = "loraprobe.extensions.files"


class Files(Extension):
    """Converts adapters, and verifies what was written."""

    functions: ClassVar[Mapping[str, str]] = {
        name: f"{PLACE}.functions.{name}" for name in ("convert", "verify")
    }

    def commands(self) -> Sequence[CommandSpec]:
        return [
            CommandSpec(
                "convert",
                f"{PLACE}.command.convert",
                "Make",
                (
                    "loraprobe convert ./legal -o portable",
                    "loraprobe convert ./loha --base auto -o lora",
                ),
            ),
            CommandSpec(
                "verify",
                f"{PLACE}.command.verify",
                "Other",
                ("loraprobe verify merged",),
            ),
        ]


EXTENSION = Files()
