"""Loads an adapter with peft onto a model of meta tensors, which needs no base weights."""

from __future__ import annotations

import math
import re
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from torch import nn

from loraprobe.adapters import Adapter, ModuleInfo
from loraprobe.adapters.config import Config, read_config
from loraprobe.adapters.experts import (
    owner_of,
    parameter_names,
    stack_of,
    stacks,
    without_experts,
)
from loraprobe.adapters.expressions import PLAIN, ExpressionError
from loraprobe.adapters.targeting import Names, untargeted
from loraprobe.adapters.tensors import open_tensors

# Parts of the keys of an adapter's own tensors.
OWN = ("lora_", "modules_to_save", "trainable_tokens")


def problems_in_peft(directory: Path, adapter: Adapter) -> list[str]:
    """The keys, ranks and shapes that peft does not match when it loads the directory.

    The model has a layer of the right kind and shape at each path that the adapter names. The
    target modules and ranks of the directory's config are computed here, where expressions have
    limits; peft gets plain paths.
    """
    from peft import get_peft_model
    from peft.utils import set_peft_model_state_dict

    directory_config = read_config(directory)
    try:
        left_out = untargeted(without_experts(adapter.layout), directory_config.raw)
    except ExpressionError as error:
        return [f"peft does not load it: {error}"]
    wrong = [f"peft leaves {path} out, which the config does not target" for path in left_out]
    ranks = directory_config.ranks_and_scalings(without_experts(adapter.layout))
    wrong += [
        f"peft gives {path} rank {rank}"
        for path, (rank, _) in ranks.items()
        if rank != adapter.layout[path].rank
    ]
    config = _plain_config(directory_config, adapter)
    file = open_tensors(directory)
    state = {key: file.read(key) for key in file.shapes}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = get_peft_model(skeleton(adapter), config, low_cpu_mem_usage=True)
        found: Any = set_peft_model_state_dict(model, state, low_cpu_mem_usage=True)
    wrong += [f"peft finds no place for {key}" for key in found.unexpected_keys]
    lost = [key for key in found.missing_keys if any(name in key for name in OWN)]
    wrong += [f"peft misses {key}" for key in lost]
    loaded = {name.replace(".default", ""): p for name, p in model.named_parameters()}
    for key, tensor in state.items():
        place = loaded.get(key, loaded.get(f"{key}.weight"))
        if place is not None and tuple(place.shape) != tuple(tensor.shape):
            wrong.append(f"peft gives {key} the shape {list(place.shape)}")
    return wrong


def _plain_config(directory_config: Config, adapter: Adapter) -> Any:
    """An equivalent peft config without expressions: modules and ranks by (escaped) paths.

    Raises ExpressionError for a whole module whose path peft would read as an expression.
    """
    from peft import LoraConfig

    saved = directory_config.raw.get("modules_to_save") or []
    names = Names([saved] if isinstance(saved, str) else saved)
    whole = {name.rpartition(".")[0] for name in adapter.whole}
    kept = sorted(path for path in whole if names.fits(path))
    if odd := [path for path in kept if not PLAIN.fullmatch(path)]:
        raise ExpressionError(f"peft would read the module path {odd[0]!r} as an expression")
    layers = without_experts(adapter.layout)
    parameters = {name: adapter.layout[path] for name, path in _parameters(adapter).items()}
    infos = {path: adapter.layout[path] for path in layers} | parameters
    ranks: dict[int, list[str]] = {}
    for name, info in infos.items():
        ranks.setdefault(info.rank, []).append(re.escape(name))
    r = Counter(info.rank for info in infos.values()).most_common(1)[0][0]
    return LoraConfig(
        r=r,
        target_modules=layers,
        target_parameters=list(parameters) or None,
        rank_pattern={f"^(?:{'|'.join(paths)})": n for n, paths in ranks.items() if n != r},
        modules_to_save=kept or None,
        trainable_token_indices={p: list(rows.tokens) for p, rows in adapter.token_rows.items()}
        or None,
        bias=directory_config.raw.get("bias") or "none",
        fan_in_fan_out=bool(directory_config.raw.get("fan_in_fan_out")),
        use_dora=bool(directory_config.raw.get("use_dora")),
        lora_bias=bool(directory_config.raw.get("lora_bias")),
        inference_mode=True,
    )


def skeleton(adapter: Adapter) -> nn.Module:
    """A tree of modules on the meta device with a layer at each path of the adapter."""
    root = nn.Module()
    layers = {path: _layer(adapter.layout[path]) for path in without_experts(adapter.layout)}
    for name, path in _parameters(adapter).items():
        owner, _, attribute = name.rpartition(".")
        stack, info = stack_of(path)[0], adapter.layout[path]
        shape = (len(stacks(adapter.layout)[stack]), info.out_features, info.in_features)
        empty = nn.Parameter(torch.empty(shape, device="meta"))
        layers.setdefault(owner, nn.Module()).register_parameter(attribute, empty)
    for name, tensor in adapter.whole.items():
        path, _, what = name.rpartition(".")
        if what == "bias" or path not in layers:
            kind = "bias" if what == "bias" else "weight"
            empty = nn.Parameter(torch.empty(tensor.shape, device="meta"))
            layers.setdefault(path, nn.Module()).register_parameter(kind, empty)
    for path, rows in adapter.token_rows.items():
        with torch.device("meta"):
            layers[path] = nn.Embedding(max(rows.tokens) + 1, rows.values.shape[1])
    for path in sorted(layers, key=lambda p: p.count(".")):
        parent = root
        *parents, name = path.split(".")
        for part in parents:
            if part not in parent._modules:
                parent.add_module(part, nn.Module())
            parent = parent.get_submodule(part)
        parent.add_module(name, layers[path])
    return root


def _parameters(adapter: Adapter) -> dict[str, str]:
    """Full name of a parameter -> the path of its first expert, the innermost parameter first.

    Which of several names is whose depends on the base; peft matches keys and shapes either way.
    """
    found: dict[str, str] = {}
    for stack, paths in sorted(stacks(adapter.layout).items(), key=lambda held: -len(held[0])):
        owner, depth = owner_of(stack)
        found[f"{owner}.{parameter_names(adapter.config, owner)[depth]}"] = paths[0]
    return found


def _layer(info: ModuleInfo) -> nn.Module:
    """A layer of the kind and shape of a module, without data."""
    with torch.device("meta"):
        if info.kind == "embedding":
            return nn.Embedding(info.in_features, info.out_features)
        if info.kind == "conv1d":
            from transformers.pytorch_utils import Conv1D

            return Conv1D(info.out_features, info.in_features)
        if info.kind == "convolution":
            made = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}[len(info.kernel)]
            channels = info.in_features // math.prod(info.kernel)
            return made(channels, info.out_features, info.kernel)  # type: ignore[arg-type]
        return nn.Linear(info.in_features, info.out_features, bias=False)
