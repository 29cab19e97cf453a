"""Parameter experts (peft's `target_parameters`): sum_i g_i dW_i is added to one stacked parameter
of a module that mixes tokens itself, so that no hook on its output can add an adapter's part.

As in peft, the parameter is replaced before the module's forward and restored after it; only the
module that runs holds a second copy. Gates that depend on the token are refused, because a stacked
parameter belongs to all tokens.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from loraprobe.adapters import Adapter
from loraprobe.adapters.experts import owner_of, parameter_names
from loraprobe.composition.router import Router
from loraprobe.errors import CompatibilityError, UnsupportedAdapter
from loraprobe.findings import CODES
from loraprobe.formatting import listing
from loraprobe.lora.lowrank import LowRank


@dataclass(frozen=True)
class Place:
    """The parameter of a model that a stack of experts changes."""

    stack: str
    module: nn.Module
    attribute: str

    @property
    def name(self) -> str:
        """The parameter's name in the model."""
        return f"{owner_of(self.stack)[0]}.{self.attribute}"

    @property
    def parameter(self) -> nn.Parameter:
        return self.module.get_parameter(self.attribute)

    @property
    def transposed(self) -> bool:
        """Whether the matrices of an expert are stored as [in, out]."""
        return bool(getattr(self.module, "is_transposed", False)) and self.parameter.dim() == 3

    @property
    def shape(self) -> tuple[int, ...]:
        """(E, out, in); a parameter of two dimensions counts as one expert."""
        *experts, one, other = self.parameter.shape
        return (*(experts or [1]), *((other, one) if self.transposed else (one, other)))


def places(model: nn.Module, adapter: Adapter) -> list[Place]:
    """The place of each stack of an adapter in a model, which may be on the meta device.

    Raises CompatibilityError for a parameter that the model lacks or has in another shape.
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    found = []
    for stack, paths in adapter.stacks.items():
        owner, depth = owner_of(stack)
        names = parameter_names(adapter.config, owner)
        module = modules.get(owner, nn.Module())
        held = [n for n, _ in module.named_parameters(recurse=False) if n in names][::-1]
        place = Place(stack, module, held[depth]) if depth < len(held) else None
        own = (len(paths), *adapter.layout[paths[0]].shape)
        if place is None or place.shape != own:
            lacks = "does not have" if place is None else f"has as {list(place.shape)}"
            cure = CODES["module-not-in-base"].cure
            raise CompatibilityError(
                f"Adapter {adapter.name} changes {listing(names)} of {owner} as {list(own)} "
                f"(experts, outputs, inputs), which the model {lacks}. {cure}",
                cure,
            )
        found.append(place)
    return found


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
                    f"{found[place.stack].name}. {CODES['parameters-differ'].cure}"
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
        held.setdefault(path.rpartition("[")[0], []).append(update)
    with contextlib.ExitStack() as undo:
        for stack, experts in held.items():
            add, restore = _hooks(found[stack], experts)
            module = found[stack].module
            undo.callback(module.register_forward_pre_hook(add).remove)
            undo.callback(module.register_forward_hook(restore, always_call=True).remove)
        yield


def _hooks(
    place: Place, updates: Sequence[LowRank]
) -> tuple[Callable[..., None], Callable[..., None]]:
    """The hooks that replace one parameter by W + B A, and restore it."""
    rank, pad = max(update.rank for update in updates), torch.nn.functional.pad
    A = torch.stack([pad(update.A, (0, 0, 0, rank - update.rank)) for update in updates])
    B = torch.stack([pad(update.B, (0, rank - update.rank)) for update in updates])
    A, B = A.to(place.parameter), B.to(place.parameter)  # [E, R, in], [E, out, R]
    base: list[nn.Parameter] = []

    def add(module: nn.Module, _: Any) -> None:
        base[:] = [place.parameter]
        with torch.autocast(A.device.type, enabled=False):
            weight = base[0].detach()
            if weight.dim() == 2:
                made = torch.addmm(weight, B[0], A[0])
            elif place.transposed:
                made = torch.baddbmm(weight, A.mT, B.mT)
            else:
                made = torch.baddbmm(weight, B, A)
        module._parameters[place.attribute] = nn.Parameter(made, requires_grad=False)

    def restore(module: nn.Module, *_: Any) -> None:
        if base:
            module._parameters[place.attribute] = base.pop()

    return add, restore
