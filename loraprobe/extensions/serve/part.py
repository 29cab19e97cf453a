"""The part of an audit that says how its result is served."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from loraprobe.extension import AuditPart
from loraprobe.records import Audit, Command


@dataclass(frozen=True)
class ServeCommands:
    """The commands that serve what was made or what the verdict advises."""

    serve: tuple[Command, ...] = ()


class ServePart(AuditPart):
    """The commands stand behind the next one."""

    record = ServeCommands

    def commands(self, audit: Audit) -> Iterable[tuple[str, Command]]:
        return [("serve", command) for command in audit.of_extension(ServeCommands).serve]
