"""Centroid: routes each token to the experts whose prompts gave the most similar inputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from loraprobe.adapters import Adapter
from loraprobe.composition import watched
from loraprobe.composition.router import ExpertPrompts, ReadTexts
from loraprobe.errors import UsageError
from loraprobe.lora.lowrank import LowRank
from loraprobe.routing._scored_router import (
    SCORED_LAWS,
    CachedMatrix,
    ExpertScores,
    ScoredRouter,
    changed,
)

PREFIX = "centroid."  # of a stored state's keys, before the module's path
# First tokens whose directions spread less than this share of the others' spread are taken as the
# same for every prompt. The share is 0 for a BOS, at most 0.04 for the attention sink in the upper
# half of SmolLM2-135M, and at least 0.51 for two first words that tell tasks of a small base apart.
ALIKE = 0.1


@dataclass(frozen=True, eq=False)
class Centroids:
    """module's path -> [n, in] float32, the mean input on each of n adapters' prompts."""

    means: Mapping[str, Tensor]

    def of(self, module: str, n: int) -> Tensor:
        """The means of all n experts: [n, in]. Raises UsageError for an unknown module."""
        if module not in self.means:
            raise UsageError(
                f"The router has learned nothing about {module}; fit it to these adapters anew."
            )
        means = self.means[module]
        if len(means) != n:
            raise UsageError(
                f"The router has learned of {len(means)} adapters, and there are {n}; fit it to "
                "these adapters anew."
            )
        return means

    def state(self) -> dict[str, Tensor]:
        """The means as named tensors, for `Router.state`."""
        return {PREFIX + path: mean.clone() for path, mean in self.means.items()}

    @classmethod
    def of_state(cls, state: Mapping[str, Tensor]) -> Centroids:
        """The centroids that `state` returned. Raises UsageError for other tensors."""
        counts = {mean.shape[0] for mean in state.values() if mean.dim() == 2}
        wrong = [
            key
            for key, mean in state.items()
            if not (key.startswith(PREFIX) and mean.dim() == 2 and mean.is_floating_point())
            or not mean.isfinite().all()
        ]
        if wrong or len(counts) != 1:
            raise UsageError(f"The stored state is none of centroids ({wrong or 'empty'}).")
        return cls({key.removeprefix(PREFIX): m.detach().float() for key, m in state.items()})


@dataclass(frozen=True)
class Centroid(ScoredRouter):
    """Gates from the cosine of x with the mean input c_i of the module on each expert's prompts.

    c_i is the mean over the tokens of a few unlabelled prompts of adapter i, read by the base
    without any adapter; when answering, x comes from the composed model. First tokens are left out
    of it where the module reads the same for all of them, as for a BOS or an attention sink. With
    `center`, the mean m of the centroids is subtracted: score_i = cos(x - m, c_i - m).
    Otherwise all cosines are near 1 and the gates nearly equal, because hidden states have a large
    common part. The top_k highest share a softmax at `temperature`; at 0.1 an advantage of 0.5 in
    cosine means a share of 0.99. `normalize=false` includes the length of x - m in the score.

    All experts share the gates of every module, so one that lacks a module takes its share there
    and adds nothing: another expert's module does not act on its prompts.

    The idea is that of routing by embedded data sets: 2311.10847 (the cosine of an embedded prompt
    with each data set, a scaled softmax, adapters merged completely) and the prototypes of average
    activations in the code of 2405.11157 (microsoft/mttl, avg_act, per module, not centred).
    Deltas do not enter the score; centring and the temperature are choices of this package.

    The router has to be fitted first: `--router-prompts NAME=FILE` or prompts that each adapter
    writes itself on the command line, `loraprobe.route(..., prompts={name: [...]}, tokenizer=...)`.
    Prompts in the form of the later questions are best. `per=sequence` decides once for each
    prompt; each module decides by the mean score of all modules that have read the prompt so far.
    """

    temperature: float = 0.1
    normalize: bool = True
    center: bool = True
    learned: Centroids | None = field(default=None, init=False, repr=False)

    scores_absent: ClassVar[bool] = True
    laws: ClassVar[frozenset[str]] = SCORED_LAWS - {"absent_is_neutral"} | {
        "absent_is_zero",
        "homogeneity",
    }
    formula: ClassVar[str] = (
        "y = W x + sum_i g_i(x) s_i B_i A_i x,  g = softmax(top_k cos(x - m, c_i - m) / temperature)"  # noqa: E501
    )
    paper: ClassVar[str] = "arXiv 2311.10847, 2405.11157"

    @property
    def needs_prompts(self) -> bool:
        return self.learned is None

    def fitted(
        self, model: nn.Module, read: ReadTexts, experts: Sequence[Adapter], prompts: ExpertPrompts
    ) -> Centroid:
        """The same router with centroids of each expert's prompts, by the expert's name.

        Raises UsageError, naming the adapter, where one has no prompts or a module sees none of
        them.
        """
        missing = [expert.name for expert in experts if not prompts.get(expert.name)]
        if missing:
            raise UsageError(
                f"Router {self.name} learns from prompts of each adapter, and there are none of "
                f"{', '.join(missing)}: give --router-prompts=NAME=FILE for each, or in Python "
                "prompts={name: [...]}."
            )
        kinds = {path: info.kind for expert in experts for path, info in expert.layout.items()}
        sums_of: dict[str, list[Tensor]] = {
            p: [] for p, kind in kinds.items() if kind != "embedding"
        }
        for expert in experts:
            sums = InputSums(sums_of)
            with watched(model, experts, sums.add):
                read(list(prompts[expert.name]), sums.see)
            for path, rows in sums_of.items():
                rows.append(sums.of(path, expert.name))
        means = {path: mean_inputs(torch.stack(rows)) for path, rows in sums_of.items()}
        return changed(self, learned=Centroids(means))

    def state(self) -> dict[str, Tensor]:
        """centroid.PATH -> [n, in], in the experts' order; {} before it is fitted."""
        return self.learned.state() if self.learned is not None else {}

    def with_state(self, state: Mapping[str, Tensor]) -> Centroid:
        return changed(self, learned=Centroids.of_state(state))

    def scores(self, module: str, experts: Sequence[LowRank], n: int) -> ExpertScores:
        if self.learned is None:
            raise UsageError(
                f"Router {self.name} has to see prompts of each adapter first: give "
                "--router-prompts=NAME=FILE, or in Python loraprobe.route(..., prompts={name: "
                "[...]}, tokenizer=...)."
            )
        means = self.learned.of(module, n).to(experts[0].A)
        if means.shape[-1] != experts[0].in_features:
            raise UsageError(
                f"The router has learned of other inputs of {module} than its "
                f"{experts[0].in_features}; fit it anew."
            )
        return CentroidScores(means, self.center)


class CentroidScores(ExpertScores):
    """cos(x - m, c_i - m), of normalised inputs; means: [n, in]."""

    def __init__(self, means: Float[Tensor, "n in"], center: bool) -> None:
        common = means.mean(0) if center else torch.zeros_like(means[0])
        self.common = CachedMatrix(common)
        self.directions = CachedMatrix(F.normalize(means - common, dim=-1))

    def centred(self, x: Float[Tensor, "*tokens in"]) -> Float[Tensor, "*tokens in"]:
        return x - self.common.like(x)

    def __call__(self, x: Float[Tensor, "*tokens in"]) -> Float[Tensor, "*tokens 1 n"]:
        return F.linear(x, self.directions.like(x)).unsqueeze(-2)


class InputSums:
    """Running sums over the inputs of each module, apart for the first token of a prompt.

    sums: path -> [2, 2 * in + 1] float64, of first and of other tokens: x, x / |x| and 1.
    """

    def __init__(self, paths: Mapping[str, object]) -> None:
        self.paths = paths
        self.sums: dict[str, Tensor] = {}
        self.mask: Tensor | None = None
        self._before: dict[str, Tensor] = {}

    def see(self, mask: Tensor | None) -> None:
        """mask: [b, n], which tokens of the next pass count; None: forget the last pass."""
        if mask is None:
            self.sums = self._before
        self._before = dict(self.sums)  # sums are replaced, never changed
        self.mask = mask

    def add(self, path: str, x: Tensor, output: Tensor) -> None:
        """Add the input x [..., in] of a module that has run."""
        if path not in self.paths or self.mask is None:
            return
        flat = x.reshape(-1, x.shape[-1])
        if len(flat) != self.mask.numel():
            raise UsageError(
                f"Module {path} reads {len(flat)} of {self.mask.numel()} tokens (a mixture's "
                "expert, or a head), so it has no mean input to route by; use another router."
            )
        counted = self.mask.reshape(-1)
        first = (self.mask.cumsum(1) == 1).reshape(-1)[counted]
        inputs = flat[counted.to(flat.device)].double()
        rows = torch.cat([inputs, F.normalize(inputs, dim=-1), torch.ones_like(inputs[:, :1])], -1)
        sums = (torch.stack([first, ~first]).to(rows) @ rows).cpu()
        self.sums[path] = sums + self.sums.get(path, 0)

    def of(self, path: str, expert: str) -> Tensor:
        """The sums of a module. Raises UsageError if it has not run."""
        if path not in self.sums:
            raise UsageError(
                f"Module {path} has not run on the prompts of {expert}, so it has no mean input to "
                "route by; use another router."
            )
        return self.sums[path]


def mean_inputs(sums: Tensor) -> Float[Tensor, "n in"]:
    """The mean input of each of n experts' prompts, in float32; sums: [n, 2, 2 * in + 1].

    First tokens that are alike (`ALIKE`) are left out: they say nothing of a prompt, but their
    share in a mean depends on its length, and some models give them inputs of another length.
    """
    width = sums.shape[-1] // 2
    directions, counts = sums[..., width:-1].sum(0), sums[..., -1:]
    spread = 1 - (directions / counts.sum(0)).square().sum(-1)  # of first and of other tokens
    alike = bool((counts[:, 1] > 0).all()) and bool(spread[0] < ALIKE * spread[1])
    chosen = sums[:, 1] if alike else sums.sum(1)
    return (chosen[:, :width] / chosen[:, -1:]).float()
