"""Centroids: the mean input of every module on each adapter's prompts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from loraprobe.adapters import Adapter
from loraprobe.composition import Router, watched
from loraprobe.composition.router import Prompts, Read
from loraprobe.errors import UsageError

PREFIX = "centroid."  # of a stored state's keys, before the module's path


@dataclass(frozen=True, eq=False)
class Centroids:
    """module's path -> [n, in] float32, the mean input on each of n adapters' prompts."""

    means: Mapping[str, Tensor]

    def of(self, module: str, present: Sequence[int]) -> Tensor:
        """The means of the experts present: [k, in]. Raises UsageError for an unknown module."""
        if module not in self.means:
            raise UsageError(
                f"The router has learned nothing about {module}; fit it to these adapters anew."
            )
        means = self.means[module]
        if max(present) >= len(means):
            raise UsageError(
                f"The router has learned of {len(means)} adapters, fewer than there are; fit it "
                "to these adapters anew."
            )
        return means[list(present)]

    def state(self) -> dict[str, Tensor]:
        """The means as named tensors, for `Router.state`."""
        return {PREFIX + path: mean.clone() for path, mean in self.means.items()}

    @classmethod
    def of_state(cls, state: Mapping[str, Tensor]) -> Centroids:
        """The centroids that `state` returned. Raises UsageError for other tensors."""
        counts = {mean.shape[0] for mean in state.values() if mean.dim() == 2}
        wrong = [key for key, mean in state.items() if not _is_mean(key, mean)]
        if wrong or len(counts) != 1:
            raise UsageError(f"The stored state is none of centroids ({wrong or 'empty'}).")
        return cls({key.removeprefix(PREFIX): m.detach().float() for key, m in state.items()})


def _is_mean(key: str, mean: Tensor) -> bool:
    """Whether a stored tensor can be the means of one module: [n, in], finite."""
    if not key.startswith(PREFIX) or mean.dim() != 2 or not mean.is_floating_point():
        return False
    return bool(mean.isfinite().all())


def centroids(
    router: Router,
    model: nn.Module,
    read: Read,
    experts: Sequence[Adapter],
    prompts: Prompts,
) -> Centroids:
    """Read each expert's prompts through the model, which carries no composition.

    Raises UsageError, naming the adapter, where one has no prompts or a module sees none of them.
    """
    missing = [expert.name for expert in experts if not prompts.get(expert.name)]
    if missing:
        raise UsageError(
            f"Router {router.name} learns from prompts of each adapter, and there are none of "
            f"{', '.join(missing)}: give --router-prompts NAME=FILE for each, or in Python "
            "prompts={name: [...]}."
        )
    layout = {path: info.kind for expert in experts for path, info in expert.layout.items()}
    found: dict[str, list[Tensor]] = {p: [] for p, kind in layout.items() if kind != "embedding"}
    for expert in experts:
        mean = _Mean(found)
        with watched(model, experts, mean.add):
            read(list(prompts[expert.name]), mean.see)
        for path, rows in found.items():
            rows.append(mean.of(path, expert.name))
    return Centroids({path: torch.stack(rows) for path, rows in found.items()})


class _Mean:
    """Running sums of the inputs of each module, over the tokens that count."""

    def __init__(self, paths: Mapping[str, object]) -> None:
        self.paths = paths
        self.sums: dict[str, Tensor] = {}
        self.tokens: dict[str, int] = {}
        self.mask: Tensor | None = None
        self._before: tuple[dict[str, Tensor], dict[str, int]] = ({}, {})

    def see(self, mask: Tensor | None) -> None:
        """mask: [b, n], which tokens of the next pass count; None: forget the last pass."""
        if mask is None:
            self.sums, self.tokens = self._before
        self._before = (dict(self.sums), dict(self.tokens))  # sums are replaced, never changed
        self.mask = None if mask is None else mask.reshape(-1)

    def add(self, path: str, x: Tensor, output: Tensor) -> None:
        """Add the input x [..., in] of a module that has run."""
        if path not in self.paths or self.mask is None:
            return
        flat = x.reshape(-1, x.shape[-1])
        if len(flat) != len(self.mask):
            raise UsageError(
                f"Module {path} reads {len(flat)} of {len(self.mask)} tokens (a mixture's expert, "
                "or a head), so it has no mean input to route by; use another router."
            )
        kept = flat[self.mask.to(flat.device)].double().sum(0).cpu()
        self.sums[path] = self.sums.get(path, torch.zeros_like(kept)) + kept
        self.tokens[path] = self.tokens.get(path, 0) + int(self.mask.sum())

    def of(self, path: str, expert: str) -> Tensor:
        """The mean input [in] of a module, in float32."""
        if not self.tokens.get(path):
            raise UsageError(
                f"Module {path} has not run on the prompts of {expert}, so it has no mean input to "
                "route by; use another router."
            )
        return (self.sums[path] / self.tokens[path]).float()
