"""Hard: one expert for each token, with gate 1."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from jaxtyping import Float
from torch import Tensor, nn

from loraprobe.adapters import Adapter
from loraprobe.composition import Router, TokenGates
from loraprobe.composition.router import ExpertPrompts, ReadTexts
from loraprobe.lora.lowrank import LowRank
from loraprobe.registry import check_choices
from loraprobe.routing._scored_router import ONE_EXPERT_LAWS, Per, ScoredRouter, changed
from loraprobe.routing.centroid import Centroid
from loraprobe.routing.spectral import Arrow, SpectR

By = Literal["arrow", "spectr", "centroid"]
SCORED: dict[str, type[ScoredRouter]] = {"arrow": Arrow, "spectr": SpectR, "centroid": Centroid}


@dataclass(frozen=True)
class Hard(Router):
    """The expert with the highest score gets gate 1, the others 0: experts are never mixed.

    by: the router whose score is used, with its other options at their defaults; `arrow:top_k=1` is
    `hard:by=arrow`. Of equal scores the first in topk's order wins. `by=centroid` has to be fitted,
    as centroid, and is the only one that can choose an expert without the module, which adds
    nothing; by the others an expert that is alone in a module always has gate 1 there. With
    per=sequence one adapter answers a whole prompt in each module, and by=centroid chooses by the
    mean score of all modules that have read the prompt so far.
    """

    by: By = "arrow"
    per: Per = "token"
    scored: ScoredRouter = field(init=False, repr=False)  # that of `by` at top_k=1

    constant: ClassVar[bool] = False
    laws: ClassVar[frozenset[str]] = ONE_EXPERT_LAWS
    formula: ClassVar[str] = "y = W x + s_j B_j A_j x,  j = argmax_i score_i(x)"
    paper: ClassVar[str] = "arXiv 2405.11157, 2504.03454, 2311.10847: top-1 of their scores"

    def __post_init__(self) -> None:
        check_choices(self)
        object.__setattr__(self, "scored", SCORED[self.by](top_k=1, per=self.per))

    @property
    def needs_prompts(self) -> bool:
        return self.scored.needs_prompts

    @property
    def learner(self) -> type[Router]:
        return self.scored.learner

    def fitted(
        self, model: nn.Module, read: ReadTexts, experts: Sequence[Adapter], prompts: ExpertPrompts
    ) -> Hard:
        """The same router with a fitted router for its scores."""
        return changed(self, scored=self.scored.fitted(model, read, experts, prompts))

    def state(self) -> dict[str, Tensor]:
        return self.scored.state()

    def with_state(self, state: Mapping[str, Tensor]) -> Hard:
        return changed(self, scored=self.scored.with_state(state))

    def gates(
        self, module: str, experts: Sequence[LowRank], present: Sequence[int], n: int
    ) -> Float[Tensor, 1] | TokenGates:
        """A function x [..., in] -> one-hot [..., k]; the constant 1 where one expert is alone."""
        return self.scored.gates(module, experts, present, n)
