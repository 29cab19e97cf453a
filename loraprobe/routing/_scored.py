"""What routers by scores share: choosing the best, the softmax, and for what one decision stands.

A router says how well each expert suits an input; everything after that is the same for all.
"""

from __future__ import annotations

import copy
import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, TypeVar, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from loraprobe.composition import Router, TokenGates
from loraprobe.composition.passes import Decision, Pass, current_pass
from loraprobe.errors import UsageError
from loraprobe.lora.lowrank import LowRank

Per = Literal["token", "sequence"]
Share = Literal["module", "layer"]
R = TypeVar("R", bound=Router)


class Scores(ABC):
    """How well the k experts of a module suit an input, in one or more respects."""

    @abstractmethod
    def __call__(self, x: Float[Tensor, "*tokens in"]) -> Float[Tensor, "*tokens c k"]:
        """x: [..., in] -> [..., c, k]; each of the c respects may be averaged over tokens."""

    def final(self, scores: Float[Tensor, "*tokens c k"]) -> Float[Tensor, "*tokens k"]:
        """The scores that decide: [..., k], -inf for an expert that is out."""
        return scores[..., 0, :]


class Moved:
    """A matrix of float64 or float32, kept in each device and dtype that has asked for it."""

    def __init__(self, matrix: Tensor) -> None:
        self.matrix = matrix
        self._known = {(matrix.device, matrix.dtype): matrix}

    def like(self, x: Tensor) -> Tensor:
        """The matrix where x is, in x's dtype."""
        place = (x.device, x.dtype)
        if place not in self._known:
            self._known[place] = self.matrix.to(device=x.device, dtype=x.dtype)
        return self._known[place]


@dataclass(frozen=True)
class ScoredRouter(Router):
    """The top_k experts with the highest scores share a softmax at `temperature`, others get 0.

    top_k is clamped to the experts present; temperature inf lets the chosen share alike.
    `normalize` divides an input by its length before it is scored.

    per: "token", or "sequence": the scores' mean over all tokens of a prompt decides once, on the
    pass that reads the prompt, for the prompt and all that follows it. Padding does not count;
    without a cache each pass is a prompt of its own, except where a scorer says where it ends.
    share: "module", or "layer": of the modules that lie under one path up to its first number
    (model.layers.7), the first that runs decides for all in that pass; one that holds an expert
    which the first lacks decides for itself.
    """

    top_k: int = 3
    temperature: float = 1.0
    normalize: bool = False
    per: Per = "token"
    share: Share = "module"

    constant: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.top_k < 1:
            raise ValueError(f"top_k must be at least 1, not {self.top_k}")
        if not self.temperature > 0:
            raise ValueError(f"temperature must be a positive number, not {self.temperature}")
        for name, value, known in (("per", self.per, Per), ("share", self.share, Share)):
            if value not in get_args(known):
                raise ValueError(f"{name} must be {' or '.join(get_args(known))}, not {value!r}")

    @abstractmethod
    def scores(self, module: str, experts: Sequence[LowRank], present: Sequence[int]) -> Scores:
        """The scores of the k >= 2 experts of a module, whose indices among all are `present`."""

    def gates(
        self, module: str, experts: Sequence[LowRank], present: Sequence[int], n: int
    ) -> Float[Tensor, 1] | TokenGates:
        """A function x [..., in] -> [..., k]; the constant 1 where one expert is alone."""
        if len(experts) == 1:
            return torch.ones(1)
        scores = self.scores(module, experts, present)
        if self.per == "token" and self.share == "module":
            return ScoredGates(scores, self)
        return SharedGates(scores, self, module, tuple(present))

    def each_token(self) -> ScoredRouter:
        return changed(self, per="token", share="module")

    def before_scoring(self, x: Float[Tensor, "*tokens in"]) -> Float[Tensor, "*tokens in"]:
        """What is scored in place of an input."""
        return F.normalize(x, dim=-1) if self.normalize else x

    def chosen(self, scores: Float[Tensor, "*tokens k"]) -> Float[Tensor, "*tokens k"]:
        """Gates [..., k] of scores [..., k]: they sum to 1, at most top_k of them above 0."""
        if self.top_k < scores.shape[-1]:
            best, index = scores.topk(self.top_k, dim=-1)
            scores = torch.full_like(scores, float("-inf")).scatter(-1, index, best)
        if self.temperature < float("inf"):
            return (scores / self.temperature).softmax(-1)
        alike = (~torch.isneginf(scores)).to(scores.dtype)
        return alike / alike.sum(-1, keepdim=True)


def changed(router: R, **options: object) -> R:
    """The same router with other options; what it has learned stays."""
    other = copy.copy(router)
    for name, value in options.items():
        object.__setattr__(other, name, value)
    return other


class ScoredGates:
    """The gates of one module, which decides for each token by its own input."""

    shared = False

    def __init__(self, scores: Scores, options: ScoredRouter) -> None:
        self.scores, self.options = scores, options

    def __call__(self, x: Float[Tensor, "*tokens in"]) -> Float[Tensor, "*tokens k"]:
        """x: [..., in] -> gates [..., k]."""
        return self.options.chosen(self.scores.final(self.scored(x)))

    def scored(self, x: Float[Tensor, "*tokens in"]) -> Float[Tensor, "*tokens c k"]:
        """What the module finds itself."""
        return self.scores(self.options.before_scoring(x))


class SharedGates(ScoredGates):
    """The gates of one module where a decision stands for a whole prompt, or a whole layer."""

    shared = True

    def __init__(
        self, scores: Scores, options: ScoredRouter, path: str, present: tuple[int, ...]
    ) -> None:
        super().__init__(scores, options)
        self.path, self.present = path, present
        self.by_layer, self.by_sequence = options.share == "layer", options.per == "sequence"
        self.layer = layer_of(path) if self.by_layer else path

    def __call__(self, x: Float[Tensor, "*tokens in"]) -> Float[Tensor, "*tokens k"]:
        """x: [..., in] -> gates [..., k]; only in a forward pass of the composed model."""
        now = current_pass(self.path)
        decision = self._decision(now, x)
        scores = decision.scores.to(device=x.device, dtype=x.dtype)
        if decision.present != self.present:
            places = [decision.present.index(i) for i in self.present]
            scores = scores[..., places]
        if self.by_sequence:
            scores = now.of_rows(scores)
        gates = self.options.chosen(self.scores.final(scores))
        return self._over_rows(gates, now, x) if self.by_sequence else self._over_tokens(gates, x)

    def _decision(self, now: Pass, x: Tensor) -> Decision:
        """The one that stands already, or this module's own."""
        known = now.held if self.by_sequence else now.here
        if self.by_sequence and not now.begins:
            now.check(self.path)
            for key in (self.path, self.layer):
                if key in known:
                    return known[key]
            raise UsageError(
                f"Module {self.path} goes on with prompts that this composition has not read; "
                "read them again, or use per=token."
            )
        leader = known.get(self.layer)
        if leader is not None and leader.path != self.path:
            if self.by_layer and set(self.present) <= set(leader.present):
                return leader
            key = self.path
        else:
            key = self.layer
        scores = self.scored(x)
        if self.by_sequence:
            scores = now.over_prompt(scores, x.shape[:-1], self.path)
        known[key] = Decision(self.path, self.present, scores)
        return known[key]

    def _over_rows(self, gates: Tensor, now: Pass, x: Tensor) -> Tensor:
        """Gates [rows, k] for every token of their row."""
        leading, k = x.shape[:-1], gates.shape[-1]
        if leading.numel() != now.rows * now.tokens and leading[:1] != (now.rows,):
            raise UsageError(
                f"Module {self.path} reads an input of shape {tuple(x.shape)}, in which "
                f"{now.rows} prompts cannot be told apart; use per=token."
            )
        each = leading.numel() // now.rows
        return gates[:, None].expand(now.rows, each, k).reshape(*leading, k)

    def _over_tokens(self, gates: Tensor, x: Tensor) -> Tensor:
        """Gates [..., k] of the deciding module's tokens, which must be this module's."""
        leading = x.shape[:-1]
        if gates.shape[:-1].numel() != leading.numel():
            raise UsageError(
                f"Module {self.path} reads an input of shape {tuple(x.shape)}, which are not the "
                f"tokens that decide for {self.layer}; use share=module."
            )
        return gates.reshape(*leading, gates.shape[-1])


def layer_of(path: str) -> str:
    """A module's path up to its first number: model.layers.7; the whole path if it has none."""
    found = re.match(r"(?:.*?\.)??\d+(?=\.|$)", path)
    return found.group() if found else path
