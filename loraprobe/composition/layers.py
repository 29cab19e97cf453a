"""What a composition puts into one module: its experts, concatenated."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from loraprobe.adapters import LayerKind
from loraprobe.composition.experts.low_rank import ExpertTerm, low_rank
from loraprobe.composition.experts.scaled import scaled
from loraprobe.composition.router import Composition, TokenGates
from loraprobe.composition.weights import fingerprint
from loraprobe.errors import UsageError

PREPARED_BYTES = 1 << 30  # of concatenated factors kept for compositions that may come back


@dataclass(frozen=True, eq=False)
class ComposedLayer:
    """All experts of one module, concatenated.

    A: [R, in], B: [out, R] with scaling (and constant gates) folded in; owner: [R], which of the
    k experts a rank belongs to; gates: None where they are folded in. offset: what experts add
    whatever the input is; ratio: what they multiply the layer's own W0 x with; each [out] where
    the gates are folded in, else [k, out], or None where no expert has any. kernel: that of a
    convolution, () elsewhere.
    """

    path: str
    kind: LayerKind
    A: Tensor
    B: Tensor
    owner: Tensor
    gates: TokenGates | None = None
    offset: Tensor | None = None
    ratio: Tensor | None = None
    kernel: tuple[int, ...] = ()

    def to(self, device: torch.device) -> ComposedLayer:
        """The same layer on another device; costs nothing if it is there."""
        if self.A.device == device:
            return self
        A, B, owner = (tensor.to(device) for tensor in (self.A, self.B, self.owner))
        offset, ratio = (t if t is None else t.to(device) for t in (self.offset, self.ratio))
        return replace(self, A=A, B=B, owner=owner, offset=offset, ratio=ratio)

    def delta(
        self, x: Tensor, own: Tensor | None = None, module: nn.Module | None = None
    ) -> Tensor:
        """What the experts add: [..., out] of x [..., in], or of token ids [...].

        own: the layer's W0 x [..., out], its bias left out, which scaled experts need; module: the
        convolution itself, whose stride and padding its experts share. A convolution's x and own
        have their channels first, and so has what comes back.
        """
        h, gates = self._gated(x, module)
        made = F.linear(h, self.B)
        if self.offset is not None:
            made = made + (self.offset if gates is None else gates @ self.offset)
        if self.ratio is not None:
            ratio = self.ratio if gates is None else gates @ self.ratio
            made = torch.addcmul(made, self._channels_last(own).to(made.dtype), ratio)
        return made.movedim(-1, -1 - len(self.kernel)) if self.kernel else made

    def added(
        self,
        output: Tensor,
        x: Tensor,
        module: nn.Module | None = None,
        bias: Tensor | None = None,
    ) -> Tensor:
        """output + delta(x) in the output's dtype; written over `output` where that is safe.

        bias: what the layer's output holds beside W0 x. The output belongs to nobody yet, and
        memory that is new costs more time than the product itself: a second and a third tensor of
        that size are not made.
        """
        if not self._may_overwrite(output, x):
            own = None if self.ratio is None else self._without(bias, output.to(self.B.dtype))
            return (output + self.delta(x, own, module)).to(output.dtype)
        h, gates = self._gated(x, module)
        if self.ratio is not None:  # while the output is still the layer's own
            ratio = self.ratio if gates is None else gates @ self.ratio
            output.addcmul_(self._without(bias, output), ratio)
        offset = self.offset if gates is None or self.offset is None else gates @ self.offset
        if output.dtype == self.B.dtype:
            output.view(-1, len(self.B)).addmm_(h.reshape(-1, h.shape[-1]), self.B.mT)
            return output if offset is None else output.add_(offset)
        made = F.linear(h, self.B)
        return output.add_(made if offset is None else made.add_(offset))  # rounded once

    def _may_overwrite(self, output: Tensor, x: Tensor) -> bool:
        plain = self.kind in ("linear", "conv1d")
        return (
            plain
            and (self.ratio is None or output.dtype == self.B.dtype)
            and output.is_contiguous()
            and not output.requires_grad
            and not (torch.is_grad_enabled() and x.requires_grad)
        )

    def _gated(self, x: Tensor, module: nn.Module | None) -> tuple[Tensor, Tensor | None]:
        """A x [..., R] with the gates multiplied in, and the gates [..., k] if any are left."""
        if self.kind == "embedding":
            x = h = F.embedding(x, self.A.mT)
        elif self.kind == "convolution":
            x = h = self._convolved(x.to(self.A.dtype), module)
        else:
            x = x.to(self.A.dtype)
            h = F.linear(x, self.A)
        if self.gates is None:
            return h, None
        gates = self.gates(x)
        return h * gates.index_select(-1, self.owner), gates

    def _without(self, bias: Tensor | None, output: Tensor) -> Tensor:
        """W0 x, from an output that holds a bias too."""
        return (
            output if bias is None else output - bias.to(output).view(-1, *(1,) * len(self.kernel))
        )

    def _channels_last(self, own: Tensor | None) -> Tensor:
        if own is None:
            raise UsageError(f"The experts of {self.path} scale its output, which was not given.")
        return own.movedim(-1 - len(self.kernel), -1) if self.kernel else own

    def _convolved(self, x: Tensor, module: Any) -> Tensor:
        """[..., places, R]: A as a convolution of the layer's own stride and padding."""
        if module is None:
            raise UsageError(f"The experts of {self.path} need the convolution that they change.")
        convolve = (F.conv1d, F.conv2d, F.conv3d)[len(self.kernel) - 1]
        A = self.A.reshape(self.A.shape[0], -1, *self.kernel)
        h = convolve(x, A, stride=module.stride, padding=module.padding)
        return h.movedim(-1 - len(self.kernel), -1)

    @property
    def nbytes(self) -> int:
        held = (self.A, self.B, self.offset, self.ratio)
        return sum(tensor.nbytes for tensor in held if tensor is not None)


def prepared(
    composition: Composition, dtype: torch.dtype, model: nn.Module | None = None
) -> tuple[ComposedLayer, ...]:
    """The layers of a composition, kept for its next use within PREPARED_BYTES in all.

    model: the base, whose weights scaled experts need; other layers are the same in every model.
    """
    known = _PREPARED.setdefault(composition, {})
    key = dtype, _weights_that_count(composition, model)
    if key not in known:
        for old in [old for old in known if old[0] is dtype]:
            del known[old]  # of another model, or of weights that have changed
        with torch.inference_mode(False), torch.no_grad():
            made = (_prepare(composition, path, dtype, model) for path in composition.paths)
            known[key] = tuple(layer for layer in made if layer is not None)
        _forget_oldest(keep=composition)
    return known[key]


_Prepared = dict[tuple[torch.dtype, Any], tuple[ComposedLayer, ...]]
_PREPARED: weakref.WeakKeyDictionary[Composition, _Prepared] = weakref.WeakKeyDictionary()


def _weights_that_count(composition: Composition, model: nn.Module | None) -> Any:
    """The state of the base's weights that layers depend on; None where they depend on none."""
    paths = [path for path in composition.paths if composition.scaled(path)]
    if not paths or model is None:
        return None
    marks = tuple(fingerprint(model.get_submodule(path)) for path in paths)
    return weakref.ref(model), marks


def _forget_oldest(keep: Composition) -> None:
    sizes = {
        composition: sum(layer.nbytes for layers in known.values() for layer in layers)
        for composition, known in list(_PREPARED.items())
    }
    total = sum(sizes.values())
    for composition, size in sizes.items():
        if total <= PREPARED_BYTES:
            return
        if composition != keep:
            del _PREPARED[composition]
            total -= size


def _prepare(
    composition: Composition, path: str, dtype: torch.dtype, model: nn.Module | None
) -> ComposedLayer | None:
    """One module's experts concatenated; None where every gate is 0."""
    present = composition.present(path)
    experts = [composition.experts[i] for i in present]
    shares = [low_rank(expert, path, dtype) for expert in experts]
    gates = _gates(composition, path, shares)
    constant = gates.tolist() if isinstance(gates, Tensor) else [1.0] * len(shares)
    active = [j for j, gate in enumerate(constant) if gate != 0]
    if not active:
        return None
    for j in active:
        if path in experts[j].magnitudes:
            if model is None:
                raise UsageError(f"{experts[j].name} is a DoRA adapter, whose layers need a model.")
            shares[j] = scaled(shares[j], experts[j], path, model)
    weighed = [shares[j].weighed(constant[j]).folded() for j in active]
    updates = [share.update for share in weighed]
    ranks = torch.tensor([update.rank for update in updates])
    folded = isinstance(gates, Tensor)
    return ComposedLayer(
        path=path,
        kind=composition.kind(path),
        A=torch.cat([update.A for update in updates], dim=0),
        B=torch.cat([update.B for update in updates], dim=1),
        owner=torch.repeat_interleave(torch.arange(len(updates)), ranks),
        gates=None if folded else gates,  # type: ignore[arg-type]
        offset=_stacked([share.offset for share in weighed], folded),
        ratio=_stacked([share.ratio for share in weighed], folded),
        kernel=experts[0].layout[path].kernel,
    )


def _gates(composition: Composition, path: str, shares: list[ExpertTerm]) -> Tensor | TokenGates:
    """Routers see the low-rank updates as they are stored, without magnitudes, so that they
    route the same whatever base model the experts run on.
    """
    router, present, n = composition.router, composition.present(path), len(composition.experts)
    if composition.kind(path) in ("embedding", "convolution") and not router.constant:
        return router.embedding_gates(present, n)
    return router.gates(path, [share.update for share in shares], present, n)


def _stacked(parts: Iterable[Tensor | None], folded: bool) -> Tensor | None:
    """[k, out], zero rows for experts without; the sum [out] where gates are folded in."""
    parts = list(parts)
    own = next((part for part in parts if part is not None), None)
    if own is None:
        return None
    rows = torch.stack([torch.zeros_like(own) if part is None else part for part in parts])
    return rows.sum(0) if folded else rows
