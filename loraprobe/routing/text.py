"""The router by text: n-grams of the prompt choose one adapter, or the base."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from loraprobe.adapters import Adapter
from loraprobe.composition import Composition, Router
from loraprobe.composition.router import ExpertPrompts
from loraprobe.errors import UsageError
from loraprobe.lora.lowrank import LowRank
from loraprobe.routing.constant import ConstantGates
from loraprobe.routing.scored import check_prompts, with_options
from loraprobe.text_profile import FILE, TextProfile, written

STATE = "text.ngrams", "text.weights", "text.thresholds", "text.unseen"


@dataclass(frozen=True)
class ByText(Router):
    """One adapter answers a whole prompt, chosen by the prompt's text alone, or the base does.

    score_i = w_i . v(prompt) / |v(prompt)|. v has a weight for each n-gram of 2 to 5 characters and
    of 1 to 4 words, the larger the fewer prompts have it (tf-idf without counts). A word that fewer
    than 15 % of an adapter's prompts have, as most names, is a gap. w_i comes from kernel ridge
    regression, by which prompts of adapter i should score 1, and those of the other adapters and
    150 general ones, which loraprobe brings, 0. The adapter with the largest score answers. Where
    the sum of all scores is below 0.9 of the smallest that a prompt of this adapter has when it is
    left out, the prompt is unlike all of them, and the base answers.

    As it sees no hidden state, any server that has the adapters loaded runs it, once somebody names
    the adapter of each request: `route -o DIR` writes router.json, and `loraprobe proxy DIR` does
    that. Each adapter stays as it is, with everything that it changes.

    The router has to be fitted first: `--router-prompts NAME=FILE` or prompts that each adapter
    writes itself on the command line, `loraprobe.compose(..., router_prompts={name: file})`.
    Prompts in the form of the later questions are best. In Python
    `composition.answering(prompt).into(model)` puts what answers a prompt into a model.
    """

    profile: TextProfile | None = field(default=None, init=False, repr=False, compare=False)

    constant: ClassVar[bool] = False
    reads_text: ClassVar[bool] = True
    laws: ClassVar[frozenset[str]] = frozenset()
    formula: ClassVar[str] = "y = W x + s_j B_j A_j x,  j = argmax_i w_i . v(prompt) / |v(prompt)|"
    paper: ClassVar[str] = (
        "kernel ridge regression on tf-idf vectors of n-grams of characters and words"
    )

    @property
    def weighs_whole(self) -> bool:
        """One adapter is applied as it is."""
        return True

    @property
    def needs_prompts(self) -> bool:
        return self.profile is None

    def fit(self, scorer: Any, experts: Sequence[Adapter], prompts: ExpertPrompts) -> ByText:
        """The same router with the profile of each expert's prompts; the scorer is not asked.

        Raises UsageError, naming the adapter, where one has no prompts.
        """
        check_prompts(self, experts, prompts)
        return self._with(TextProfile.of([prompts[expert.name] for expert in experts]))

    def _with(self, profile: TextProfile) -> ByText:
        # Prompts come again: for each round, each control and each kept answer.
        choice = functools.lru_cache(1 << 16)(profile.choice)
        return with_options(self, profile=profile, _choice=choice)

    def answering(self, composition: Composition, prompt: str) -> Composition:
        """The expert that answers a prompt, or the base. Raises UsageError before it is fitted."""
        if self.profile is None:
            raise UsageError(
                f"Router {self.name} has to see prompts of each adapter first:",
                "give --router-prompts=NAME=FILE, or in Python "
                "loraprobe.compose(..., router_prompts={name: file}).",
            )
        choice = self._choice(prompt)  # type: ignore[attr-defined]
        experts = () if choice is None else (composition.experts[choice],)
        return replace(composition, experts=experts, router=ConstantGates.ones(len(experts)))

    def program(self, adapters: Sequence[Mapping[str, str]], base: str | None) -> Mapping[str, str]:
        """router.json, which `loraprobe proxy` and a few lines of any program run."""
        if self.profile is None:
            return {}
        return {FILE: written(self.profile, adapters, base)}

    def state(self) -> dict[str, Tensor]:
        """The n-grams as UTF-8 with a line each; float64: their weights [V, 1 + n], the thresholds
        [n], the weight of any other n-gram with the version of the profile [2]. {} before it is
        fitted."""
        if self.profile is None:
            return {}
        text = "\n".join(self.profile.rows).encode()
        names = torch.from_numpy(np.frombuffer(text, dtype=np.uint8).copy())
        scalars = [self.profile.unseen, self.profile.version]
        held = [*self.profile.rows.values()], self.profile.thresholds, scalars
        numbers = [torch.tensor(one, dtype=torch.float64) for one in held]
        numbers[0] = numbers[0].reshape(-1, 1 + len(self.profile.thresholds))
        return dict(zip(STATE, [names, *numbers], strict=True))

    def with_state(self, state: Mapping[str, Tensor]) -> ByText:
        """The same router with such a state. Raises UsageError for other tensors."""
        wrong = UsageError("The stored state is none of a router by text; fit it anew.")
        if {*state} != {*STATE}:
            raise wrong
        names, weights, thresholds, unseen = (state[key].cpu() for key in STATE)
        try:
            grams = names.numpy().tobytes().decode().split("\n") if names.numel() else []
        except (UnicodeDecodeError, TypeError):
            raise wrong from None
        fits = weights.shape == (len(grams), 1 + thresholds.numel()) and unseen.numel() in (1, 2)
        if not fits or not all(one.isfinite().all() for one in (weights, thresholds, unseen)):
            raise wrong
        rows = dict(zip(grams, map(tuple, weights.double().tolist()), strict=True))
        least = tuple(thresholds.double().reshape(-1).tolist())
        other, version = [*unseen.double().reshape(-1).tolist(), 1][:2]  # version 1 had none
        return self._with(TextProfile(rows, other, least, int(version)))

    def check(self, n: int) -> None:
        """Raises UsageError for another number of experts than it has learned of."""
        if self.profile is not None and n != len(self.profile.thresholds):
            raise UsageError(
                f"The router has learned of {len(self.profile.thresholds)} adapters and not of "
                f"{n}; fit it to these adapters anew."
            )

    def gates(self, module: str, experts: Sequence[LowRank], present: Sequence[int], n: int) -> Any:
        """Raises UsageError: a module has no text to route by."""
        raise UsageError(
            f"Router {self.name} chooses by a prompt's text, which no layer of a model sees:",
            "put composition.answering(prompt) into the model for each prompt, or let a client of "
            "a server choose by router.json, which route -o DIR writes.",
        )

    def embedding_gates(self, module: str, present: Sequence[int]) -> Any:
        return self.gates(module, (), present, len(present))
