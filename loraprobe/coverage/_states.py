"""Sums over hidden states of the unmodified base: how far adapters would move its layers, and how
a router would share them. States are used as they pass and never kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from loraprobe.adapter import Adapter
from loraprobe.composition import Router, Share, TokenGates, bias_of, share_in


@dataclass(frozen=True, eq=False)
class Sight:
    """Means over modules and tokens of n prompts.

    effect: [n adapters], E||dW_i h|| / E||W0 h|| averaged over modules (0 where an adapter lacks
    one): what each would add to a layer's output, in units of that output. Of the router, over
    the modules that at least two adapters have (None if there are none): share [n adapters], mean
    gates; above [n adapters], share of module and token pairs at which a gate exceeds 1/2;
    entropy, of the gates, over the logarithm of the number of adapters present (0 certain, 1
    equal).
    """

    n: int
    effect: tuple[float, ...]
    share: tuple[float, ...] | None = None
    above: tuple[float, ...] | None = None
    entropy: float | None = None


@dataclass
class _Module:
    """One module's factors in rank space, and its sums over tokens."""

    present: list[int]
    A: list[Tensor]  # [r, in] each
    gram: list[Tensor]  # [r, r] each: s^2 B^T B, so that ||s B A h||^2 = (A h)^T gram (A h)
    embedding: bool
    gates: Tensor | TokenGates | None
    more: dict[int, Share] = field(default_factory=dict)  # of experts that do more than s B A h
    bias: Tensor | None = None
    tokens: int = 0
    base: float = 0.0
    effect: dict[int, float] = field(default_factory=dict)
    share: Tensor | None = None
    above: Tensor | None = None
    entropy: float = 0.0

    def as_it_stands(self) -> _Module:
        """The same factors, with sums that grow no more."""
        return replace(self, effect=dict(self.effect))


class Watch:
    """Takes inputs and outputs of a base's modules, and keeps sums.

    adapters: those whose effect is asked for; router: a token router, or None; model: the base,
    whose weights the effect of DoRA adapters depends on. Parameters that an adapter replaces whole
    are in none of the figures, nor are convolutions, whose places are no tokens.
    """

    def __init__(
        self, adapters: Sequence[Adapter], router: Router | None, model: nn.Module
    ) -> None:
        self.adapters, self.router, self.model = adapters, router, model
        self._modules: dict[str, _Module] = {}
        self._before: dict[str, _Module] = {}
        self._mask: Tensor | None = None

    def see(self, mask: Tensor | None) -> None:
        """mask: [b, n], which tokens of the next forward pass count; None: the last one failed."""
        if mask is None:
            self._modules = self._before
        self._before = {path: module.as_it_stands() for path, module in self._modules.items()}
        self._mask = mask

    def look(self, path: str, x: Tensor, output: Tensor) -> None:
        """One module has run; x: [..., in] or token ids [...], output: [..., out]."""
        module = self._module(path, x)
        if self._mask is None or module is None:
            return
        counted = self._mask.reshape(-1)
        x = x.reshape(-1)[counted] if module.embedding else x.reshape(-1, x.shape[-1])[counted]
        module.tokens += int(counted.sum())
        made = output.reshape(-1, output.shape[-1])[counted].float()
        module.base += float(made.norm(dim=-1).sum())
        if not module.embedding:
            x = x.float()
        for i, A, gram in zip(module.present, module.A, module.gram, strict=True):
            u = F.embedding(x, A.mT) if module.embedding else F.linear(x, A)
            if i in module.more:
                own = made if module.bias is None else made - module.bias
                size = _added(module.more[i], u, own).norm(dim=-1).sum()
            else:
                size = ((u @ gram) * u).sum(-1).clamp_min(0).sqrt().sum()
            module.effect[i] = module.effect.get(i, 0.0) + float(size)
        if module.gates is not None and not isinstance(module.gates, Tensor):
            self._route(module, module.gates(x).double())

    def _route(self, module: _Module, gates: Tensor) -> None:
        """gates: [tokens, k]."""
        k = gates.shape[-1]
        entropy = -(gates * gates.clamp_min(1e-12).log()).sum(-1) / torch.tensor(k).log()
        module.entropy += float(entropy.sum())
        share, above = gates.sum(0).cpu(), (gates > 0.5).double().sum(0).cpu()
        module.share = share if module.share is None else module.share + share
        module.above = above if module.above is None else module.above + above

    def _module(self, path: str, x: Tensor) -> _Module | None:
        if path in self._modules:
            return self._modules[path]
        present = [i for i, a in enumerate(self.adapters) if path in a.modules]
        if self.adapters[present[0]].modules.info(path).kind == "convolution":
            return None
        updates = [self.adapters[i].modules[path].to(torch.float32, x.device) for i in present]
        embedding = self.adapters[present[0]].modules.info(path).kind == "embedding"
        gates = None
        if self.router is not None and len(present) > 1 and not embedding:
            gates = self.router.gates(path, updates, present, len(self.adapters))
        bias = bias_of(self.model.get_submodule(path))
        self._modules[path] = _Module(
            present,
            [u.A for u in updates],
            [(u.B.mT @ u.B) * float(u.scaling) ** 2 for u in updates],
            embedding,
            gates,
            {
                i: share_in(self.model, self.adapters[i], path, torch.float32).to(x.device)
                for i in present
                if path in self.adapters[i].magnitudes or path in self.adapters[i].offsets
            },
            None if bias is None else bias.detach().float(),
        )
        return self._modules[path]

    def sight(self, n: int) -> Sight:
        """The means so far; n: how many prompts they are of."""
        seen = [m for m in self._modules.values() if m.tokens and m.base > 0]
        effect = tuple(
            sum(m.effect.get(i, 0.0) / m.base for m in seen) / len(seen) if seen else 0.0
            for i in range(len(self.adapters))
        )
        routed = [m for m in seen if m.share is not None]
        if not routed:
            return Sight(n, effect)
        shares = [[0.0] * len(self.adapters) for _ in range(2)]
        for m in routed:
            for total, sums in zip(shares, (m.share, m.above), strict=True):
                assert sums is not None
                for i, value in zip(m.present, sums.tolist(), strict=True):
                    total[i] += value / m.tokens / len(routed)
        entropy = sum(m.entropy / m.tokens for m in routed) / len(routed)
        return Sight(n, effect, tuple(shares[0]), tuple(shares[1]), entropy)


def _added(share: Share, u: Tensor, own: Tensor) -> Tensor:
    """What an expert adds to a layer's output, [tokens, out]; u: A h, own: W0 h."""
    made = F.linear(u, share.update.folded().B)
    if share.offset is not None:
        made = made + share.offset
    return made if share.ratio is None else made + share.ratio * own
