"""Puts a composition into a model and takes it out again."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from loraprobe.composition.contract import Composition
from loraprobe.composition.layers import ComposedLayer, prepared
from loraprobe.composition.targets import check_extras, check_model, target
from loraprobe.errors import UsageError

_ACTIVE: weakref.WeakSet[nn.Module] = weakref.WeakSet()


@contextlib.contextmanager
def composed(model: nn.Module, composition: Composition) -> Iterator[nn.Module]:
    """Puts a composition into a transformers model for as long as the context lasts.

    Forward hooks on the target modules add the experts' output; weights, dtypes, modes and
    attributes of the model stay as they are, and the hooks go when the context ends, also after
    an exception. One composition at a time: nesting is refused.

    Raises CompatibilityError, naming the module, where a target is missing, is no linear, Conv1D
    or embedding layer, has another shape, or is already wrapped by peft; UnsupportedAdapter where
    an expert holds more than plain factors.
    """
    if model in _ACTIVE:
        raise UsageError(
            "The model already carries a composition; leave it before entering another, or put "
            "all adapters into one composition."
        )
    check_model(model)
    check_extras(model, composition)
    targets = {path: target(model, composition, path) for path in composition.paths}
    layers = prepared(composition, _dtype(targets.values()))
    with contextlib.ExitStack() as undo:
        _ACTIVE.add(model)
        undo.callback(_ACTIVE.discard, model)
        for layer in layers:
            module = targets[layer.path]
            hook = _hook(layer.to(_device(module)), module)
            undo.callback(module.register_forward_hook(hook, with_kwargs=True).remove)
        yield model


def _hook(layer: ComposedLayer, module: nn.Module) -> Callable[..., Tensor]:
    # Gemma's embeddings scale their own output; peft scales the adapter's alike.
    scale = getattr(module, "embed_scale", None) if layer.kind == "embedding" else None

    def add(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> Tensor:
        delta = layer.delta(args[0] if args else next(iter(kwargs.values())))
        if scale is not None:
            delta = delta * scale
        return (output + delta).to(output.dtype)

    return add


def _dtype(modules: Iterable[nn.Module]) -> torch.dtype:
    """float64 for a float64 model, else float32, in which peft holds 16-bit factors too."""
    weights = (getattr(module, "weight", None) for module in modules)
    doubles = any(getattr(weight, "dtype", None) is torch.float64 for weight in weights)
    return torch.float64 if doubles else torch.float32


def _device(module: nn.Module) -> torch.device:
    """Where a module computes; offloaded weights ("meta") are moved to accelerate's device."""
    for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
        if tensor.device.type != "meta":
            return tensor.device
    hook = getattr(module, "_hf_hook", None)
    return torch.device(getattr(hook, "execution_device", None) or "cpu")
