"""Adapters of a library that are the same update, or one update at two scales.

Sketches point out candidates; the Gram matrices of the two adapters' factors decide.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from loraprobe.compatibility.tensors import TensorChecks
from loraprobe.defaults import COPY_COSINE, COPY_RATIO
from loraprobe.library.reading import Member
from loraprobe.library.stored import pair_key, store, stored
from loraprobe.records import Issue

CANDIDATE = 1 - 1e-4  # a smaller estimated cosine is none of a copy


def name_copies(members: Sequence[Member], cosines: NDArray[np.float32]) -> list[Member]:
    """The members with copies named, each after the first member that it equals.

    The same update, be it in another basis or precision, becomes a `duplicate`; a scaled one stays
    usable with an issue. cosines: [n, n], estimated.
    """
    made: list[Member] = []
    for at, member in enumerate(members):
        alike = [j for j in np.flatnonzero(cosines[at, :at] >= CANDIDATE) if made[j].usable]
        for j in sorted(alike, key=lambda j: -cosines[at, j]):
            if made[j].record.same_as is None and (found := _as_copy(member, made[j])) is not None:
                member = found
                break
        made.append(member)
    return made


def _as_copy(member: Member, other: Member) -> Member | None:
    """The member as a copy of another one; None if it is none."""
    names = (member.record.name, other.record.name)
    if member.key == other.key:
        message = f"{names[0]} is {names[1]}: the same file."
        return _duplicate(member, other, message)
    cosine, ratio = _compared(member, other)
    if cosine < COPY_COSINE:
        return None
    if max(ratio, 1 / ratio) <= COPY_RATIO:
        message = f"{names[0]} is the same update as {names[1]}, in another basis or precision."
        return _duplicate(member, other, message)
    message = f"{names[0]} is {names[1]}, {ratio:.3g} times as large."
    cure = "Keep the one that answers better; together they only scale the update."
    issue = Issue("warning", "scaled-copy", names, message, cure)
    return member.changed(issue, same_as=names[1])


def _duplicate(member: Member, other: Member, message: str) -> Member:
    names = (member.record.name, other.record.name)
    issue = Issue("warning", "duplicate", names, message, "Leave one of them out.")
    return member.changed(issue, state="duplicate", same_as=names[1])


def _compared(member: Member, other: Member) -> tuple[float, float]:
    """The exact cosine of two members, and how many times as large as the other the first is.

    (0, 1) for adapters with magnitudes, whole modules or biases, which are not compared.
    """
    key = pair_key(member.key, other.key)
    held = stored(key)
    if held is None:
        adapters = [member.open(), other.open()]
        cosine = 0.0
        if not any(a.has_more_than_factors for a in adapters):
            inner = TensorChecks(adapters).read().inner
            cosine = float(inner[0, 1] / (inner[0, 0] * inner[1, 1]).sqrt())
        held = {"cosine": cosine}
        store(key, held)
    return float(held["cosine"]), (member.record.norm or 0.0) / (other.record.norm or 1.0)
