"""The Adapter and its parts, whose tensors are read when they are needed."""

from __future__ import annotations

import functools
import hashlib
import math
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from loraprobe.adapters.names import (
    kinds_of_modules,
    local_name,
    natural,
    public_name,
    public_value,
)
from loraprobe.cache import cached_hash
from loraprobe.defaults import EXTREME_NORM
from loraprobe.findings import finding
from loraprobe.formatting import count, shortly
from loraprobe.lora.lowrank import LowRank
from loraprobe.lora.threads import in_order
from loraprobe.records import AdapterSummary, Issue
from loraprobe.results import digest

Value = TypeVar("Value")
LayerKind = Literal["linear", "conv1d", "embedding", "convolution", "expert"]


@dataclass(frozen=True)
class ModuleInfo:
    """The update of one module, from the file's header alone.

    `path` is the module's path in the base model. Delta W is [out_features, in_features] in the
    orientation of a torch Linear for every kind: a Conv1D stores its weight transposed, and an
    embedding's weight [vocab, dim] is the transpose of its delta [dim, vocab]. A convolution's
    weight [out, in, *kernel] is flattened to [out, in * prod(kernel)]; `kernel` is () elsewhere.
    An expert is one matrix of a stacked parameter, with a path like `mlp.experts[3]` (`experts`).
    """

    path: str
    kind: LayerKind
    rank: int
    in_features: int
    out_features: int
    scaling: float
    dtype: torch.dtype
    kernel: tuple[int, ...] = ()

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in)."""
        return self.out_features, self.in_features


@dataclass(frozen=True)
class Extra:
    """A tensor of the file that is not a plain factor.

    `kind` is one of dora_magnitude, modules_to_save, bias, lora_bias, token_delta (these are read
    through the adapter's `magnitudes`, `whole`, `offsets` and `token_rows`), unclear_tokens,
    target_parameter (of unclear rank), convolution (one with groups), base_copy, base_weight
    (a copy of another weight of the base, which peft would load over it), unknown.
    """

    kind: str
    key: str
    module: str | None
    shape: tuple[int, ...]
    dtype: str

    @property
    def code(self) -> str:
        """The code of issues about it, which is its kind with dashes."""
        return self.kind.replace("_", "-")

    def __str__(self) -> str:
        return f"{self.kind} {self.key} {list(self.shape)}"


@dataclass(frozen=True)
class Source:
    """The origin of an adapter: the reference as typed, the local files, the pinned commit."""

    reference: str
    path: Path | None = None
    commit: str | None = None

    @property
    def public(self) -> str:
        """The reference in a form that may be published: only the name of a local directory."""
        local = self.path is not None and self.commit is None
        return local_name(self.reference) if local else self.reference


@dataclass(frozen=True)
class Parent:
    """An adapter that was in the base when another one was trained, as the files of that one say.

    reference: as these name it. named_in: the file. adapter: None where it is not found.
    """

    reference: str
    named_in: str
    adapter: Adapter | None = None

    @property
    def public(self) -> str:
        """The reference in a form that may be published: only the name of a local directory."""
        return self.reference if self.adapter is None else self.adapter.source.public


class LazyMapping(Mapping[str, Value]):
    """Name -> value, read when needed.

    Iteration is in natural order of the names (layer 2 before layer 10).
    """

    def __init__(self, names: Iterable[str], read: Callable[[str], Value]) -> None:
        self._names = dict.fromkeys(sorted(names, key=natural))
        self._read = read

    def __getitem__(self, name: str) -> Value:
        if name not in self._names:
            raise KeyError(name)
        return self._read(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def __contains__(self, name: object) -> bool:
        return name in self._names


class Tensors(LazyMapping[Tensor]):
    """Name -> tensor, read when needed, in natural order."""


@dataclass(frozen=True, eq=False)
class TokenRows:
    """Trained rows of an embedding or a head (`trainable_token_indices`) and their tokens' ids.

    peft stores the rows themselves, not their change, and puts them in place of the base's:
    TrainableTokensLayer copies them over `W[tokens]`. Where the base ties its head to the
    embedding, the rows of the embedding also replace the head's. `values`: [k, dim], in order.
    """

    tokens: tuple[int, ...]
    read: Callable[[], Tensor]

    @property
    def values(self) -> Float[Tensor, "k dim"]:
        return self.read()


class Modules(LazyMapping[LowRank]):
    """Module path -> LowRank in the dtype of the file, read when needed, in natural order."""

    def __init__(self, infos: Mapping[str, ModuleInfo], read: Callable[[str], LowRank]) -> None:
        super().__init__(infos, read)
        self.infos: Mapping[str, ModuleInfo] = {path: infos[path] for path in self}

    def info(self, path: str) -> ModuleInfo:
        """Shape, rank, scaling and kind of one module; no tensor is read."""
        return self.infos[path]


@dataclass(frozen=True, eq=False)
class Adapter:
    """One LoRA adapter: its updates by module, and the other contents of its files.

    `issues` are those found while reading it; `config` is the content of adapter_config.json.

    An adapter may also hold these tensors, which are read when needed:

    magnitudes: module path -> m [out] of DoRA: the module's weight becomes
        diag(m / rownorm(W0 + dW)) (W0 + dW).
    whole: parameter name in the base (`score.weight`, `lm_head.bias`) -> the tensor that replaces
        it, as the base stores it: modules_to_save and trained biases.
    offsets: module path -> b [out], the bias of lora_B; the module's output gains scaling * b.
    token_rows: module path -> rows that replace those of an embedding or a head.

    parents: the adapters that were in the base when it was trained, in the order of their merge.
    """

    name: str
    source: Source
    base_model: str | None
    modules: Modules
    extras: tuple[Extra, ...] = ()
    issues: tuple[Issue, ...] = ()
    config: Mapping[str, Any] = field(default_factory=dict)
    weights_file: Path | None = None
    magnitudes: Mapping[str, Tensor] = field(default_factory=dict)
    whole: Mapping[str, Tensor] = field(default_factory=dict)
    offsets: Mapping[str, Tensor] = field(default_factory=dict)
    token_rows: Mapping[str, TokenRows] = field(default_factory=dict)
    parents: tuple[Parent, ...] = ()

    def save(
        self,
        directory: str | Path,
        *,
        overwrite: bool = False,
        card: str | None = None,
        dtype: torch.dtype | None = None,
        targets: Sequence[str] | None = None,
    ) -> None:
        """Writes a PEFT directory. Arguments and errors are those of `save_adapter`."""
        # It reads the files back, and the reader makes adapters of this class.
        from loraprobe.adapters.saving import save_adapter

        save_adapter(self, directory, overwrite=overwrite, card=card, dtype=dtype, targets=targets)

    def __repr__(self) -> str:
        low, high = self.rank_range
        rank = f"{low}" if low == high else f"{low} to {high}"
        base = shortly([self.base_model]) if self.base_model else "an unnamed base"
        kinds = textwrap.shorten(" ".join(kinds_of_modules(self.layout)), 200)
        return (
            f"<Adapter {shortly([self.name])}: {self.variant}, rank {rank}, "
            f"{count(len(self.layout), 'module')} ({kinds}) of {base}>"
        )

    @property
    def layout(self) -> Mapping[str, ModuleInfo]:
        """Module path -> ModuleInfo; no tensor is read."""
        return self.modules.infos

    @functools.cached_property
    def stacks(self) -> dict[str, list[str]]:
        """Stacked parameter -> the paths of its experts in order (see `experts`)."""
        stacks: dict[str, list[str]] = {}
        for path, info in self.layout.items():
            if info.kind == "expert":
                stacks.setdefault(path.rpartition("[")[0], []).append(path)
        return stacks

    @property
    def unstacked(self) -> list[str]:
        """The paths of the modules that are no experts of a stacked parameter."""
        return [path for path, info in self.layout.items() if info.kind != "expert"]

    @functools.cached_property
    def touched(self) -> dict[str, None]:
        """The paths of the modules that it changes, by factors, as a whole or in some rows."""
        owners = (name.rpartition(".")[0] for name in self.whole)
        return dict.fromkeys((*self.layout, *owners, *self.token_rows))

    @property
    def rank_range(self) -> tuple[int, int]:
        """Smallest and largest rank; (0, 0) without modules."""
        ranks = [info.rank for info in self.layout.values()]
        return (min(ranks), max(ranks)) if ranks else (0, 0)

    @property
    def parameters(self) -> int:
        """The number of entries of all factors, without extras."""
        return sum(i.rank * (i.in_features + i.out_features) for i in self.layout.values())

    @property
    def dtype(self) -> torch.dtype:
        """The dtype that can hold all its factors; float32 without modules."""
        dtypes = {info.dtype for info in self.layout.values()}
        return functools.reduce(torch.promote_types, dtypes) if dtypes else torch.float32

    @property
    def has_more_than_factors(self) -> bool:
        """Whether its function depends on magnitudes, whole tensors, biases or token rows."""
        return bool(self.magnitudes or self.whole or self.offsets or self.token_rows)

    @property
    def task_type(self) -> str | None:
        return self.config.get("task_type")

    @functools.cached_property
    def sha256(self) -> str:
        """SHA-256 of the weights file, or of the tensors of an adapter in memory."""
        if self.weights_file is not None:
            return cached_hash(self.weights_file)
        digest = hashlib.sha256()
        for path, update in self.modules.items():
            digest.update(f"{path}:{float(update.scaling)!r}".encode())
            for factor in (update.A, update.B):
                digest.update(_bytes(factor))
        for kind in (self.magnitudes, self.whole, self.offsets):
            for name, tensor in kind.items():
                digest.update(name.encode() + _bytes(tensor))
        for path, rows in self.token_rows.items():
            digest.update(f"{path}:{rows.tokens}".encode() + _bytes(rows.values))
        return digest.hexdigest()

    @functools.cached_property
    def content(self) -> str:
        """A digest of its weights and its config, whatever its name and its place are."""
        return digest({"config": public_value(dict(self.config)), "weights": self.sha256})

    def norm(self) -> float:
        """The Frobenius norm of all deltas together, from the factors, one module at a time."""
        norms = in_order(lambda u: float(u.to(torch.float64).norm()), self.modules.values())
        return math.hypot(*norms)

    def summary(self, norm: float | None = None) -> AdapterSummary:
        """The summary shown in reports; `norm` comes from the diagnostics."""
        low, high = self.rank_range
        return AdapterSummary(
            name=self.name,
            reference=self.source.public,
            commit=self.source.commit,
            base_model=public_name(self.base_model),
            rank={"min": low, "max": high},
            modules=len(self.modules),
            parameters=self.parameters,
            norm=norm,
            extras=tuple(str(extra) for extra in self.extras),
            sha256=self.sha256,
            targets=kinds_of_modules(self.layout),
            scaling=self.scaling_range,
            variant=self.variant,
        )

    @property
    def scaling_range(self) -> tuple[float, float] | None:
        """Smallest and largest scaling; None without modules."""
        scalings = [info.scaling for info in self.layout.values()]
        return (min(scalings), max(scalings)) if scalings else None

    @property
    def variant(self) -> str:
        """lora, rslora or dora, by its tensors and its config."""
        if self.magnitudes:
            return "dora"
        return "rslora" if self.config.get("use_rslora") else "lora"

    def renamed(self, name: str) -> Adapter:
        """The same adapter under another name, which its issues have, not their messages."""
        if name == self.name:
            return self
        issues = tuple(replace(issue, adapters=(name,)) for issue in self.issues)
        return replace(self, name=name, issues=issues)


def extreme_norm(name: str, norm: float, path: str) -> Iterator[Issue]:
    """A warning if `norm`, the largest delta of an adapter (in module `path`), is implausible."""
    if norm > EXTREME_NORM:
        yield finding(
            "norm-extreme",
            (name,),
            f"The delta of {name} in {path} has a Frobenius norm of {norm:.0f}, beyond "
            f"{EXTREME_NORM:.0f}; the sound adapters that were measured have less than 20.",
            path,
        )


def _bytes(tensor: Tensor) -> bytes:
    return tensor.detach().cpu().flatten().view(torch.uint8).numpy().tobytes()
