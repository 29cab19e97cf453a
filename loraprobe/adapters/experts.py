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

This is the order of peft 0.19.1 and newer. Older ones exchanged inputs and outputs: 0.17.0 to
0.18.1 those of modules without `is_transposed`, 0.19.0 those of all modules. Transformers changed
the order too, and peft reads every file in today's, so neither the file nor its version tells the
order. The shapes of the base do, unless the matrices are square; an `AdapterLayout` knows how.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
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
ORDER = "expert-layout"  # the code of findings about the order of inputs and outputs
TODAY = 0, 19, 1  # the first version of peft with today's order
ORDERED_BY = ".".join(map(str, TODAY))  # what a written config says


def owner_of(stack: str) -> tuple[str, int]:
    """The module that owns a parameter, and how deep peft nests the parameter: 0 is outermost."""
    owner = stack
    while owner.endswith(NESTED):
        owner = owner.removesuffix(NESTED)
    return owner, (len(stack) - len(owner)) // len(NESTED)


def parameter_names(config: Mapping[str, Any], owner: str) -> list[str]:
    """The names of the parameters that a config targets in a module, matched as peft does."""
    names = set()
    for target in config.get("target_parameters") or ():
        module, _, name = str(target).rpartition(".")
        if not module or f".{owner}".endswith(f".{module}"):
            names.add(name)
    return sorted(names)


def factors_of_expert(A: Tensor, B: Tensor, number: int, rank: int) -> tuple[Tensor, Tensor]:
    """A [r, in] and B [out, r] of one expert, from the stacked A [E * r, in] and B [out, r * E]."""
    experts = len(A) // rank
    return A[number * rank : (number + 1) * rank], B[:, number::experts].contiguous()


def layout_of_experts(path: str, a: Sequence[int], b: Sequence[int]) -> str | None:
    """Who stores the factors of experts so that A and B have these shapes; None for peft.

    SGLang, NeMo and Tinker: A [E, r, in] and B [E, out, r], of which one may be shared by all
    experts (E = 1). vLLM: A [E, r, in] and B [out, r, E].
    """
    if "experts" not in path or len(a) != 3 or len(b) != 3:
        return None
    if a[1] == b[1] and a[0] == b[2] > 1:
        return "the layout of vLLM"
    if b[2] > 0 and a[1] % b[2] == 0 and (a[0] == b[0] or 1 in (a[0], b[0])):
        shared = a[0] != b[0]
        return f"the layout of SGLang, NeMo and Tinker{', shared by all experts' if shared else ''}"
    return None


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
    targets = []
    for stack, shape, target in targeted(model, adapter):
        if target is None or target.shape != shape:
            lacks = "does not have" if target is None else f"has as {list(target.shape)}"
            owner = owner_of(stack)[0]
            raise CompatibilityError(
                f"Adapter {adapter.name} changes {listing(parameter_names(adapter.config, owner))} "
                f"of {owner} as {list(shape)} (experts, outputs, inputs), which the model {lacks}.",
                CODES["module-not-in-base"].cure,
            )
        targets.append(target)
    return targets


def targeted(
    model: nn.Module, adapter: Adapter
) -> Iterator[tuple[str, tuple[int, ...], TargetParameter | None]]:
    """Each stack, its shape (E, out, in), and its parameter in a model, None if there is none."""
    modules = dict(model.named_modules(remove_duplicate=False))
    for stack, paths in adapter.stacks.items():
        owner, depth = owner_of(stack)
        names = parameter_names(adapter.config, owner)
        module = modules.get(owner, nn.Module())
        registered = [n for n, _ in module.named_parameters(recurse=False) if n in names][::-1]
        target = (
            TargetParameter(stack, module, registered[depth]) if depth < len(registered) else None
        )
        yield stack, (len(paths), *adapter.layout[paths[0]].shape), target


# The order of inputs and outputs in the file.


def order_issue(adapter: Adapter) -> Issue | None:
    """The error about experts whose order the version of peft does not show to be today's."""
    version = version_of(adapter)
    stack = next((stack for stack, paths in adapter.stacks.items() if len(paths) > 1), None)
    if stack is None or (version is not None and version >= TODAY):
        return None
    by = "does not say by which peft it was saved"
    if version is not None:
        by = f"was saved by peft {'.'.join(map(str, version))}"
    message = (
        f"{adapter.name} changes stacked experts and {by}: their A may read the inputs, as peft "
        "0.19.1 and newer store it, or the outputs, as older ones did for most models."
    )
    return finding(ORDER, (adapter.name,), message, stack)


def transposed_in(a: Adapter, b: Adapter) -> set[str]:
    """The experts that one of two adapters has with inputs and outputs exchanged, as an error of
    one of them says."""
    if not any(issue.code == ORDER for issue in (*a.issues, *b.issues)):
        return set()
    shared = [path for path in a.layout if path in b.layout and a.layout[path].kind == "expert"]
    return {p for p in shared if a.layout[p].shape == b.layout[p].shape[::-1]}


def version_of(adapter: Adapter) -> tuple[int, ...] | None:
    """The version of peft that saved an adapter; that of a development version is the one before.

    None if the config does not say it.
    """
    version = str(adapter.config.get("peft_version"))
    match = re.match(r"(\d{1,6})\.(\d{1,6})\.(\d{1,6})(\.?(dev|rc|a|b)\d)?", version)
    if match is None:
        return None
    major, minor, patch = (int(part) for part in match.groups()[:3])
    return (major, minor, patch - 1) if match[4] else (major, minor, patch)
