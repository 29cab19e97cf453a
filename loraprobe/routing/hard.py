"""Hard: one expert a token, with gate 1."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal, get_args

from jaxtyping import Float
from torch import Tensor, nn

from loraprobe.adapter import Adapter
from loraprobe.composition import Router, TokenGates
from loraprobe.composition.contract import Read
from loraprobe.lora.lowrank import LowRank
from loraprobe.routing._scored import Per, ScoredRouter, Share, changed
from loraprobe.routing.arrow import Arrow
from loraprobe.routing.centroid import Centroid
from loraprobe.routing.spectr import SpectR

By = Literal["arrow", "spectr", "centroid"]
SCORED: dict[str, type[ScoredRouter]] = {"arrow": Arrow, "spectr": SpectR, "centroid": Centroid}


@dataclass(frozen=True)
class Hard(Router):
    """The expert with the highest score gets gate 1, the others 0: no token sees a mixture.

    by: whose score, with that router's other options at their defaults; `arrow:top_k=1` is
    `hard:by=arrow`. Ties go to the expert that topk names first. `by=centroid` has to be fitted
    as centroid is. `per` and `share` as in all routers by scores: with per=sequence one adapter
    answers a whole prompt in each module; per=sequence and share=layer, one in each layer.
    """

    by: By = "arrow"
    per: Per = "token"
    share: Share = "module"
    scored: ScoredRouter = field(init=False, repr=False)  # that of `by` at top_k=1

    constant: ClassVar[bool] = False
    laws: ClassVar[frozenset[str]] = frozenset(
        {
            "identity",
            "order",
            "gauge",
            "homogeneity",
            "input_scale",
            "absent_is_zero",
            "absent_is_neutral",
        }
    )
    formula: ClassVar[str] = "y = W x + s_j B_j A_j x,  j = argmax_i score_i(x)"
    paper: ClassVar[str] = "arXiv 2405.11157, 2504.03454, 2311.10847: top-1 of their scores"

    def __post_init__(self) -> None:
        if self.by not in get_args(By):
            raise ValueError(f"by must be {', '.join(get_args(By))}, not {self.by!r}")
        scored = SCORED[self.by](top_k=1, per=self.per, share=self.share)
        object.__setattr__(self, "scored", scored)

    @property
    def needs_prompts(self) -> bool:
        return self.scored.needs_prompts

    def each_token(self) -> Router:
        return self.scored.each_token()

    def fitted(
        self, model: nn.Module, read: Read, experts: Sequence[Adapter],
        prompts: Mapping[str, Sequence[str]],
    ) -> Hard:  # fmt: skip
        """The same router, the one whose scores it takes fitted."""
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
