"""Whether a composition fits a model: every target there, of its kind and shape, nothing lost."""

from __future__ import annotations

import weakref

import torch
from torch import Tensor, nn

from loraprobe.adapter import Adapter, LayerKind
from loraprobe.adapter.tensors import open_tensors
from loraprobe.composition.contract import Composition
from loraprobe.errors import CompatibilityError, UnsupportedAdapter

_SAME_COPY: weakref.WeakKeyDictionary[nn.Module, weakref.WeakSet[Adapter]] = (
    weakref.WeakKeyDictionary()
)


def check_model(model: nn.Module) -> None:
    """Raises CompatibilityError for a model that hooks would not reach, or reach twice."""
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


def target(model: nn.Module, composition: Composition, path: str) -> nn.Module:
    """The module at a path, with its kind and shape checked against every expert there."""
    names = [composition.experts[i].name for i in composition.present(path)]
    try:
        module = model.get_submodule(path)
    except AttributeError:
        raise CompatibilityError(f"Adapter {names[0]} adapts {path}, which the model does not have"
                                 f"{_nearest(model, path)}.") from None  # fmt: skip
    if hasattr(module, "base_layer"):
        raise CompatibilityError(f"Module {path} already carries a peft adapter; pass the plain "
                                 "base model.")  # fmt: skip
    kind, shape = _geometry(module)
    for i, name in zip(composition.present(path), names, strict=True):
        info = composition.experts[i].modules.info(path)
        if kind is None or (kind == "embedding") != (info.kind == "embedding"):
            raise CompatibilityError(
                f"Adapter {name} treats {path} as {_article(info.kind)} layer, but in the model "
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
    """Kind and (in, out) of a layer; kind None for what composition cannot serve."""
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
        return "conv1d", (module.weight.shape[0], module.weight.shape[1])
    return None, (0, 0)


def _nearest(model: nn.Module, path: str) -> str:
    """A hint: the module of the model whose path shares the longest ending."""
    parts = path.split(".")
    for length in range(len(parts) - 1, 0, -1):
        for start in (parts[-length:], parts[:length]):
            ending = ".".join(start)
            for name, _ in model.named_modules():
                if name.endswith("." + ending) or name == ending:
                    return f" (the nearest it has is {name})"
    return ""


def _article(kind: str) -> str:
    return f"an {kind}" if kind[0] in "aeiou" else f"a {kind}"


def check_extras(model: nn.Module, composition: Composition) -> None:
    """Raises UnsupportedAdapter where an expert holds what a composition would drop."""
    for expert in composition.experts:
        if not expert.modules:
            raise UnsupportedAdapter(f"Adapter {expert.name} holds no LoRA factors, so it would "
                                     "silently be the base model.")  # fmt: skip
        lost = [e for e in expert.extras if e.kind != "base_copy" or not _same(model, expert)]
        if lost:
            raise UnsupportedAdapter(
                f"Adapter {expert.name} holds more than plain LoRA factors ({lost[0]}"
                f"{f' and {len(lost) - 1} more' if lost[1:] else ''}), which a composition would "
                "drop; load it with peft, or merge it into its base model there."
            )


def _same(model: nn.Module, expert: Adapter) -> bool:
    """Whether the copies of base weights that peft saved beside the factors are the model's."""
    seen = _SAME_COPY.setdefault(model, weakref.WeakSet())
    if expert not in seen and all(
        _is_copy(model, expert, extra.module, extra.key)
        for extra in expert.extras
        if extra.kind == "base_copy"
    ):
        seen.add(expert)
    return expert in seen


def _is_copy(model: nn.Module, expert: Adapter, path: str | None, key: str) -> bool:
    if expert.weights_file is None or path is None:
        return False
    try:
        weight = model.get_submodule(path).get_parameter("weight").detach()
    except AttributeError:
        return False
    copy = open_tensors(expert.weights_file.parent).read(key)
    coarse = min(copy.dtype, weight.dtype, key=lambda d: torch.finfo(d).bits)
    return copy.shape == weight.shape and bool(
        torch.equal(copy.to(coarse), weight.to(coarse).to(copy.device))
    )
