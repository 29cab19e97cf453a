"""Full experts: parameters that an adapter replaces as a whole (modules_to_save, trained biases).

With constant gates a parameter becomes W0 + sum_i g_i (W_i - W0) while the context lasts. An expert
that does not replace it counts as W0. Afterwards the module has its original tensor again. Only the
named module changes. If a weight is tied, the other module keeps the base's weight, as in peft,
which copies the module; `ensure_weight_tying` changes both.

Gates per row mix outputs instead of weights, which is equivalent for modules whose output is affine
in their parameters. Gates that depend on the token are refused, because these experts have no
factors to route by.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from loraprobe.composition.router import Composition
from loraprobe.errors import CompatibilityError, UnsupportedAdapter

AFFINE = (nn.Linear, nn.Embedding)


@dataclass(frozen=True)
class ReplacedParameter:
    """One parameter and the experts that replace it: index -> parameter name in the expert."""

    name: str
    module: nn.Module
    experts: Mapping[int, str]

    @property
    def path(self) -> str:
        return self.name.rpartition(".")[0]

    @property
    def attribute(self) -> str:
        return self.name.rpartition(".")[2]

    @property
    def base(self) -> nn.Parameter:
        parameter = self.module._parameters[self.attribute]
        assert parameter is not None
        return parameter


def whole_parameters(model: nn.Module, composition: Composition) -> list[ReplacedParameter]:
    """Every parameter that some expert replaces.

    Raises UnsupportedAdapter for gates that depend on the token and for weights that are quantised
    or offloaded, CompatibilityError if the model lacks the parameter or its shape differs.
    """
    found: dict[str, dict[int, str]] = {}
    for i, expert in enumerate(composition.experts):
        for name in expert.whole:
            for place in _places(model, expert.config, name):
                if place == name or place not in expert.whole:
                    found.setdefault(place, {})[i] = name
    made = []
    for place, experts in found.items():
        names = [composition.experts[i].name for i in experts]
        if not composition.router.weighs_whole:
            raise UnsupportedAdapter(
                f"Adapter {names[0]} replaces {place} whole, which gates that look at the token "
                "cannot weigh; use constant gates (uniform, sum, --weights), or an adapter "
                "trained without modules_to_save and biases."
            )
        whole = ReplacedParameter(place, _owner(model, place, names[0]), experts)
        _check(whole, composition)
        made.append(whole)
    return made


@contextlib.contextmanager
def replaced(
    model: nn.Module, composition: Composition, keep_weights: frozenset[str] = frozenset()
) -> Iterator[None]:
    """Replaces whole parameters, weighed by the gates, while the context lasts.

    keep_weights: paths of modules whose weight must stay, because another expert reads their output
    W0 x. Raises the errors of `whole_parameters`.
    """
    mixed: dict[str, list[ReplacedParameter]] = {}
    with contextlib.ExitStack() as undo:
        for whole in whole_parameters(model, composition):
            keeps = whole.attribute == "weight" and whole.path in keep_weights
            if composition.router.constant and not keeps:
                _swap(whole, composition, undo)
            else:
                mixed.setdefault(whole.path, []).append(whole)
        for parts in mixed.values():
            hook = parts[0].module.register_forward_hook(
                _mixing(parts, composition), with_kwargs=True
            )
            undo.callback(hook.remove)
        yield


def _places(model: nn.Module, config: Mapping[str, Any], name: str) -> list[str]:
    """The parameter and, with `ensure_weight_tying`, those that share its tensor."""
    if not config.get("ensure_weight_tying"):
        return [name]
    same = dict(model.named_parameters(remove_duplicate=False))
    own = same.get(name)
    return [name, *(other for other, held in same.items() if held is own and other != name)]


def _owner(model: nn.Module, name: str, adapter: str) -> nn.Module:
    path, _, attribute = name.rpartition(".")
    try:
        module = model.get_submodule(path)
    except AttributeError:
        module = nn.Module()
    if module._parameters.get(attribute) is None:
        raise CompatibilityError(
            f"Adapter {adapter} replaces {name} whole, which the model does not have; it was "
            "trained on another base model or head."
        )
    return module


def _check(whole: ReplacedParameter, composition: Composition) -> None:
    for i, name in whole.experts.items():
        expert = composition.experts[i]
        shape = tuple(expert.whole[name].shape)
        if not whole.base.is_floating_point() or whole.base.device.type == "meta":
            raise UnsupportedAdapter(
                f"Adapter {expert.name} replaces {whole.name} whole, which the model holds "
                "quantised or out of memory; load the base unquantised and in memory."
            )
        if shape != tuple(whole.base.shape):
            raise CompatibilityError(
                f"Adapter {expert.name} replaces {whole.name} by a tensor of shape {list(shape)}, "
                f"but the model's is {list(whole.base.shape)}; it was trained with another "
                "vocabulary or head, so resize the base's as in its training."
            )


def _gates(parts: Sequence[ReplacedParameter], composition: Composition) -> tuple[list[int], Any]:
    """The indices of the experts that replace one of the parameters, and their gates."""
    present = sorted({i for whole in parts for i in whole.experts})
    router, n = composition.router, len(composition.experts)
    if router.constant:
        return present, router.gates(parts[0].name, (), present, n)
    return present, router.embedding_gates(present, n)


def _swap(whole: ReplacedParameter, composition: Composition, undo: contextlib.ExitStack) -> None:
    """Replaces a parameter by its weighed sum under constant gates until `undo` closes."""
    present, gates = _gates([whole], composition)
    weights = {i: float(g) for i, g in zip(present, gates.tolist(), strict=True) if g != 0}
    if not weights:
        return
    base = whole.base
    with torch.inference_mode(False), torch.no_grad():
        dtype = torch.promote_types(base.dtype, torch.float32)
        kept = 1 - sum(weights.values())
        made = base.detach().to(dtype) * kept if kept else torch.zeros_like(base, dtype=dtype)
        for i, weight in weights.items():
            own = composition.experts[i].whole[whole.experts[i]]
            made = made.add_(own.to(made), alpha=weight)
        parameter = nn.Parameter(made.to(base.dtype), requires_grad=False)
    held = whole.module._parameters
    undo.callback(held.__setitem__, whole.attribute, base)
    held[whole.attribute] = parameter


def _mixing(parts: Sequence[ReplacedParameter], composition: Composition) -> Callable[..., Tensor]:
    """A hook that adds sum_i g_i (module_i(x) - module(x)) to a module's output."""
    module, path = parts[0].module, parts[0].path
    norm = type(module).__name__.endswith("Norm")
    if not (isinstance(module, AFFINE) or norm or type(module).__name__ == "Conv1D"):
        raise UnsupportedAdapter(
            f"Adapter {composition.experts[next(iter(parts[0].experts))].name} replaces "
            f"{parts[0].name} whole; {path} is a {type(module).__name__}, whose output cannot be "
            "weighed row by row."
        )
    present, gates = _gates(parts, composition)
    own = [_own_parameters(parts, composition, i) for i in present]

    def mix(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> Tensor:
        plain = _forward(module, {}, args, kwargs)
        weights = gates.to(plain.device) if isinstance(gates, Tensor) else gates(plain.float())
        made = output.to(weights.dtype)
        for j, parameters in enumerate(own):
            change = _forward(module, parameters, args, kwargs).to(made) - plain.to(made)
            made = made + weights[..., j, None] * change
        return made.to(output.dtype)

    return mix


def _own_parameters(
    parts: Sequence[ReplacedParameter], composition: Composition, i: int
) -> dict[str, Tensor]:
    """The parameters of one expert for the module."""
    return {
        whole.attribute: nn.Parameter(
            composition.experts[i].whole[whole.experts[i]].to(whole.base), requires_grad=False
        )
        for whole in parts
        if i in whole.experts
    }


def _forward(
    module: nn.Module,
    parameters: Mapping[str, Tensor],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Tensor:
    """The module's forward with other parameters, without hooks."""
    held = dict(module._parameters)
    try:
        module._parameters.update(parameters)  # type: ignore[arg-type]
        return module.forward(*args, **kwargs)
    finally:
        module._parameters.update(held)
