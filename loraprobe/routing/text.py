"""The router by text: character n-grams of the prompt choose one adapter, or the base."""

from __future__ import annotations

import copy
import functools
import itertools
import math
from collections import Counter
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

SHORTEST, LONGEST = 2, 5  # characters of an n-gram
READ = 1000  # characters of a prompt that are read: half of them at its start, half at its end
FEWEST = 2  # prompts that hold an n-gram, or it says nothing of later prompts
# Of the smallest similarity that a prompt of an adapter has to the others of that adapter; below it
# a prompt goes to the base. examples/serving/by_text.md has what smaller and larger shares do.
SHARE = 0.85
STATE = "text.ngrams", "text.weights", "text.thresholds", "text.unseen"


def ngrams(text: str) -> set[str]:
    """The n-grams of a text in lower case, in which a space stands for all white space."""
    half = READ // 2
    plain = " ".join(text.casefold().split())
    parts = [plain] if len(plain) <= READ else [plain[:half], plain[-half:]]
    return {
        padded[at : at + n]
        for padded in (f" {part} " for part in parts)
        for n in range(SHORTEST, LONGEST + 1)
        for at in range(len(padded) - n + 1)
    }


@dataclass(frozen=True)
class TextProfile:
    """What prompts of n adapters look like.

    rows: an n-gram -> its weight in the length of a prompt, and its weight in the direction of each
    adapter. unseen: the weight of any other n-gram. thresholds: for each adapter the least
    similarity of a prompt that it answers.
    """

    rows: Mapping[str, tuple[float, ...]]
    unseen: float
    thresholds: tuple[float, ...]

    @classmethod
    def of(cls, prompts: Sequence[Sequence[str]]) -> TextProfile:
        """The profile of the prompts of each adapter."""
        each = [(who, one) for who, own in enumerate(prompts) for one in dict.fromkeys(own)]
        texts = [(who, ngrams(one)) for who, one in each]
        held = Counter(itertools.chain.from_iterable(grams for _, grams in texts))
        most = len(texts) + 1
        size = {g: math.log(most / (1 + k)) + 1 for g, k in sorted(held.items()) if k >= FEWEST}
        unseen = math.log(most / 2) + 1
        vectors = list[dict[str, float]]()
        for _, grams in texts:
            own = {g: size[g] for g in sorted(grams) if g in size}
            length = math.sqrt(_squares(own) + (len(grams) - len(own)) * unseen**2)
            vectors.append({g: value / length for g, value in own.items()})
        sums: list[dict[str, float]] = [{} for _ in prompts]
        for (who, _), vector in zip(texts, vectors, strict=True):
            for g, value in vector.items():
                sums[who][g] = sums[who].get(g, 0.0) + value
        squares = [_squares(one) for one in sums]
        lengths = [math.sqrt(one) or 1.0 for one in squares]
        alone: list[list[float]] = [[] for _ in prompts]  # each prompt beside the others
        for (who, _), vector in zip(texts, vectors, strict=True):
            along = math.fsum(value * sums[who][g] for g, value in vector.items())
            own_square = _squares(vector)
            rest = math.sqrt(max(squares[who] - 2 * along + own_square, 0.0))
            alone[who].append((along - own_square) / rest if rest > 1e-9 else 0.0)
        rows = {
            g: (round(w, 6), *(round(w * s.get(g, 0.0) / k, 6) for s, k in zip(sums, lengths)))  # noqa: B905
            for g, w in size.items()
        }
        # A single prompt shows nothing of how far others may be from it.
        least = [SHARE * min(one) if len(one) > 1 else 0.0 for one in alone]
        return cls(rows, round(unseen, 6), tuple(round(one, 6) for one in least))

    def similarities(self, prompt: str) -> list[float]:
        """The cosine of a prompt with the mean prompt of each adapter: n numbers from 0 to 1."""
        grams = ngrams(prompt)
        found = [row for g in grams if (row := self.rows.get(g)) is not None]
        if not found:
            return [0.0] * len(self.thresholds)
        size, *sums = map(math.fsum, zip(*((row[0] ** 2, *row[1:]) for row in found), strict=True))
        length = math.sqrt(size + (len(grams) - len(found)) * self.unseen**2)
        return [one / length for one in sums]

    def choice(self, prompt: str) -> int | None:
        """The adapter whose prompts are most similar, of equal ones the first; None where the
        prompt is less similar than its threshold."""
        similar = self.similarities(prompt)
        best = max(range(len(similar)), key=similar.__getitem__)
        return best if similar[best] > 0 and similar[best] >= self.thresholds[best] else None


def _squares(vector: Mapping[str, float]) -> float:
    return math.fsum(value**2 for value in vector.values())


@dataclass(frozen=True)
class ByText(Router):
    """One adapter answers a whole prompt, chosen by the prompt's text alone, or the base does.

    similarity_i = cos(v(prompt), mean of v over the prompts of adapter i). v has a weight for each
    character n-gram of 2 to 5 characters, the larger the fewer prompts have it (tf-idf without
    counts), and one more for n-grams that no two prompts had. The adapter with the largest
    similarity answers. Where that is below 0.85 of the smallest similarity of a prompt of this
    adapter to the others, the prompt is unlike all of them, and the base answers.

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
    formula: ClassVar[str] = "y = W x + s_j B_j A_j x,  j = argmax_i cos(v(prompt), mean_i v)"
    paper: ClassVar[str] = "nearest centroid of tf-idf vectors (Rocchio 1971) of character n-grams"

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
        missing = [expert.name for expert in experts if not prompts.get(expert.name)]
        if missing:
            raise UsageError(
                f"Router {self.name} learns from prompts of each adapter, and there are none of "
                f"{', '.join(missing)}:",
                "give --router-prompts=NAME=FILE for each, or in Python prompts={name: [...]}.",
            )
        return self._with(TextProfile.of([prompts[expert.name] for expert in experts]))

    def _with(self, profile: TextProfile) -> ByText:
        other = copy.copy(self)
        object.__setattr__(other, "profile", profile)
        # Prompts come again: for each round, each control and each kept answer.
        object.__setattr__(other, "_choice", functools.lru_cache(1 << 16)(profile.choice))
        return other

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

    def state(self) -> dict[str, Tensor]:
        """The n-grams as UTF-8 with a line each; float64: their weights [V, 1 + n], the thresholds
        [n], and the weight of any other n-gram [1]. {} before it is fitted."""
        if self.profile is None:
            return {}
        text = "\n".join(self.profile.rows).encode()
        names = torch.from_numpy(np.frombuffer(text, dtype=np.uint8).copy())
        held = [*self.profile.rows.values()], self.profile.thresholds, [self.profile.unseen]
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
        fits = weights.shape == (len(grams), 1 + thresholds.numel()) and unseen.numel() == 1
        if not fits or not all(one.isfinite().all() for one in (weights, thresholds, unseen)):
            raise wrong
        rows = dict(zip(grams, map(tuple, weights.double().tolist()), strict=True))
        least = tuple(thresholds.double().reshape(-1).tolist())
        return self._with(TextProfile(rows, unseen.double().item(), least))

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
            "put composition.answering(prompt) into the model for each prompt, or serve the "
            "adapters behind loraprobe proxy.",
        )

    def embedding_gates(self, module: str, present: Sequence[int]) -> Any:
        return self.gates(module, (), present, len(present))
