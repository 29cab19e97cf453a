"""How the members of a library relate: fit to each other or a base, copies, families, outliers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from loraprobe import compatibility
from loraprobe.adapters import Adapter, layer_pattern
from loraprobe.base import Base
from loraprobe.compatibility import Purpose
from loraprobe.defaults import FAMILY_COSINE, NORM_RATIO
from loraprobe.errors import LoraprobeError
from loraprobe.extensions.screen.defaults import (
    COPY_COSINE,
    COPY_RATIO,
    FEWEST_NORMS,
    OUTLIER_DEVIATIONS,
)
from loraprobe.extensions.screen.reading import Member, issue_of
from loraprobe.extensions.screen.records import Library, LibraryAdapter
from loraprobe.extensions.screen.sketches import estimate_cosines
from loraprobe.findings import finding
from loraprobe.records import Issue
from loraprobe.secrets import map_texts, public_text


def mark_unfit(
    members: Sequence[Member], base: Base | None = None, allow: Collection[str] = ()
) -> list[Member]:
    """The members, those that do not fit as `unfit` with the reasons; only headers are read.

    They have to fit the base; without one, what most of them fit: the commonest base model, and the
    commonest shape of each kind of module. allow: codes of issues that are accepted.
    """
    made, facts = list(members), dict[int, dict[str, Any]]()
    for at, member in enumerate(made):
        try:
            adapter = member.open() if member.usable else None
        except LoraprobeError as error:  # its files changed meanwhile
            issue = map_texts(issue_of(error, member.record.name), public_text)
            made[at], adapter = member.changed(issue, state="broken"), None
        if adapter is not None and base is not None:
            made[at] = _checked(member, [adapter], base, allow)
        elif adapter is not None:
            shapes = {layer_pattern(path): info.shape for path, info in adapter.layout.items()}
            facts[at] = {**shapes, "base": adapter.base_model, "task": adapter.task_type}
    names = {fact for known in facts.values() for fact in known}
    usual = {fact: _commonest(known.get(fact) for known in facts.values()) for fact in names}
    alike = [at for at, known in facts.items() if known.items() <= usual.items()]
    for at in facts.keys() - alike if alike else ():
        made[at] = _checked(made[at], [made[alike[0]].open(), made[at].open()], None, allow)
    return made


def commonest_base(members: Sequence[Member]) -> Member | None:
    """The first usable member of the base model that most of them name; None if none names one."""
    usable = [member for member in members if member.usable]
    base = _commonest(member.record.base_model for member in usable)
    return next((m for m in usable if m.record.base_model == base), None) if base else None


def _commonest(values: Iterable[Any]) -> Any:
    counted = Counter(value for value in values if value)
    return counted.most_common(1)[0][0] if counted else None


def _checked(
    member: Member, adapters: Sequence[Adapter], base: Base | None, allow: Collection[str]
) -> Member:
    """The member with what the headers of adapters say about it; `unfit` if that is an error.

    What its tensors hold is known from the first pass.
    """
    purpose: Purpose = "inspect" if base is None else "route"
    checked = compatibility.check_headers(adapters, base, purpose=purpose, allow=allow)
    known = {(issue.code, issue.module) for issue in member.record.issues}
    issues = [
        i for i in checked.issues if member.record.name in i.adapters and i.severity != "note"
    ]
    new = [issue for issue in issues if (issue.code, issue.module) not in known]
    unfit = any(issue.severity == "error" for issue in new)
    return member.changed(*new, state="unfit" if unfit else "usable")


@dataclass(frozen=True, eq=False)
class ComparedLibrary:
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


def compare_members(members: Sequence[Member]) -> ComparedLibrary:
    """Compares the members by their sketches."""
    every = list(members)
    sketched = {i: m.reading for i, m in enumerate(every) if m.usable and m.reading is not None}
    held = {i: reading.numbers for i, reading in sketched.items() if reading.numbers is not None}
    at, near = list(held), estimate_cosines(list(held.values()))
    for i, named in zip(at, name_copies([every[i] for i in at], near), strict=True):
        every[i] = named
    kept = [place for place, i in enumerate(at) if every[i].usable]
    near, at = near[np.ix_(kept, kept)], [at[place] for place in kept]
    extreme = outliers([every[i].record.norm or 0.0 for i in at])
    positions, share = map_positions(near)
    for i, family, times, place in zip(at, group_families(near), extreme, positions, strict=True):
        issues = [] if times is None else [_extreme(every[i].record, times)]
        every[i] = every[i].changed(*issues, family=family, outlier=times is not None, place=place)
    error = max((sketched[i].error for i in at), default=0.0)
    library = Library(tuple(member.record for member in every), error, share)
    return ComparedLibrary(every, library, [every[i].record.name for i in at], near)


def _extreme(record: LibraryAdapter, times: float) -> Issue:
    """The finding about a norm that is far from the others'."""
    much = f"{times:.3g} times" if times > 1 else f"1/{1 / times:.3g} of"
    message = f"The norm of {record.name}, {record.norm:.3g}, is {much} the library's median."
    return finding("norm-outlier", (record.name,), message)


Cosines = NDArray[np.float32]


def group_families(cosines: Cosines) -> list[int | None]:
    """The family of every adapter, from 1, the largest first; None for one that is alone.

    Groups are joined while the mean cosine between their members is at least FAMILY_COSINE
    (average linkage; Sokal and Michener 1958).
    """
    n = len(cosines)
    if n < 2:
        return [None] * n
    from scipy.cluster.hierarchy import fcluster, linkage

    distances = 1 - cosines[np.triu_indices(n, 1)].astype(np.float64)
    labels = fcluster(linkage(distances, "average"), 1 - FAMILY_COSINE, "distance").tolist()
    sizes = {label: labels.count(label) for label in dict.fromkeys(labels)}  # in order of members
    together = [label for label, size in sizes.items() if size > 1]
    order = sorted(together, key=lambda label: -sizes[label])
    numbers = {label: number for number, label in enumerate(order, 1)}
    return [numbers.get(label) for label in labels]


def outliers(norms: Sequence[float]) -> list[float | None]:
    """How many times the median norm an adapter has whose norm is extreme; None for the others.

    Extreme is more than NORM_RATIO times larger or smaller than the median and further from it
    than OUTLIER_DEVIATIONS robust standard deviations (median absolute deviation of the logarithms
    over 0.6745; Iglewicz and Hoaglin 1993).
    """
    if len(norms) < FEWEST_NORMS:
        return [None] * len(norms)
    logs = np.log(np.asarray(norms, dtype=np.float64))
    middle = float(np.median(logs))
    deviation = float(np.median(np.abs(logs - middle)) / 0.6745)  # of a normal distribution
    times: list[float | None] = []
    for log in logs.tolist():
        far = abs(log - middle)
        extreme = far > np.log(NORM_RATIO) and far > OUTLIER_DEVIATIONS * deviation
        times.append(float(np.exp(log - middle)) if extreme else None)
    return times


def map_positions(cosines: Cosines) -> tuple[list[tuple[float, float]], float | None]:
    """Positions on a map of two dimensions, and the share of the squared distances that it shows.

    Classical scaling (Torgerson 1952) of the distances sqrt(2 - 2 cosine), which are those of
    deltas of length one. The larger extent of each axis is on its positive side.
    """
    n = len(cosines)
    if n < 2:
        return [(0.0, 0.0)] * n, None
    from scipy.linalg import eigh

    centred = cosines.astype(np.float64)
    centred -= centred.mean(0)
    centred -= centred.mean(1)[:, None]
    total = float(np.trace(centred))
    values, vectors = eigh(centred, subset_by_index=[n - 2, n - 1])
    axes = vectors[:, ::-1] * np.sqrt(np.clip(values[::-1], 0, None))
    largest = axes[np.abs(axes).argmax(0), [0, 1]]
    axes *= np.where(largest < 0, -1.0, 1.0)
    share = float(np.clip(values, 0, None).sum() / total) if total > 0 else None
    return [(float(x), float(y)) for x, y in axes], share


CANDIDATE = 1 - 1e-4  # a smaller estimated cosine is none of a copy


def name_copies(members: Sequence[Member], cosines: NDArray[np.float32]) -> list[Member]:
    """The members with copies named, each after the first member that it equals.

    The same update, be it in another basis or precision, becomes a `duplicate`; a scaled one stays
    usable with an issue. cosines: [n, n], estimated: they point out candidates, and the Gram
    matrices of the two adapters' factors decide.
    """
    made: list[Member] = []
    for at, member in enumerate(members):
        alike = [j for j in np.flatnonzero(cosines[at, :at] >= CANDIDATE) if made[j].usable]
        for j in sorted(alike, key=lambda j: -cosines[at, j]):
            if made[j].record.same_as is None and (copy := _as_copy(member, made[j])) is not None:
                member = copy
                break
        made.append(member)
    return made


def _as_copy(member: Member, other: Member) -> Member | None:
    """The member as a copy of another one; None if it is none."""
    names, same = (member.record.name, other.record.name), member.key == other.key
    cosine, ratio = (1.0, 1.0) if same else _compared(member, other)
    if cosine < COPY_COSINE:
        return None
    message = f"{names[0]} is {names[1]}: the same file."
    if not same:
        message = f"{names[0]} is the same update as {names[1]}, in another basis or precision."
    if max(ratio, 1 / ratio) <= COPY_RATIO:
        issue = finding("duplicate", names, message)
        return member.changed(issue, state="duplicate", same_as=names[1])
    message = f"{names[0]} is {names[1]}, {ratio:.3g} times as large."
    return member.changed(finding("scaled-copy", names, message), same_as=names[1])


def _compared(member: Member, other: Member) -> tuple[float, float]:
    """The exact cosine of two members, and how many times as large as the other the first is.

    (0, 1) for adapters with magnitudes, whole modules or biases, which are not compared.
    """
    adapters, cosine = [member.open(), other.open()], 0.0
    if not any(a.has_more_than_factors for a in adapters):
        inner = compatibility.TensorChecks(adapters).read().inner
        cosine = float(inner[0, 1] / (inner[0, 0] * inner[1, 1]).sqrt())
    return cosine, (member.record.norm or 0.0) / (other.record.norm or 1.0)
