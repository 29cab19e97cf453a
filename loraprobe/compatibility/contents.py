"""What adapters hold: NaN, zero deltas, equal adapters, and the tensors that are no plain factors.

The first need the tensors, and are found in one pass over the factors: by `TensorChecks`, which a
merge uses too for what it reads.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations

import torch
from jaxtyping import Bool, Float64
from torch import Tensor

from loraprobe.adapters import Adapter, Extra, copied_weight, extreme_norm, natural, same_weight
from loraprobe.adapters.config import unnamed_modules
from loraprobe.adapters.names import VOCABULARY
from loraprobe.base import Base
from loraprobe.errors import AdapterError, BaseError
from loraprobe.findings import CODES, finding
from loraprobe.formatting import count
from loraprobe.lora.grams import GramMatrices, gram_matrices
from loraprobe.lora.lowrank import same_update
from loraprobe.records import Issue, Severity

# The kinds of tensors beside the factors that merges and compositions keep -> what becomes of them.
LINEAR = (
    "the figures shown here leave them out. Linear merges and compositions with constant gates "
    "keep them; token routers and other methods do not"
)
KEPT = {
    "dora_magnitude": "the figures shown here are of s B A alone, without them. Compositions apply "
    "them; linear merges keep them with --base; other methods need the adapter merged into its "
    "base",
    "modules_to_save": LINEAR,
    "bias": LINEAR,
    "lora_bias": "the figures shown here leave them out. Linear merges and compositions keep them",
    "token_delta": LINEAR,
}

CURE_OF_TIES = "Merge it into its base with peft, or accept it with --allow shared-weights."


class TensorChecks:
    """Collects statistics of the tensors, one batch of modules at a time.

    `take` observes the batches of `diagnostics.diagnose`, which reads the factors anyway.
    """

    def __init__(self, adapters: Sequence[Adapter]) -> None:
        self.adapters, n = adapters, len(adapters)
        self.not_finite: list[list[str]] = [[] for _ in range(n)]
        self.without_effect: list[list[str]] = [[] for _ in range(n)]
        self.inner: Float64[Tensor, "n n"] = torch.zeros(n, n, dtype=torch.float64)
        self.largest = [(0.0, "")] * n  # norm of a module's delta, its path

    def take(self, joint: GramMatrices) -> None:
        """Adds one batch of modules."""
        self.add(joint.paths, joint.inner, joint.finite)

    def add(
        self,
        paths: Sequence[str],
        inner: Float64[Tensor, "m n n"],
        finite: Bool[Tensor, "m n"],
    ) -> None:
        """Adds modules by the inner products of their deltas, 0 where one is not finite."""
        self.inner += inner.sum(0)
        square = inner.diagonal(dim1=1, dim2=2).clamp_min(0)
        for i, (largest, place) in enumerate(zip(*map(Tensor.tolist, square.max(0)), strict=True)):
            self.largest[i] = max(self.largest[i], (largest**0.5, paths[place]))
        for m, path in enumerate(paths):
            for i, adapter in enumerate(self.adapters):
                if not finite[m, i]:
                    self.not_finite[i].append(path)
                elif square[m, i] == 0 and path in adapter.layout:
                    self.without_effect[i].append(path)

    def read(self) -> TensorChecks:
        """Reads all factors once and takes every batch."""
        paths = sorted({path for a in self.adapters for path in a.layout}, key=natural)
        for joint in gram_matrices([a.modules for a in self.adapters], paths):
            self.take(joint)
        return self

    @property
    def idle(self) -> list[int]:
        """The adapters that hold factors alone, all deltas of which are zero, by their index."""
        zero = zip(self.adapters, self.without_effect, strict=True)
        return [
            i
            for i, (adapter, paths) in enumerate(zero)
            if not adapter.has_more_than_factors and paths and len(paths) == len(adapter.layout)
        ]

    @property
    def equal(self) -> list[tuple[int, int]]:
        """The pairs with the same deltas, even if their factors differ, by their indices.

        Adapters that hold more than factors are not compared.
        """
        plain = [
            i
            for i, adapter in enumerate(self.adapters)
            if not (self.not_finite[i] or adapter.has_more_than_factors)
        ]
        return [(i, j) for i, j in combinations(plain, 2) if same_update(self.inner, i, j)]


def content_issues(contents: TensorChecks) -> Iterator[Issue]:
    """Issues about NaN, zero deltas, extreme norms and equal adapters."""
    adapters = contents.adapters
    for i, adapter in enumerate(adapters):
        bad, empty = contents.not_finite[i], contents.without_effect[i]
        if bad:
            yield finding(
                "not-finite",
                (adapter.name,),
                f"{adapter.name} holds NaN or infinite values in {count(len(bad), 'module')}, "
                f"{bad[0]} first.",
                bad[0],
            )
        if i in contents.idle:
            yield finding(
                "no-effect",
                (adapter.name,),
                f"{adapter.name} has no effect: the delta of every module is zero.",
            )
        yield from extreme_norm(adapter.name, *contents.largest[i])
        if empty and len(empty) < len(adapter.layout):
            yield finding(
                "modules-without-effect",
                (adapter.name,),
                f"{adapter.name} changes nothing in {len(empty)} of its {len(adapter.layout)} "
                f"modules, {empty[0]} first.",
                empty[0],
            )
    for i, j in contents.equal:
        names = adapters[i].name, adapters[j].name
        yield finding(
            "duplicate",
            names,
            f"{names[0]} and {names[1]} are the same update, so composing them can only scale it.",
        )


def extra_issues(
    adapters: Sequence[Adapter], base: Base | None, *, composing: bool
) -> Iterator[Issue]:
    """One issue per adapter and kind of extra; an error if a composition would drop it."""
    for adapter in adapters:
        if adapter.stacks:  # whose experts are modules of their own here
            first, paths = next(iter(adapter.stacks.items()))
            yield finding(
                "target-parameter",
                (adapter.name,),
                f"{adapter.name} changes {count(len(adapter.stacks), 'parameter')} "
                f"(target_parameters), {first} with {count(len(paths), 'expert')} first. Each "
                "expert counts as a module here. Merges and compositions with constant gates keep "
                "them; token routers do not.",
                paths[0],
                cure="",
            )
        by_kind: dict[str, list[Extra]] = {}
        for extra in adapter.extras:
            by_kind.setdefault(extra.kind, []).append(extra)
        for kind, extras in by_kind.items():
            if kind == "base_copy":
                for extra in extras:
                    yield _base_copy(adapter, extra, base)
            else:
                yield _of_kind(adapter, kind, extras, "error" if composing else "warning")


def _of_kind(adapter: Adapter, kind: str, extras: Sequence[Extra], severity: Severity) -> Issue:
    """A note for a kind that merges and compositions keep, else an issue of this severity."""
    first = extras[0]
    consequence = KEPT.get(kind, "a composition of factors would drop them")
    return finding(
        first.code,
        (adapter.name,),
        f"{adapter.name} holds {CODES[first.code].meaning} ({count(len(extras), 'tensor')}, "
        f"{first.key} first); {consequence}.",
        first.module,
        severity="note" if kind in KEPT else severity,
    )


def _base_copy(adapter: Adapter, extra: Extra, base: Base | None) -> Issue:
    """An issue about a copy of a base weight, which peft saves for targeted embeddings."""
    names, copy = (adapter.name,), f"{adapter.name} carries a copy of the base's {extra.module}"
    same = None if base is None else _is_of_base(adapter, extra, base)
    if same:
        return finding(
            "base-copy",
            names,
            f"{copy}, the same as the base's.",
            extra.module,
            severity="note",
            cure="",
        )
    if same is None:
        return finding(
            "base-copy",
            names,
            f"{copy}, which compositions leave out; that is right unless the vocabulary was "
            "resized in training.",
            extra.module,
            severity="warning",
            cure="Give --base to have them compared.",
        )
    return finding(
        "base-copy",
        names,
        f"{copy} that differs from the base given here: the vocabulary was resized, or the base is "
        "another.",
        extra.module,
    )


def _is_of_base(adapter: Adapter, extra: Extra, base: Base) -> bool | None:
    """Whether a copy equals the base's weight up to its dtype's rounding; None if unreadable."""
    if adapter.weights_file is None or extra.module is None:
        return None
    try:
        weight, copy = base.weight(extra.module), copied_weight(adapter, extra)
    except (AdapterError, BaseError):
        return None
    return same_weight(copy, weight if copy.shape == weight.shape else weight.mT)


def ties_differ(adapter: Adapter, base: Base | None) -> bool:
    """Whether peft changes both of a base's tied weights where only one would be changed here.

    peft does so with ensure_weight_tying, and with a whole module that modules_to_save does not
    name. Without a base its embedding and head may be tied.
    """
    changed = {*adapter.layout, *(name.removesuffix(".weight") for name in adapter.whole)}
    if base is None:
        pair = [path for path in changed if path.rpartition(".")[2] in VOCABULARY]
    else:
        pair = [name.removesuffix(".weight") for name in base.tied or ()]
    held = [path for path in pair if path in changed]
    ties = bool(adapter.config.get("ensure_weight_tying"))
    if not held or not (ties or set(held) & set(unnamed_modules(adapter))):
        return False
    return len(held) < 2 or not _changed_alike(adapter, *held[:2])


def _changed_alike(adapter: Adapter, one: str, other: str) -> bool:
    """Whether embedding and head get one weight: the same whole one, or the same update."""
    names = [f"{path}.weight" for path in (one, other)]
    if all(name in adapter.whole for name in names):
        return torch.equal(*(adapter.whole[name] for name in names))
    if not all(path in adapter.layout for path in (one, other)):
        return False
    a, b = adapter.modules[one], adapter.modules[other]
    return a.A.shape == b.B.mT.shape and torch.equal(a.A, b.B.mT) and torch.equal(a.B, b.A.mT)
