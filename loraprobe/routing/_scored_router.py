"""The base class of routers that score experts: top_k, softmax, and gates for whole prompts."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, TypeVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from loraprobe.composition import Router, TokenGates
from loraprobe.composition.forward_pass import current_pass
from loraprobe.errors import UsageError
from loraprobe.lora.lowrank import LowRank
from loraprobe.registry import check_choices

Per = Literal["token", "sequence"]
SCORED_LAWS = frozenset({"identity", "order", "gauge", "absent_is_neutral"})
ONE_EXPERT_LAWS = SCORED_LAWS | {"homogeneity", "input_scale", "absent_is_zero"}  # gates 0 and 1
R = TypeVar("R", bound=Router)


class ExpertScores(ABC):
    """The scores of the k experts of a module for an input: c kinds of score for each expert."""

    @abstractmethod
    def __call__(self, x: Float[Tensor, "*tokens in"]) -> Float[Tensor, "*tokens c k"]:
        """x: [..., in] -> [..., c, k]; each of the c kinds may be averaged over tokens."""

    def centred(self, x: Float[Tensor, "*tokens in"]) -> Float[Tensor, "*tokens in"]:
        """The input relative to the origin of the scores."""
        return x

    def final(self, scores: Float[Tensor, "*tokens c k"]) -> Float[Tensor, "*tokens k"]:
        """The scores that decide: [..., k], -inf for an excluded expert."""
        return scores[..., 0, :]


class CachedMatrix:
    """A matrix that is kept in each device and dtype in which it was needed."""

    def __init__(self, matrix: Tensor) -> None:
        self.matrix = matrix
        self._known = {(matrix.device, matrix.dtype): matrix}

    def like(self, x: Tensor) -> Tensor:
        """The matrix on x's device in x's dtype."""
        place = (x.device, x.dtype)
        if place not in self._known:
            self._known[place] = self.matrix.to(device=x.device, dtype=x.dtype)
        return self._known[place]


@dataclass(frozen=True)
class ScoredRouter(Router):
    """The top_k experts with the highest scores share a softmax at `temperature`; others get 0.

    top_k is clamped to the experts scored. At temperature inf the chosen get equal gates.
    `normalize` divides an input by its length before it is scored.

    per: "token", or "sequence": the mean of the scores over all tokens of a prompt decides once,
    in the pass that reads the prompt, for the prompt and all that follows. Padding does not count.
    With `scores_absent` the mean is also over the modules that have read the prompt so far.
    Without a cache each pass is a prompt of its own, unless the caller says where the prompt ends.
    """

    top_k: int = 3
    temperature: float = 1.0
    normalize: bool = False
    per: Per = "token"

    constant: ClassVar[bool] = False
    scores_absent: ClassVar[bool] = False  # whether experts without the module get a share there

    def __post_init__(self) -> None:
        check_choices(self)
        if self.top_k < 1:
            raise ValueError(f"top_k must be at least 1, not {self.top_k}")
        if not self.temperature > 0:
            raise ValueError(f"temperature must be a positive number, not {self.temperature}")

    @abstractmethod
    def scores(self, module: str, experts: Sequence[LowRank], n: int) -> ExpertScores:
        """The scores of the experts that have the module, or of all n if `scores_absent`."""

    def gates(
        self, module: str, experts: Sequence[LowRank], present: Sequence[int], n: int
    ) -> Float[Tensor, 1] | TokenGates:
        """A function x [..., in] -> [..., k]; the constant 1 where one expert is scored."""
        if (n if self.scores_absent else len(present)) == 1:
            return torch.ones(1)
        scores = self.scores(module, experts, n)
        columns = list(present) if self.scores_absent and len(present) < n else None
        gate = TokenGate if self.per == "token" else PromptGate
        return gate(module, scores, self, columns)

    def chosen(self, scores: Float[Tensor, "*tokens k"]) -> Float[Tensor, "*tokens k"]:
        """Gates [..., k] of scores [..., k]: they sum to 1, at most top_k of them above 0."""
        if self.top_k < scores.shape[-1]:
            best, index = scores.topk(self.top_k, dim=-1)
            scores = torch.full_like(scores, float("-inf")).scatter(-1, index, best)
        if self.temperature < float("inf"):
            return (scores / self.temperature).softmax(-1)
        equal = (~torch.isneginf(scores)).to(scores.dtype)
        return equal / equal.sum(-1, keepdim=True)


def changed(router: R, **options: object) -> R:
    """The same router with other options; it keeps what it has learned."""
    other = copy.copy(router)
    for name, value in options.items():
        object.__setattr__(other, name, value)
    return other


@dataclass(frozen=True, eq=False)
class TokenGate:
    """The gates of one module, which decides for each token by its own input.

    columns: the experts that have the module among those scored; None for all. shared: whether the
    composition has to follow the model's passes.
    """

    path: str
    scores: ExpertScores
    router: ScoredRouter
    columns: list[int] | None

    shared: ClassVar[bool] = False

    def __call__(self, x: Float[Tensor, "*tokens in"]) -> Float[Tensor, "*tokens k"]:
        """x: [..., in] -> gates [..., k]."""
        return self.chosen(self.scored(x))

    def chosen(self, scores: Float[Tensor, "*tokens c n"]) -> Float[Tensor, "*tokens k"]:
        """The gates [..., k] of the experts that have the module."""
        gates = self.router.chosen(self.scores.final(scores))
        return gates if self.columns is None else gates[..., self.columns]

    def scored(self, x: Float[Tensor, "*tokens in"]) -> Float[Tensor, "*tokens c k"]:
        """The scores of an input: [..., c, k]."""
        x = self.scores.centred(x)
        return self.scores(F.normalize(x, dim=-1) if self.router.normalize else x)


class PromptGate(TokenGate):
    """The gates of one module, which decides once for a whole prompt and what follows it."""

    shared: ClassVar[bool] = True

    def __call__(self, x: Float[Tensor, "*tokens in"]) -> Float[Tensor, "*tokens k"]:
        """x: [..., in] -> gates [..., k]; only in a forward pass of the composed model."""
        now, leading = current_pass(self.path), x.shape[:-1]
        if now.begins:
            own = now.over_prompt(self.scored(x), leading, self.path)
            now.decided[self.path] = self._with_earlier(own, now.decided)
        if self.path not in now.decided:
            raise UsageError(
                f"Module {self.path} continues prompts that this composition has not read; "
                "read them again, or use per=token."
            )
        scores = now.of_rows(now.decided[self.path].to(device=x.device, dtype=x.dtype))
        gates = self.chosen(scores)
        if leading.numel() != now.rows * now.tokens and leading[:1] != (now.rows,):
            raise UsageError(
                f"Module {self.path} reads an input of shape {tuple(x.shape)}, in which "
                f"{now.rows} prompts cannot be told apart; use per=token."
            )
        each, k = leading.numel() // now.rows, gates.shape[-1]
        return gates[:, None].expand(now.rows, each, k).reshape(*leading, k)

    def _with_earlier(self, scores: Tensor, decided: dict[str, Tensor]) -> Tensor:
        """The scores [rows, c, n] that decide, from the module's own and the earlier modules'.

        They are the mean over all modules so far where each scores the same n experts, because one
        module alone chooses the wrong expert for many prompts. decided: such means of the earlier
        modules, in the order of the pass.
        """
        if not self.router.scores_absent:
            return scores
        scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
        if not decided:
            return scores
        mean = next(reversed(decided.values())).to(scores)
        return mean + (scores - mean) / (len(decided) + 1)
