"""What commands make and write: a merge, a composition, a rewritten adapter."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from loraprobe.adapters.types import Adapter
from loraprobe.records import AdapterSummary


class Artifact(ABC):
    """What a command made. It has a directory of its own, with a card."""

    @property
    @abstractmethod
    def name(self) -> str:
        """What a remark calls it."""

    @abstractmethod
    def save(self, directory: str | Path, overwrite: bool = False) -> None:
        """Writes the directory, all or nothing. Raises OutputError where it cannot be written."""


@dataclass(frozen=True, eq=False)
class Composed(Artifact):
    """What is made of adapters.

    library, tag, template: of its card. load: the line of Python that loads it, {0} its directory.
    sources: the adapters, in one row each. card: README.md; card_of makes that of another form,
    from a template, front matter and values.
    """

    library: ClassVar[str]
    tag: ClassVar[str]
    template: ClassVar[str]
    load: ClassVar[str]

    sources: tuple[AdapterSummary, ...] = field(default=(), kw_only=True)
    card: str | None = field(default=None, kw_only=True)
    card_of: Callable[..., str] | None = field(default=None, kw_only=True)

    @property
    @abstractmethod
    def written(self) -> Adapter | None:
        """The adapter that its directory is; None where that is another thing."""

    @property
    @abstractmethod
    def takes_weights(self) -> bool:
        """Whether each source has a weight."""

    @property
    @abstractmethod
    def choices(self) -> dict[str, Any]:
        """From what it is made of its sources again, as the front matter of its card has it."""

    @property
    @abstractmethod
    def card_values(self) -> dict[str, Any]:
        """What its card shows beside its sources."""
