"""What Python calls: `loraprobe.screen`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loraprobe.options import takes

if TYPE_CHECKING:
    from loraprobe.adapters import Adapter
    from loraprobe.records import Audit


@takes("screen")
def screen(
    adapters: Sequence[Adapter | str | Path],
    *,
    base: str | Path | None = None,
    tasks: Sequence[str | Path] | str | Path = (),
    **options: Any,
) -> Audit:
    """Describes a library of adapters, and with tasks tells what of it to use.

    adapters: adapters, references, or `@FILE` for a file with one reference a line. base: what they
    have to fit; "auto", and None with tasks, is the base that most of them name. The Audit's
    `library` has every adapter, also what cannot be used and why. Raises LoraprobeError if no
    adapter can be read.
    """
    from loraprobe.extensions.screen import stages
    from loraprobe.extensions.screen.reading import expand_references
    from loraprobe.session import Session

    given = expand_references([adapters] if isinstance(adapters, str) else adapters)
    return stages.screen(given, Session.of_call(options), base=base, tasks=tasks).audit
