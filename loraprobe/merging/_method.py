"""The contract of a merge method, a pure function on stacked matrices; the arguments of one merge.

A method says what happens to the deltas of one module. The space in which they are stacked
(`loraprobe.lora.spaces`) and the rank to which the result is cut (`_compress`) are separate
choices.
"""

from __future__ import annotations

import functools
import math
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from loraprobe import memory
from loraprobe.adapters import Adapter, ModuleInfo
from loraprobe.compatibility.contents import KEPT
from loraprobe.errors import UsageError
from loraprobe.lora.lowrank import LowRank
from loraprobe.lora.threads import threads_at_once
from loraprobe.options import Options
from loraprobe.registry import Registry, check_choices, name_of

EVERY_SPACE = frozenset({"full", "core", "knots"})
# Matrices of a module's size in addition to the n deltas and the n selections of their entries: the
# result, a scratch matrix, and the remainder of the sketch.
MORE_MATRICES = 3

Deltas = Float[Tensor, "n p q"]
Weights = Float[Tensor, "n"]
Matrix = Float[Tensor, "p q"]
Generators = Sequence[torch.Generator]


@dataclass(frozen=True)
class MergeMethod(ABC):
    """A frozen dataclass whose fields are its options and whose call is the mathematics.

    laws: which of these it obeys; tests/core/merging/test_merge_laws.py checks them for every
    method:
        "identity": one adapter with weight 1 is that adapter;
        "order": permuting adapters and weights together changes nothing;
        "gauge": the basis in which A and B are stored (A -> G A, B -> B G^-1) changes nothing;
        "homogeneity": c times every delta gives c times the result, for c > 0.
    lossless: the spaces in which the result is the same as in the full space, that is, those where
        f(U M V^T) = U f(M) V^T for the isometries U, V of the space. The default space is `core` if
        it is lossless (also if `full` is asked for, since the result is the same), else `full`.
    takes_weights: False if the method computes its own weights and ignores given ones.
    takes_generators: True if the method draws random numbers; only then it is given generators.
    carried: the kinds of extra, tensors of an adapter that are no factors, that a merge keeps.
    formula, paper: what `loraprobe methods` prints.
    """

    laws: ClassVar[frozenset[str]]
    lossless: ClassVar[frozenset[str]] = frozenset({"full"})
    takes_weights: ClassVar[bool] = True
    takes_generators: ClassVar[bool] = False
    carried: ClassVar[frozenset[str]] = frozenset()
    formula: ClassVar[str]
    paper: ClassVar[str]

    def __post_init__(self) -> None:
        """Raises ValueError for an option that does not take the value given."""
        check_choices(self)

    @abstractmethod
    def __call__(self, deltas: Deltas, weights: Weights, generators: Generators = ()) -> Matrix:
        """Merge deltas [n, p, q] with weights [n] into [p, q].

        `generators`, one per adapter, are the source of all randomness where the method takes
        them. They are seeded by the content of the adapters, so the order of the adapters does not
        matter.
        """

    def default_weights(self, n: int) -> tuple[float, ...]:
        """Weights where none are given: 1/n each, so that a weighted sum is an average."""
        return (1.0 / n,) * n

    def check(self, weights: Sequence[float]) -> None:  # noqa: B027 - most methods take all
        """Raises UsageError if the method cannot take these weights or this many adapters."""

    @classmethod
    def default_space(cls) -> str:
        """`core` if the method loses nothing there, else `full`."""
        return "core" if "core" in cls.lossless else "full"


@dataclass(frozen=True)
class GramMethod(MergeMethod):
    """A linear combination whose coefficients depend on the angles and lengths of the deltas.

    These are the same in every space and follow from the factors. So such a method needs no space
    and no dense matrix: factors are concatenated.
    """

    laws = frozenset({"identity", "order", "gauge", "homogeneity"})
    lossless = EVERY_SPACE

    @abstractmethod
    def coefficients(
        self, weights: Sequence[float], inner: Float64[Tensor, "n n"]
    ) -> tuple[float, ...]:
        """The n coefficients of the deltas, from their inner products <dW_i, dW_j> [n, n]."""

    def __call__(self, deltas: Deltas, weights: Weights, generators: Generators = ()) -> Matrix:
        flat = deltas.flatten(1).to(torch.float64)
        coefficients = self.coefficients(weights.tolist(), flat @ flat.mT)
        return weighted_sum(deltas, torch.tensor(coefficients, dtype=torch.float64))


@dataclass(frozen=True)
class LinearMethod(GramMethod):
    """A linear combination of the deltas with coefficients that do not depend on them.

    Constant gates at run time give the same result.
    """

    carried = frozenset(KEPT)

    def coefficients(
        self, weights: Sequence[float], inner: Float64[Tensor, "n n"] | None = None
    ) -> tuple[float, ...]:
        """The n coefficients of the deltas: the weights as given, or the method's own."""
        return tuple(weights) if self.takes_weights else self.default_weights(len(weights))


@dataclass(frozen=True)
class FactorMethod(MergeMethod):
    """A method that acts on the factors as they are stored, not on the deltas.

    The A's [n, r, in] and the B's [n, out, r], each multiplied by sqrt(scaling), are combined
    separately, with the two sets of weights that `factor_weights` makes of the given ones. So the
    method has no space, needs equal ranks, and depends on the basis of the factors.
    """

    laws = frozenset({"identity", "order", "homogeneity"})
    lossless = frozenset()

    @abstractmethod
    def factor_weights(self, weights: Weights) -> tuple[Weights, Weights]:
        """The weights [n] of the A's and those of the B's."""

    def __call__(self, deltas: Deltas, weights: Weights, generators: Generators = ()) -> Matrix:
        """Combine one kind of factor, given in place of deltas: [n, r, in] or [n, out, r]."""
        return weighted_sum(deltas, weights)

    def combined(self, updates: Sequence[LowRank], weights: Weights) -> LowRank:
        """The product of both sums; sqrt(|s|) goes into each factor, the sign of s into B."""
        weights_A, weights_B = self.factor_weights(weights)
        roots = [abs(u.scaling) ** 0.5 for u in updates]
        A = self(torch.stack([u.A * r for u, r in zip(updates, roots, strict=True)]), weights_A)
        signed = [math.copysign(r, u.scaling) for u, r in zip(updates, roots, strict=True)]
        B = self(torch.stack([u.B * r for u, r in zip(updates, signed, strict=True)]), weights_B)
        return LowRank(A, B)

    @classmethod
    def default_space(cls) -> str:
        """The factors themselves."""
        return "factors"


def weighted_sum(deltas: Deltas, weights: Weights) -> Matrix:
    """sum_i w_i dW_i: [n, p, q], [n] -> [p, q]."""
    return torch.tensordot(weights.to(deltas), deltas, dims=1)


_MEAN = (
    "the mean of the deltas is uniform, and the product of the mean A and the mean B, which is "
    "another update, is factor_average: take one of these."
)
_WEIGHTED = "the sum of the deltas by --weights, used as given, is task_arithmetic: take that."
_ON_DELTAS = (
    "peft's works on the deltas and not on A and B, as {0} always does here: take {0}, with "
    "--rank=N for a rank."
)
_ON_SPHERE = (
    "mergekit's, the mean of the deltas' directions at their mean length, was not shown to do "
    "better than uniform with --balance=norm (docs/merging.md): take that, or slerp for two "
    "adapters."
)
# What peft, mergekit and papers mean by names that no method has here.
ELSEWHERE = {
    "linear": "peft's weighs A and B apart, as factor_average:variant=peft does; mergekit's is the "
    "mean of the deltas by their weights: take task_arithmetic with --weights of sum 1.",
    "cat": "peft's is the sum of the deltas by their weights, without loss: take task_arithmetic; "
    "LoRA Soups' learns the weights of each layer: add --weights=learn:per=layer.",
    "svd": "peft's is the sum of the deltas by their weights, cut to a rank: take task_arithmetic "
    "with --rank=N.",
    **dict.fromkeys(("average", "avg", "mean"), _MEAN),
    **dict.fromkeys(("weighted", "weighted_average", "weighted_sum"), _WEIGHTED),
    **{
        f"{name}_svd": _ON_DELTAS.format(name)
        for name in ("ties", "dare_ties", "dare_linear", "magnitude_prune")
    },
    "learn": "weights are learned by --weights=learn: take task_arithmetic with that.",
    "nuslerp": "mergekit's, on deltas, is slerp with weights of sum 1: take slerp.",
    **dict.fromkeys(("karcher", "multislerp"), _ON_SPHERE),
    "pico": "scaling down output directions that the deltas share was not shown to do better than "
    "scaling down random ones (docs/merging.md): take task_arithmetic.",
}

METHODS: Registry[MergeMethod] = Registry(
    "loraprobe.merging",
    MergeMethod,  # type: ignore[type-abstract]
    "merge method",
    ELSEWHERE,
)


# One merge.


@runtime_checkable
class BaseTensors(Protocol):
    """The tensors of a base: W0 [out, in] of a module, and a parameter by its name, as stored."""

    def weight(self, module_path: str) -> Tensor: ...

    def parameter(self, name: str) -> Tensor: ...


@dataclass(frozen=True)
class MergeConfig:
    """How adapters are merged, whichever these are.

    weights: one for each adapter, used as given and never normalised; () for the method's own.
    space: "full", "core" or "knots"; "" for the method's own. rank: None for as many components as
    lose nothing, at most the sum of the adapters' ranks. dtype: of the written factors; None for
    the widest of the adapters'. allow: codes of issues that are accepted.

    Raises UsageError for a space of a method that acts on factors.
    """

    method: MergeMethod
    weights: tuple[float, ...] = ()
    space: str = ""
    rank: int | None = None
    seed: int = 0
    dtype: torch.dtype | None = None
    allow: Collection[str] = ()

    def __post_init__(self) -> None:
        own = self.method.default_space()
        if isinstance(self.method, FactorMethod) and self.space not in ("", own):
            raise UsageError(
                f"{name_of(self.method)} acts on the factors as stored and has no space to choose; "
                "leave it out."
            )
        object.__setattr__(self, "space", self.space or own)

    @classmethod
    def of(
        cls,
        method: MergeMethod,
        options: Options,
        weights: Sequence[float] | None,
        dtype: torch.dtype | None,
    ) -> MergeConfig:
        """That of the options. weights, dtype: which these leave open."""
        rank = None if options.rank == "auto" else options.rank
        space, used = options.space or "", tuple(weights or ())
        return cls(method, used, space, rank, options.seed, dtype, options.allow)

    @property
    def dense(self) -> bool:
        """Whether the method runs on deltas of full size [out, in].

        Where nothing is lost in `core`, the full space has the same result without them.
        """
        return self.space == "full" and "core" not in self.method.lossless


@dataclass(frozen=True, eq=False)
class MergeInputs:
    """One merge: the adapters, how they are merged, and their base where one is at hand.

    weights: those that are used.
    """

    adapters: Sequence[Adapter]
    config: MergeConfig
    weights: tuple[float, ...]
    base: BaseTensors | None = None

    @functools.cached_property
    def dtype(self) -> torch.dtype:
        """That of the written factors, which holds the factors of all adapters if none was asked
        for; no float of 8 bits, in which nothing can be cut."""
        dtypes = [torch.bfloat16 if a.dtype.itemsize == 1 else a.dtype for a in self.adapters]
        return self.config.dtype or functools.reduce(torch.promote_types, dtypes)

    @functools.cached_property
    def layout(self) -> Mapping[str, ModuleInfo]:
        """All modules that any adapter adapts, in the order in which the adapters list them."""
        found: dict[str, ModuleInfo] = {}
        for path, info in (item for a in self.adapters for item in a.layout.items()):
            # conv1d and linear differ in a flag that peft sets by the layer
            if path not in found or (found[path].kind, info.kind) == ("linear", "conv1d"):
                found[path] = info
        return found

    @functools.cached_property
    def order(self) -> list[int]:
        """The indices of the adapters, ordered by their content.

        In this order they are merged, so that the order in which they are given changes no bit of
        the result, even where it depends on rounding: the sign of a sum that cancels, or the basis
        of a space with equal singular values.
        """
        given = self.adapters
        return sorted(range(len(given)), key=lambda i: (given[i].sha256, given[i].name))

    @functools.cached_property
    def ordered(self) -> MergeInputs:
        """The same merge with its adapters in `order`."""
        return replace(
            self,
            adapters=[self.adapters[i] for i in self.order],
            weights=tuple(self.weights[i] for i in self.order),
        )

    def updates(self, path: str) -> list[LowRank]:
        """The updates of all adapters for a module, of rank 0 where one lacks it."""
        info = self.layout[path]
        absent = LowRank(torch.zeros(0, info.in_features), torch.zeros(info.out_features, 0))
        return [adapter.modules.get(path, absent) for adapter in self.adapters]

    @property
    def carried(self) -> frozenset[str]:
        """The kinds of extra that the merge keeps."""
        kinds = self.config.method.carried
        return kinds if self.base is not None else kinds - {"dora_magnitude"}

    @property
    def keeps_dora(self) -> bool:
        """Whether the result is a DoRA adapter, which needs the base."""
        return "dora_magnitude" in self.carried and any(a.magnitudes for a in self.adapters)

    @property
    def coefficients(self) -> tuple[float, ...]:
        """The factor of each adapter under a linear method; () under another."""
        if not isinstance(self.config.method, LinearMethod):
            return ()
        return self.config.method.coefficients(self.weights)

    @property
    def in_threads(self) -> bool:
        """Whether several modules are merged at once: not dense ones, nor those of DoRA."""
        return not (self.config.dense or self.keeps_dora)

    def require_memory(self) -> None:
        """Raises OutOfMemory, naming the largest module and what would fit; no factor is read.

        Counted are the result's factors of all modules, [rank, in] and [out, rank] in the written
        dtype, and for each module that is merged at the same time all factors in float64, twice.
        Where the method works on dense deltas, that is one module, and 2 n + 3 matrices [out, in]
        in float32 (float64 where that is the written dtype) are added.
        """
        kept, needs, together = 0, dict[str, int](), threads_at_once() if self.in_threads else 1
        for path, info in self.layout.items():
            rank = sum(a.layout[path].rank for a in self.adapters if path in a.layout)
            width = info.in_features + info.out_features
            kept += (self.config.rank or rank) * width * self.dtype.itemsize
            needs[path] = 16 * rank * width * together
            if self.config.dense:
                matrix = info.out_features * info.in_features * max(self.dtype.itemsize, 4)
                needs[path] += (2 * len(self.adapters) + MORE_MATRICES) * matrix
        largest = max(needs, key=lambda path: needs[path])
        info = self.layout[largest]
        memory.require(
            kept + needs[largest],
            f"The merge (largest module {largest}, [{info.out_features}, {info.in_features}])",
            "take --space=core or knots, which stay small, or a method in factors such as uniform"
            if self.config.dense
            else "give a smaller --rank, or fewer adapters at a time",
        )
