"""From the members of a library to its record: copies, families, outliers and the map."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from loraprobe.library.duplicates import name_copies
from loraprobe.library.families import families, outliers, places
from loraprobe.library.reading import Member
from loraprobe.library.sketches import NUMBERS, cosines
from loraprobe.records import Issue, Library


@dataclass(frozen=True, eq=False)
class Arranged:
    """A library whose adapters were read and compared.

    `members` are all adapters as given. `cosines` [n, n] are the estimated ones of the n adapters
    in `compared`, by name: those that are usable and have deltas.
    """

    members: Sequence[Member]
    library: Library
    compared: Sequence[str]
    cosines: NDArray[np.float32]

    @property
    def usable(self) -> list[Member]:
        """The members that can be asked and composed."""
        return [member for member in self.members if member.usable]


def arranged(members: Sequence[Member]) -> Arranged:
    """Compares the members by their sketches."""
    found = list(members)
    at = [i for i, member in enumerate(found) if member.usable and member.sketch is not None]
    near = cosines([sketch for i in at if (sketch := found[i].sketch) is not None])
    for i, named in zip(at, name_copies([found[i] for i in at], near), strict=True):
        found[i] = named
    kept = [place for place, i in enumerate(at) if found[i].usable]
    near, at = near[np.ix_(kept, kept)], [at[place] for place in kept]
    extreme = outliers([found[i].record.norm or 0.0 for i in at])
    positions, share = places(near)
    for i, family, times, place in zip(at, families(near), extreme, positions, strict=True):
        issues = [] if times is None else [_extreme(found[i], times)]
        found[i] = found[i].changed(*issues, family=family, outlier=times is not None, place=place)
    errors = [sketch.error for i in at if (sketch := found[i].sketch) is not None]
    library = Library(
        tuple(member.record for member in found), NUMBERS, max(errors, default=0.0), share
    )
    return Arranged(found, library, [found[i].record.name for i in at], near)


def _extreme(member: Member, times: float) -> Issue:
    """The finding about a norm that is far from the others'."""
    name = member.record.name
    much = f"{times:.3g} times" if times > 1 else f"1/{1 / times:.3g} of"
    message = f"The norm of {name}, {member.record.norm:.3g}, is {much} the library's median."
    cure = "Look at its answers alone before you compose it, and compose with --balance norm."
    return Issue("warning", "norm-outlier", (name,), message, cure)
