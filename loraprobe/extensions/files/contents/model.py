"""The tensors of a full model and its base, read in pairs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from loraprobe.adapters import Adapter, natural
from loraprobe.adapters.experts import NESTED
from loraprobe.adapters.reading import PREFIX
from loraprobe.base import Base
from loraprobe.base.model import FLOATS, HEADS, Weight
from loraprobe.compatibility import aligned
from loraprobe.errors import BaseError
from loraprobe.extensions.files.contents.factors import crossed_of
from loraprobe.extensions.files.contents.fit import ROUNDINGS, Fit, Rounding, grid_of
from loraprobe.extensions.files.contents.form import form_of
from loraprobe.extensions.files.contents.records import (
    Contents,
    Difference,
    ModuleContents,
    dtype_name,
)
from loraprobe.extensions.files.full_model import Change, Layout, plain_factors
from loraprobe.lora.lowrank import LowRank
from loraprobe.lora.threads import in_order
from loraprobe.merging import METHODS, MergeConfig, MergeInputs, check_adapters
from loraprobe.records import Progress

USUAL = (0.5, 0.7, 0.8, 2.0)  # weights of adapters that people give
SEARCHED = 4  # tensors for which it is tried when they were rounded
SAMPLED = 8  # tensors with a rest whose form is examined


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


class FullModel:
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
            dtype_name(stored),
            dtype_name(grid) if grid != stored and 2 * times > len(parts) else "",
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

    def _fit(self, pair: _Pair, hows: Sequence[Rounding]) -> Fit:
        assert pair.tensors is not None
        stored, read = pair.tensors
        rows = min(len(read), len(stored))
        work = torch.promote_types(stored.dtype, torch.float32)
        deltas = [self._delta(stored, pair.changes[at], work, rows) for at in pair.present]
        return Fit(read[:rows], stored[:rows], deltas, grid_of(read), hows)

    def _spread(self, pair: _Pair, part: ModuleContents, fit: Fit) -> ModuleContents:
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
            part = replace(part, form=form_of(fit, weights, self._crossed(pair)))
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
        crossed = crossed_of([one.modules[path] for one in holders if path in one.modules])
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
