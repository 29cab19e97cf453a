"""Full experts, which replace parameters of a model as a whole.

They do so for modules_to_save and trained biases, or by rows for the trained token rows of an
embedding. With constant gates a parameter becomes W0 + sum_i g_i (W_i - W0) while the context
lasts. An expert that does not replace it counts as W0. Afterwards the module has its original
tensor again. Only the named module changes. If a weight is tied, the other module keeps the base's
weight, as in peft, which copies the module; `ensure_weight_tying` changes both. Token rows of the
input embedding always change both, as in peft. Where gates are being learned, or another expert
reads the module's own output, outputs are mixed instead of weights, which is equivalent for modules
whose output is affine in their parameters.

Gates that depend on the token are refused: a full expert has no factors to route by.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from loraprobe.adapters import Adapter
from loraprobe.composition.composition import Composition
from loraprobe.composition.router import unroutable
from loraprobe.errors import CompatibilityError, UnsupportedAdapter

AFFINE = (nn.Linear, nn.Embedding)


class Replacement(NamedTuple):
    """What an expert has in place of a parameter, or of the rows of `tokens` if there are any."""

    expert: str
    tokens: tuple[int, ...]
    read: Callable[[], Tensor]


@dataclass(frozen=True)
class ReplacedParameter:
    """One parameter of a module, and the experts that replace it.

    experts: an expert's index among all -> what it has in place of the parameter.
    """

    name: str
    module: nn.Module
    experts: Mapping[int, Replacement]

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

    def own(self, i: int) -> Tensor:
        """The tensor of the i-th expert, in its own dtype or, with token rows, in the base's."""
        part = self.experts[i]
        if not part.tokens:
            return part.read()
        index = torch.tensor(part.tokens, device=self.base.device)
        return self.base.detach().index_copy(0, index, part.read().to(self.base))


@contextlib.contextmanager
def replaced(
    model: nn.Module, composition: Composition, keep_weights: frozenset[str] = frozenset()
) -> Iterator[None]:
    """Replaces whole parameters, weighed by the gates, while the context lasts.

    keep_weights: paths of modules whose weight must stay, because another expert reads their output
    W0 x.

    Raises UnsupportedAdapter for gates that depend on the token and for weights that are quantised
    or offloaded, CompatibilityError if the model lacks the parameter or its shape differs.
    """
    mixed: dict[str, list[ReplacedParameter]] = {}
    with contextlib.ExitStack() as undo:
        for whole in _whole_parameters(model, composition):
            keeps = whole.attribute == "weight" and whole.path in keep_weights
            if composition.router.constant and not keeps:
                _swap(whole, composition, undo)
            else:
                mixed.setdefault(whole.path, []).append(whole)
        for parts in mixed.values():
            mix = _mixing(parts, composition)
            hook = parts[0].module.register_forward_hook(mix, with_kwargs=True)
            undo.callback(hook.remove)
        yield


def _whole_parameters(model: nn.Module, composition: Composition) -> list[ReplacedParameter]:
    """Every parameter that some expert replaces, after all checks."""
    experts = composition.experts
    by_place: dict[str, dict[int, Replacement]] = {}
    for i, expert in enumerate(experts):
        replacements = {
            f"{path}.weight": Replacement(expert.name, rows.tokens, rows.read)
            for path, rows in expert.token_rows.items()
        }
        for name in expert.whole:
            read = functools.partial(expert.whole.__getitem__, name)
            replacements[name] = Replacement(expert.name, (), read)
        for name in sorted(replacements):
            for place in _places(model, expert, name):
                if place == name or place not in replacements:
                    by_place.setdefault(place, {})[i] = replacements[name]
    if by_place and not composition.router.weighs_whole:
        first = experts[next(iter(next(iter(by_place.values()))))]
        raise UnsupportedAdapter(
            f"Adapter {first.name} {unroutable(first)}, which gates that look at the token "
            "cannot weigh; use constant gates (uniform, sum, --weights), or an adapter "
            "trained without modules_to_save, biases and token rows."
        )
    return [_checked(model, place, replacing) for place, replacing in by_place.items()]


def _places(model: Any, expert: Adapter, name: str) -> list[str]:
    """The parameter and, with `ensure_weight_tying`, those that share its tensor.

    peft also ties a head to the token rows of the input embedding.
    """
    ties = bool(expert.config.get("ensure_weight_tying"))
    if name not in expert.whole:
        try:
            ties = model.get_submodule(name.rpartition(".")[0]) is model.get_input_embeddings()
        except (AttributeError, NotImplementedError):
            ties = False
    if not ties:
        return [name]
    same = dict(model.named_parameters(remove_duplicate=False))
    tensor = same.get(name)
    return [
        name,
        *(other for other, parameter in same.items() if parameter is tensor and other != name),
    ]


def _checked(model: nn.Module, name: str, experts: Mapping[int, Replacement]) -> ReplacedParameter:
    """A parameter of the model that experts replace, of their shape and in memory."""
    adapter = next(iter(experts.values())).expert
    path, _, attribute = name.rpartition(".")
    try:
        module = model.get_submodule(path)
    except AttributeError:
        module = nn.Module()
    base = module._parameters.get(attribute)
    if base is None:
        raise CompatibilityError(
            f"Adapter {adapter} replaces {name}, which the model does not have; it was "
            "trained on another base model or head."
        )
    if not base.is_floating_point() or base.device.type == "meta":
        raise UnsupportedAdapter(
            f"Adapter {adapter} replaces {name}, which the model holds "
            "quantised or out of memory; load the base unquantised and in memory."
        )
    shape = base.shape
    for part in experts.values():
        given = part.read().shape
        if part.tokens and (max(part.tokens) >= shape[0] or shape[1:] != given[1:]):
            raise CompatibilityError(
                f"Adapter {part.expert} has rows of {given[1]} entries for tokens up to "
                f"{max(part.tokens)} of {path}, but the model's has the shape {list(shape)}; it "
                "was trained with another vocabulary, so resize the base's as in its training."
            )
        if not part.tokens and given != shape:
            raise CompatibilityError(
                f"Adapter {part.expert} replaces {name} by a tensor of shape {list(given)}, but "
                f"the model's is {list(shape)}; it was trained with another vocabulary or head, so "
                "resize the base's as in its training."
            )
    return ReplacedParameter(name, module, experts)


def _swap(whole: ReplacedParameter, composition: Composition, undo: contextlib.ExitStack) -> None:
    """Replaces a parameter by its weighed sum under constant gates until `undo` closes."""
    present = sorted(whole.experts)
    gates = composition.gates(whole.name, present)
    assert isinstance(gates, Tensor)
    pairs = zip(present, gates.tolist(), strict=True)
    parts = [(whole.experts[i], float(gate)) for i, gate in pairs if gate != 0]
    if not parts:
        return
    base = whole.base
    with torch.inference_mode(False), torch.no_grad():
        stored = base.detach()
        dtype = torch.promote_types(base.dtype, torch.float32)
        share = 1 - sum(weight for part, weight in parts if not part.tokens)
        mixed = stored.to(dtype) * share if share else torch.zeros_like(base, dtype=dtype)
        for part, weight in parts:
            if part.tokens:  # weight * (rows - the base's rows); the rows if `made` is the base
                index = torch.tensor(part.tokens, device=mixed.device)
                rows = part.read().to(stored).to(mixed)  # rounded to the base's dtype, as peft does
                mixed[index] = (mixed[index] - weight * stored[index].to(mixed)) + weight * rows
            else:
                mixed.add_(part.read().to(mixed), alpha=weight)
        parameter = nn.Parameter(mixed.to(base.dtype), requires_grad=False)
    parameters = whole.module._parameters
    undo.callback(parameters.__setitem__, whole.attribute, base)
    parameters[whole.attribute] = parameter


def _mixing(parts: Sequence[ReplacedParameter], composition: Composition) -> Callable[..., Tensor]:
    """A hook that adds sum_i g_i (module_i(x) - module(x)) to a module's output."""
    present = sorted({i for whole in parts for i in whole.experts})
    gates = composition.gates(parts[0].name, present)
    module = parts[0].module
    kind = type(module).__name__
    if not (isinstance(module, AFFINE) or kind.endswith("Norm") or kind == "Conv1D"):
        first = next(iter(parts[0].experts.values())).expert
        raise UnsupportedAdapter(
            f"Adapter {first} replaces {parts[0].name} whole; {parts[0].path} is a {kind}, "
            "whose output cannot be weighed row by row."
        )
    replaced_by = [
        {
            whole.attribute: nn.Parameter(whole.own(i).to(whole.base), requires_grad=False)
            for whole in parts
            if i in whole.experts
        }
        for i in present
    ]

    def mix(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> Tensor:
        plain = _forward(module, {}, args, kwargs)
        weights = gates.to(plain.device) if isinstance(gates, Tensor) else gates(plain.float())
        weights = F.pad(weights, (0, len(replaced_by) - weights.shape[-1]), value=1.0)
        mixed = output.to(weights.dtype)
        for j, parameters in enumerate(replaced_by):
            change = _forward(module, parameters, args, kwargs).to(mixed) - plain.to(mixed)
            mixed = mixed + weights[..., j, None] * change
        return mixed.to(output.dtype)

    return mix


def _forward(
    module: nn.Module,
    parameters: Mapping[str, Tensor],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Tensor:
    """The module's forward with other parameters, without hooks."""
    before = dict(module._parameters)
    try:
        module._parameters.update(parameters)  # type: ignore[arg-type]
        return module.forward(*args, **kwargs)
    finally:
        module._parameters.update(before)
