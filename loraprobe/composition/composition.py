"""A composition: experts, and the router that gives them gates."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

from torch import Tensor, nn

from loraprobe.adapters import Adapter
from loraprobe.composition.router import Router, TokenGates
from loraprobe.formatting import shortly
from loraprobe.lora.lowrank import LowRank


@dataclass(frozen=True)
class Composition:
    """Experts and the router that gives them gates. No experts: the base model as it is."""

    name: str
    experts: tuple[Adapter, ...]
    router: Router

    def __post_init__(self) -> None:
        object.__setattr__(self, "experts", tuple(self.experts))
        self.router.check(len(self.experts))

    def __repr__(self) -> str:
        experts = shortly(expert.name for expert in self.experts) or "no adapter"
        return f"<Composition {shortly([self.name])}: {self.router.name} of {experts}>"

    def into(self, model: nn.Module) -> AbstractContextManager[nn.Module]:
        """Puts it into a transformers model for as long as the context lasts (`composed`)."""
        from loraprobe.composition.attaching import composed

        return composed(model, self)

    def answering(self, prompt: str) -> Composition:
        """What answers a prompt: one expert or none where the router reads the text, else all."""
        return self.router.answering(self, prompt)

    @property
    def paths(self) -> tuple[str, ...]:
        """The modules that at least one expert adapts, in the experts' order."""
        return tuple(dict.fromkeys(path for expert in self.experts for path in expert.modules))

    def gates(
        self, module: str, present: Sequence[int], updates: Sequence[LowRank] = ()
    ) -> Tensor | TokenGates:
        """Gates of the k experts present in a module, or of those that replace a parameter.

        updates: of the experts present; () for an embedding and for a whole parameter, which have
        no input to route by.
        """
        if updates or self.router.constant:
            return self.router.gates(module, updates, present, len(self.experts))
        return self.router.embedding_gates(module, present)
