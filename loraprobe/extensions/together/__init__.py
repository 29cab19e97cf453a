"""Which adapters keep their skills in one merge: forecast from each one alone, and proved."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from loraprobe.errors import UsageError
from loraprobe.extension import AuditPart, Extension
from loraprobe.options import AddedOptions, Options, option, read_named_file


@dataclass(frozen=True)
class TogetherOptions(AddedOptions):
    """The task of each adapter."""

    title: ClassVar[str] = "Skills together"

    own: tuple[tuple[str, Path], ...] = option(
        (),
        "NAME=FILE",
        "An adapter's own task, for each adapter: forecasts which of them keep their skills in one "
        "merge, and proves the largest group; may be repeated.",
        affects={"questions"},
        read=read_named_file,
        commands=("screen",),
    )

    def check(self, options: Options) -> None:
        names = [name for name, _ in self.own]
        for name in names:
            if names.count(name) > 1:
                raise UsageError(f"--own names {name} twice; give one task for each adapter.")


class TogetherExtension(Extension):
    """Screens a library for what can live together."""

    options = TogetherOptions
    functions: ClassVar[Mapping[str, str]] = {
        "keep_together": "loraprobe.extensions.together.commands.keep_together"
    }

    def instead(self, command: str, options: Options) -> Callable[..., None] | None:
        if command != "screen" or not options.of_extension(TogetherOptions).own:
            return None
        from loraprobe.extensions.together.commands import screen_own

        return screen_own

    def audit_parts(self) -> Sequence[AuditPart]:
        from loraprobe.extensions.together.part import TogetherPart

        return [TogetherPart()]


EXTENSION = TogetherExtension()
