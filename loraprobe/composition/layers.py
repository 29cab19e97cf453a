"""What a composition puts into one module: its experts, concatenated."""

from __future__ import annotations

import weakref
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from loraprobe.adapter import LayerKind
from loraprobe.composition.contract import Composition, TokenGates

PREPARED_BYTES = 1 << 30  # of concatenated factors kept for compositions that may come back


@dataclass(frozen=True, eq=False)
class ComposedLayer:
    """All experts of one module, concatenated.

    A: [R, in], B: [out, R] with scaling (and constant gates) folded in; owner: [R], which of the
    k experts a rank belongs to; gates: None where they are folded in.
    """

    path: str
    kind: LayerKind
    A: Tensor
    B: Tensor
    owner: Tensor
    gates: TokenGates | None = None

    def to(self, device: torch.device) -> ComposedLayer:
        """The same layer on another device; costs nothing if it is there."""
        if self.A.device == device:
            return self
        A, B, owner = (tensor.to(device) for tensor in (self.A, self.B, self.owner))
        return ComposedLayer(self.path, self.kind, A, B, owner, self.gates)

    def delta(self, x: Tensor) -> Tensor:
        """What the experts add: [..., out] of x [..., in], or of token ids [...]."""
        if self.kind == "embedding":
            x = h = F.embedding(x, self.A.mT)
        else:
            x = x.to(self.A.dtype)
            h = F.linear(x, self.A)
        if self.gates is not None:
            h = h * self.gates(x).index_select(-1, self.owner)
        return F.linear(h, self.B)

    @property
    def nbytes(self) -> int:
        return self.A.nbytes + self.B.nbytes


def prepared(composition: Composition, dtype: torch.dtype) -> tuple[ComposedLayer, ...]:
    """The layers of a composition, kept for its next use within PREPARED_BYTES in all."""
    known = _PREPARED.setdefault(composition, {})
    if dtype not in known:
        with torch.inference_mode(False), torch.no_grad():
            made = (_prepare(composition, path, dtype) for path in composition.paths)
            known[dtype] = tuple(layer for layer in made if layer is not None)
        _forget_oldest(keep=composition)
    return known[dtype]


_Prepared = dict[torch.dtype, tuple[ComposedLayer, ...]]
_PREPARED: weakref.WeakKeyDictionary[Composition, _Prepared] = weakref.WeakKeyDictionary()


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


def _prepare(composition: Composition, path: str, dtype: torch.dtype) -> ComposedLayer | None:
    """One module's experts concatenated; None where every gate is 0."""
    present = composition.present(path)
    updates = [composition.experts[i].modules[path].to(dtype=dtype) for i in present]
    router, kind = composition.router, composition.kind(path)
    if kind == "embedding" and not router.constant:
        gates = router.embedding_gates(present, len(composition.experts))
    else:
        gates = router.gates(path, updates, present, len(composition.experts))
    if isinstance(gates, Tensor):
        pairs = [(u, g) for u, g in zip(updates, gates.tolist(), strict=True) if g != 0]
        if not pairs:
            return None
        updates = [update.scaled(gate) for update, gate in pairs]
    updates = [update.folded() for update in updates]
    ranks = torch.tensor([update.rank for update in updates])
    return ComposedLayer(
        path=path,
        kind=kind,
        A=torch.cat([update.A for update in updates], dim=0),
        B=torch.cat([update.B for update in updates], dim=1),
        owner=torch.repeat_interleave(torch.arange(len(updates)), ranks),
        gates=None if isinstance(gates, Tensor) else gates,
    )
