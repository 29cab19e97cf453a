"""The mean gates of token routers on the tasks' prompts."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor

from loraprobe.composition import Composition, composed
from loraprobe.evaluation import System
from loraprobe.extensions.gates.records import GateStatistics
from loraprobe.scoring import ModelScorer, read_texts
from loraprobe.tasks import Task

GATE_PROMPTS = 24  # prompts on which the gates of a router are averaged


def gate_statistics(
    scorer: ModelScorer,
    systems: Sequence[System],
    tasks: Sequence[Task],
    seed: int = 0,
    most: int = GATE_PROMPTS,
) -> tuple[tuple[GateStatistics, ...], str]:
    """A row of every system with a token router, and a note.

    The composed model reads at most `most` prompts of the composed question that its context holds,
    drawn by the seed. Modules with fewer than two experts are left out, and modules that do not
    process every token (a head, an expert of a mixture).
    """
    routed = [s for s in systems if s.composition and not s.composition.router.constant]
    prompts = list(dict.fromkeys(item.prompt for task in tasks for item in task.items))
    if not routed or not prompts:
        return (), ""
    chosen = random.Random(seed).sample(prompts, most) if len(prompts) > most else prompts
    sizes = zip(chosen, map(len, scorer.encoder.prompts(chosen)), strict=True)
    chosen = [prompt for prompt, size in sizes if size <= (scorer.context or size)]
    rows: list[GateStatistics] = []
    for system in routed:
        assert system.composition is not None
        if system.composition.router.reads_text:
            rows.append(_choices(system.name, system.composition, chosen))
            continue
        tally = GateTally(len(system.composition.experts))
        with composed(scorer.model, system.composition, tally.add):
            read_texts(scorer, chosen, tally.see)
        if tally.modules:
            sums = torch.stack([*tally.modules.values()])
            rows.append(_row(system.name, system.composition, sums))
    if not rows:
        return (), ""
    sampled = f"{len(chosen)} of " if len(chosen) < len(prompts) else ""
    note = f"Gates are those on {sampled}{len(prompts)} prompts of the tasks, answers left out."
    return tuple(rows), note


def _choices(system: str, composition: Composition, prompts: Sequence[str]) -> GateStatistics:
    """How often a router that reads the text chooses each adapter; the base has the rest."""
    chosen = Counter(one.name for p in prompts for one in composition.answering(p).experts)
    share = {one.name: chosen[one.name] / len(prompts) for one in composition.experts}
    return GateStatistics(system, share, 0.0, 0.0, len(composition.paths), len(prompts))


def _row(system: str, composition: Composition, sums: Tensor) -> GateStatistics:
    """The mean over modules of what is a mean over tokens; sums: [modules, n + 3]."""
    *shares, entropy, entropy_share = (sums[:, :-1] / sums[:, -1:]).mean(0).tolist()
    share = dict(zip((expert.name for expert in composition.experts), shares, strict=True))
    tokens = int(sums[:, -1].max())
    return GateStatistics(system, share, entropy, entropy_share, len(sums), tokens)


class GateTally:
    """Sums the gates of n experts over tokens.

    modules: path -> [n + 3]: each expert's gates, the entropy in nats of the shares of the k that
    are present, that entropy as a share of log k, and the number of tokens.
    """

    def __init__(self, n: int) -> None:
        self.n = n
        self.modules: dict[str, Tensor] = {}
        self._before: dict[str, Tensor] = {}
        self._mask: Tensor | None = None

    def see(self, mask: Tensor | None) -> None:
        """mask: [b, t], which tokens of the next forward pass count; None: the last one failed."""
        if mask is None:
            self.modules = self._before
        self._before = {path: sums.clone() for path, sums in self.modules.items()}
        self._mask = None if mask is None else mask.reshape(-1)

    def add(self, path: str, present: Sequence[int], gates: Tensor) -> None:
        """gates: [..., k] of the experts `present`."""
        k = len(present)
        flat = gates.reshape(-1, k)
        if k < 2 or self._mask is None or len(flat) != len(self._mask):
            return
        kept = flat[self._mask.to(flat.device)].double().cpu()
        # Experts without the module may have a share too, so the sum may be below 1.
        share = kept / kept.sum(-1, keepdim=True).clamp_min(1e-30)
        entropy = float(-torch.special.xlogy(share, share).sum())
        sums = self.modules.setdefault(path, torch.zeros(self.n + 3, dtype=torch.float64))
        sums[list(present)] += kept.sum(0)
        sums[-3:] += torch.tensor([entropy, entropy / math.log(k), len(kept)], dtype=torch.float64)
