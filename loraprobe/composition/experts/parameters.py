"""Experts of parameters (peft's `target_parameters`): W + sum_i g_i dW_i, while a module runs.

The experts of a mixture are one stacked parameter of a module that mixes tokens itself, so that no
hook on its output can add an adapter's part. As in peft, the parameter is replaced before the
module's forward and restored after it; only the module that runs holds a second copy. Gates that
depend on the token are refused.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from loraprobe.adapters import Adapter
from loraprobe.adapters.experts import SAME_PARAMETERS, Place, places, stack_of
from loraprobe.composition.router import Router
from loraprobe.errors import CompatibilityError, UnsupportedAdapter
from loraprobe.lora.lowrank import LowRank
from loraprobe.records import Issue


def checked_places(
    model: nn.Module, adapters: Sequence[Adapter], router: Router
) -> dict[str, Place]:
    """Stack -> the parameter of the model that the adapters change.

    Raises UnsupportedAdapter for gates that depend on the token and for weights that are quantised
    or offloaded, CompatibilityError if an adapter does not fit the model or another adapter.
    """
    found: dict[str, Place] = {}
    for adapter in adapters:
        for place in places(model, adapter):
            if isinstance(place, Issue):
                raise CompatibilityError(f"{place.message} It was trained on another base model.")
            if not router.constant:
                raise UnsupportedAdapter(
                    f"Adapter {adapter.name} changes {place.name} itself, which gates that look at "
                    "the token cannot weigh; use constant gates (uniform, sum, --weights)."
                )
            parameter = place.parameter
            if parameter.device.type == "meta" or parameter.element_size() < 2:
                raise UnsupportedAdapter(
                    f"Adapter {adapter.name} changes {place.name} itself, which the model holds "
                    "quantised or out of memory; load the base unquantised and in memory."
                )
            if found.setdefault(place.stack, place).name != place.name:
                raise CompatibilityError(
                    f"Adapter {adapter.name} targets {place.name} where another adapter targets "
                    f"{found[place.stack].name}. {SAME_PARAMETERS}"
                )
    return found


@contextlib.contextmanager
def added_to_parameters(
    found: Mapping[str, Place], updates: Mapping[str, LowRank]
) -> Iterator[None]:
    """Adds updates to the parameters in every forward while the context lasts.

    updates: path of an expert -> B A of all adapters, with scalings and gates multiplied into B.
    """
    held: dict[str, list[LowRank]] = {}
    for path, update in updates.items():
        held.setdefault(stack_of(path)[0], []).append(update)
    with contextlib.ExitStack() as undo:
        for stack, experts in held.items():
            hook = _Addition.of(found[stack], experts)
            module = hook.place.module
            undo.callback(module.register_forward_pre_hook(hook.add).remove)
            undo.callback(module.register_forward_hook(hook.restore, always_call=True).remove)
        yield


@dataclass
class _Addition:
    """The hooks that replace one parameter. A: [E, R, in], B: [E, out, R]."""

    place: Place
    A: Tensor
    B: Tensor
    base: nn.Parameter | None = None

    @classmethod
    def of(cls, place: Place, updates: Sequence[LowRank]) -> _Addition:
        rank, pad = max(update.rank for update in updates), torch.nn.functional.pad
        A = torch.stack([pad(update.A, (0, 0, 0, rank - update.rank)) for update in updates])
        B = torch.stack([pad(update.B, (0, rank - update.rank)) for update in updates])
        return cls(place, A.to(place.parameter), B.to(place.parameter))

    def add(self, module: nn.Module, _: Any) -> None:
        self.base = self.place.parameter
        with torch.autocast(self.base.device.type, enabled=False):
            made = self._changed(self.base.detach())
        module._parameters[self.place.attribute] = nn.Parameter(made, requires_grad=False)

    def restore(self, module: nn.Module, *_: Any) -> None:
        if self.base is not None:
            module._parameters[self.place.attribute] = self.base
            self.base = None

    def _changed(self, weight: Tensor) -> Tensor:
        """W + B A, in the orientation and dtype of W."""
        if weight.dim() == 2:
            return torch.addmm(weight, self.B[0], self.A[0])
        if self.place.transposed:
            return torch.baddbmm(weight, self.A.mT, self.B.mT)
        return torch.baddbmm(weight, self.B, self.A)
