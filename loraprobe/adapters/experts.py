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

import itertools
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from loraprobe.adapters.config import untargeted
from loraprobe.adapters.types import Adapter, ModuleInfo
from loraprobe.findings import CODES, finding
from loraprobe.lora.lowrank import LowRank
from loraprobe.patterns import PatternError
from loraprobe.records import Issue

NESTED = ".base_layer"
_EXPERT = re.compile(r"(.+)\[(\d+)\]")
SAME_PARAMETERS = CODES["parameters-differ"].cure
TRAINED_ON = CODES["module-not-in-base"].cure
MOST_NAMES = 6  # parameters of one module whose orders are tried


def expert_path(stack: str, number: int) -> str:
    """The path of one expert: `mlp.experts` and 3 give `mlp.experts[3]`."""
    return f"{stack}[{number}]"


def stack_of(path: str) -> tuple[str, int]:
    """The inverse of `expert_path`."""
    match = _EXPERT.fullmatch(path)
    assert match is not None, path
    return match[1], int(match[2])


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


def targeted_whole(config: Mapping[str, Any], owners: Collection[str]) -> set[str]:
    """The modules of `owners` that the config targets as such and not by a parameter."""
    targets, parameters = config.get("target_modules"), config.get("target_parameters")
    if not targets or not parameters:
        return set()
    if str(targets).lower() == "all-linear":
        qualified = {"target_parameters": [name for name in parameters if "." in name]}
        return {owner for owner in owners if not parameter_names(qualified, owner)}
    try:
        return set(owners) - set(untargeted(owners, config))
    except PatternError:
        return set(owners)


def in_order(
    given: Sequence[tuple[int, float]], rows: Sequence[int]
) -> list[tuple[int, float]] | None:
    """Rank and scaling of the parameters of a module, outermost first; None if they are unclear.

    given: those of each parameter by the config. rows: those of each stacked A. A config may give
    the parameters different ranks by their names, and the file does not tell their order. The order
    is then one in which every parameter has the same number of experts, if these orders agree.
    """
    differ = len(set(given)) > 1
    if len(rows) > len(given) or (differ and len(given) > MOST_NAMES):
        return None
    tried = itertools.permutations(given) if differ else [tuple(given)]
    orders = {order[: len(rows)] for order in tried}
    whole = {o for o in orders if not any(n % r for n, (r, _) in zip(rows, o, strict=True))}
    if len(whole) > 1:
        whole = {o for o in whole if len({n // r for n, (r, _) in zip(rows, o, strict=True)}) == 1}
    return list(whole.pop()) if len(whole) == 1 else None


def stacks(layout: Mapping[str, ModuleInfo]) -> dict[str, list[str]]:
    """Stack -> the paths of its experts in order."""
    found: dict[str, list[str]] = {}
    for path, info in layout.items():
        if info.kind == "expert":
            found.setdefault(stack_of(path)[0], []).append(path)
    return found


def without_experts(layout: Mapping[str, ModuleInfo]) -> list[str]:
    """The paths of modules, without those of experts."""
    return [path for path, info in layout.items() if info.kind != "expert"]


def unroutable(adapter: Adapter) -> str | None:
    """What an adapter does that gates of a token cannot weigh, as a predicate; None if nothing."""
    if adapter.whole:
        return f"replaces {next(iter(adapter.whole))} whole"
    if adapter.token_rows:
        return f"replaces rows of {next(iter(adapter.token_rows))}"
    first = next(iter(stacks(adapter.layout).values()), None)
    return None if first is None else f"changes the parameter of {first[0]} itself"


def factors_of_expert(A: Tensor, B: Tensor, number: int, rank: int) -> tuple[Tensor, Tensor]:
    """A [r, in] and B [out, r] of one expert, from the stacked A [E * r, in] and B [out, r * E]."""
    experts = len(A) // rank
    return A[number * rank : (number + 1) * rank], B[:, number::experts].contiguous()


def stacked(updates: Sequence[LowRank]) -> tuple[Tensor, Tensor]:
    """A [E * r, in] and B [out, r * E] as peft stores them, of experts of one rank."""
    A = torch.cat([update.A for update in updates])
    return A, torch.stack([update.B for update in updates], dim=2).flatten(1)


def is_even(adapter: Adapter) -> bool:
    """Whether all experts of a module have one rank and one scaling, as a file requires."""
    found: dict[str, set[tuple[int, float]]] = {}
    for stack, paths in stacks(adapter.layout).items():
        infos = [adapter.layout[path] for path in paths]
        found.setdefault(owner_of(stack)[0], set()).update((i.rank, i.scaling) for i in infos)
    return all(len(held) == 1 for held in found.values())


def common_parameters(adapters: Sequence[Adapter]) -> list[str] | None:
    """The `target_parameters` of a composition of adapters; None if none has experts.

    It is the adapters' own list if they agree, because peft loads only adapters with equal lists
    side by side; otherwise it has the full name of each parameter.
    """
    holders = [adapter for adapter in adapters if stacks(adapter.layout)]
    lists = {tuple(sorted(set(a.config.get("target_parameters") or ()))) for a in holders}
    if len(lists) <= 1:
        return list(lists.pop()) if lists else None
    owners = {(a, owner_of(stack)[0]) for a in holders for stack in stacks(a.layout)}
    return sorted({f"{o}.{name}" for a, o in owners for name in parameter_names(a.config, o)})


def conflict(a: Adapter, b: Adapter) -> Issue | None:
    """The error about experts of two adapters that do not belong together; None if they do.

    Different parameters of one module would have one path, and their keys in a file would depend on
    the adapter; peft refuses such adapters too.
    """
    ours, theirs, names = stacks(a.layout), stacks(b.layout), (a.name, b.name)
    for stack in filter(theirs.__contains__, ours):
        owner, _ = owner_of(stack)
        one, other = (", ".join(parameter_names(adapter.config, owner)) for adapter in (a, b))
        counts = len(ours[stack]), len(theirs[stack])
        if one != other:
            message = (
                f"{a.name} targets {one} of {owner} and {b.name} targets {other}, so the keys of "
                "their files do not name the same parameters."
            )
        elif counts[0] != counts[1]:
            message = f"{stack} has {counts[0]} experts in {a.name} and {counts[1]} in {b.name}."
        else:
            continue
        return finding("parameters-differ", names, message, stack)
    return None


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
        """(E, out, in); the stored shape if it is neither of two nor of three dimensions."""
        shape = tuple(self.parameter.shape)
        if self.parameter.dim() == 2:
            return 1, *shape
        return (shape[0], shape[2], shape[1]) if self.transposed else shape


def places(model: nn.Module, adapter: Adapter) -> Iterator[Place | Issue]:
    """The place of each stack of an adapter in a model, or an error if it does not fit there.

    The model may be on the meta device.
    """
    names = (adapter.name,)
    modules = dict(model.named_modules(remove_duplicate=False))
    for stack, paths in stacks(adapter.layout).items():
        owner, depth = owner_of(stack)
        targets = parameter_names(adapter.config, owner)
        module = modules.get(owner, nn.Module())
        found = [n for n, _ in module.named_parameters(recurse=False) if n in targets][::-1]
        if depth >= len(found):
            yield finding(
                "module-not-in-base",
                names,
                f"Adapter {adapter.name} changes parameters of {owner} ({', '.join(targets)}), "
                "which the model does not have.",
                stack,
            )
            continue
        place = Place(stack, module, found[depth])
        own = (len(paths), *adapter.layout[paths[0]].shape)
        if own == place.shape:
            yield place
        else:
            yield finding(
                "shapes-differ",
                names,
                f"Adapter {adapter.name} fits {place.name} with {_sizes(own)}, but the model's has "
                f"{_sizes(place.shape)}.",
                stack,
                cure=TRAINED_ON,
            )


def _sizes(shape: Sequence[int]) -> str:
    if len(shape) != 3:
        return f"the shape {list(shape)}"
    return f"{shape[0]} experts of {shape[2]} inputs and {shape[1]} outputs"
