"""What a screen adds to an audit; field names are those of the JSON document."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from loraprobe.records import QUESTION, Audit, Gain, Interval, Issue, ItemPart

ShortlistOutcome = Literal["compose", "single", "chain", "none", "open"]
State = Literal["usable", "broken", "unfit", "duplicate"]


@dataclass(frozen=True)
class Forecast:
    """What one composition would gain if the adapters' effects on the next token simply added.

    `gain` is its smallest difference to base and single adapters on the same `n` items, reached by
    `against`, which answered in the form `against_part`; `ci95` is the paired interval. `part` is
    the form of the question on which it gains more. Of several tasks it is the mean.
    """

    system: str
    gain: float
    ci95: Interval
    n: int
    part: ItemPart = QUESTION
    against: str = "base"
    against_part: ItemPart = QUESTION


@dataclass(frozen=True)
class LibraryScore:
    """What one adapter alone scored on the screening items of one part of one task."""

    task: str
    part: ItemPart
    value: float
    n: int


@dataclass(frozen=True)
class LibraryAdapter:
    """One adapter of a library: what it is, how it was read, and where it stands among the others.

    `state` is usable; broken (it cannot be read or used, `issues` say why); unfit (it fits neither
    the base nor what most adapters fit); or duplicate (the same update as `same_as`). Fields that
    only reading gives are empty or None for what could not be read. `norm` is the Frobenius norm of
    all deltas together. `family` numbers the groups of usable adapters whose deltas point the same
    way, from 1, the largest first; None for one that is alone. `place` is the position on the map
    of the library, in units of the square root of 2 (1 - cosine). `scores` are those of the adapter
    alone on the screening items.
    """

    name: str
    reference: str
    commit: str | None
    sha256: str
    base_model: str | None
    rank: Mapping[str, int] | None  # {"min": 16, "max": 16}
    modules: int
    parameters: int
    norm: float | None
    state: State
    issues: tuple[Issue, ...] = ()
    same_as: str | None = None
    family: int | None = None
    outlier: bool = False
    place: tuple[float, float] | None = None
    scores: tuple[LibraryScore, ...] = ()


@dataclass(frozen=True)
class Library:
    """A library of adapters, in the order in which they were given.

    Cosines between adapters come from sketches; `cosine_error` is the largest standard error of
    such a cosine. `map_share` is the share of the squared distances that the map shows.
    """

    adapters: tuple[LibraryAdapter, ...]
    cosine_error: float
    map_share: float | None = None


@dataclass(frozen=True)
class Shortlisted:
    """A composition (or a single adapter) that the screening chose, and what became of it.

    `place` is its rank by the forecast among the `looked_at` compositions, from 1. `system` is its
    best composition on the proving items, `gain` what that gained there over base and singles.
    `outcome` says in a word what to do: compose, single, chain, none or open. The adapters of the
    chain are those that answer a hop best.
    """

    adapters: tuple[str, ...]
    kind: Literal["pair", "subset", "single", "chain"]
    place: int
    looked_at: int
    forecast: Forecast | None = None
    system: str | None = None
    gain: Gain | None = None
    outcome: ShortlistOutcome = "open"


@dataclass(frozen=True)
class Screened:
    """The library, and what was proved of it; None and nothing where there is no library."""

    library: Library | None = None
    shortlist: tuple[Shortlisted, ...] = ()

    @property
    def members(self) -> tuple[LibraryAdapter, ...]:
        """The adapters of the library."""
        return self.library.adapters if self.library is not None else ()


def screened(audit: Audit) -> Screened:
    """What a screen added to an audit."""
    return audit.of_extension(Screened)
