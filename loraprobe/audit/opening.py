"""A base model as a user names it -> Base."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from loraprobe.adapter import Adapter
from loraprobe.base import Base, open_base


def base_of(base: str | Path | Base, adapters: Sequence[Adapter], *, code: bool = False) -> Base:
    """The base of a reference, "auto" for the one that the adapters' configs agree on.

    An opened Base passes through. `code` also brings a repository's own model code. Raises
    LoraprobeError, saying what to do, where the base cannot be had.
    """
    from loraprobe import hub

    if isinstance(base, Base):
        return base
    reference = hub.common_base(adapters) if base == "auto" else str(base)
    snapshot = hub.resolve_base(reference, code=code)
    return open_base(snapshot.path, snapshot.reference, snapshot.commit)
