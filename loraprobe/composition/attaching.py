"""Puts a composition into a model and takes it out again.

Experts are fitted to the model first: fused layouts are converted, and kind and shape of all
targets are checked.
"""

from __future__ import annotations

import contextlib
import functools
import math
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from loraprobe.adapters import Adapter, Extra, LayerKind, copied_weight, same_weight
from loraprobe.adapters.experts import TargetParameter, target_parameters
from loraprobe.adapters.layouts import BaseForm, in_one_layout
from loraprobe.base import ModuleNames
from loraprobe.base.naming import named_like
from loraprobe.composition.composition import Composition
from loraprobe.composition.dora import device_of, fingerprint
from loraprobe.composition.forward_pass import following_passes
from loraprobe.composition.layers import (
    ComposedLayer,
    GateObserver,
    added_to_parameters,
    composed_layer,
    input_of,
    layer_hook,
)
from loraprobe.composition.whole_parameters import replaced
from loraprobe.errors import CompatibilityError, UnsupportedAdapter, UsageError
from loraprobe.findings import CODES
from loraprobe.formatting import nearest
from loraprobe.lora.lowrank import LowRank

PREPARED_BYTES = 1 << 30  # of concatenated factors that are kept for the next use of a composition

# What is known of each live model: whether it carries a composition, compositions on its layout,
# and adapters whose copies of base weights are its own.
_ACTIVE: weakref.WeakSet[nn.Module] = weakref.WeakSet()
_ALIGNED: Any = weakref.WeakKeyDictionary()  # model -> composition -> composition
_SAME_COPY: Any = weakref.WeakKeyDictionary()  # model -> set of adapters
_PREPARED: Any = weakref.WeakKeyDictionary()  # composition -> dtype -> (base weights, layers)

InputObserver = Callable[[str, Tensor, Tensor], None]


@contextlib.contextmanager
def composed(
    model: nn.Module, composition: Composition, observe: GateObserver | None = None
) -> Iterator[nn.Module]:
    """Puts a composition into a transformers model for as long as the context lasts.

    Forward hooks on the target modules add the experts' output. Weights, dtypes, modes and
    attributes of the model do not change, and the hooks are removed when the context ends, also
    after an exception. Parameters that an expert replaces as a whole are exchanged for that time;
    afterwards the model has its original tensors again. Experts in another layout of fused
    projections are converted exactly. observe(path, present, gates) is called with the gates of a
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
    targets = checked_targets(model, composition.experts)
    parameters = checked_parameters(model, composition)
    changed = [*targets.values(), *(target.module for target in parameters.values())]
    weights = [weight for module in changed for weight in module.parameters(recurse=False)]
    # peft, too, converts 16-bit factors to float32.
    double = any(weight.dtype is torch.float64 for weight in weights)
    layers = prepared_layers(composition, torch.float64 if double else torch.float32, model)
    with contextlib.ExitStack() as undo:
        _ACTIVE.add(model)
        undo.callback(_ACTIVE.discard, model)
        stacked = {p.path: LowRank(p.A, p.B) for p in layers if p.kind == "expert"}
        undo.enter_context(added_to_parameters(parameters, stacked))
        others = [layer for layer in layers if layer.kind != "expert"]
        for layer in others:
            module = targets[layer.path]
            hook = layer_hook(replace(layer.to(device_of(module)), observe=observe), module)
            undo.callback(module.register_forward_hook(hook, with_kwargs=True).remove)
        if any(getattr(layer.gates, "shared", False) for layer in others):
            undo.enter_context(following_passes(model))
        # Last, because scaled experts need a layer's own output without other changes.
        scaled = frozenset(layer.path for layer in others if layer.ratio is not None)
        undo.enter_context(replaced(model, composition, scaled))
        yield model


@contextlib.contextmanager
def watched(
    model: nn.Module, experts: Sequence[Adapter], observe: InputObserver
) -> Iterator[nn.Module]:
    """Calls observe(path, input, output) after each run of a module that some expert adapts.

    input: [..., in], or token ids [...] of an embedding; output: [..., out]. The model itself stays
    unchanged. Raises the errors of `composed` if an expert does not fit.
    """

    def see(path: str, _: nn.Module, args: Any, kwargs: Mapping[str, Any], output: Tensor) -> None:
        observe(path, input_of(args, kwargs), output)

    check_model(model)
    with contextlib.ExitStack() as undo:
        for path, module in checked_targets(model, experts).items():
            hook = module.register_forward_hook(functools.partial(see, path), with_kwargs=True)
            undo.callback(hook.remove)
        yield model


def on_layout_of(model: nn.Module, composition: Composition) -> Composition:
    """The composition; its experts are converted if the model lacks some of their layers."""
    modules = dict(model.named_modules(remove_duplicate=False))
    if all(path in modules for expert in composition.experts for path in expert.unstacked):
        return composition
    known = _ALIGNED.setdefault(model, weakref.WeakKeyDictionary())
    if composition not in known:  # kept, so that its layers are prepared only once
        experts = tuple(aligned_to(model, composition.experts))
        known[composition] = replace(composition, experts=experts)
    aligned: Composition = known[composition]
    return aligned


def prepared_layers(
    composition: Composition, dtype: torch.dtype, model: nn.Module | None = None
) -> tuple[ComposedLayer, ...]:
    """The layers of a composition. They are cached, at most PREPARED_BYTES for all compositions.

    model: the base, whose weights scaled experts need; other layers do not depend on it.
    """
    known: dict[torch.dtype, tuple[Any, tuple[ComposedLayer, ...]]]
    known = _PREPARED.setdefault(composition, {})
    scaled = [p for p in composition.paths if any(p in e.magnitudes for e in composition.experts)]
    mark: Any = None  # of the base weights on which layers depend
    if scaled and model is not None:
        marks = tuple(fingerprint(model.get_submodule(path)) for path in scaled)
        mark = weakref.ref(model), marks
    if dtype not in known or known[dtype][0] != mark:
        known.pop(dtype, None)  # it belongs to another model or to changed weights
        with torch.inference_mode(False), torch.no_grad():
            composed_layers = (
                composed_layer(composition, path, dtype, model) for path in composition.paths
            )
            known[dtype] = mark, tuple(layer for layer in composed_layers if layer is not None)
        sizes = {
            other: sum(layer.nbytes for _, layers in prepared.values() for layer in layers)
            for other, prepared in list(_PREPARED.items())
        }
        total = sum(sizes.values())
        for other, size in sizes.items():  # the oldest first
            if total > PREPARED_BYTES and other != composition:
                del _PREPARED[other]
                total -= size
    return known[dtype][1]


# Fitting experts to a model.


def aligned_to(model: nn.Module, adapters: Sequence[Adapter]) -> list[Adapter]:
    """The adapters with the model's names of modules, and layers split or joined as it has them.

    The conversion is exact and is noted among an adapter's issues. Layers that cannot be converted
    stay as they are.
    """
    config = getattr(model, "config", None)
    paths = [path for path, _ in model.named_modules()]

    def names() -> ModuleNames | None:
        try:
            return ModuleNames(config)
        except Exception:  # transformers may raise anything for what it does not know
            return None

    shapes = {
        path: (int(module.out_features), int(module.in_features))
        for path, module in model.named_modules()
        if hasattr(module, "out_features") and hasattr(module, "in_features")
    }
    declared = config.to_dict() if config is not None else None

    form = BaseForm(shapes, declared or {}, lambda: model)
    return in_one_layout(named_like(paths, adapters, names), form)[0]


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

    Parameters are left out (`checked_parameters`).
    """
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
    layers = dict.fromkeys(path for expert in experts for path in expert.unstacked)
    return {path: _target(model, experts, path) for path in layers}


def checked_parameters(model: nn.Module, composition: Composition) -> dict[str, TargetParameter]:
    """Stack -> the parameter of the model that the adapters change.

    Raises UnsupportedAdapter for gates that depend on the token and for weights that are quantised
    or offloaded, CompatibilityError if an adapter does not fit the model or another adapter.
    """
    parameters: dict[str, TargetParameter] = {}
    for adapter in composition.experts:
        for target in target_parameters(model, adapter):
            if not composition.router.constant:
                raise UnsupportedAdapter(
                    f"Adapter {adapter.name} changes {target.name} itself, which gates that look "
                    "at the token cannot weigh; use constant gates (uniform, sum, --weights)."
                )
            parameter = target.parameter
            if parameter.device.type == "meta" or parameter.element_size() < 2:
                raise UnsupportedAdapter(
                    f"Adapter {adapter.name} changes {target.name} itself, which the model holds "
                    "quantised or out of memory; load the base unquantised and in memory."
                )
            if parameters.setdefault(target.stack, target).name != target.name:
                raise CompatibilityError(
                    f"Adapter {adapter.name} targets {target.name} where another adapter targets "
                    f"{parameters[target.stack].name}.",
                    CODES["parameters-differ"].cure,
                )
    return parameters


def _target(model: nn.Module, experts: Sequence[Adapter], path: str) -> nn.Module:
    """The module at a path, after checking its kind and shape against every expert there."""
    present = [expert for expert in experts if path in expert.modules]
    try:
        module = model.get_submodule(path)
    except AttributeError:
        raise CompatibilityError(
            f"Adapter {present[0].name} adapts {path}, which the model does not have:",
            nearest(
                path,
                dict(model.named_modules()),
                f"it was trained on another base model; {CompatibilityError.remedy}",
            ),
        ) from None
    if hasattr(module, "base_layer"):
        raise CompatibilityError(
            f"Module {path} already carries a peft adapter; pass the plain base model."
        )
    kind, shape = _geometry(module)
    for expert in present:
        name, info = expert.name, expert.modules.info(path)
        if kind is None and info.kind == "convolution":
            raise UnsupportedAdapter(
                f"Adapter {name} changes {path}, a convolution, which a composition does not run; "
                "use an adapter that leaves it out, or merge (which keeps it)."
            )
        if kind != ("linear" if info.kind == "conv1d" else info.kind):
            article = "an" if info.kind[0] in "aeiou" else "a"
            raise CompatibilityError(
                f"Adapter {name} treats {path} as {article} {info.kind} layer, but in the model "
                f"it is a {type(module).__name__}."
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
    if type(module).__name__ == "Conv1D" and isinstance(module.weight, Tensor):
        return "linear", (module.weight.shape[0], module.weight.shape[1])
    return None, (0, 0)


def _kept(model: nn.Module, expert: Adapter, extra: Extra) -> bool:
    """Whether a composition supports a tensor that is not a factor."""
    if extra.kind == "base_copy":
        seen = _SAME_COPY.setdefault(model, weakref.WeakSet())
        copies = (other for other in expert.extras if other.kind == "base_copy")
        if expert not in seen and all(_is_copy(model, expert, other) for other in copies):
            seen.add(expert)
        return expert in seen
    if extra.kind in ("dora_magnitude", "lora_bias"):
        info = None if extra.module is None else expert.layout.get(extra.module)
        return info is not None and math.prod(extra.shape) == info.out_features
    return extra.kind in ("modules_to_save", "bias", "token_delta")


def _is_copy(model: nn.Module, expert: Adapter, extra: Extra) -> bool:
    """Whether a base weight that peft saved with the adapter equals the model's."""
    if expert.weights_file is None or extra.module is None:
        return False
    try:
        weight = model.get_submodule(extra.module).get_parameter("weight").detach()
    except AttributeError:
        return False
    return same_weight(copied_weight(expert, extra), weight)
