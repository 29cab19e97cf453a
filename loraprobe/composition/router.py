"""The interface of routers, which compute the gates of a composition's experts; the router whose
gates are learned, and the one that adds experts of gate 1."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from loraprobe.adapters import Adapter
from loraprobe.errors import UsageError
from loraprobe.lora.lowrank import LowRank
from loraprobe.registry import name_of

TokenGates = Callable[[Tensor], Tensor]  # x [..., in] -> gates [..., k]
# Called before each pass with the mask [b, n] of tokens that count; None after a failed pass.
MaskObserver = Callable[[Tensor | None], None]
ReadTexts = Callable[[Sequence[str], MaskObserver], None]  # through a model, batch by batch
ExpertPrompts = Mapping[str, Sequence[str]]  # expert's name -> its prompts


def unroutable(adapter: Adapter) -> str | None:
    """What an adapter does that gates of a token cannot weigh, as a predicate; None if nothing."""
    if adapter.whole:
        return f"replaces {next(iter(adapter.whole))} whole"
    if adapter.token_rows:
        return f"replaces rows of {next(iter(adapter.token_rows))}"
    stack = next(iter(adapter.stacks), None)
    return None if stack is None else f"changes the parameter of {stack} itself"


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

    def embedding_gates(self, module: str, present: Sequence[int]) -> Tensor | TokenGates:
        """Gates under a token router of a layer without an input vector: 1/k each."""
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

    @property
    def learner(self) -> type[Router]:
        """The class that learns the state; routers of one learner share a state."""
        return type(self)

    def fitted(
        self, model: nn.Module, read: ReadTexts, experts: Sequence[Adapter], prompts: ExpertPrompts
    ) -> Router:
        """The same router with a state learned from prompts of each expert.

        model: the base without a composition; read(texts, observe) runs it over texts. Routers
        without a state return themselves.
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


@dataclass(frozen=True, eq=False)
class LearnableGates(Router):
    """Constant gates by which a loss can be differentiated: values [rows, n] of n experts.

    row_of: a module's path, or the name of a whole parameter -> its row.
    """

    values: Tensor
    row_of: Callable[[str], int]

    constant: ClassVar[bool] = False  # or they would be multiplied into the factors beforehand

    __hash__ = object.__hash__
    __eq__ = object.__eq__  # else all would be equal, since routers compare their options

    @property
    def weighs_whole(self) -> bool:
        """Constant gates can weigh whole parameters."""
        return True

    def gates(
        self, module: str, experts: Sequence[LowRank], present: Sequence[int], n: int
    ) -> TokenGates:
        """A function of any x to the gates [k], which are broadcast over tokens."""
        return self.embedding_gates(module, present)

    def embedding_gates(self, module: str, present: Sequence[int]) -> TokenGates:
        row, index = self.row_of(module), list(present)
        return lambda x: self.values[row, index].to(device=x.device, dtype=x.dtype)


@dataclass(frozen=True)
class GatesAndOnes(Router):
    """The gates of a router for its n experts, which come first, and 1 for all experts after them.

    Those are the adapters below the others; the router knows nothing of them.
    """

    router: Router
    n: int

    @property
    def constant(self) -> bool:  # type: ignore[override]
        return self.router.constant

    @property
    def weighs_whole(self) -> bool:
        return self.router.weighs_whole

    def gates(
        self, module: str, experts: Sequence[LowRank], present: Sequence[int], n: int
    ) -> Tensor | TokenGates:
        own = [i for i in present if i < self.n]
        if not own:
            return torch.ones(len(present))
        found = self.router.gates(module, experts[: len(own)], own, self.n)
        return _with_ones(found, len(present) - len(own))

    def embedding_gates(self, module: str, present: Sequence[int]) -> Tensor | TokenGates:
        own = [i for i in present if i < self.n]
        if not own:
            return torch.ones(len(present))
        return _with_ones(self.router.embedding_gates(module, own), len(present) - len(own))


def _with_ones(gates: Tensor | TokenGates, more: int) -> Tensor | TokenGates:
    """Gates [..., k] with 1 for so many further experts."""
    if isinstance(gates, Tensor):
        return F.pad(gates, (0, more), value=1.0)
    return _PaddedGates(gates, more)


@dataclass(frozen=True, eq=False)
class _PaddedGates:
    """Token gates, and 1 for so many further experts."""

    own: TokenGates
    more: int

    @property
    def shared(self) -> bool:
        """Whether the composition has to follow the model's passes."""
        return getattr(self.own, "shared", False)

    def __call__(self, x: Tensor) -> Tensor:
        """x: [..., in] -> gates [..., k + more]."""
        return F.pad(self.own(x), (0, self.more), value=1.0)
