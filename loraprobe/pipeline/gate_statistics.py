"""The mean gates of token routers on the tasks' prompts."""

from __future__ import annotations

import copy
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from loraprobe.adapters import natural
from loraprobe.composition import Composition, composed
from loraprobe.defaults import GATE_PROMPTS
from loraprobe.records import GateStatistics
from loraprobe.routing import layer_of

if TYPE_CHECKING:
    from loraprobe.evaluation import System
    from loraprobe.tasks import Task


def gate_statistics(
    scorer: Any,
    systems: Sequence[System],
    tasks: Sequence[Task],
    seed: int = 0,
    most: int = GATE_PROMPTS,
) -> tuple[tuple[GateStatistics, ...], str]:
    """Rows of every system with a token router: overall, then layer by layer; and a note.

    At most `most` composed questions are read, drawn from the seed, each by the model that carries
    the composition; a prompt's first token does not count. Modules in which fewer than two experts
    meet have no gates to share, and modules that do not see every token (a head, a mixture's
    expert) are left out.
    """
    routed = [s for s in systems if s.composition and not s.composition.router.constant]
    prompts = list(dict.fromkeys(item.prompt for task in tasks for item in task.items))
    if not routed or not prompts:
        return (), ""
    chosen = random.Random(seed).sample(prompts, most) if len(prompts) > most else prompts
    rows: list[GateStatistics] = []
    for system in routed:
        assert system.composition is not None
        rows += _of(scorer, system.name, system.composition, chosen)
    if not rows:
        return (), ""
    sampled = (
        f"{len(chosen)} of {len(prompts)} prompts"
        if len(chosen) < len(prompts)
        else (f"{len(prompts)} prompts")
    )
    return tuple(rows), f"Gates are those on {sampled} of the tasks, answers left out."


def _of(
    scorer: Any, name: str, composition: Composition, prompts: Sequence[str]
) -> list[GateStatistics]:
    from loraprobe.scoring import read_texts

    tally = GateTally(len(composition.experts))
    with composed(scorer.model, composition, tally.look):
        read_texts(scorer, prompts, tally.see)
    experts = [expert.name for expert in composition.experts]
    layers: dict[str, list[GateSums]] = {}
    for path, sums in tally.modules.items():
        layers.setdefault(layer_of(path), []).append(sums)
    every = [sums for found in layers.values() for sums in found]
    if not every:
        return []
    groups = [(None, every), *((layer, layers[layer]) for layer in sorted(layers, key=natural))]
    return [_row(name, layer, experts, found) for layer, found in groups]


def _row(
    system: str, layer: str | None, experts: Sequence[str], found: Sequence[GateSums]
) -> GateStatistics:
    def mean(of: Callable[[GateSums], float]) -> float:
        return sum(of(sums) / sums.tokens for sums in found) / len(found)

    share = {name: mean(lambda sums, i=i: float(sums.share[i])) for i, name in enumerate(experts)}  # type: ignore[misc]
    return GateStatistics(
        system,
        layer,
        share,
        mean(lambda s: s.entropy),
        mean(lambda s: s.entropy_share),
        len(found),
        max(sums.tokens for sums in found),
    )


@dataclass
class GateSums:
    """Sums over the tokens of one module; share: [n], by expert."""

    share: Tensor
    entropy: float = 0.0
    entropy_share: float = 0.0
    tokens: int = 0


class GateTally:
    """Takes gates as they are given, and keeps sums of n experts' gates."""

    def __init__(self, n: int) -> None:
        self.n = n
        self.modules: dict[str, GateSums] = {}
        self._before: dict[str, GateSums] = {}
        self._mask: Tensor | None = None

    def see(self, mask: Tensor | None) -> None:
        """mask: [b, t], which tokens of the next forward pass count; None: the last one failed."""
        if mask is None:
            self.modules = self._before
        self._before = copy.deepcopy(self.modules)
        self._mask = None if mask is None else mask.reshape(-1)

    def look(self, path: str, present: Sequence[int], gates: Tensor) -> None:
        """gates: [..., k] of the experts `present`."""
        k = len(present)
        flat = gates.reshape(-1, k)
        if k < 2 or self._mask is None or len(flat) != len(self._mask):
            return
        kept = flat[self._mask.to(flat.device)].double().cpu()
        sums = self.modules.setdefault(path, GateSums(torch.zeros(self.n, dtype=torch.float64)))
        entropy = float(-torch.special.xlogy(kept, kept).sum())
        sums.share[list(present)] += kept.sum(0)
        sums.entropy += entropy
        sums.entropy_share += entropy / math.log(k)
        sums.tokens += len(kept)
