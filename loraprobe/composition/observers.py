"""Observes the inputs and outputs of adapted modules, and the gates of routers."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from torch import Tensor, nn

from loraprobe.adapters import Adapter
from loraprobe.composition.layers import ComposedLayer
from loraprobe.composition.targets import check_model, checked_targets

InputObserver = Callable[[str, Tensor, Tensor], None]
GateObserver = Callable[[str, Sequence[int], Tensor], None]


@contextlib.contextmanager
def watched(
    model: nn.Module, experts: Sequence[Adapter], observe: InputObserver
) -> Iterator[nn.Module]:
    """Calls observe(path, input, output) after each run of a module that some expert adapts.

    input: [..., in], or token ids [...] of an embedding; output: [..., out]. The model itself stays
    unchanged. Raises the errors of `composed` if an expert does not fit.
    """
    check_model(model)
    targets = checked_targets(model, experts)
    with contextlib.ExitStack() as undo:
        for path, module in targets.items():
            hook = module.register_forward_hook(_hook(path, observe), with_kwargs=True)
            undo.callback(hook.remove)
        yield model


def _hook(path: str, observe: InputObserver) -> Callable[..., None]:
    def see(_: nn.Module, args: Sequence[Any], kwargs: dict[str, Any], output: Tensor) -> None:
        observe(path, args[0] if args else next(iter(kwargs.values())), output)

    return see


class ObservedGates:
    """Gates of a layer that also call observe(path, present, gates).

    present: the indices, among all experts, of the k experts of gates [..., k].
    """

    def __init__(self, layer: ComposedLayer, observe: GateObserver) -> None:
        assert layer.gates is not None
        self.layer, self.gates, self.observe = layer, layer.gates, observe
        self.shared = bool(getattr(layer.gates, "shared", False))

    def __call__(self, x: Tensor) -> Tensor:
        """x: [..., in] -> gates [..., k], the same as without an observer."""
        gates = self.gates(x)
        self.observe(self.layer.path, self.layer.present, gates)
        return gates
