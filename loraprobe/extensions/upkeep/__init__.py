"""`cache`, `env` and `skill`: what runs keep, what a bug report needs, what an agent reads."""

from __future__ import annotations

from loraprobe.extension import Extension
from loraprobe.options import CommandSpec

COMMAND = f"{__name__}.command"


class Upkeep(Extension):
    """Tells of the installation and of what runs keep."""

    commands = (
        CommandSpec(
            "cache",
            f"{COMMAND}.cache",
            "Other",
            ("loraprobe cache", "loraprobe cache --clear --older 30"),
            "clear older json",
        ),
        CommandSpec("env", f"{COMMAND}.env", "Other", ("loraprobe env",), "json"),
        CommandSpec("skill", f"{COMMAND}.skill", "Other", ("loraprobe skill",)),
    )


EXTENSION = Upkeep()
