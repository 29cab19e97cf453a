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
from loraprobe.composition.router import Prompts, Read
from loraprobe.errors import UsageError
from loraprobe.lora.lowrank import LowRank
from loraprobe.routing._centroids import Centroids, centroids
from loraprobe.routing._scored_router import CachedMatrix, ScoredRouter, Scores, changed


@dataclass(frozen=True)
class Centroid(ScoredRouter):
    """Gates from the cosine of x with the mean input c_i of the module on each expert's prompts.

    c_i is the mean over all tokens but the first of a few unlabelled prompts of adapter i, read by
    the base without any adapter; when answering, x comes from the composed model. With `center`,
    the mean m of the centroids of the experts present is subtracted: score_i = cos(x - m, c_i - m).
    Otherwise all cosines are near 1 and the gates nearly equal, because hidden states have a large
    common part. The top_k highest share a softmax at `temperature`; at 0.1 an advantage of 0.5 in
    cosine means a share of 0.99. `normalize=false` includes the length of x - m in the score.

    The idea is that of routing by embedded data sets: 2311.10847 (the cosine of an embedded prompt
    with each data set, a scaled softmax, adapters merged completely) and the prototypes of average
    activations in the code of 2405.11157 (microsoft/mttl, avg_act, per module, not centred).
    Deltas do not enter the score; centring and the temperature are choices of this package.

    The router has to be fitted first: `--router-prompts NAME=FILE` or prompts that each adapter
    writes itself on the command line, `loraprobe.route(..., prompts={name: [...]}, tokenizer=...)`.
    Prompts in the form of the later questions are best. `per=sequence` decides once for each
    prompt.
    """

    temperature: float = 0.1
    normalize: bool = True
    center: bool = True
    learned: Centroids | None = field(default=None, init=False, repr=False)

    laws: ClassVar[frozenset[str]] = frozenset(
        {"identity", "order", "gauge", "homogeneity", "absent_is_neutral"}
    )
    formula: ClassVar[str] = (
        "y = W x + sum_i g_i(x) s_i B_i A_i x,  g = softmax(top_k cos(x - m, c_i - m) / temperature)"  # noqa: E501
    )
    paper: ClassVar[str] = "arXiv 2311.10847, 2405.11157"

    @property
    def needs_prompts(self) -> bool:
        return self.learned is None

    def fitted(
        self, model: nn.Module, read: Read, experts: Sequence[Adapter], prompts: Prompts
    ) -> Centroid:
        """The same router with centroids of each expert's prompts, by the expert's name."""
        return changed(self, learned=centroids(self, model, read, experts, prompts))

    def state(self) -> dict[str, Tensor]:
        """centroid.PATH -> [n, in], in the experts' order; {} before it is fitted."""
        return self.learned.state() if self.learned is not None else {}

    def with_state(self, state: Mapping[str, Tensor]) -> Centroid:
        return changed(self, learned=Centroids.of_state(state))

    def scores(self, module: str, experts: Sequence[LowRank], present: Sequence[int]) -> Scores:
        if self.learned is None:
            raise UsageError(
                f"Router {self.name} has to see prompts of each adapter first: give "
                "--router-prompts NAME=FILE, or in Python loraprobe.route(..., prompts={name: "
                "[...]}, tokenizer=...)."
            )
        means = self.learned.of(module, present).to(experts[0].A)
        if means.shape[-1] != experts[0].in_features:
            raise UsageError(
                f"The router has learned of other inputs of {module} than its "
                f"{experts[0].in_features}; fit it anew."
            )
        return _Cosines(means, self)

    def before_scoring(self, x: Tensor) -> Tensor:
        return x  # the common part is subtracted before, see _Cosines


class _Cosines(Scores):
    """cos(x - m, c_i - m); means: [k, in]."""

    def __init__(self, means: Float[Tensor, "k in"], options: Centroid) -> None:
        common = means.mean(0) if options.center else torch.zeros_like(means[0])
        self.common = CachedMatrix(common)
        self.directions = CachedMatrix(F.normalize(means - common, dim=-1))
        self.normalize = options.normalize

    def __call__(self, x: Float[Tensor, "*tokens in"]) -> Float[Tensor, "*tokens 1 k"]:
        x = x - self.common.like(x)
        if self.normalize:
            x = F.normalize(x, dim=-1)
        return F.linear(x, self.directions.like(x)).unsqueeze(-2)
