"""Puts a composition into a model and takes it out again."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from loraprobe.composition.aligning import on_layout_of
from loraprobe.composition.experts.full import replaced
from loraprobe.composition.forward_pass import following_passes
from loraprobe.composition.layers import ComposedLayer, prepared
from loraprobe.composition.observers import LookAtGates, WatchedGates
from loraprobe.composition.router import Composition
from loraprobe.composition.targets import check_extras, check_model, target
from loraprobe.composition.weights import bias_of
from loraprobe.errors import UsageError

_ACTIVE: weakref.WeakSet[nn.Module] = weakref.WeakSet()


@contextlib.contextmanager
def composed(
    model: nn.Module, composition: Composition, look: LookAtGates | None = None
) -> Iterator[nn.Module]:
    """Puts a composition into a transformers model for as long as the context lasts.

    Forward hooks on the target modules add the experts' output. Weights, dtypes, modes and
    attributes of the model do not change, and the hooks are removed when the context ends, also
    after an exception. Parameters that an expert replaces as a whole are exchanged for that time;
    afterwards the model has its original tensors again. Experts in another layout of fused
    projections are converted exactly. look(path, present, gates) is called with the gates of a
    token router in each module.

    Raises UsageError if the model already carries a composition; CompatibilityError, which names
    the module, if a target is missing, is of an unsupported kind, has another shape, or is already
    wrapped by peft; UnsupportedAdapter if an expert has tensors that no kind of expert supports, or
    if a base weight that it needs cannot be read.
    """
    if model in _ACTIVE:
        raise UsageError(
            "The model already carries a composition; leave it before entering another, or put "
            "all adapters into one composition."
        )
    check_model(model)
    composition = on_layout_of(model, composition)
    check_extras(model, composition)
    targets = {path: target(model, composition, path) for path in composition.paths}
    layers = prepared(composition, _dtype(targets.values()), model)
    scaled = frozenset(layer.path for layer in layers if layer.ratio is not None)
    with contextlib.ExitStack() as undo:
        _ACTIVE.add(model)
        undo.callback(_ACTIVE.discard, model)
        for layer in layers:
            module = targets[layer.path]
            if look is not None and layer.gates is not None:
                seen = WatchedGates(layer.gates, layer.path, composition.present(layer.path), look)
                layer = replace(layer, gates=seen)
            hook = _hook(layer.to(_device(module)), module)
            undo.callback(module.register_forward_hook(hook, with_kwargs=True).remove)
        if any(getattr(layer.gates, "shared", False) for layer in layers):
            undo.enter_context(following_passes(model))
        # Last, because scaled experts need a layer's own output without other changes.
        undo.enter_context(replaced(model, composition, keep_weights=scaled))
        yield model


def _hook(layer: ComposedLayer, module: nn.Module) -> Callable[..., Tensor]:
    # Gemma's embeddings scale their output; peft scales the adapter's output in the same way.
    scale = getattr(module, "embed_scale", None) if layer.kind == "embedding" else None
    scales = layer.ratio is not None
    away = bias_of(module) if scales and _is_away(getattr(module, "bias", None)) else None

    def add(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> Tensor:
        x = args[0] if args else next(iter(kwargs.values()))
        if scale is not None:
            own = output.to(layer.B.dtype) / scale if scales else None
            return (output + layer.delta(x, own) * scale).to(output.dtype)
        bias = None if not scales else bias_of(module) if away is None else away
        return layer.added(output, x, module, bias)

    return add


def _is_away(bias: object) -> bool:
    """Whether accelerate has moved a bias out of the module, also while hooks run."""
    return isinstance(bias, Tensor) and bias.device.type == "meta"


def _dtype(modules: Iterable[nn.Module]) -> torch.dtype:
    """float64 for a float64 model, else float32, to which peft also converts 16-bit factors."""
    weights = (getattr(module, "weight", None) for module in modules)
    doubles = any(getattr(weight, "dtype", None) is torch.float64 for weight in weights)
    return torch.float64 if doubles else torch.float32


def _device(module: nn.Module) -> torch.device:
    """The device on which a module computes; accelerate's if its weights are offloaded."""
    for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
        if tensor.device.type != "meta":
            return tensor.device
    hook = getattr(module, "_hf_hook", None)
    return torch.device(getattr(hook, "execution_device", None) or "cpu")
