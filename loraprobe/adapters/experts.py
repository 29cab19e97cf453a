"""LoRA on parameters (peft's `target_parameters`), such as the stacked weights of MoE experts.

A parameter holds the weights of E experts, [E, out, in] or, in a module with `is_transposed`,
[E, in, out]; a parameter of two dimensions counts as one expert. peft stores the factors of all
experts in two tensors of rank r each:

    A [E * r, in], the rows of expert e are e * r, e * r + 1 ...
    B [out, r * E], the columns of expert e are e, e + E, e + 2 * E ...

Here each expert is a module of the kind "expert" with the path `mlp.experts[3]`, so that all that
works on a module's factors works on an expert's. As in the file's keys, the path names the module
that owns the parameter, and `.base_layer` follows where a second parameter of this module is meant:
`mlp.experts.base_layer[3]`. The names of the parameters stand in the config alone. peft wraps a
module once for each parameter in the order of registration, so the last one is the outermost.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from loraprobe.adapters.types import Adapter
from loraprobe.errors import CompatibilityError
from loraprobe.findings import CODES, finding
from loraprobe.formatting import count, listing
from loraprobe.lora.lowrank import LowRank
from loraprobe.records import Issue

NESTED = ".base_layer"


def owner_of(stack: str) -> tuple[str, int]:
    """The module that owns a parameter, and how deep peft nests the parameter: 0 is outermost."""
    owner = stack
    while owner.endswith(NESTED):
        owner = owner.removesuffix(NESTED)
    return owner, (len(stack) - len(owner)) // len(NESTED)


def parameter_names(config: Mapping[str, Any], owner: str) -> list[str]:
    """The names of the parameters that a config targets in a module, matched as peft does."""
    found = set()
    for target in config.get("target_parameters") or ():
        module, _, name = str(target).rpartition(".")
        if not module or f".{owner}".endswith(f".{module}"):
            found.add(name)
    return sorted(found)


def factors_of_expert(A: Tensor, B: Tensor, number: int, rank: int) -> tuple[Tensor, Tensor]:
    """A [r, in] and B [out, r] of one expert, from the stacked A [E * r, in] and B [out, r * E]."""
    experts = len(A) // rank
    return A[number * rank : (number + 1) * rank], B[:, number::experts].contiguous()


def stacked_factors(updates: Sequence[LowRank]) -> tuple[Tensor, Tensor]:
    """A [E * r, in] and B [out, r * E] as peft stores them, of experts of one rank."""
    A = torch.cat([update.A for update in updates])
    return A, torch.stack([update.B for update in updates], dim=2).flatten(1)


def conflict(a: Adapter, b: Adapter) -> Issue | None:
    """The error about experts of two adapters that do not belong together; None if they do.

    Different parameters of one module would have one path, and their keys in a file would depend on
    the adapter; peft refuses such adapters too.
    """
    for stack in filter(b.stacks.__contains__, a.stacks):
        owner, _ = owner_of(stack)
        (ours, n), (theirs, m) = (
            (parameter_names(x.config, owner), len(x.stacks[stack])) for x in (a, b)
        )
        if ours != theirs or n != m:
            message = (
                f"{a.name} targets {listing(ours)} of {owner} with {count(n, 'expert')}, and "
                f"{b.name} targets {listing(theirs)} with {count(m, 'expert')}."
            )
            return finding("parameters-differ", (a.name, b.name), message, stack)
    return None


@dataclass(frozen=True)
class TargetParameter:
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


def target_parameters(model: nn.Module, adapter: Adapter) -> list[TargetParameter]:
    """The parameter of each stack of an adapter in a model, which may be on the meta device.

    Raises CompatibilityError for a parameter that the model lacks or has in another shape.
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    found = []
    for stack, paths in adapter.stacks.items():
        owner, depth = owner_of(stack)
        names = parameter_names(adapter.config, owner)
        module = modules.get(owner, nn.Module())
        held = [n for n, _ in module.named_parameters(recurse=False) if n in names][::-1]
        target = TargetParameter(stack, module, held[depth]) if depth < len(held) else None
        own = (len(paths), *adapter.layout[paths[0]].shape)
        if target is None or target.shape != own:
            lacks = "does not have" if target is None else f"has as {list(target.shape)}"
            cure = CODES["module-not-in-base"].cure
            raise CompatibilityError(
                f"Adapter {adapter.name} changes {listing(names)} of {owner} as {list(own)} "
                f"(experts, outputs, inputs), which the model {lacks}. {cure}",
                cure,
            )
        found.append(target)
    return found
