"""What is in a merge that any tool wrote: its change of the base, explained by adapters.

A full model W is compared with its base W0 tensor by tensor. The change W - W0 is a sum of the
changes of the adapters with the weights that fit it best (least squares), and a rest. What each
adapter makes of a tensor is told by the code that writes full models, so experts, DoRA, embeddings
and trained biases are compared like plain LoRA. A merged adapter is compared in its factors.

Rounding to the dtype of the file is no fault. W0 + sum w_i dW_i is rounded as the file was, and
the rest counts only beyond that (`_K` times its energy, because some tools round several times).
Rounding also biases the weights: an entry of dW below half a spacing of W0 vanishes. So the weights
are those for which the *rounded* sum has the least-squares weights that the file has (indirect
inference: Gourieroux, Monfort & Renault 1993, J. Appl. Econometrics 8).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import permutations, product
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from loraprobe import hub
from loraprobe.adapters import Adapter, natural
from loraprobe.adapters.config import CONFIG
from loraprobe.base import Base, open_base
from loraprobe.base.model import FLOATS, HEADS, Weight
from loraprobe.compatibility import aligned
from loraprobe.errors import AdapterError, BaseError, UsageError
from loraprobe.extensions.files.full_model import Change, Layout
from loraprobe.lora.lowrank import LowRank
from loraprobe.merging import METHODS, MergeConfig
from loraprobe.merging._engine import check_adapters
from loraprobe.merging._method import MergeInputs
from loraprobe.records import Progress

MergeVerdict = Literal[
    "exact", "rounded", "scaled", "partly", "other-base", "not-linear", "not-of-these"
]
Rounding = Literal["once", "in order", "in reverse", "as models"]
ModuleState = Literal["as made", "lacking", "scaled", "changed", "missing"]

CHUNK = 1 << 16  # entries that are compared at a time, so that they stay in the processor's cache
MISMATCHED = 0.05  # of the entries that a merge moves: so many may be rounded the other way
NEAR = 0.02  # two weights that differ by less are equal, or by SIGMAS standard errors
SIGMAS = 4.0
EXACT = 1e-3  # of the change: less rounding is not worth telling
USUAL = (0.5, 0.7, 0.8, 2.0)  # weights of adapters that people give
SEARCHED = 4  # tensors for which it is tried when they were rounded
SAMPLED = 8  # tensors with a rest whose form is examined
DIRECTIONS = 256  # of a sketch, by whose singular values a rest is an adapter's or everywhere
SPARSE = 0.05  # of the entries that a linear merge would move: so many unmoved are no chance
FEW = 0.1  # of a rest: so little left of it explains it
BLOCK = 64  # entries in a row that have at most 16 values if the base was rounded to 4 bits
LEVELS = 0.1  # of a block's range: all but its 15 largest gaps; above 0.25 without such values
ROUNDINGS: tuple[Rounding, ...] = ("once", "in order", "in reverse", "as models")
UNKNOWN = 0.02  # by the share of rounding: the standard error that other ways of rounding leave
STEPS = 4  # of the search of weights


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
    missing: the file has no such tensor, or one of another shape.
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
        if not self.moved:
            return "as made" if self.explained else "changed"
        places = range(len(wanted))
        off = [at for at in places if not self.near(wanted, at)]
        if not self.explained:
            return "changed"
        if not off:
            return "as made"
        nothing = [0.0] * len(wanted)
        return "lacking" if all(self.near(nothing, at) for at in off) else "scaled"


@dataclass(frozen=True)
class Difference:
    """One tensor that no adapter changes and that is not the base's: the norm of the difference by
    that of the base's tensor; None where it has another shape (`rows`: more or fewer rows, and the
    common ones are the same) or is missing."""

    name: str
    size: float | None
    rows: tuple[int, int] | None = None


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
        clean = [p for p in self.parts if p.explained and p.moved and not p.missing]
        held = [p for p in clean if not all(p.near([0.0] * n, at) for at in range(n))]
        some = held or clean or [p for p in self.parts if p.moved and not p.missing]
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
        parts = [part for part in self.parts if not part.explained and not part.missing]
        rest2 = sum(part.rest**2 for part in parts)
        known2 = sum(max(part.norm**2 - part.rest**2, 0.0) for part in parts)
        return math.sqrt(rest2 / max(known2, 1e-300))

    @property
    def share_of_rest(self) -> float:
        """||rest|| / ||change|| over the parts with a rest."""
        parts = [part for part in self.parts if not part.explained and not part.missing]
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
        if any(one.rows or one.name.startswith(HEADS) for one in self.differences):
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


def contents_of(
    place: Path,
    base: Base | None,
    adapters: Sequence[Adapter],
    wanted: tuple[float, ...] | None = None,
    progress: Progress | None = None,
) -> Contents:
    """What of some adapters is in a directory that any tool wrote, a full model or an adapter.

    base: needed for a full model. wanted: the weight that each adapter should have.
    Raises UsageError where something is not given, LoraprobeError for what cannot be read.
    """
    if wanted is not None and len(wanted) != len(adapters):
        raise UsageError(
            f"--weights has {len(wanted)} numbers for {len(adapters)} adapters; give one for each "
            "--of."
        )
    names = tuple(adapter.name for adapter in adapters)
    ranks = tuple(adapter.rank_range[1] for adapter in adapters)
    if (place / CONFIG).is_file():
        found = _of_adapter(hub.load(str(place)), base, adapters, progress)
    elif base is None:
        raise UsageError(f"{place} is a full model, and its base is not given; add --base=DIR.")
    else:
        found = _FullModel(open_base(place), base, adapters, wanted).read(progress)
    scalings = tuple((adapter.scaling_range or (1.0, 1.0))[1] for adapter in adapters)
    return replace(found, adapters=names, wanted=wanted, ranks=ranks, scalings=scalings)


# ---- a full model --------------------------------------------------------------------------------


class _FullModel:
    """The tensors of a full model and its base, read in pairs."""

    def __init__(
        self,
        made: Base,
        base: Base,
        adapters: Sequence[Adapter],
        wanted: tuple[float, ...] | None,
    ) -> None:
        self.wanted = wanted
        for one in (made, base):
            if one.quantization:
                raise BaseError(
                    f"{one.reference} is stored quantised, and verify compares numbers; give its "
                    "unquantised weights."
                )
        self.made, self.base = made, base
        self.adapters = aligned(adapters, base)
        self.layouts = [Layout(_alone(one, base), one, base) for one in self.adapters]
        self.guess: tuple[float, ...] = ()
        self.how: Rounding = "once"
        self.searched = 0
        self.sampled = 0
        self.dtypes, self.through = Counter[torch.dtype](), Counter[torch.dtype]()

    @cached_property
    def named(self) -> dict[str, str]:
        """Key in the base's files -> name in the loaded model."""
        return {weight.key: name for name, weight in self.base.tensors.items()}

    def read(self, progress: Progress | None) -> Contents:
        parts, differences, others, done = list[ModuleContents](), list[Difference](), 0, 0
        theirs, base = self._by_key(), self.base
        for file in base.weight_files:
            keys = [key for key, weight in base.stored.items() if weight.file.path == file]
            for key in self.layouts[0].in_order(keys):
                for name, changes in self._written(key).items():
                    found = theirs.get(name)
                    if any(changes):
                        parts.append(self._part(base.stored[key], name, found, changes))
                    else:
                        others += 1
                        differences += self._difference(base.stored[key], name, found)
                done += 1
                if progress:
                    progress("verify", done, len(base.stored))
        differences += self._own_head(theirs)
        wrapped = [key for key in self.made.stored if _unwrapped(key) != key or ".lora_" in key]
        through = self.through.most_common(1)
        whole = through and 2 * through[0][1] > sum(self.dtypes.values())
        return Contents(
            (),
            None,
            tuple(sorted(parts, key=lambda part: natural(part.name))),
            others,
            tuple(sorted(differences, key=lambda one: natural(one.name))),
            tuple(wrapped),
            _name(self.dtypes.most_common(1)[0][0]) if self.dtypes else "float32",
            _name(through[0][0]) if whole else "",
        )

    def _written(self, key: str) -> dict[str, list[list[Change]]]:
        """The keys that hold a tensor of the base in the merge, with the changes of each adapter.

        Two where embedding and head part.
        """
        names = dict.fromkeys(name for one in self.layouts for name in one.written[key])
        return {name: [one.written[key].get(name, []) for one in self.layouts] for name in names}

    def _by_key(self) -> dict[str, Weight]:
        """Key in the base's files -> the tensor of the merge.

        Tensors of other names are found by those that they have in the loaded model.
        """
        found = {_unwrapped(key): weight for key, weight in self.made.stored.items()}
        lost = [key for key in self.base.stored if key not in found]
        if lost:
            named, loaded = self.named, self.made.tensors
            found |= {key: loaded[named[key]] for key in lost if named.get(key) in loaded}
            for key in lost:  # a head that the merge ties to its embedding
                path = named.get(key, key).removesuffix(".weight")
                if key not in found and path in HEADS and path in self.made.weights:
                    found[key] = self.made.weights[path]
        return found

    def _own_head(self, theirs: Mapping[str, Weight]) -> list[Difference]:
        """A head in the merge that is not the embedding to which the base ties it."""
        if self.base.tied is None:
            return []
        (table, head), loaded = self.base.tied, self.made.tensors
        written = any(head in names for one in self.layouts for names in one.written.values())
        if written or head not in loaded or table not in loaded:
            return []
        return [
            Difference(head, one.size, one.rows)
            for one in _compared(loaded[table], loaded[head], head)
        ]

    def _difference(self, own: Weight, name: str, found: Weight | None) -> list[Difference]:
        if found is None:
            return [Difference(name, None)]
        return _compared(own, found, name)

    def _part(
        self, own: Weight, name: str, found: Weight | None, changes: Sequence[Sequence[Change]]
    ) -> ModuleContents:
        """How one tensor that adapters change was made."""
        present = [at for at, some in enumerate(changes) if some]
        if found is None or found.shape[1:] != own.shape[1:]:
            nothing = tuple(0.0 if at in present else None for at in range(len(changes)))
            return ModuleContents(name, nothing, (0.0,) * len(changes), missing=True)
        for one, reference in ((found, self.made.reference), (own, self.base.reference)):
            if one.dtype not in FLOATS:
                raise BaseError(
                    f"{reference} stores {one.key} quantised ({one.dtype}), and verify compares "
                    "numbers; give its unquantised weights."
                )
        stored = own.file.read(own.key)
        read = found.file.read(found.key)
        dtype = grid_of(read)
        self.dtypes[read.dtype] += 1
        if dtype != read.dtype:
            self.through[dtype] += 1
        rows = min(len(read), len(stored))
        work = torch.promote_types(stored.dtype, torch.float32)
        W0, W = stored.to(work), read[:rows].to(work)
        deltas = []
        for at in present:
            made = W0.clone()
            for change in changes[at]:
                made = change(made)
            deltas.append(made.sub_(W0)[:rows])
        hows, guesses = self._tried(present)
        fit = _Fit(W, W0[:rows], deltas, dtype, hows if dtype.itemsize < 4 else ("once",))
        part = fit.part(name, guesses)
        self.searched += not (self.guess and part.weights == tuple(guesses[0]))
        if not part.explained and self.sampled < SAMPLED and W.dim() == 2:
            self.sampled += 1
            crossed = self._crossed(name, present, own)
            part = replace(part, form=fit.form([float(w or 0) for w in part.weights], crossed))
        if part.explained and part.moved and len(present) == len(changes) and any(part.weights):
            self.guess, self.how = tuple(float(one or 0.0) for one in part.weights), fit.how
        weights, errors = [None] * len(changes), [0.0] * len(changes)
        spread: list[float | None] = [*weights]
        for at, weight, error in zip(present, part.weights, part.errors, strict=True):
            spread[at], errors[at] = weight, error
        return replace(part, weights=tuple(spread), errors=tuple(errors))

    def _tried(self, present: Sequence[int]) -> tuple[tuple[Rounding, ...], list[list[float]]]:
        """How the next tensor may have been rounded, and weights of the adapters that change it.

        What held for the one before, then, for a few tensors, everything usual.
        """
        n, few = len(self.adapters), self.searched < SEARCHED
        weights = [self.guess] if self.guess else []
        if few:
            weights += [self.wanted] if self.wanted else []
            weights += [(one,) * n for one in dict.fromkeys((1.0, 1 / n, *USUAL))]
        hows = dict.fromkeys((self.how, *(ROUNDINGS if few else ())))
        return tuple(hows), [[one[at] for at in present] for one in dict.fromkeys(weights)]

    def _crossed(self, name: str, present: Sequence[int], own: Weight) -> list[Tensor]:
        """B of one adapter times A of another, for all pairs that have one rank."""
        path = self.named.get(own.key, name).removesuffix(".weight")
        holders = [self.adapters[at] for at in present if path in self.adapters[at].modules]
        crossed = _crossed([one.modules[path] for one in holders])
        turned = own.kind != "linear"
        deltas = [update.to(torch.float32).delta() for update in crossed]
        return [delta.mT if turned else delta for delta in deltas]


def _alone(adapter: Adapter, base: Base) -> MergeInputs:
    """The merge of one adapter at its full weight. Raises UnsupportedAdapter for one that cannot
    be merged."""
    inputs = MergeInputs([adapter], MergeConfig(METHODS.make("sum")), (1.0,), base)
    check_adapters(inputs)
    return inputs


def _unwrapped(key: str) -> str:
    """The key of a tensor without the names that peft puts around it."""
    return key.removeprefix("base_model.model.").replace(".base_layer.", ".")


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


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


def _compared(own: Weight, found: Weight, name: str) -> list[Difference]:
    """How a tensor that nothing changes differs from the base's, beyond the dtype of the file."""
    if own.shape[1:] != found.shape[1:]:
        return [Difference(name, None)]
    one, other = own.file.read(own.key), found.file.read(found.key)
    rows = min(len(one), len(other)) if one.dim() else None
    resized = (len(one), len(other)) if one.dim() and len(one) != len(other) else None
    one, other = (one[:rows], other[:rows]) if resized else (one, other)
    for dtype in dict.fromkeys((other.dtype, torch.bfloat16, torch.float16)):
        # A narrower dtype on the way, as where the base was loaded in bfloat16.
        if torch.equal(one.to(dtype).to(other.dtype), other):
            return [Difference(name, 0.0, resized)] if resized else []
        if not other.dtype.is_floating_point:
            break
    size = torch.linalg.vector_norm(other.double() - one.double())
    return [Difference(name, float(size / one.double().norm().clamp_min(1e-300)), resized)]


class _Fit:
    """One tensor W of a merge, its W0 in the base and the changes of the adapters, all in float32.

    dtype: to which W was rounded. hows: when it may have been, the likeliest first: once at the
    end; after each adapter, in the order given or the reverse, as peft does in a model that is
    loaded in bfloat16; or as mergekit does, which subtracts the rounded base from rounded models
    with one adapter each.
    """

    def __init__(
        self,
        W: Tensor,
        W0: Tensor,
        deltas: Sequence[Tensor],
        dtype: torch.dtype,
        hows: Sequence[Rounding] = ("once",),
    ) -> None:
        self.hows, self.how = hows, hows[0]
        self.shape = W.shape
        self.W, self.W0 = W.reshape(-1), W0.reshape(-1)
        self.deltas = [delta.reshape(-1) for delta in deltas]
        self.narrow = dtype if dtype.itemsize < 4 else None
        self.eps = torch.finfo(W.dtype).eps
        self.spacing = torch.finfo(dtype).eps
        # The energy of several roundings by that of one.
        self.most = len(deltas) + 2.0

    def rounded(self, wanted: Tensor) -> Tensor:
        return wanted if self.narrow is None else wanted.to(self.narrow).to(wanted.dtype)

    def sum(self, weights: Sequence[float]) -> Tensor:
        """W0 + the changes, before it is rounded."""
        made = self.W0.clone()
        for weight, delta in zip(weights, self.deltas, strict=True):
            made.add_(delta, alpha=weight)
        return made

    def stored(self, weights: Sequence[float], wanted: Tensor) -> Tensor:
        """What the file should have for `wanted`, the sum with these weights."""
        if self.how == "once" or self.narrow is None:
            return self.rounded(wanted)
        pairs = list(zip(weights, self.deltas, strict=True))
        base = made = self.rounded(self.W0)
        if self.how == "as models":
            changes = (self.rounded(self.W0 + delta).sub_(base).mul_(w) for w, delta in pairs)
            return self.rounded(sum(changes, made))
        for weight, delta in pairs if self.how == "in order" else reversed(pairs):
            made = self.rounded(made + self.rounded(delta * weight))
        return made

    def part(self, name: str, guesses: Sequence[Sequence[float]]) -> ModuleContents:
        """How W was made. guesses: weights that are tried before others are searched, which takes
        a third of the time, and finds those at which a search has a jump."""
        for how, guess in product(self.hows, guesses):
            self.how = how
            wanted = self.sum(guess)
            stored = self.stored(guess, wanted)
            wrong, moved, far, change2, rounding2 = self._against(guess, wanted, stored)
            if moved and not far and wrong <= MISMATCHED * moved:
                norm, lost = math.sqrt(change2), math.sqrt(rounding2)
                return ModuleContents(name, tuple(guess), (0.0,) * len(guess), norm, lost)
        return self._searched(name, guesses[0] if guesses else ())

    def _against(
        self, weights: Sequence[float], wanted: Tensor, stored: Tensor
    ) -> tuple[int, int, int, float, float]:
        """Of W against W0 + the changes: entries that differ by more than one rounding, entries
        that these move, entries that no rounding explains, ||W - W0||^2, ||rounding||^2."""
        wrong = moved = far = 0
        change2 = rounding2 = 0.0
        delta = max((float(one.abs().max()) for one in self.deltas if one.numel()), default=0.0)
        spacing = self.spacing
        everything = (self.W, self.W0, wanted, stored, *self.deltas)
        for W, W0, X, P, *own in zip(*(t.split(CHUNK) for t in everything), strict=True):
            size = W0.abs()
            for weight, one in zip(weights, own, strict=True):
                size.add_(one.abs(), alpha=abs(weight))
            apart, step = (P - W).abs_(), (P - self.rounded(W0)).abs_()
            if self.narrow is None:
                allowed = size * (4 * self.eps)
                wrong += int((apart > allowed).count_nonzero())
                moved += int((step > allowed).count_nonzero())
            else:
                wrong += int(apart.count_nonzero())
                moved += int(step.count_nonzero())
            far += int((apart > size.mul_(self.most * spacing).add_(NEAR * delta)).count_nonzero())
            change2 += float((W - W0).square_().sum())
            rounding2 += float((P - X).square_().sum())
        return wrong, moved, far, change2, rounding2

    def _searched(self, name: str, reference: Sequence[float] = ()) -> ModuleContents:
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
        _, _, far, change2, _ = self._against(weights, wanted, stored)
        added2 = _norm2(wanted - self.W0)
        rest2, rounding2 = _norm2(self.W - wanted), _norm2(stored - wanted)
        allowed2 = self.most * (rounding2 + added2 * self.spacing**2 / 12) + EXACT**2 * added2
        if self.narrow is None:  # what float32 itself rounds, in several sums
            allowed2 += 8 * self.eps**2 * (_norm2(wanted) + _norm2(self.W0))
            far = far if rest2 > allowed2 else 0
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
        variance = _norm2(self.W - self.sum(weights.tolist())) / max(self.W.numel(), 1)
        errors = (variance * inverse.diagonal().clamp_min(0)).sqrt().tolist()
        return [_snapped(w, e) for w, e in zip(weights.tolist(), errors, strict=True)], errors

    def _moves(self, weights: Sequence[float]) -> bool:
        """Whether changes with these weights change any number in the dtype of the file."""
        made = self.stored(weights, self.sum(weights))
        return not torch.equal(made, self.rounded(self.W0))

    def form(self, weights: Sequence[float], crossed: Sequence[Tensor]) -> Rest:
        """The form of the rest of a matrix."""
        wanted = self.sum(weights)
        R, W0 = (self.W - wanted).view(self.shape), self.W0.view(self.shape)
        draw = torch.Generator().manual_seed(0)
        k = min(DIRECTIONS, *self.shape)
        sketch = R @ torch.randn(self.shape[1], k, generator=draw, dtype=R.dtype)
        values = torch.linalg.svdvals(sketch)
        P, before = (one.view(self.shape) for one in (self.rounded(wanted), self.rounded(self.W0)))
        W, wanted = self.W.view(self.shape), wanted.view(self.shape)
        moves = (before != P) & ((wanted - W0).abs() > 4 * self.eps * W0.abs())
        still = moves & (before == W)
        return Rest(
            size=math.sqrt(_norm2(R) / max(_norm2(W0), 1e-300)),
            full=bool(values[k // 2] > 0.1 * values[0]),
            bits=_bits(R + W0),
            zeros=float(still.count_nonzero() / moves.count_nonzero().clamp_min(1)),
            elected=self._elected(),
            crossed=self._explained_with([one.reshape(-1) for one in crossed]),
            turned=self.narrow is None and self._explained_with([self.W0]),
        )

    def _elected(self) -> bool:
        """Whether the changes explain what their signs agree on, and not the other entries."""
        if len(self.deltas) < 2:
            return False
        before = self.rounded(self.W0)
        moves = [self.rounded(self.W0 + delta).sub_(before).sign_() for delta in self.deltas]
        agree = (moves[0] != 0) & torch.stack([one == moves[0] for one in moves]).all(0)
        if not agree.any() or agree.all():
            return False
        one, other = (
            self._with(self.W[at], self.W0[at], [delta[at] for delta in self.deltas])
            for at in (agree, ~agree)
        )
        left, right = (fit._searched("").rest ** 2 / len(fit.W) for fit in (one, other))
        return left <= FEW * right

    def _with(self, W: Tensor, W0: Tensor, deltas: Sequence[Tensor]) -> _Fit:
        """The same of other entries or with other changes."""
        return _Fit(W, W0, deltas, self.narrow or W.dtype, (self.how,))

    def _explained_with(self, more: Sequence[Tensor]) -> bool:
        """Whether a sum of the changes and of these explains nearly everything."""
        if not more:
            return False
        both = self._with(self.W, self.W0, [*self.deltas, *more])
        return both._searched("").rest <= FEW * self._searched("").rest


def _dot(one: Tensor, other: Tensor) -> float:
    return sum(
        float(torch.dot(a, b).double())
        for a, b in zip(one.split(CHUNK), other.split(CHUNK), strict=True)
    )


def _norm2(tensor: Tensor) -> float:
    flat = tensor.reshape(-1)
    return _dot(flat, flat)


def _snapped(weight: float, error: float) -> float:
    """A weight, or the number of two digits behind the point that it is but for its error."""
    near = round(weight, 2)
    return near if abs(weight - near) <= max(1e-4, min(SIGMAS * error, 0.005)) else weight


def _bits(weights: Tensor) -> int:
    """4 where a block of 64 entries has at most 16 values, 8 where a row has whole multiples of
    1/127 of its largest one, else 0."""
    flat = weights.reshape(-1)
    blocks = flat[: len(flat) // BLOCK * BLOCK].view(-1, BLOCK)[:4096].sort(dim=1).values
    if len(blocks):
        within = blocks.diff(dim=1).sort(dim=1).values[:, : BLOCK - 16].sum(dim=1)
        if float((within / (blocks[:, -1] - blocks[:, 0]).clamp_min(1e-30)).median()) < LEVELS:
            return 4
    rows = weights[:512]
    levels = rows / (rows.abs().amax(1, keepdim=True).clamp_min(1e-30) / 127)
    small = levels[levels.abs() <= 20]
    off = (small - small.round()).square().mean().sqrt() if len(small) else torch.tensor(1.0)
    return 8 if float(off) < 0.15 else 0  # 0.29 without levels


# ---- a merged adapter ----------------------------------------------------------------------------


def _of_adapter(
    made: Adapter, base: Base | None, adapters: Sequence[Adapter], progress: Progress | None
) -> Contents:
    """What is in a merged adapter, module by module, in factors."""
    for one in (made, *adapters):
        if one.has_more_than_factors:
            raise AdapterError(
                f"{one.name} has more than LoRA factors (DoRA, whole modules, biases or tokens), "
                "which verify compares in a full model alone; merge it into its base."
            )
    target, *sources = aligned([made, *adapters], base)
    paths = sorted(dict.fromkeys(p for one in (target, *sources) for p in one.layout), key=natural)
    parts, differences = list[ModuleContents](), list[Difference]()
    for done, path in enumerate(paths, 1):
        own = target.modules.get(path)
        updates = [one.modules.get(path) for one in sources]
        if not any(updates) and own is not None:
            differences.append(Difference(path, math.inf))
        else:
            parts.append(_module(path, own, updates))
        if progress:
            progress("verify", done, len(paths))
    return Contents(
        (), None, tuple(parts), 0, tuple(differences), (), _name(made.dtype), full_model=False
    )


def _module(path: str, made: LowRank | None, updates: Sequence[LowRank | None]) -> ModuleContents:
    """How one module of a merged adapter was made of updates, None where an adapter lacks it."""
    n, errors = len(updates), (0.0,) * len(updates)
    present = [at for at, update in enumerate(updates) if update is not None]
    known = [update.to(torch.float64) for update in updates if update is not None]
    if made is None or made.rank == 0:
        return ModuleContents(
            path, tuple(0.0 if at in present else None for at in range(n)), errors
        )
    if any((u.out_features, u.in_features) != (made.out_features, made.in_features) for u in known):
        nothing = tuple(0.0 if at in present else None for at in range(n))
        return ModuleContents(path, nothing, errors, missing=True)
    T = made.to(torch.float64)
    noise2 = _factor_noise2(made)
    weights, rest = _in_factors(T, known)
    cut, form = 1.0, None
    norm = float(T.norm())
    known_norm = float(_stacked(known, weights).norm())
    floor2 = noise2 + (1e-5 * max(norm, known_norm)) ** 2
    explained = rest**2 <= 4 * floor2
    if not explained:
        U, V = torch.linalg.qr(T.B).Q, torch.linalg.qr(T.A.mT).Q
        inside = [LowRank((u.A @ V) @ V.mT, U @ (U.mT @ u.B), u.scaling) for u in known]
        own, left = _in_factors(T, inside)
        if left**2 <= 4 * floor2:
            weights, rest, explained = own, left, True
            cut = norm / max(float(_stacked(known, own).norm()), 1e-300)
    if not explained and (crossed := _crossed(known)):
        _, left = _in_factors(T, [*known, *crossed])
        form = Rest(0.0, False, 0, 0.0, False, left**2 <= 4 * floor2)
    spread: list[float | None] = [None] * n
    for at, weight in zip(present, weights, strict=True):
        spread[at] = _snapped(weight, 1e-4)
    return ModuleContents(
        path,
        tuple(spread),
        errors,
        norm,
        math.sqrt(noise2),
        0.0 if explained else rest,
        explained,
        form=form,
        cut=cut,
    )


def _in_factors(made: LowRank, updates: Sequence[LowRank]) -> tuple[list[float], float]:
    """The least-squares weights of updates for another one, and the norm of the rest."""
    gram = torch.tensor([[float(a.inner(b)) for b in updates] for a in updates]).double()
    onto = torch.tensor([float(made.inner(one)) for one in updates]).double()
    weights = (torch.linalg.pinv(gram, rtol=1e-12, hermitian=True) @ onto).tolist()
    rest = _stacked([made, *updates], [1.0, *(-w for w in weights)])
    R = torch.linalg.qr(rest.B, mode="r").R @ torch.linalg.qr(rest.A.mT, mode="r").R.mT
    return weights, float(R.norm())


def _stacked(updates: Sequence[LowRank], weights: Sequence[float]) -> LowRank:
    """The weighted sum of updates, in factors."""
    pairs = list(zip(updates, weights, strict=True))
    return LowRank(
        torch.cat([u.A for u, _ in pairs]), torch.cat([u.B * (u.scaling * w) for u, w in pairs], 1)
    )


def _factor_noise2(update: LowRank) -> float:
    """The energy that rounding both factors to their dtype adds to their product, on average.

    An entry x is off by a uniform error of variance (spacing of x)^2 / 12, and spacings are 0.75
    of eps |x| on average.
    """
    eps = torch.finfo(update.A.dtype).eps if update.A.dtype.is_floating_point else 0.0
    A2, B2 = (factor.double().square() for factor in (update.A, update.B))
    return 2 * float(B2.sum(0) @ A2.sum(1)) * update.scaling**2 * (0.75 * eps) ** 2 / 12


def _crossed(updates: Sequence[LowRank]) -> list[LowRank]:
    """B of one update times A of another, for all pairs of one rank.

    A mean of factors in place of a mean of products has these.
    """
    return [
        LowRank(one.A, other.B, math.sqrt(abs(one.scaling * other.scaling)))
        for one, other in permutations(updates, 2)
        if one.rank == other.rank
    ]


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
