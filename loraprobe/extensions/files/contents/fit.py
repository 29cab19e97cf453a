"""One tensor of a full model: how it was made of the base's and the changes of adapters."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property
from itertools import product
from typing import Literal, get_args

import torch
from torch import Tensor

from loraprobe.extensions.files.contents.factors import stacked
from loraprobe.extensions.files.contents.records import EXACT, NEAR, ModuleContents, snapped
from loraprobe.lora.lowrank import LowRank

Rounding = Literal[
    "once", "in order", "in reverse", "safely in order", "safely in reverse", "as models"
]

SAME = 1e-8  # of a change's energy: no more than this is left where nothing else is in it
FIRST = 100  # entries that may differ before it is told that too many do
CHUNK = 1 << 16  # entries that are compared at a time, so that they stay in the processor's cache
MISMATCHED = 0.05  # of the entries that a merge moves: so many may be rounded the other way
ROUNDINGS: tuple[Rounding, ...] = get_args(Rounding)
UNKNOWN = 0.02  # by the share of rounding: the standard error that other ways of rounding leave
STEPS = 4  # of the search of weights


def grid_of(tensor: Tensor) -> torch.dtype:
    """The narrowest dtype that holds all numbers of a tensor, such as bfloat16 of a float32 one
    that was merged in bfloat16."""
    if tensor.dtype is not torch.float32:
        return tensor.dtype
    flat = tensor.flatten()
    for narrow in (torch.bfloat16, torch.float16):
        if all(bool((part.to(narrow) == part).all()) for part in (flat[:4096], flat)):
            return narrow
    return tensor.dtype


class Fit:
    """One tensor W of a merge, its W0 in the base and the changes of the adapters.

    changes: dW as W is stored, or its factors. dtype: to which W was rounded. hows: when it may
    have been, the likeliest first: once at the end; after each adapter, in the order given or the
    reverse, as peft does in a model that is loaded in bfloat16; or as mergekit does, which
    subtracts the rounded base from rounded models with one adapter each.
    """

    def __init__(
        self,
        W: Tensor,
        W0: Tensor,
        changes: Sequence[Tensor | LowRank],
        dtype: torch.dtype,
        hows: Sequence[Rounding] = ("once",),
    ) -> None:
        self.hows = hows if dtype.itemsize < 4 else ("once",)
        self.how, self.changes, self.dtype = self.hows[0], changes, dtype
        self.shape = W.flatten(1).shape if W.dim() > 1 else torch.Size((1, W.numel()))
        self.work = torch.promote_types(W0.dtype, torch.float32)
        self.as_stored = W.reshape(self.shape), W0.reshape(self.shape)
        self.narrow = dtype if dtype.itemsize < 4 else None
        self.eps, self.spacing = torch.finfo(self.work).eps, torch.finfo(dtype).eps
        # The energy of several roundings by that of one.
        self.most = len(changes) + 2.0

    @cached_property
    def W(self) -> Tensor:
        """The tensor of the merge in float32, flat, as the next two."""
        return self.as_stored[0].to(self.work).reshape(-1)

    @cached_property
    def W0(self) -> Tensor:
        return self.as_stored[1].to(self.work).reshape(-1)

    @cached_property
    def deltas(self) -> list[Tensor]:
        return [one.reshape(-1) for one in self._deltas(slice(None))]

    def rounded(self, wanted: Tensor) -> Tensor:
        return wanted if self.narrow is None else wanted.to(self.narrow).to(wanted.dtype)

    def sum(self, weights: Sequence[float]) -> Tensor:
        """W0 + the changes, before it is rounded."""
        return _sum(self.W0, weights, self.deltas)

    def stored(self, weights: Sequence[float], wanted: Tensor) -> Tensor:
        """What the file should have for `wanted`, the sum with these weights."""
        return self._stored(wanted, self.W0, weights, self.deltas).to(self.work)

    def _stored(
        self, wanted: Tensor, W0: Tensor, weights: Sequence[float], deltas: Sequence[Tensor]
    ) -> Tensor:
        """The same for a part of all entries, in the dtype to which they are rounded."""
        if self.narrow is None or self.how == "once":
            return wanted if self.narrow is None else wanted.to(self.narrow)
        pairs = list(zip(weights, deltas, strict=True))
        made = W0.to(self.narrow)
        if self.how == "as models":
            base = made.to(self.work)
            changes = (self.rounded(W0 + delta).sub_(base).mul_(w) for w, delta in pairs)
            return sum(changes, base).to(self.narrow)
        for weight, delta in reversed(pairs) if self.how.endswith("reverse") else pairs:
            if self.how.startswith("safely"):
                delta, weight = self.rounded(delta * weight), 1.0
            made = torch.add(made.to(self.work), delta, alpha=weight).to(self.narrow)
        return made

    def part(self, name: str, guesses: Sequence[Sequence[float]]) -> ModuleContents:
        """How W was made. guesses: weights that are tried before others are searched, which takes
        a fraction of the time, and finds those at which a search has a jump."""
        for how, guess in product(self.hows, guesses):
            self.how = how
            if (found := self.as_guessed(name, guess)) is not None:
                return found
        return self.searched(name, guesses[0] if guesses else ())

    def as_guessed(self, name: str, weights: Sequence[float]) -> ModuleContents | None:
        """How W was made, if it was with these weights, else None.

        A few rows are compared at a time. In float32 the rest has to be far below the change of
        these rows; in a narrower dtype the numbers are the same but for MISMATCHED of those that
        move, because sums are rounded in another order.
        """
        wrong = moved = 0
        change2 = rounding2 = 0.0
        step, added = max(1, CHUNK // max(1, self.shape[1])), self._added(weights)
        once = self.narrow is None or self.how == "once"
        inner = None if added is None else added.A @ added.A.mT
        for start in range(0, self.shape[0], step):
            rows = slice(start, start + step)
            stored, own = (one[rows] for one in self.as_stored)
            W0, deltas = own.to(self.work), list[Tensor]()
            if added is not None and once:
                X = torch.addmm(W0, added.B[rows], added.A)
            else:
                deltas = self._deltas(rows)
                X = _sum(W0, weights, deltas)
            if self.narrow is None:
                wanted2 = (
                    norm2(X - W0)
                    if inner is None or added is None
                    else _energy(added.B[rows], inner)
                )
                if norm2(X.sub_(stored.to(self.work))) > SAME * wanted2:
                    return None
                change2 += wanted2
                continue
            rounded = self._stored(X, W0, weights, deltas)
            P = rounded.to(self.work)
            moved += unlike(own.to(self.narrow), rounded)
            W = P
            if off := unlike(stored.to(self.narrow), rounded):
                wrong, W = wrong + off, stored.to(self.work)
                if wrong > MISMATCHED * moved + FIRST:
                    return None
                if self._far(weights, P, W, W0, deltas or self._deltas(rows)):
                    return None
            change2 += norm2(W - W0)
            rounding2 += norm2(X.sub_(P))
        if wrong > MISMATCHED * moved or not (moved or (self.narrow is None and change2)):
            return None
        norms = math.sqrt(change2), math.sqrt(rounding2)
        return ModuleContents(name, tuple(weights), (0.0,) * len(weights), *norms)

    def _deltas(self, rows: slice) -> list[Tensor]:
        """Some rows of the changes."""
        return [_rows(one, rows, self.shape) for one in self.changes]

    def _added(self, weights: Sequence[float]) -> LowRank | None:
        """The weighted sum of the changes in factors; None where one is no LoRA."""
        known = [one for one in self.changes if isinstance(one, LowRank)]
        return stacked(known, weights) if len(known) == len(self.changes) else None

    def _far(
        self,
        weights: Sequence[float],
        stored: Tensor,
        W: Tensor,
        W0: Tensor,
        deltas: Sequence[Tensor],
    ) -> bool:
        """Whether some entry of W is off by more than any rounding explains."""
        spacing = self.most * self.spacing
        beyond = (stored - W).abs_().sub_(W0.abs(), alpha=spacing)
        if float(beyond.amax()) <= 0:
            return False
        at = (beyond > 0).nonzero(as_tuple=True)
        beyond = beyond[at]
        for weight, delta in zip(weights, deltas, strict=True):
            beyond.sub_(delta[at].abs(), alpha=abs(weight) * spacing)
        return float(beyond.max()) > NEAR * max(float(delta.abs().max()) for delta in deltas)

    def searched(self, name: str = "", reference: Sequence[float] = ()) -> ModuleContents:
        """The weights by least squares, corrected for what rounding does to them.

        reference: weights by which it is told whether the dtype can hold the changes; 1 each if ().
        """
        gram = torch.tensor([[_dot(a, b) for b in self.deltas] for a in self.deltas])
        inverse = torch.linalg.pinv(gram.double(), rtol=1e-9, hermitian=True)
        observed = self._onto(self.W - self.W0, inverse)
        tried = list[tuple[int, Rounding, list[float], list[float]]]()
        for how in self.hows:
            self.how = how
            weights, errors = self._corrected(observed, inverse)
            wrong = int((self.stored(weights, self.sum(weights)) != self.W).count_nonzero())
            tried.append((wrong, self.how, weights, errors))
        _, self.how, weights, errors = min(tried, key=lambda one: one[0])
        wanted = self.sum(weights)
        stored = self.stored(weights, wanted)
        far = self._far(weights, stored, self.W, self.W0, self.deltas)
        change2 = norm2(self.W - self.W0)
        added2 = norm2(wanted - self.W0)
        rest2, rounding2 = norm2(self.W - wanted), norm2(stored - wanted)
        allowed2 = self.most * (rounding2 + added2 * self.spacing**2 / 12) + EXACT**2 * added2
        if self.narrow is None:  # what float32 itself rounds, in several sums
            allowed2 += 8 * self.eps**2 * (norm2(wanted) + norm2(self.W0))
            far = far and rest2 > allowed2
        explained = rest2 <= allowed2 and not far
        unknown = UNKNOWN * math.sqrt(min(1.0, rounding2 / max(added2, 1e-300)))
        return ModuleContents(
            name,
            tuple(weights),
            tuple(error + unknown * (self.narrow is not None) for error in errors),
            math.sqrt(change2),
            math.sqrt(min(rounding2, rest2)),
            0.0 if explained else math.sqrt(max(rest2 - self.most * rounding2, 1e-300)),
            explained,
            self._moves(reference or [1.0] * len(self.deltas)),
        )

    def _onto(self, change: Tensor, inverse: Tensor) -> Tensor:
        """The least-squares weights of the deltas for a change. inverse: of their Gram matrix."""
        return inverse @ torch.tensor([_dot(delta, change) for delta in self.deltas]).double()

    def _corrected(self, observed: Tensor, inverse: Tensor) -> tuple[list[float], list[float]]:
        """The weights whose rounded sum has the observed least-squares weights; their errors."""
        weights = observed
        for _ in range(STEPS if self.narrow is not None else 0):
            now = weights.tolist()
            made = self._onto(self.stored(now, self.sum(now)).sub_(self.W0), inverse)
            slope = (made.norm() / weights.norm().clamp_min(1e-30)).clamp(0.2, 2.0)
            step = (observed - made) / slope
            weights = (weights + step).clamp(-1e3, 1e3)
            if float(step.abs().max()) < NEAR / 10:
                break
        variance = norm2(self.W - self.sum(weights.tolist())) / max(self.W.numel(), 1)
        errors = (variance * inverse.diagonal().clamp_min(0)).sqrt().tolist()
        return [snapped(w, e) for w, e in zip(weights.tolist(), errors, strict=True)], errors

    def _moves(self, weights: Sequence[float]) -> bool:
        """Whether changes with these weights change any number in the dtype of the file."""
        made = self.stored(weights, self.sum(weights))
        return not torch.equal(made, self.rounded(self.W0))

    def of(self, W: Tensor, W0: Tensor, deltas: Sequence[Tensor]) -> Fit:
        """The same of other entries or with other changes."""
        return Fit(W, W0, deltas, self.narrow or W.dtype, (self.how,))


def _rows(change: Tensor | LowRank, rows: slice, shape: Sequence[int]) -> Tensor:
    """Some rows of a change; shape: that of all."""
    if isinstance(change, LowRank):
        return change.B[rows] @ change.A
    return change.reshape(tuple(shape))[rows]


def unlike(one: Tensor, other: Tensor) -> int:
    """How many numbers of two tensors of a narrow dtype have other bits.

    torch compares such floats one by one, which takes six times as long.
    """
    words = torch.int16 if one.dtype.itemsize == 2 else torch.int8
    return int((one.view(words) ^ other.view(words)).count_nonzero())


def _energy(B: Tensor, inner: Tensor) -> float:
    """||B A||^2 from B and A A^T."""
    return float(((B.mT @ B) * inner).sum().clamp_min(0))


def _sum(W0: Tensor, weights: Sequence[float], deltas: Sequence[Tensor]) -> Tensor:
    made = W0
    for weight, delta in zip(weights, deltas, strict=True):
        made = torch.add(made, delta, alpha=weight)
    return made if deltas else W0.clone()


def _dot(one: Tensor, other: Tensor) -> float:
    if len(one) <= 2 * CHUNK:
        return float(torch.dot(one, other))
    return sum(
        float(torch.dot(a, b).double())
        for a, b in zip(one.split(CHUNK), other.split(CHUNK), strict=True)
    )


def norm2(tensor: Tensor) -> float:
    flat = tensor.reshape(-1)
    return _dot(flat, flat)
