"""Fits experts to a model: converts fused layouts, and checks kind and shape of all targets."""

from __future__ import annotations

import math
import weakref
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from loraprobe.adapters import Adapter, Extra, LayerKind, copied_weight, same_weight
from loraprobe.adapters.experts import without_experts
from loraprobe.adapters.fused import one_layout
from loraprobe.base import ModuleNames
from loraprobe.base.naming import named_like
from loraprobe.errors import CompatibilityError, UnsupportedAdapter

_SAME_COPY: weakref.WeakKeyDictionary[nn.Module, weakref.WeakSet[Adapter]] = (
    weakref.WeakKeyDictionary()
)


def aligned_to(model: nn.Module, adapters: Sequence[Adapter]) -> list[Adapter]:
    """The adapters with the model's names of modules, and layers split or joined as it has them.

    The conversion is exact and is noted among an adapter's issues. Layers that cannot be converted
    stay as they are.
    """
    config = getattr(model, "config", None)
    paths = [path for path, _ in model.named_modules()]
    adapters = named_like(paths, adapters, lambda: _names_of(config))
    shapes = {
        path: (int(module.out_features), int(module.in_features))
        for path, module in model.named_modules()
        if hasattr(module, "out_features") and hasattr(module, "in_features")
    }
    return one_layout(adapters, shapes, config.to_dict() if config is not None else None)[0]


def _names_of(config: Any) -> ModuleNames | None:
    """The names of a model's classes; None for a model or an architecture without them."""
    try:
        return ModuleNames(config)
    except Exception:  # transformers may raise anything
        return None


def check_model(model: nn.Module) -> None:
    """Raises CompatibilityError for a model that carries peft adapters or is compiled."""
    if hasattr(model, "peft_config") or getattr(model, "_hf_peft_config_loaded", False):
        raise CompatibilityError(
            "The model already carries peft adapters; pass the plain base model (unload() or "
            "delete_adapter() gives it back)."
        )
    if any(
        getattr(module, "_compiled_call_impl", None) is not None or hasattr(module, "_orig_mod")
        for module in model.modules()
    ):
        raise CompatibilityError(
            "The model is compiled, and compiled code would skip the adapters; pass the model "
            "as it was before torch.compile."
        )


def checked_targets(model: nn.Module, experts: Sequence[Adapter]) -> dict[str, nn.Module]:
    """The layers that the experts adapt, by path, after all checks of experts and modules.

    Parameters are left out (`checked_places`).
    """
    _check_extras(model, experts)
    layers = dict.fromkeys(path for expert in experts for path in without_experts(expert.layout))
    return {path: _target(model, experts, path) for path in layers}


def _target(model: nn.Module, experts: Sequence[Adapter], path: str) -> nn.Module:
    """The module at a path, after checking its kind and shape against every expert there."""
    present = [expert for expert in experts if path in expert.modules]
    try:
        module = model.get_submodule(path)
    except AttributeError:
        raise CompatibilityError(
            f"Adapter {present[0].name} adapts {path}, which the model does not have"
            f"{_nearest(model, path)}."
        ) from None
    if hasattr(module, "base_layer"):
        raise CompatibilityError(
            f"Module {path} already carries a peft adapter; pass the plain base model."
        )
    kind, shape = _geometry(module)
    if kind == "convolution":
        _check_convolution(module, path, present[0].name)
    for expert in present:
        name, info = expert.name, expert.modules.info(path)
        if kind != ("linear" if info.kind == "conv1d" else info.kind):
            article = "an" if info.kind[0] in "aeiou" else "a"
            raise CompatibilityError(
                f"Adapter {name} treats {path} as {article} {info.kind} layer, but in the model "
                f"it is a {type(module).__name__}."
            )
        kernel: Any = getattr(module, "kernel_size", ())
        if info.kernel and info.kernel != tuple(kernel):
            raise CompatibilityError(
                f"Adapter {name} fits {path} with a kernel of {list(info.kernel)}, but the model's "
                f"has {list(kernel)}; it was trained on another base model."
            )
        if shape != (info.in_features, info.out_features):
            raise CompatibilityError(
                f"Adapter {name} fits {path} with {info.in_features} inputs and "
                f"{info.out_features} outputs, but the model's has {shape[0]} and {shape[1]}; "
                "it was trained on another base model or vocabulary."
            )
    return module


def _geometry(module: nn.Module) -> tuple[LayerKind | None, tuple[int, int]]:
    """Kind and (in, out) of a layer; kind None if a composition does not support it.

    A Conv1D is "linear": both store the same map in two orientations.
    """
    if isinstance(module, nn.modules.linear.NonDynamicallyQuantizableLinear):
        return None, (0, 0)  # torch's attention reads its weight and never calls it
    names: tuple[tuple[LayerKind, str, str], ...] = (
        ("embedding", "num_embeddings", "embedding_dim"),
        ("linear", "in_features", "out_features"),
        ("linear", "infeatures", "outfeatures"),
    )
    for kind, inputs, outputs in names:
        if hasattr(module, inputs) and hasattr(module, outputs):
            return kind, (int(getattr(module, inputs)), int(getattr(module, outputs)))
    if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d)):
        columns = module.in_channels // module.groups * math.prod(module.kernel_size)
        return "convolution", (columns, module.out_channels)
    if type(module).__name__ == "Conv1D" and isinstance(module.weight, Tensor):
        return "linear", (module.weight.shape[0], module.weight.shape[1])
    return None, (0, 0)


def _check_convolution(module: Any, path: str, name: str) -> None:
    """Raises UnsupportedAdapter for options of a convolution that peft's factors ignore."""
    for what, value, plain in (
        ("groups", module.groups, 1),
        ("dilation", set(module.dilation), {1}),
        ("padding mode", module.padding_mode, "zeros"),
    ):
        if value != plain:
            raise UnsupportedAdapter(
                f"Adapter {name} changes {path}, a convolution with {what} other than {plain!r}, "
                "which peft's factors do not support; use an adapter that leaves it out."
            )


def _nearest(model: nn.Module, path: str) -> str:
    """A hint that names the module whose path shares the longest ending; "" if none does."""
    parts = path.split(".")
    for length in range(len(parts) - 1, 0, -1):
        for start in (parts[-length:], parts[:length]):
            ending = ".".join(start)
            for name, _ in model.named_modules():
                if name.endswith("." + ending) or name == ending:
                    return f" (the nearest it has is {name})"
    return ""


def _check_extras(model: nn.Module, experts: Sequence[Adapter]) -> None:
    """Raises UnsupportedAdapter if an expert has tensors that a composition would ignore."""
    for expert in experts:
        if not expert.modules and not expert.has_more_than_factors:
            raise UnsupportedAdapter(
                f"Adapter {expert.name} holds no LoRA factors, so it would "
                "silently be the base model."
            )
        lost = [e for e in expert.extras if not _kept(model, expert, e)]
        if lost:
            raise UnsupportedAdapter(
                f"Adapter {expert.name} has tensors that a composition does not support and would "
                f"ignore ({lost[0]}{f' and {len(lost) - 1} more' if lost[1:] else ''}); load it "
                "with peft, or merge it into its base model there."
            )


def _kept(model: nn.Module, expert: Adapter, extra: Extra) -> bool:
    """Whether a composition supports a tensor that is not a factor."""
    if extra.kind == "base_copy":
        return _same(model, expert)
    if extra.kind in ("dora_magnitude", "lora_bias"):
        info = None if extra.module is None else expert.layout.get(extra.module)
        return info is not None and math.prod(extra.shape) == info.out_features
    return extra.kind in ("modules_to_save", "bias", "token_delta")


def _same(model: nn.Module, expert: Adapter) -> bool:
    """Whether the base weights that peft saved with the adapter equal the model's."""
    seen = _SAME_COPY.setdefault(model, weakref.WeakSet())
    if expert not in seen and all(
        _is_copy(model, expert, extra) for extra in expert.extras if extra.kind == "base_copy"
    ):
        seen.add(expert)
    return expert in seen


def _is_copy(model: nn.Module, expert: Adapter, extra: Extra) -> bool:
    if expert.weights_file is None or extra.module is None:
        return False
    try:
        weight = model.get_submodule(extra.module).get_parameter("weight").detach()
    except AttributeError:
        return False
    return same_weight(copied_weight(expert, extra), weight)
