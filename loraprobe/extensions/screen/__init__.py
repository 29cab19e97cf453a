"""Libraries of many adapters: what of one can be used, and what of it a task needs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from loraprobe.errors import UsageError
from loraprobe.extension import AuditPart, CardPart, Extension, Remarks, Result
from loraprobe.extensions.screen.defaults import KEEP, SCREENING_ITEMS
from loraprobe.options import AddedOptions, CommandSpec, Options, option, read_named_file

if TYPE_CHECKING:
    from loraprobe.adapters import Adapter
    from loraprobe.records import Audit
    from loraprobe.session import Session


@dataclass(frozen=True)
class ScreenOptions(AddedOptions):
    """How much a screen asks."""

    title: ClassVar[str] = "Screening"

    items: int = option(
        SCREENING_ITEMS,
        "N",
        "Items of each task on which a library is screened.",
        affects={"questions"},
        least=10,
        commands=("screen",),
    )
    keep: int = option(
        KEEP,
        "N",
        "Sets of a library that are proved.",
        affects={"questions"},
        least=1,
        most=64,
        commands=("screen",),
    )
    budget: float | None = option(
        None,
        "X",
        "Minutes that a screen may take.",
        affects={"questions"},
        least=0.001,
        commands=("screen",),
    )
    own: tuple[tuple[str, Path], ...] = option(
        (),
        "NAME=FILE",
        "An adapter's own task, for each adapter: forecasts which of them keep their skills in one "
        "merge, and proves the largest group; may be repeated.",
        affects={"questions"},
        read=read_named_file,
        commands=("screen",),
    )
    known: tuple[str | Path, ...] = option(
        (),
        "FILE|DIR",
        "An earlier result that tells the skill of some of the adapters, which are then not asked "
        "alone: a document of --json, or the directory of a merge with its card; may be repeated.",
        affects={"questions"},
        commands=("screen",),
    )

    @property
    def together(self) -> bool:
        """Whether the adapters have tasks of their own."""
        return bool(self.own or self.known)

    def check(self, options: Options) -> None:
        names = [name for name, _ in self.own]
        for name in names:
            if names.count(name) > 1:
                raise UsageError(f"--own names {name} twice; give one task for each adapter.")


class Screen(Extension):
    """Screens a library."""

    options = ScreenOptions
    codes = Path(__file__).with_name("codes.toml")
    functions: ClassVar[Mapping[str, str]] = {
        "screen": "loraprobe.extensions.screen.functions.screen"
    }
    commands = (
        CommandSpec(
            "screen",
            "loraprobe.extensions.screen.command.screen",
            "Library",
            (
                "loraprobe screen @library.txt",
                "loraprobe screen @library.txt --task questions.jsonl",
            ),
            "base balance allow task metric margin guards guard_margin retention limit "
            "all_items max_new_tokens chat_template seed methods routers space rank device "
            "dtype quantize device_map batch_size threads trust_remote_code resume json "
            "explain dry_run quiet exit_zero",
        ),
    )

    def audit_parts(self) -> Sequence[AuditPart]:
        from loraprobe.extensions.screen.part import ScreenPart, TogetherPart

        return [ScreenPart(), TogetherPart()]

    def remarks(self, session: Session, result: Result) -> Remarks:
        options, measured = session.options, result.measured
        prepared = options.subtract or options.balance != "none"
        if measured is None or prepared or not any(row.kept for row in measured.scores):
            return Remarks()
        from loraprobe.extensions.screen.together.known import kept_in

        found = kept_in(result.adapters, measured)
        return Remarks(added=[found] if found.keeps else [])

    def card_parts(self, adapter: Adapter, audit: Audit | None) -> Sequence[CardPart]:
        from loraprobe.extensions.screen.together.records import together

        if audit is None or not together(audit).keeps:
            return ()
        from loraprobe.extensions.screen.together.known import card_part  # a merge needs none of it

        return card_part(audit)


EXTENSION = Screen()
