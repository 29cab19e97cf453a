"""What is in a merge that any tool wrote: its change of the base, explained by adapters.

A full model W is compared with its base W0 tensor by tensor. The change W - W0 is a sum of the
changes of the adapters with the weights that fit it best (least squares), and a rest. What each
adapter makes of a tensor is told by the code that writes full models, so experts, DoRA, embeddings
and trained biases are compared like plain LoRA. A merged adapter is compared in its factors.

Rounding to the dtype of the file is no fault. W0 + sum w_i dW_i is rounded as the file was, and
the rest counts only beyond that (a few times its energy, because tools round several times).
Rounding also biases the weights: an entry of dW below half a spacing of W0 vanishes. So the weights
are those for which the *rounded* sum has the least-squares weights that the file has (indirect
inference: Gourieroux, Monfort & Renault 1993, J. Appl. Econometrics 8).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import permutations, product
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from loraprobe import hub
from loraprobe.adapters import Adapter, natural
from loraprobe.adapters.config import CONFIG
from loraprobe.adapters.experts import NESTED
from loraprobe.adapters.reading import PREFIX
from loraprobe.base import Base, open_base
from loraprobe.base.model import FLOATS, HEADS, Weight
from loraprobe.compatibility import aligned
from loraprobe.errors import AdapterError, BaseError, UsageError
from loraprobe.extensions.files.full_model import Change, Layout, plain_factors
from loraprobe.lora.lowrank import LowRank
from loraprobe.lora.threads import in_order
from loraprobe.merging import METHODS, MergeConfig, MergeInputs, check_adapters
from loraprobe.records import Progress

MergeVerdict = Literal[
    "exact", "rounded", "scaled", "partly", "other-base", "not-linear", "not-of-these"
]
Rounding = Literal[
    "once", "in order", "in reverse", "safely in order", "safely in reverse", "as models"
]
ModuleState = Literal["as made", "lacking", "scaled", "changed", "missing"]

SAME = 1e-8  # of a change's energy: no more than this is left where nothing else is in it
FIRST = 100  # entries that may differ before it is told that too many do
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
ROUNDINGS: tuple[Rounding, ...] = get_args(Rounding)
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


@dataclass(frozen=True, eq=False)
class _Pair:
    """A tensor of the base, by its name in the merge, and the changes of each adapter.

    tensors: as stored in the base and in the merge; None where the merge has none of this shape.
    tied: it is a head, and in the merge the embedding.
    """

    name: str
    own: Weight
    changes: Sequence[Sequence[Change]]
    tensors: tuple[Tensor, Tensor] | None
    tied: bool = False

    @property
    def present(self) -> list[int]:
        """The places of the adapters that change it."""
        return [at for at, some in enumerate(self.changes) if some]


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

    @cached_property
    def named(self) -> dict[str, str]:
        """Key in the base's files -> name in the loaded model."""
        return {weight.key: name for name, weight in self.base.tensors.items()}

    def read(self, progress: Progress | None) -> Contents:
        """All tensors, one after the other until weights are found, then several at a time."""
        parts, differences, others = list[ModuleContents](), list[Difference](), 0
        total, pairs = len(self.base.stored), self._pairs()
        for done, told in enumerate(self._told(pairs), 1):
            if isinstance(told, ModuleContents):
                parts.append(told)
            else:
                others += 1
                differences += told
            if progress:
                progress("verify", min(done, total), total)
        differences += self._own_head()
        wrapped = [key for key in self.made.stored if _unwrapped(key) != key or ".lora_" in key]
        (stored, grid), times = Counter(part.dtypes for part in parts).most_common(1)[0]
        return Contents(
            (),
            None,
            tuple(sorted(parts, key=lambda part: natural(part.name))),
            others,
            tuple(sorted(differences, key=lambda one: natural(one.name))),
            tuple(wrapped),
            _name(stored),
            _name(grid) if grid != stored and 2 * times > len(parts) else "",
        )

    def _told(self, pairs: Iterator[_Pair]) -> Iterator[ModuleContents | list[Difference]]:
        """How each tensor was made, or how it differs where no adapter changes it."""
        for pair in pairs:
            _, told = self._at_once(pair)
            yield self._part(pair) if told is None else told
            if self.guess:
                break
        # The weights that were found are tried in threads; what they do not explain takes memory.
        for pair, told in in_order(self._at_once, pairs):
            yield self._part(pair) if told is None else told

    def _pairs(self) -> Iterator[_Pair]:
        """The tensors of the base with those of the merge, opened."""
        for file in self.base.weight_files:
            keys = [key for key, weight in self.base.stored.items() if weight.file.path == file]
            for key in self.layouts[0].in_order(keys):
                for name, changes in self._written(key).items():
                    own, found = self.base.stored[key], self.theirs.get(name)
                    head = name not in self.base.stored and found is None
                    if head:  # that of the merge may still be its embedding
                        found = self.made.weights.get(name.removesuffix(".weight"))
                    if found is None or not _comparable(own, found, name):
                        yield _Pair(name, own, changes, None)
                        continue
                    if any(changes):
                        self._check_floats(own, found)
                    both = own.file.read(own.key), found.file.read(found.key)
                    yield _Pair(name, own, changes, both, head)

    def _check_floats(self, own: Weight, found: Weight) -> None:
        for one, reference in ((found, self.made.reference), (own, self.base.reference)):
            if one.dtype not in FLOATS:
                raise BaseError(
                    f"{reference} stores {one.key} quantised ({one.dtype}), and verify compares "
                    "numbers; give its unquantised weights."
                )

    def _at_once(self, pair: _Pair) -> tuple[_Pair, ModuleContents | list[Difference] | None]:
        """A pair, and what is told of it without a search; None where one is needed."""
        if pair.tensors is None:
            if not any(pair.changes):
                return pair, [Difference(pair.name, None)]
            nothing = tuple(0.0 if some else None for some in pair.changes)
            return pair, ModuleContents(pair.name, nothing, (0.0,) * len(nothing), missing=True)
        if not any(pair.changes):
            apart = _compared(*pair.tensors, pair.name)
            return pair, [replace(one, tied=pair.tied) for one in apart]
        if not self.guess:
            return pair, None
        fit = self._fit(pair, (self.how,))
        part = fit.as_guessed(pair.name, [self.guess[at] for at in pair.present])
        return pair, None if part is None else self._spread(pair, part, fit)

    def _fit(self, pair: _Pair, hows: Sequence[Rounding]) -> _Fit:
        assert pair.tensors is not None
        stored, read = pair.tensors
        rows = min(len(read), len(stored))
        work = torch.promote_types(stored.dtype, torch.float32)
        deltas = [self._delta(stored, pair.changes[at], work, rows) for at in pair.present]
        return _Fit(read[:rows], stored[:rows], deltas, grid_of(read), hows)

    def _spread(self, pair: _Pair, part: ModuleContents, fit: _Fit) -> ModuleContents:
        """A part with a weight for each adapter, None for those that leave it alone."""
        weights: list[float | None] = [None] * len(pair.changes)
        errors = [0.0] * len(pair.changes)
        for at, weight, error in zip(pair.present, part.weights, part.errors, strict=True):
            weights[at], errors[at] = weight, error
        dtypes = fit.as_stored[0].dtype, fit.dtype
        return replace(part, weights=tuple(weights), errors=tuple(errors), dtypes=dtypes)

    def _part(self, pair: _Pair) -> ModuleContents:
        """How one tensor that adapters change was made, by a search."""
        hows, guesses = self._tried(pair.present)
        fit = self._fit(pair, hows)
        part = fit.part(pair.name, guesses)
        self.searched += 1
        if not part.explained and self.sampled < SAMPLED and len(pair.own.shape) == 2:
            self.sampled += 1
            weights = [float(weight or 0.0) for weight in part.weights]
            part = replace(part, form=fit.form(weights, self._crossed(pair)))
        whole = len(pair.present) == len(pair.changes)
        if part.explained and part.moved and whole and any(part.weights):
            self.guess, self.how = tuple(float(one or 0.0) for one in part.weights), fit.how
        return self._spread(pair, part, fit)

    def _written(self, key: str) -> dict[str, list[list[Change]]]:
        """The keys that hold a tensor of the base in the merge, with the changes of each adapter.

        Two where embedding and head part.
        """
        names = dict.fromkeys(name for one in self.layouts for name in one.written[key])
        return {name: [one.written[key].get(name, []) for one in self.layouts] for name in names}

    @cached_property
    def theirs(self) -> dict[str, Weight]:
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

    def _own_head(self) -> list[Difference]:
        """A head in the merge that is not the embedding to which the base ties it."""
        more = {_unwrapped(key) for key in self.made.stored} - self.base.stored.keys()
        if not more or self.base.tied is None:
            return []
        (table, head), loaded = self.base.tied, self.made.tensors
        written = any(head in names for one in self.layouts for names in one.written.values())
        if written or head not in loaded or table not in loaded:
            return []
        one, other = (loaded[name].file.read(loaded[name].key) for name in (table, head))
        return _compared(one, other, head)

    def _delta(
        self, stored: Tensor, changes: Sequence[Change], work: torch.dtype, rows: int
    ) -> Tensor | LowRank:
        """The change of one adapter to a tensor as stored: its factors, where it has no more."""
        if len(changes) == 1 and (factors := plain_factors(changes[0])) is not None:
            A, B = factors.A.to(work), factors.B.to(work) * factors.scaling
            return LowRank(A, B[:rows])
        made = stored.to(work, copy=True)
        for change in changes:
            made = change(made)
        return made.sub_(stored.to(work))[:rows]

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

    def _crossed(self, pair: _Pair) -> list[Tensor]:
        """B of one adapter times A of another, for all pairs that have one rank."""
        path = self.named.get(pair.own.key, pair.name).removesuffix(".weight")
        holders = [self.adapters[at] for at in pair.present]
        crossed = _crossed([one.modules[path] for one in holders if path in one.modules])
        turned = pair.own.kind != "linear"
        deltas = [update.to(torch.float32).delta() for update in crossed]
        return [delta.mT if turned else delta for delta in deltas]


def _alone(adapter: Adapter, base: Base) -> MergeInputs:
    """The merge of one adapter at its full weight. Raises UnsupportedAdapter for one that cannot
    be merged."""
    inputs = MergeInputs([adapter], MergeConfig(METHODS.make("sum")), (1.0,), base)
    check_adapters(inputs)
    return inputs


def _comparable(own: Weight, found: Weight, name: str) -> bool:
    """Whether a tensor has the shape of the base's, but for the rows of a resized vocabulary."""
    if own.kind == "embedding" or name.startswith(HEADS):
        return own.shape[1:] == found.shape[1:]
    return own.shape == found.shape


def _unwrapped(key: str) -> str:
    """The key of a tensor without the names that peft puts around it."""
    return key.removeprefix(PREFIX).replace(f"{NESTED}.", ".")


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


def _compared(one: Tensor, other: Tensor, name: str) -> list[Difference]:
    """How a tensor that nothing changes differs from the base's, beyond the dtype of the file."""
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
        return self._searched(name, guesses[0] if guesses else ())

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
                    _norm2(X - W0)
                    if inner is None or added is None
                    else _energy(added.B[rows], inner)
                )
                if _norm2(X.sub_(stored.to(self.work))) > SAME * wanted2:
                    return None
                change2 += wanted2
                continue
            rounded = self._stored(X, W0, weights, deltas)
            P = rounded.to(self.work)
            moved += _unlike(own.to(self.narrow), rounded)
            W = P
            if off := _unlike(stored.to(self.narrow), rounded):
                wrong, W = wrong + off, stored.to(self.work)
                if wrong > MISMATCHED * moved + FIRST:
                    return None
                if self._far(weights, P, W, W0, deltas or self._deltas(rows)):
                    return None
            change2 += _norm2(W - W0)
            rounding2 += _norm2(X.sub_(P))
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
        return _stacked(known, weights) if len(known) == len(self.changes) else None

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
        far = self._far(weights, stored, self.W, self.W0, self.deltas)
        change2 = _norm2(self.W - self.W0)
        added2 = _norm2(wanted - self.W0)
        rest2, rounding2 = _norm2(self.W - wanted), _norm2(stored - wanted)
        allowed2 = self.most * (rounding2 + added2 * self.spacing**2 / 12) + EXACT**2 * added2
        if self.narrow is None:  # what float32 itself rounds, in several sums
            allowed2 += 8 * self.eps**2 * (_norm2(wanted) + _norm2(self.W0))
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


def _rows(change: Tensor | LowRank, rows: slice, shape: Sequence[int]) -> Tensor:
    """Some rows of a change; shape: that of all."""
    if isinstance(change, LowRank):
        return change.B[rows] @ change.A
    return change.reshape(tuple(shape))[rows]


def _unlike(one: Tensor, other: Tensor) -> int:
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
