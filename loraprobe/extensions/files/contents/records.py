"""What was found in a merge: its parts, its differences from the base, and the verdict."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import torch

from loraprobe.base.model import HEADS

MergeVerdict = Literal[
    "exact", "rounded", "scaled", "partly", "other-base", "not-linear", "not-of-these"
]
ModuleState = Literal["as made", "lacking", "scaled", "changed", "missing"]

NEAR = 0.02  # two weights that differ by less are equal, or by SIGMAS standard errors
SIGMAS = 4.0
EXACT = 1e-3  # of the change: less rounding is not worth telling
SPARSE = 0.05  # of the entries that a linear merge would move: so many unmoved are no chance


@dataclass(frozen=True)
class Rest:
    """The form of what adapters and rounding leave of one tensor's change.

    size: its norm by that of the tensor's weights in the base. full: whether it has as many
    directions as the tensor, unlike a LoRA. bits: 4 or 8 where the base looks rounded to so many,
    else 0. zeros: the share of entries that a linear merge would move and that did not move.
    elected: whether a sum explains the entries in whose sign all adapters agree, and only these.
    crossed: whether products of one adapter's B and another's A explain it. turned: whether a
    multiple of the base's own weights does, as where whole models are averaged along an arc.
    """

    size: float
    full: bool
    bits: int
    zeros: float
    elected: bool
    crossed: bool
    turned: bool = False

    @property
    def not_linear(self) -> bool:
        """Whether it is the rest of a method that is no weighted sum of the adapters' changes."""
        marked = self.zeros > SPARSE or self.elected or self.crossed or self.turned
        return marked and not self.bits


@dataclass(frozen=True)
class ModuleContents:
    """One tensor that adapters change, or one module of a merged adapter.

    weights: of each adapter, None where it leaves this tensor alone. errors: their standard errors.
    norm: of the change. rounding: the norm of its rounding. rest: that of what is left beyond
    rounding. explained: whether that is nothing. moved: whether the file's dtype can tell the
    adapters' changes from none. cut: the share of the change that a smaller rank keeps, else 1.
    missing: the file has no such tensor, or one of another shape. dtypes: that of the file, and the
    narrowest that holds its numbers.
    """

    name: str
    weights: tuple[float | None, ...]
    errors: tuple[float, ...] = ()
    norm: float = 0.0
    rounding: float = 0.0
    rest: float = 0.0
    explained: bool = True
    moved: bool = True
    form: Rest | None = None
    cut: float = 1.0
    missing: bool = False
    dtypes: tuple[torch.dtype, torch.dtype] = (torch.float32, torch.float32)

    def near(self, wanted: Sequence[float], at: int) -> bool:
        """Whether the weight of one adapter is this one, as far as can be told."""
        own = self.weights[at]
        return own is None or abs(own - wanted[at]) <= max(
            NEAR * max(1.0, abs(wanted[at])), SIGMAS * self.errors[at]
        )

    def state(self, wanted: Sequence[float]) -> ModuleState:
        """How it compares with these weights of the adapters."""
        if self.missing:
            return "missing"
        if not self.explained:
            return "changed"
        off = [at for at in range(len(wanted)) if not self.near(wanted, at)]
        if not (self.moved and off):
            return "as made"
        nothing = [0.0] * len(wanted)
        return "lacking" if all(self.near(nothing, at) for at in off) else "scaled"


@dataclass(frozen=True)
class Difference:
    """One tensor that no adapter changes and that is not the base's: the norm of the difference by
    that of the base's tensor; None where it has another shape (`rows`: more or fewer rows, and the
    common ones are the same) or is missing. tied: a head that the merge ties to its embedding, and
    that changed with it."""

    name: str
    size: float | None
    rows: tuple[int, int] | None = None
    tied: bool = False

    @property
    def own_head(self) -> bool:
        """Whether it is a head that was untied and changed."""
        return self.name.startswith(HEADS) and not self.tied and self.size is not None


@dataclass(frozen=True)
class Contents:
    """What is in a merge.

    adapters: the names of what it should hold. wanted: their weights as given, None where any
    constant ones do. parts: what adapters change. others: how many tensors no adapter changes;
    differences: those of them that are not the base's. wrapped: keys under which no program loads
    them. dtype: of the file. through: a narrower dtype through which its numbers went.
    """

    adapters: tuple[str, ...]
    wanted: tuple[float, ...] | None
    parts: tuple[ModuleContents, ...]
    others: int = 0
    differences: tuple[Difference, ...] = ()
    wrapped: tuple[str, ...] = ()
    dtype: str = "float32"
    through: str = ""
    ranks: tuple[int, ...] = ()
    scalings: tuple[float, ...] = ()
    full_model: bool = True

    @cached_property
    def weights(self) -> tuple[float, ...]:
        """The weight of each adapter: the median over the parts that hold it and have no rest.

        Where no part does, over all parts; a part counts by how exactly it tells the weight.
        """
        n = len(self.adapters)
        clean = [part for part in self._told if part.explained]
        held = [p for p in clean if not all(p.near([0.0] * n, at) for at in range(n))]
        some = held or clean or self._told
        found = tuple(_median(some, at) for at in range(n))
        return next((one for one in self._nominal if self._agree(found, one, some)), found)

    @property
    def _nominal(self) -> list[tuple[float, ...]]:
        n = len(self.adapters)
        return [self.wanted] if self.wanted else [(1.0,) * n, (1.0 / n,) * n]

    @property
    def as_wanted(self) -> bool:
        """Whether the weights are those given; without any: all 1, or all 1/n."""
        return self.weights in self._nominal

    @staticmethod
    def _agree(
        found: Sequence[float], nominal: Sequence[float], parts: Sequence[ModuleContents]
    ) -> bool:
        return all(
            abs(one - other) <= max(NEAR, SIGMAS * _error(parts, at))
            for at, (one, other) in enumerate(zip(found, nominal, strict=True))
        )

    @cached_property
    def states(self) -> Mapping[ModuleState, Sequence[ModuleContents]]:
        """The parts by how they compare with the weights."""
        found: dict[ModuleState, list[ModuleContents]] = {}
        for part in self.parts:
            found.setdefault(part.state(self.weights), []).append(part)
        return found

    def count(self, state: ModuleState) -> int:
        return len(self.states.get(state, ()))

    @property
    def forms(self) -> list[Rest]:
        return [part.form for part in self.parts if part.form is not None]

    def most(self, what: str) -> bool:
        """Whether most of the examined rests have a property."""
        return 2 * sum(bool(getattr(form, what)) for form in self.forms) > len(self.forms)

    @property
    def absent(self) -> tuple[str, ...]:
        """The adapters of which nothing is in it."""
        return tuple(
            name
            for at, name in enumerate(self.adapters)
            if all(part.near([0.0] * len(self.adapters), at) for part in self._told)
        )

    @property
    def _told(self) -> list[ModuleContents]:
        return [part for part in self.parts if part.moved and not part.missing]

    @property
    def is_base(self) -> bool:
        """Whether nothing differs from the base."""
        changed = any(part.norm > 2 * part.rounding for part in self.parts if part.moved)
        return not (changed or self.differences) and self.absent == self.adapters

    @property
    def share_of_rounding(self) -> float:
        """||rounding|| / ||change|| over all parts that are as they should be."""
        made = self.states.get("as made", ())
        change2 = sum(part.norm**2 for part in made)
        return math.sqrt(sum(part.rounding**2 for part in made) / max(change2, 1e-300))

    @property
    def ratio(self) -> float:
        """||rest|| / ||what of the adapters is in it|| over the parts with a rest."""
        parts = self.states.get("changed", ())
        rest2 = sum(part.rest**2 for part in parts)
        known2 = sum(max(part.norm**2 - part.rest**2, 0.0) for part in parts)
        return math.sqrt(rest2 / max(known2, 1e-300))

    @property
    def share_of_rest(self) -> float:
        """||rest|| / ||change|| over the parts with a rest."""
        parts = self.states.get("changed", ())
        change2 = sum(part.norm**2 for part in parts)
        return min(1.0, math.sqrt(sum(part.rest**2 for part in parts) / max(change2, 1e-300)))

    @property
    def kept(self) -> float:
        """The share of the change that a smaller rank keeps, 1 where none was cut."""
        whole2 = sum((part.norm / part.cut) ** 2 for part in self.parts if part.cut > 0)
        return math.sqrt(sum(part.norm**2 for part in self.parts) / whole2) if whole2 else 1.0

    @cached_property
    def verdict(self) -> MergeVerdict:
        """What it is; the first of these that holds."""
        parts, changed = len(self.parts), self.count("changed")
        most = 2 * changed >= parts > 0
        if not self._told or self.absent == self.adapters:
            return "not-of-these"
        elsewhere = 2 * len(self.differences) >= self.others > 0
        if most and not elsewhere and self.forms and self.most("not_linear"):
            return "not-linear"
        if elsewhere or (most and self.forms and self.most("full")):
            return "other-base"
        if any(one.rows or one.own_head for one in self.differences):
            return "other-base"
        if most and self.ratio > 1:
            return "not-of-these"
        whole = self.kept > 1 - EXACT and self.count("as made") == parts
        if self.absent or self.differences or not whole:
            return "partly"
        if not self.as_wanted:
            return "scaled"
        return "exact" if self.share_of_rounding <= EXACT else "rounded"

    @property
    def holds(self) -> bool | None:
        """Whether it is what the adapters make with their weights; None where it cannot be told."""
        if self.verdict == "not-linear":
            return None
        return self.verdict in ("exact", "rounded") and not self.wrapped


def _median(parts: Sequence[ModuleContents], at: int) -> float:
    """The median of one adapter's weights, each counted by 1 / its variance."""
    known = [(p.weights[at], p.errors[at]) for p in parts if p.weights[at] is not None]
    ranked = sorted((float(w or 0.0), 1 / (error**2 + 1e-6)) for w, error in known)
    half, seen = sum(count for _, count in ranked) / 2, 0.0
    for weight, counted in ranked:
        seen += counted
        if seen >= half:
            return weight
    return 0.0


def _error(parts: Sequence[ModuleContents], at: int) -> float:
    """The standard error of the mean of one adapter's weights over parts."""
    known = [p.errors[at] for p in parts if p.weights[at] is not None]
    return 1 / math.sqrt(sum(1 / (error**2 + 1e-12) for error in known)) if known else 0.0


def snapped(weight: float, error: float) -> float:
    """A weight, or the number of two digits behind the point that it is but for its error."""
    near = round(weight, 2)
    return near if abs(weight - near) <= max(1e-4, min(SIGMAS * error, 0.005)) else weight


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def as_plain(contents: Contents) -> dict[str, Any]:
    """The fields of the document."""

    def row(part: ModuleContents) -> dict[str, Any]:
        return {
            "name": part.name,
            "state": part.state(contents.weights),
            "weights": list(part.weights),
            "norm": part.norm,
            "rounding": part.rounding,
            "rest": part.rest,
            "cut": part.cut,
        }

    return {
        "verdict": contents.verdict,
        "adapters": list(contents.adapters),
        "weights": list(contents.weights),
        "dtype": contents.dtype,
        "through": contents.through or None,
        "rounding": contents.share_of_rounding,
        "rest": contents.ratio if contents.count("changed") else 0.0,
        "states": {state: len(parts) for state, parts in contents.states.items()},
        "modules": [row(part) for part in contents.parts],
        "unadapted": contents.others,
        "differences": [
            {"name": one.name, "size": one.size, "rows": one.rows} for one in contents.differences
        ],
        "wrapped": len(contents.wrapped),
    }
