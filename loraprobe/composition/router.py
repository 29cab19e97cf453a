"""The interface of routers, and the composition of experts and a router."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from loraprobe.adapters import Adapter, LayerKind
from loraprobe.errors import UsageError
from loraprobe.lora.lowrank import LowRank
from loraprobe.registry import name_of

TokenGates = Callable[[Tensor], Tensor]  # x [..., in] -> gates [..., k]
# Called before each pass with the mask [b, n] of tokens that count; None after a failed pass.
See = Callable[[Tensor | None], None]
Read = Callable[[Sequence[str], See], None]  # reads texts through a model, batch by batch
Prompts = Mapping[str, Sequence[str]]  # expert's name -> its prompts


@dataclass(frozen=True)
class Router(ABC):
    """Computes the gates of the experts. A frozen dataclass whose fields are its options.

    constant: whether the gates do not depend on the token. laws: names of the laws that the router
    obeys with default options; tests/routing/test_router_laws.py defines them.
    """

    constant: ClassVar[bool]
    laws: ClassVar[frozenset[str]]
    formula: ClassVar[str]
    paper: ClassVar[str]

    @abstractmethod
    def gates(
        self, module: str, experts: Sequence[LowRank], present: Sequence[int], n: int
    ) -> Tensor | TokenGates:
        """Gates of the k experts present in `module`, whose indices among all n are `present`.

        A constant router returns a tensor [k]. Another router returns a function x [..., in] ->
        [..., k] that works on every device and floating dtype.
        """

    def embedding_gates(self, present: Sequence[int], n: int) -> Tensor | TokenGates:
        """Gates of an embedding under a token router: 1/k each, as there is no input vector."""
        return torch.full((len(present),), 1 / len(present))

    @property
    def weighs_whole(self) -> bool:
        """Whether the router can weigh whole parameters, which have no factors.

        A constant router gives their gates by `gates(name, (), present, n)`, another router by
        `embedding_gates`.
        """
        return self.constant

    def check(self, n: int) -> None:  # noqa: B027 - most routers serve any number
        """Raises UsageError if this router does not support n experts."""

    @property
    def name(self) -> str:
        """The name in the registry of routers."""
        return name_of(self)

    @property
    def needs_prompts(self) -> bool:
        """Whether `fitted` or `with_state` must be called before `gates`."""
        return False

    def each_token(self) -> Router:
        """The router with the same scores that decides separately for every token and module."""
        return self

    def fitted(
        self, model: nn.Module, read: Read, experts: Sequence[Adapter], prompts: Prompts
    ) -> Router:
        """The same router with a state learned from prompts of each expert.

        model: the base without a composition; read(texts, see) runs it over texts. Routers without
        a state return themselves.
        """
        return self

    def state(self) -> dict[str, Tensor]:
        """The learned state as named tensors on the CPU; {} if there is none."""
        return {}

    def with_state(self, state: Mapping[str, Tensor]) -> Router:
        """The same router with a state from `state`. Raises UsageError if it supports none."""
        if state:
            raise UsageError(f"Router {self.name} learns nothing, so it takes no stored state.")
        return self


@dataclass(frozen=True)
class Composition:
    """Experts and the router that gives them gates. No experts: the base model as it is."""

    name: str
    experts: tuple[Adapter, ...]
    router: Router

    def __post_init__(self) -> None:
        object.__setattr__(self, "experts", tuple(self.experts))
        self.router.check(len(self.experts))

    def into(self, model: nn.Module) -> AbstractContextManager[nn.Module]:
        """The same as composed(model, self)."""
        from loraprobe.composition.placement import composed

        return composed(model, self)

    @property
    def paths(self) -> tuple[str, ...]:
        """The modules that at least one expert adapts, in the experts' order."""
        return tuple(dict.fromkeys(path for expert in self.experts for path in expert.modules))

    def present(self, path: str) -> list[int]:
        """Indices of the experts that adapt a module."""
        return [i for i, expert in enumerate(self.experts) if path in expert.modules]

    def kind(self, path: str) -> LayerKind:
        """The kind of layer of a module, as the experts store it."""
        return self.experts[self.present(path)[0]].modules.info(path).kind

    def scaled(self, path: str) -> bool:
        """Whether some expert scales the module's own output, which needs the base's weights."""
        return any(path in self.experts[i].magnitudes for i in self.present(path))

    def notes(self) -> tuple[str, ...]:
        """Notes for a report on gates that differ from the router's formula."""
        if self.router.constant or not self.experts:
            return ()
        notes = []
        partial = [p for p in self.paths if len(self.present(p)) < len(self.experts)]
        if partial:
            notes.append(
                f"{self.name}: {len(partial)} of {len(self.paths)} modules (such as "
                f"{partial[0]}) are adapted by some experts only; there the gates are "
                "shared among those."
            )
        for kind, noun in (("embedding", "embeddings"), ("convolution", "convolutions")):
            paths = [p for p in self.paths if self.kind(p) == kind]
            if paths:
                notes.append(
                    f"{self.name}: {noun} ({', '.join(paths)}) have no input to route by "
                    "and get equal constant gates."
                )
        return tuple(notes)
