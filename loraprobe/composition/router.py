"""The contract of routers, and the composition they belong to."""

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
# Takes the mask [b, n] of the tokens that count before each pass; None: that pass failed.
See = Callable[[Tensor | None], None]
Read = Callable[[Sequence[str], See], None]  # reads texts through a model, batch by batch
Prompts = Mapping[str, Sequence[str]]  # expert's name -> its prompts


@dataclass(frozen=True)
class Router(ABC):
    """How much each expert counts. A frozen dataclass; its fields are its options.

    `constant` says that the gates do not look at the token; `laws` are what the router obeys
    (tests/routing/test_router_laws.py says what each means), with its options at their defaults.
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

        A constant router returns a tensor [k]; another a function x [..., in] -> [..., k] that
        works on whatever device and floating dtype x has.
        """

    def embedding_gates(self, present: Sequence[int], n: int) -> Tensor | TokenGates:
        """Gates of an embedding under a token router, which has no input to look at: 1/k each."""
        return torch.full((len(present),), 1 / len(present))

    @property
    def weighs_whole(self) -> bool:
        """Whether parameters that experts replace whole, which have no factors, can be weighed.

        Constant gates are asked for with no experts (`gates(name, (), present, n)`), others by
        `embedding_gates`.
        """
        return self.constant

    def check(self, n: int) -> None:  # noqa: B027 - most routers serve any number
        """Raises UsageError if this router cannot serve n experts."""

    @property
    def name(self) -> str:
        """What a user calls it."""
        return name_of(self)

    @property
    def needs_prompts(self) -> bool:
        """Whether it gives no gates yet: `fitted` or `with_state` has to come first."""
        return False

    def each_token(self) -> Router:
        """The router that decides for every token and module apart, by the same scores."""
        return self

    def fitted(
        self, model: nn.Module, read: Read, experts: Sequence[Adapter], prompts: Prompts
    ) -> Router:
        """The same router with what it learns from prompts of each expert, by the expert's name.

        model: the base that carries no composition; read(texts, see) reads texts through it.
        Routers without a state return themselves.
        """
        return self

    def state(self) -> dict[str, Tensor]:
        """What was learned, as named tensors on the CPU; {} where nothing is or can be."""
        return {}

    def with_state(self, state: Mapping[str, Tensor]) -> Router:
        """The same router with a state that `state` gave. Raises UsageError if it takes none."""
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
        """Every module that some expert adapts, in the experts' order."""
        return tuple(dict.fromkeys(path for expert in self.experts for path in expert.modules))

    def present(self, path: str) -> list[int]:
        """Indices of the experts that adapt a module."""
        return [i for i, expert in enumerate(self.experts) if path in expert.modules]

    def kind(self, path: str) -> LayerKind:
        """The kind of layer that the experts take a module for."""
        return self.experts[self.present(path)[0]].modules.info(path).kind

    def scaled(self, path: str) -> bool:
        """Whether some expert scales the module's own output, so that layers need the base."""
        return any(path in self.experts[i].magnitudes for i in self.present(path))

    def notes(self) -> tuple[str, ...]:
        """What a report should say about gates that are not as the router's formula has them."""
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
