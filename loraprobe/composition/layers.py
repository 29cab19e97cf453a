"""What a composition adds to a model: the experts of one module, concatenated.

Mostly it is added to the module's output (`layer_hook`). *Parameter* experts (peft's
`target_parameters`) add sum_i g_i dW_i to one stacked parameter of a module that mixes tokens
itself, so that no hook on its output can add an adapter's part (`added_to_parameters`). As in peft,
the parameter is replaced before the module's forward and restored after it; only the module that
runs holds a second copy. A stacked parameter belongs to all tokens, so that gates which depend on
the token are refused.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from loraprobe.adapters import Adapter, LayerKind
from loraprobe.adapters.experts import TargetParameter
from loraprobe.composition.composition import Composition
from loraprobe.composition.dora import bias_of, dora_update
from loraprobe.composition.router import TokenGates
from loraprobe.errors import UsageError
from loraprobe.lora.lowrank import LowRank

GateObserver = Callable[[str, Sequence[int], Tensor], None]


@dataclass(frozen=True, eq=False)
class ComposedLayer:
    """All experts of one module, concatenated.

    present: the indices of its k experts. A: [R, in]; B: [out, R], multiplied by the scaling and by
    constant gates. owner: [R], the expert (of k) to which each rank belongs. gates: None if they
    are constant. offset: the sum that does not depend on the input; ratio: the factor of the
    layer's own W0 x. Both are [out] for constant gates, else [k, out], or None if no expert has
    one. observe(path, present, gates) is called with the gates in each run unless they are
    constant.
    """

    path: str
    kind: LayerKind
    present: tuple[int, ...]
    A: Tensor
    B: Tensor
    owner: Tensor
    gates: TokenGates | None = None
    offset: Tensor | None = None
    ratio: Tensor | None = None
    observe: GateObserver | None = None

    def to(self, device: torch.device) -> ComposedLayer:
        """The same layer on another device; itself if it is already there."""
        if self.A.device == device:
            return self
        A, B, owner = (tensor.to(device) for tensor in (self.A, self.B, self.owner))
        offset, ratio = (t if t is None else t.to(device) for t in (self.offset, self.ratio))
        return replace(self, A=A, B=B, owner=owner, offset=offset, ratio=ratio)

    def delta(self, x: Tensor, own: Tensor | None = None) -> Tensor:
        """The experts' output [..., out] for x [..., in], or for token ids [...].

        own: the layer's W0 x [..., out] without its bias, which scaled experts need.
        """
        h, offset, ratio = self._gated(x)
        output = F.linear(h, self.B)
        if offset is not None:
            output = output + offset
        if ratio is not None:
            assert own is not None, f"the experts of {self.path} scale its own output"
            output = torch.addcmul(output, own.to(output.dtype), ratio)
        return output

    def added(self, output: Tensor, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """output + delta(x) in the output's dtype; computed in place if that is safe.

        bias: the bias that the layer's output contains. Computing in place avoids new tensors of
        the output's size, whose allocation takes longer than the product itself.
        """
        may_overwrite = (
            self.kind != "embedding"
            and (self.ratio is None or output.dtype == self.B.dtype)
            and output.is_contiguous()
            and not output.requires_grad
            and not (torch.is_grad_enabled() and (x.requires_grad or self.gates is not None))
        )
        if not may_overwrite:
            plain = None if self.ratio is None else _without(bias, output.to(self.B.dtype))
            return (output + self.delta(x, plain)).to(output.dtype)
        h, offset, ratio = self._gated(x)
        if ratio is not None:  # before anything is added to the layer's own output
            output.addcmul_(_without(bias, output), ratio)
        if output.dtype == self.B.dtype:
            output.view(-1, len(self.B)).addmm_(h.reshape(-1, h.shape[-1]), self.B.mT)
            return output if offset is None else output.add_(offset)
        change = F.linear(h, self.B)
        return output.add_(change if offset is None else change.add_(offset))  # rounded once

    def _gated(self, x: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """A x [..., R], offset and ratio [..., out] or None, each times the gates."""
        if self.kind == "embedding":
            x = h = F.embedding(x, self.A.mT)
        else:
            x = x.to(self.A.dtype)
            h = F.linear(x, self.A)
        if self.gates is None:
            return h, self.offset, self.ratio
        gates = self.gates(x)
        if self.observe is not None:
            self.observe(self.path, self.present, gates)
        offset, ratio = (None if t is None else gates @ t for t in (self.offset, self.ratio))
        return h * gates.index_select(-1, self.owner), offset, ratio

    @property
    def nbytes(self) -> int:
        tensors = (self.A, self.B, self.offset, self.ratio)
        return sum(tensor.nbytes for tensor in tensors if tensor is not None)


def _without(bias: Tensor | None, output: Tensor) -> Tensor:
    """W0 x, from an output that includes a bias."""
    return output if bias is None else output - bias.to(output)


def composed_layer(
    composition: Composition, path: str, dtype: torch.dtype, model: nn.Module | None
) -> ComposedLayer | None:
    """The experts that adapt one module, concatenated; None if every gate is 0.

    model: the base, whose weight scaled experts need.
    """
    experts = composition.experts
    present = [i for i, expert in enumerate(experts) if path in expert.modules]
    kind = experts[present[0]].modules.info(path).kind
    # By the stored updates without magnitudes, so that all bases are routed alike.
    stored = [experts[i].modules[path].to(dtype=dtype) for i in present]
    gates = composition.gates(path, present, () if kind == "embedding" else stored)
    constant = gates.tolist() if isinstance(gates, Tensor) else [1.0] * len(present)
    active = [(i, u, g) for i, u, g in zip(present, stored, constant, strict=True) if g != 0]
    if not active:
        return None
    terms = [_term(experts[i], path, update, gate, model) for i, update, gate in active]
    updates, offsets, ratios = zip(*terms, strict=True)
    ranks = torch.tensor([update.rank for update in updates])
    folded = isinstance(gates, Tensor)
    return ComposedLayer(
        path=path,
        kind=kind,
        present=tuple(i for i, _, _ in active),
        A=torch.cat([update.A for update in updates], dim=0),
        B=torch.cat([update.B for update in updates], dim=1),
        owner=torch.repeat_interleave(torch.arange(len(ranks)), ranks),
        gates=None if folded else gates,  # type: ignore[arg-type]
        offset=_stacked(offsets, folded),
        ratio=_stacked(ratios, folded),
    )


def _term(
    expert: Adapter, path: str, update: LowRank, gate: float, model: nn.Module | None
) -> tuple[LowRank, Tensor | None, Tensor | None]:
    """An expert's output update(x) + offset + ratio * (W0 x), all multiplied by a constant gate.

    update: as it is stored; the returned one has scaling 1. offset: [out], the bias of lora_B;
    ratio: [out], of a scaled expert. Each is None for an expert that has none.
    """
    offset, ratio = expert.offsets.get(path), None
    if offset is not None:
        offset = offset.to(dtype=update.A.dtype) * update.scaling * gate
    if path in expert.magnitudes:
        if model is None:
            raise UsageError(f"{expert.name} is a DoRA adapter, whose layers need a model.")
        update, ratio = dora_update(update, expert, path, model)
        ratio = ratio * gate
    return update.scaled(gate).folded(), offset, ratio


def _stacked(parts: Sequence[Tensor | None], folded: bool) -> Tensor | None:
    """[k, out] with zero rows for missing parts; their sum [out] for constant gates."""
    known = next((part for part in parts if part is not None), None)
    if known is None:
        return None
    rows = torch.stack([torch.zeros_like(known) if part is None else part for part in parts])
    return rows.sum(0) if folded else rows


def layer_hook(layer: ComposedLayer, module: nn.Module) -> Callable[..., Tensor]:
    """A forward hook that adds a layer's output to that of its module."""
    # Gemma's embeddings scale their output; peft scales the adapter's output in the same way.
    scale = getattr(module, "embed_scale", None) if layer.kind == "embedding" else None
    scales = layer.ratio is not None
    bias_now = getattr(module, "bias", None)
    # accelerate has moved the bias out of the module, also while hooks run
    is_away = isinstance(bias_now, Tensor) and bias_now.device.type == "meta"
    away = bias_of(module) if scales and is_away else None

    def add(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> Tensor:
        x = input_of(args, kwargs)
        if scale is not None:
            own = output.to(layer.B.dtype) / scale if scales else None
            return (output + layer.delta(x, own) * scale).to(output.dtype)
        bias = None if not scales else bias_of(module) if away is None else away
        return layer.added(output, x, bias)

    return add


def input_of(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Tensor:
    """The input of a layer from the arguments of its call."""
    return args[0] if args else next(iter(kwargs.values()))


@contextlib.contextmanager
def added_to_parameters(
    targets: Mapping[str, TargetParameter], updates: Mapping[str, LowRank]
) -> Iterator[None]:
    """Adds updates to the parameters in every forward while the context lasts.

    updates: path of an expert -> B A of all adapters, with scalings and gates multiplied into B.
    """
    by_stack: dict[str, list[LowRank]] = {}
    for path, update in updates.items():
        by_stack.setdefault(path.rpartition("[")[0], []).append(update)
    with contextlib.ExitStack() as undo:
        for stack, experts in by_stack.items():
            add, restore = _parameter_hooks(targets[stack], experts)
            module = targets[stack].module
            undo.callback(module.register_forward_pre_hook(add).remove)
            undo.callback(module.register_forward_hook(restore, always_call=True).remove)
        yield


def _parameter_hooks(
    target: TargetParameter, updates: Sequence[LowRank]
) -> tuple[Callable[..., None], Callable[..., None]]:
    """The hooks that replace one parameter by W + B A, and restore it."""
    rank, pad = max(update.rank for update in updates), F.pad
    A = torch.stack([pad(update.A, (0, 0, 0, rank - update.rank)) for update in updates])
    B = torch.stack([pad(update.B, (0, rank - update.rank)) for update in updates])
    A, B = A.to(target.parameter), B.to(target.parameter)  # [E, R, in], [E, out, R]
    base: list[nn.Parameter] = []

    def add(module: nn.Module, _: Any) -> None:
        base[:] = [target.parameter]
        with torch.autocast(A.device.type, enabled=False):
            weight = base[0].detach()
            if weight.dim() == 2:
                summed = torch.addmm(weight, B[0], A[0])
            elif target.transposed:
                summed = torch.baddbmm(weight, A.mT, B.mT)
            else:
                summed = torch.baddbmm(weight, B, A)
        module._parameters[target.attribute] = nn.Parameter(summed, requires_grad=False)

    def restore(module: nn.Module, *_: Any) -> None:
        if base:
            module._parameters[target.attribute] = base.pop()

    return add, restore
