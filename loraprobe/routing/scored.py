"""Routers that score the experts of a module: the best share a softmax.

`arrow` scores by the strongest input direction of each delta, `centroid` by the inputs that each
expert's prompts gave; `hard` takes the best by one of these or of another router of one score. A
token decides for itself, or a prompt for all of its tokens (`per`).
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal, TypeVar

import torch
import torch.nn.functional as F
from jaxtyping import Float, Float64
from torch import Tensor

from loraprobe.adapters import Adapter
from loraprobe.composition import Router, TokenGates, watched
from loraprobe.composition.forward_pass import current_pass
from loraprobe.composition.router import ExpertPrompts
from loraprobe.errors import UsageError
from loraprobe.lora.lowrank import LowRank
from loraprobe.registry import check_choices, name_of
from loraprobe.routing import ROUTERS
from loraprobe.scoring import ModelScorer, read_texts

Per = Literal["token", "sequence"]

SCORED_LAWS = frozenset({"identity", "order", "gauge", "absent_is_neutral"})
ONE_EXPERT_LAWS = SCORED_LAWS | {"homogeneity", "input_scale", "absent_is_zero"}  # gates 0 and 1
R = TypeVar("R", bound=Router)
CANCELLED = 1e-14  # share of the factors' norms below which a delta is zero but for rounding
PREFIX = "centroid."  # of a stored state's keys, before the module's path
# First tokens whose directions spread less than this share of the others' spread are taken as the
# same for every prompt. The share is 0 for a BOS, at most 0.04 for the attention sink in the upper
# half of SmolLM2-135M, and at least 0.51 for two first words that tell tasks of a small base apart.
ALIKE = 0.1


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
    one_score: ClassVar[bool] = True  # whether one score ranks the experts, as `hard` needs

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


def with_options(router: R, **options: object) -> R:
    """The same router with other options; it keeps what it has learned."""
    other = copy.copy(router)
    for name, value in options.items():
        object.__setattr__(other, name, value)
    return other


def check_prompts(router: Router, experts: Sequence[Adapter], prompts: ExpertPrompts) -> None:
    """Raises UsageError, naming the adapters, where some have no prompts to fit the router to."""
    missing = [expert.name for expert in experts if not prompts.get(expert.name)]
    if missing:
        raise UsageError(
            f"Router {router.name} learns from prompts of each adapter, and there are none of "
            f"{', '.join(missing)}:",
            "give --router-prompts=NAME=FILE for each, or in Python prompts={name: [...]}.",
        )


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


# By singular vectors.


@dataclass(frozen=True)
class Arrow(ScoredRouter):
    """Gates from the top right singular vector v_i of each expert's delta, per module and token.

    score_i = |x . v_i|; the top_k highest share a softmax at `temperature`, the rest get 0. v_i is
    exact (SVD of an r x r core), so it depends on the delta and not on how A and B are stored. If
    the two largest singular values are equal, v_i is one of the directions that they span. An
    expert whose delta is zero in a module has score 0 there.

    top_k is clamped to the number of experts present. As in the paper's own code (microsoft/mttl:
    input_norm_fn "id", router_temp 1) and in peft, x is not normalised, so tokens with a large norm
    are routed more sharply than others; `normalize` divides x by its length, which makes the score
    a cosine. mttl uses all experts by default; top_k=3 is peft's default. `per=sequence` decides
    once for each prompt by the mean of its tokens' scores, which is not in the paper.
    """

    laws: ClassVar[frozenset[str]] = SCORED_LAWS | {"homogeneity"}
    formula: ClassVar[str] = (
        "y = W x + sum_i g_i(x) s_i B_i A_i x,  g = softmax(top_k |x . v_i| / temperature)"
    )
    paper: ClassVar[str] = "arXiv 2405.11157"

    def scores(self, module: str, experts: Sequence[LowRank], n: int) -> ExpertScores:
        return ArrowScores(experts)


class ArrowScores(ExpertScores):
    """|x . v_i| of the experts of one module; prototypes: [k, in], unit vectors or zero."""

    def __init__(self, experts: Sequence[LowRank]) -> None:
        self.prototypes = CachedMatrix(torch.stack([prototype(expert) for expert in experts]))

    def __call__(self, x: Float[Tensor, "*tokens in"]) -> Float[Tensor, "*tokens 1 k"]:
        return F.linear(x, self.prototypes.like(x)).abs().unsqueeze(-2)


def prototype(update: LowRank) -> Float[Tensor, "in"]:
    """The top right singular vector [in] of delta W, of arbitrary sign; zero for a zero delta."""
    S, Vh = right_spectrum(update)
    return (Vh[0] * (S[0] > 0)).to(update.A.dtype)


def right_spectrum(
    update: LowRank,
) -> tuple[Float64[Tensor, k], Float64[Tensor, "k in"]]:
    """Singular values [k] and right singular vectors [k, in] of delta W.

    Values that are only rounding of factors that cancel each other are 0.
    """
    exact = update.to(dtype=torch.float64)
    _, S, Vh = exact.svd()
    rounding = CANCELLED * abs(float(exact.scaling)) * exact.A.norm() * exact.B.norm()
    return torch.where(rounding < S, S, torch.zeros_like(S)), Vh


# By the inputs of prompts.


@dataclass(frozen=True, eq=False)
class Centroids:
    """module's path -> [n, in] float32, the mean input on each of n adapters' prompts."""

    means: Mapping[str, Tensor]


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

    def fit(
        self, scorer: ModelScorer, experts: Sequence[Adapter], prompts: ExpertPrompts
    ) -> Centroid:
        """The same router with centroids of each expert's prompts, by the expert's name.

        Raises UsageError, naming the adapter, where one has no prompts or a module sees none of
        them.
        """
        check_prompts(self, experts, prompts)
        kinds = {path: info.kind for expert in experts for path, info in expert.layout.items()}
        sums_of: dict[str, list[Tensor]] = {
            p: [] for p, kind in kinds.items() if kind != "embedding"
        }
        for expert in experts:
            sums = InputSums(sums_of)
            with watched(scorer.model, experts, sums.add):
                read_texts(scorer, prompts[expert.name], sums.see, whole=True)
            for path, rows in sums_of.items():
                rows.append(sums.of(path, expert.name))
        means = {path: mean_inputs(torch.stack(rows)) for path, rows in sums_of.items()}
        return with_options(self, learned=Centroids(means))

    def state(self) -> dict[str, Tensor]:
        """centroid.PATH -> [n, in], in the experts' order; {} before it is fitted."""
        means = self.learned.means if self.learned is not None else {}
        return {PREFIX + path: mean.clone() for path, mean in means.items()}

    def with_state(self, state: Mapping[str, Tensor]) -> Centroid:
        """The same router with such a state. Raises UsageError for other tensors."""
        counts = {mean.shape[0] for mean in state.values() if mean.dim() == 2}
        wrong = [
            key
            for key, mean in state.items()
            if not (key.startswith(PREFIX) and mean.dim() == 2 and mean.is_floating_point())
            or not mean.isfinite().all()
        ]
        if wrong or len(counts) != 1:
            raise UsageError(f"The stored state is none of centroids ({wrong or 'empty'}).")
        means = {key.removeprefix(PREFIX): m.detach().float() for key, m in state.items()}
        return with_options(self, learned=Centroids(means))

    def scores(self, module: str, experts: Sequence[LowRank], n: int) -> ExpertScores:
        if self.learned is None:
            raise UsageError(
                f"Router {self.name} has to see prompts of each adapter first:",
                "give --router-prompts=NAME=FILE, or in Python "
                "loraprobe.route(..., prompts={name: [...]}, tokenizer=...).",
            )
        means = self.learned.means.get(module)
        if means is None or means.shape != (n, experts[0].in_features):
            raise UsageError(
                f"The router has learned nothing that fits the {n} adapters in {module}; fit it to "
                "these adapters anew."
            )
        return CentroidScores(means.to(experts[0].A), self.center)


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


# The best one.


@dataclass(frozen=True)
class Hard(Router):
    """The expert with the highest score gets gate 1, the others 0: experts are never mixed.

    by: the router whose score is used, one with a single score, such as arrow and centroid, with
    its other options at their defaults; `arrow:top_k=1` is `hard:by=arrow`. Of equal scores the
    first in topk's order wins. `by=centroid` has to be fitted, as centroid, and is the only one
    that can choose an expert without the module, which adds nothing; by the others an expert that
    is alone in a module always has gate 1 there. With per=sequence one adapter answers a whole
    prompt in each module, and by=centroid chooses by the mean score of all modules that have read
    the prompt so far.
    """

    by: str = "arrow"
    per: Per = "token"
    scored: ScoredRouter = field(init=False, repr=False)  # that of `by` at top_k=1

    constant: ClassVar[bool] = False
    laws: ClassVar[frozenset[str]] = ONE_EXPERT_LAWS
    formula: ClassVar[str] = "y = W x + s_j B_j A_j x,  j = argmax_i score_i(x)"
    paper: ClassVar[str] = "arXiv 2405.11157, 2504.03454, 2311.10847: top-1 of their scores"

    def __post_init__(self) -> None:
        check_choices(self)
        known = {name_of(cls): cls for cls in ROUTERS if issubclass(cls, ScoredRouter)}
        names = [name for name, cls in known.items() if cls.one_score]
        if self.by not in names:
            raise ValueError(f"by is one of {', '.join(names)}, not {self.by!r}.")
        object.__setattr__(self, "scored", known[self.by](top_k=1, per=self.per))

    @property
    def needs_prompts(self) -> bool:
        return self.scored.needs_prompts

    @property
    def learner(self) -> type[Router]:
        return self.scored.learner

    def fit(self, scorer: ModelScorer, experts: Sequence[Adapter], prompts: ExpertPrompts) -> Hard:
        """The same router with a fitted router for its scores."""
        return with_options(self, scored=self.scored.fit(scorer, experts, prompts))

    def state(self) -> dict[str, Tensor]:
        return self.scored.state()

    def with_state(self, state: Mapping[str, Tensor]) -> Hard:
        return with_options(self, scored=self.scored.with_state(state))

    def gates(
        self, module: str, experts: Sequence[LowRank], present: Sequence[int], n: int
    ) -> Float[Tensor, 1] | TokenGates:
        """A function x [..., in] -> one-hot [..., k]; the constant 1 where one expert is alone."""
        return self.scored.gates(module, experts, present, n)


@dataclass(frozen=True)
class ByPrompt(Hard):
    """One adapter answers a whole prompt, chosen by what the layers of the base read.

    It is `hard:by=centroid,per=sequence`: each module decides by the mean score of all modules that
    have read the prompt so far. The router has to be fitted, as centroid. `by_text` chooses by the
    text of the prompt, as a program in front of a server can.
    """

    by: str = field(default="centroid", init=False)
    per: Per = field(default="sequence", init=False)
