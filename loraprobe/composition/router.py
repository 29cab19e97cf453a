"""The interface of routers, which compute the gates of experts."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from loraprobe.adapters import Adapter
from loraprobe.errors import UsageError
from loraprobe.lora.lowrank import LowRank
from loraprobe.registry import name_of

if TYPE_CHECKING:
    from loraprobe.composition.composition import Composition

TokenGates = Callable[[Tensor], Tensor]  # x [..., in] -> gates [..., k]
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

    constant: whether the gates do not depend on the token. reads_text: whether it gives no gates
    but names the one expert that answers a prompt, by `answering`, before a model reads it. laws:
    names of the laws that the router obeys with default options;
    tests/core/routing/test_router_laws.py defines them.
    """

    constant: ClassVar[bool]
    reads_text: ClassVar[bool] = False
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

    def answering(self, composition: Composition, prompt: str) -> Composition:
        """What answers a prompt, where this is the composition's router.

        A router that `reads_text` gives a composition of one expert, or of none for the base, and
        raises UsageError before it is fitted; any other gives the composition itself.
        """
        return composition

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
        """Whether `fit` or `with_state` must be called before `gates`."""
        return False

    @property
    def learner(self) -> type[Router]:
        """The class that learns the state; routers of one learner share a state."""
        return type(self)

    def fit(self, scorer: Any, experts: Sequence[Adapter], prompts: ExpertPrompts) -> Router:
        """The same router with a state learned from prompts of each expert.

        scorer: a `loraprobe.scoring.ModelScorer` of the base without a composition, which reads
        the prompts. Routers without a state return themselves.
        """
        return self

    def program(self, adapters: Sequence[Mapping[str, str]], base: str | None) -> Mapping[str, str]:
        """Files beside a saved composition by which other programs route: name -> text.

        adapters: of each expert its `name`, the `folder` of its files and their `sha256`. base: as
        it is named in public. {} where no other program can.
        """
        return {}

    def state(self) -> dict[str, Tensor]:
        """The learned state as named tensors on the CPU; {} if there is none."""
        return {}

    def with_state(self, state: Mapping[str, Tensor]) -> Router:
        """The same router with a state from `state`. Raises UsageError if it supports none."""
        if state:
            raise UsageError(f"Router {self.name} learns nothing, so it takes no stored state.")
        return self
