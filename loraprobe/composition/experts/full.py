"""Full experts: parameters that an adapter replaces, as a whole or by rows.

Replaced as a whole are modules_to_save and trained biases, by rows the trained token rows of an
embedding.

With constant gates a parameter becomes W0 + sum_i g_i (W_i - W0) while the context lasts. An expert
that does not replace it counts as W0. Afterwards the module has its original tensor again. Only the
named module changes. If a weight is tied, the other module keeps the base's weight, as in peft,
which copies the module; `ensure_weight_tying` changes both. Token rows of the input embedding
always change both, as in peft.

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

from loraprobe.adapters import Adapter
from loraprobe.adapters.experts import unroutable
from loraprobe.adapters.lazy import TokenRows
from loraprobe.composition.router import Router
from loraprobe.errors import CompatibilityError, UnsupportedAdapter

AFFINE = (nn.Linear, nn.Embedding)


@dataclass(frozen=True)
class ReplacedParameter:
    """One parameter of a module, and the experts that replace it.

    experts: an expert's index among all -> the expert, and the name of its own parameter.
    """

    name: str
    module: nn.Module
    experts: Mapping[int, tuple[Adapter, str]]

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
        expert, name = self.experts[i]
        if not self.by_rows(i):
            return expert.whole[name]
        rows = self.rows(i)
        index = torch.tensor(rows.tokens, device=self.base.device)
        return self.base.detach().index_copy(0, index, rows.values.to(self.base))

    def by_rows(self, i: int) -> bool:
        """Whether the i-th expert replaces rows alone."""
        expert, name = self.experts[i]
        return name not in expert.whole

    def rows(self, i: int) -> TokenRows:
        """The token rows of an expert that replaces rows alone."""
        expert, name = self.experts[i]
        return expert.token_rows[name.rpartition(".")[0]]


def whole_parameters(
    model: nn.Module, experts: Sequence[Adapter], router: Router
) -> list[ReplacedParameter]:
    """Every parameter that some expert replaces.

    Raises UnsupportedAdapter for gates that depend on the token and for weights that are quantised
    or offloaded, CompatibilityError if the model lacks the parameter or its shape differs.
    """
    found: dict[str, dict[int, tuple[Adapter, str]]] = {}
    for i, expert in enumerate(experts):
        own = {*expert.whole, *(f"{path}.weight" for path in expert.token_rows)}
        for name in sorted(own):
            for place in _places(model, expert, name):
                if place == name or place not in own:
                    found.setdefault(place, {})[i] = expert, name
    made = []
    for place, replacing in found.items():
        first = next(expert for expert, _ in replacing.values())
        if not router.weighs_whole:
            raise UnsupportedAdapter(
                f"Adapter {first.name} {unroutable(first)}, which gates that look at the token "
                "cannot weigh; use constant gates (uniform, sum, --weights), or an adapter "
                "trained without modules_to_save, biases and token rows."
            )
        made.append(ReplacedParameter(place, _owner(model, place, first.name), replacing))
        _check(made[-1])
    return made


@contextlib.contextmanager
def replaced(
    model: nn.Module,
    experts: Sequence[Adapter],
    router: Router,
    keep_weights: frozenset[str] = frozenset(),
) -> Iterator[None]:
    """Replaces whole parameters, weighed by the gates, while the context lasts.

    keep_weights: paths of modules whose weight must stay, because another expert reads their output
    W0 x. Raises the errors of `whole_parameters`.
    """
    mixed: dict[str, list[ReplacedParameter]] = {}
    with contextlib.ExitStack() as undo:
        for whole in whole_parameters(model, experts, router):
            keeps = whole.attribute == "weight" and whole.path in keep_weights
            if router.constant and not keeps:
                _swap(whole, *_gates([whole], router, len(experts)), undo)
            else:
                mixed.setdefault(whole.path, []).append(whole)
        for parts in mixed.values():
            mix = _mixing(parts, *_gates(parts, router, len(experts)))
            hook = parts[0].module.register_forward_hook(mix, with_kwargs=True)
            undo.callback(hook.remove)
        yield


def _places(model: nn.Module, expert: Adapter, name: str) -> list[str]:
    """The parameter and, with `ensure_weight_tying`, those that share its tensor.

    peft also ties a head to the token rows of the input embedding.
    """
    if name not in expert.whole:
        ties = _is_input_embedding(model, name)
    else:
        ties = bool(expert.config.get("ensure_weight_tying"))
    if not ties:
        return [name]
    same = dict(model.named_parameters(remove_duplicate=False))
    own = same.get(name)
    return [name, *(other for other, held in same.items() if held is own and other != name)]


def _is_input_embedding(model: Any, name: str) -> bool:
    path = name.rpartition(".")[0]
    try:
        return model.get_submodule(path) is model.get_input_embeddings()
    except (AttributeError, NotImplementedError):
        return False


def _owner(model: nn.Module, name: str, adapter: str) -> nn.Module:
    path, _, attribute = name.rpartition(".")
    try:
        module = model.get_submodule(path)
    except AttributeError:
        module = nn.Module()
    if module._parameters.get(attribute) is None:
        raise CompatibilityError(
            f"Adapter {adapter} replaces {name}, which the model does not have; it was "
            "trained on another base model or head."
        )
    return module


def _check(whole: ReplacedParameter) -> None:
    for i, (expert, name) in whole.experts.items():
        if not whole.base.is_floating_point() or whole.base.device.type == "meta":
            raise UnsupportedAdapter(
                f"Adapter {expert.name} replaces {whole.name}, which the model holds "
                "quantised or out of memory; load the base unquantised and in memory."
            )
        if whole.by_rows(i):
            _check_rows(whole, i)
            continue
        shape = tuple(expert.whole[name].shape)
        if shape != tuple(whole.base.shape):
            raise CompatibilityError(
                f"Adapter {expert.name} replaces {whole.name} by a tensor of shape {list(shape)}, "
                f"but the model's is {list(whole.base.shape)}; it was trained with another "
                "vocabulary or head, so resize the base's as in its training."
            )


def _check_rows(whole: ReplacedParameter, i: int) -> None:
    rows, table = whole.rows(i), tuple(whole.base.shape)
    width = rows.values.shape[1]
    if max(rows.tokens) >= table[0] or table[1:] != (width,):
        raise CompatibilityError(
            f"Adapter {whole.experts[i][0].name} has rows of {width} entries for tokens up to "
            f"{max(rows.tokens)} of {whole.path}, but the model's has the shape {list(table)}; it "
            "was trained with another vocabulary, so resize the base's as in its training."
        )


def _gates(parts: Sequence[ReplacedParameter], router: Router, n: int) -> tuple[list[int], Any]:
    """The indices of the experts that replace one of the parameters, and their gates."""
    present = sorted({i for whole in parts for i in whole.experts})
    if router.constant:
        return present, router.gates(parts[0].name, (), present, n)
    return present, router.embedding_gates(present)


def _swap(
    whole: ReplacedParameter, present: Sequence[int], gates: Tensor, undo: contextlib.ExitStack
) -> None:
    """Replaces a parameter by its weighed sum under constant gates until `undo` closes."""
    weights = {i: float(g) for i, g in zip(present, gates.tolist(), strict=True) if g != 0}
    if not weights:
        return
    base = whole.base
    with torch.inference_mode(False), torch.no_grad():
        dtype = torch.promote_types(base.dtype, torch.float32)
        by_rows = {i: whole.rows(i) for i in weights if whole.by_rows(i)}
        kept = 1 - sum(weight for i, weight in weights.items() if i not in by_rows)
        made = base.detach().to(dtype) * kept if kept else torch.zeros_like(base, dtype=dtype)
        for i, weight in weights.items():
            if i in by_rows:
                _add_rows(made, base.detach(), by_rows[i], weight)
            else:
                made.add_(whole.own(i).to(made), alpha=weight)
        parameter = nn.Parameter(made.to(base.dtype), requires_grad=False)
    held = whole.module._parameters
    undo.callback(held.__setitem__, whole.attribute, base)
    held[whole.attribute] = parameter


def _add_rows(made: Tensor, base: Tensor, rows: TokenRows, weight: float) -> None:
    """Adds weight * (rows - the base's rows) in place; exactly the rows if `made` is the base."""
    index = torch.tensor(rows.tokens, device=made.device)
    values = rows.values.to(base).to(made)  # rounded to the base's dtype, as peft does
    made[index] = (made[index] - weight * base[index].to(made)) + weight * values


def _mixing(
    parts: Sequence[ReplacedParameter], present: Sequence[int], gates: Any
) -> Callable[..., Tensor]:
    """A hook that adds sum_i g_i (module_i(x) - module(x)) to a module's output."""
    module = parts[0].module
    kind = type(module).__name__
    if not (isinstance(module, AFFINE) or kind.endswith("Norm") or kind == "Conv1D"):
        first, _ = next(iter(parts[0].experts.values()))
        raise UnsupportedAdapter(
            f"Adapter {first.name} replaces {parts[0].name} whole; {parts[0].path} is a {kind}, "
            "whose output cannot be weighed row by row."
        )
    own = [_own_parameters(parts, i) for i in present]

    def mix(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> Tensor:
        plain = _forward(module, {}, args, kwargs)
        weights = gates.to(plain.device) if isinstance(gates, Tensor) else gates(plain.float())
        made = output.to(weights.dtype)
        for j, parameters in enumerate(own):
            change = _forward(module, parameters, args, kwargs).to(made) - plain.to(made)
            made = made + weights[..., j, None] * change
        return made.to(output.dtype)

    return mix


def _own_parameters(parts: Sequence[ReplacedParameter], i: int) -> dict[str, Tensor]:
    """The parameters of one expert for the module."""
    return {
        whole.attribute: nn.Parameter(whole.own(i).to(whole.base), requires_grad=False)
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
