"""Observes the inputs and outputs of adapted modules, and the gates of routers."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from torch import Tensor, nn

from loraprobe.adapters import Adapter
from loraprobe.composition.layers import ComposedLayer
from loraprobe.composition.targets import check_extras, check_model, target

Look = Callable[[str, Tensor, Tensor], None]
LookAtGates = Callable[[str, Sequence[int], Tensor], None]


@contextlib.contextmanager
def watched(model: nn.Module, experts: Sequence[Adapter], look: Look) -> Iterator[nn.Module]:
    """Calls look(path, input, output) after each run of a module that some expert adapts.

    input: [..., in], or token ids [...] of an embedding; output: [..., out]. The model itself stays
    unchanged. Raises the errors of `composed` if an expert does not fit.
    """
    check_model(model)
    check_extras(model, experts)
    paths = dict.fromkeys(path for expert in experts for path in expert.modules)
    targets = {path: target(model, experts, path) for path in paths}
    with contextlib.ExitStack() as undo:
        for path, module in targets.items():
            hook = module.register_forward_hook(_hook(path, look), with_kwargs=True)
            undo.callback(hook.remove)
        yield model


def _hook(path: str, look: Look) -> Callable[..., None]:
    def see(_: nn.Module, args: Sequence[Any], kwargs: dict[str, Any], output: Tensor) -> None:
        look(path, args[0] if args else next(iter(kwargs.values())), output)

    return see


class WatchedGates:
    """Gates of a layer that also call look(path, present, gates).

    present: the indices, among all experts, of the k experts of gates [..., k].
    """

    def __init__(self, layer: ComposedLayer, look: LookAtGates) -> None:
        assert layer.gates is not None
        self.layer, self.gates, self.look = layer, layer.gates, look
        self.shared = bool(getattr(layer.gates, "shared", False))

    def __call__(self, x: Tensor) -> Tensor:
        """x: [..., in] -> gates [..., k], the same as without an observer."""
        gates = self.gates(x)
        self.look(self.layer.path, self.layer.present, gates)
        return gates
