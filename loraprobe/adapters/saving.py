"""Writes an Adapter as a PEFT directory that peft loads to the same function, and reads it back."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from loraprobe.adapters.building import portable
from loraprobe.adapters.config import CONFIG, untargeted_paths
from loraprobe.adapters.experts import ORDERED_BY, owner_of, parameter_names, stacked_factors
from loraprobe.adapters.files import SAFETENSORS, open_tensors
from loraprobe.adapters.names import public_name, public_value
from loraprobe.adapters.reading import FIELDS, PREFIX, keys_of_extras, read_adapter
from loraprobe.adapters.staging import check_output, staged_directory
from loraprobe.adapters.types import Adapter, ModuleInfo
from loraprobe.errors import OutputError, UnsupportedAdapter

LINEAR_NAMES = ("lora_A.weight", "lora_B.weight")
EMBEDDING_NAMES = ("lora_embedding_A", "lora_embedding_B")
# Saving multiplies the scaling by r and reading divides by r: two roundings of a double.
SCALING_ERROR = 1e-12
# The keys of a config, besides target_modules, by which peft selects modules.
SELECTORS = ("layers_to_transform", "layers_pattern", "exclude_modules")


def save_adapter(
    adapter: Adapter,
    directory: str | Path,
    *,
    overwrite: bool = False,
    card: str | None = None,
    dtype: torch.dtype | None = None,
    targets: Sequence[str] | None = None,
) -> None:
    """Writes adapter_config.json, adapter_model.safetensors and README.md (if a card is given).

    The files are written to a temporary directory, read back and compared, and then
    moved to the target, so that the target is complete or absent. `dtype` is that of all tensors
    (default: the widest of the factors). `targets` is the config's target_modules (default: the
    path of every module). The experts of one module have one rank in a file, so an adapter whose
    experts differ is made `portable`. Raises OutputError if the target exists and overwrite is off
    or if the files read back differ, UnsupportedAdapter if extras would be lost.
    """
    from safetensors.torch import save_file

    _check_savable(adapter)
    adapter = adapter if _experts_are_alike(adapter) else portable(adapter)
    target = Path(directory)
    check_output(target, overwrite)
    dtype = dtype or adapter.dtype
    seen: set[int] = set()
    tensors = {
        PREFIX + key: unshared_tensor(tensor.detach().to(dtype), seen)
        for key, tensor in _tensors_of(adapter)
    }
    with staged_directory(target, overwrite) as staging:
        save_file(tensors, str(staging / SAFETENSORS), metadata={"format": "pt"})
        text = json.dumps(config_of(adapter, targets), indent=2, sort_keys=True, ensure_ascii=False)
        (staging / CONFIG).write_text(text + "\n", encoding="utf-8")
        if problem := next(_differences(staging, adapter, tensors), None):
            raise OutputError(
                f"What was written to {directory} is not what was meant when it is read back: "
                f"{problem}; check the disk and run again."
            )
        if card is not None:
            (staging / "README.md").write_text(card, encoding="utf-8")


def _experts_are_alike(adapter: Adapter) -> bool:
    """Whether all experts of a module have one rank and one scaling, as a file requires."""
    forms: dict[str, set[tuple[int, float]]] = {}
    for stack, paths in adapter.stacks.items():
        infos = [adapter.layout[path] for path in paths]
        forms.setdefault(owner_of(stack)[0], set()).update((i.rank, i.scaling) for i in infos)
    return all(len(alike) == 1 for alike in forms.values())


def _check_savable(adapter: Adapter) -> None:
    """Raises UnsupportedAdapter for contents that a PEFT directory cannot hold."""
    lost = [extra for extra in adapter.extras if extra.kind not in FIELDS]
    if lost:
        raise UnsupportedAdapter(
            f"Adapter {adapter.name} holds {lost[0]}, which saving would lose; merge it into its "
            "base with peft first."
        )
    if not adapter.modules:
        raise UnsupportedAdapter(
            f"Adapter {adapter.name} changes no module, so there is nothing to save."
        )
    for tensors, what in ((adapter.magnitudes, "DoRA"), (adapter.offsets, "lora_bias")):
        if tensors and set(tensors) != set(adapter.modules):
            raise UnsupportedAdapter(
                f"Adapter {adapter.name} uses {what} in some modules and not in others, which one "
                "adapter_config.json cannot say; save two adapters."
            )


def _tensors_of(adapter: Adapter) -> Iterator[tuple[str, Tensor]]:
    """(key without prefix, tensor in the shape that peft stores) of all tensors."""
    for stack, paths in adapter.stacks.items():
        A, B = stacked_factors([adapter.modules[path] for path in paths])
        yield f"{stack}.{LINEAR_NAMES[0]}", A
        yield f"{stack}.{LINEAR_NAMES[1]}", B
    for path in adapter.unstacked:
        update, info = adapter.modules[path], adapter.layout[path]
        A, B = update.A, update.B
        if info.kind == "convolution":
            A = A.unflatten(1, (-1, *info.kernel))
            B = B.reshape(*B.shape, *(1 for _ in info.kernel))
        names = EMBEDDING_NAMES if info.kind == "embedding" else LINEAR_NAMES
        yield f"{path}.{names[0]}", A
        yield f"{path}.{names[1]}", B
    for kind, key, path, tensor in keys_of_extras(adapter):
        if kind == "dora_magnitude" and adapter.layout[path].kind == "convolution":
            tensor = tensor.reshape(1, -1, *(1 for _ in adapter.layout[path].kernel))
        yield key, tensor


def config_of(adapter: Adapter, targets: Sequence[str] | None = None) -> dict[str, Any]:
    """The adapter_config.json with which peft computes the same function as the adapter.

    Ranks and scalings that differ from the commonest become patterns; their keys are whole paths,
    anchored and escaped, so that peft's suffix matching cannot confuse two modules.
    """
    infos = _infos_by_target(adapter)
    r = Counter(i.rank for i in infos.values()).most_common(1)[0][0]
    alpha = Counter(i.scaling * i.rank for i in infos.values()).most_common(1)[0][0]
    parameters = adapter.config.get("target_parameters") if adapter.stacks else None
    tokens = {path: list(rows.tokens) for path, rows in adapter.token_rows.items()}
    carried = ("auto_mapping", "revision")
    saved = {name.rpartition(".")[0] for name in adapter.whole if not name.endswith(".bias")}
    biases = {name.rpartition(".")[0] for name in adapter.whole} - saved
    # With "lora_only" peft saves the biases of adapted layers, with "all" those of every layer.
    bias = "lora_only" if biases <= adapter.layout.keys() else "all"
    return {
        **{key: public_value(adapter.config[key]) for key in carried if key in adapter.config},
        "peft_type": "LORA",
        "base_model_name_or_path": public_name(adapter.base_model),
        "inference_mode": True,
        "task_type": adapter.config.get("task_type", "CAUSAL_LM"),
        "r": r,
        "lora_alpha": _whole(alpha),
        "lora_dropout": 0.0,
        "modules_to_save": sorted(saved) or None,
        "bias": bias if biases else "none",
        "lora_bias": bool(adapter.offsets),
        "use_rslora": False,
        "use_dora": bool(adapter.magnitudes),
        "fan_in_fan_out": any(i.kind == "conv1d" for i in infos.values()),
        "init_lora_weights": True,
        "target_modules": list(targets or adapter.unstacked),
        **({"target_parameters": list(parameters)} if parameters else {}),
        **({"peft_version": ORDERED_BY} if adapter.stacks else {}),
        **({"trainable_token_indices": tokens} if tokens else {}),
        "rank_pattern": {_exact(path): i.rank for path, i in infos.items() if i.rank != r},
        "alpha_pattern": {
            _exact(path): _whole(i.scaling * i.rank)
            for path, i in infos.items()
            if i.scaling * i.rank != alpha
        },
    }


def common_targets(adapters: Sequence[Adapter], paths: Sequence[str]) -> tuple[str, ...] | None:
    """The shortest `target_modules` that selects what the adapters' own configs select together.

    None unless every config has a list of names and no other selector, and the names select all
    of `paths` by peft's rules. peft then adapts the modules that it adapts for the sources; one
    without weights in the file stays as it is.
    """
    names: set[str] = set()
    for adapter in adapters:
        listed = adapter.config.get("target_modules")
        if not isinstance(listed, (list, tuple)) or any(
            adapter.config.get(key) for key in SELECTORS
        ):
            return None
        names |= set(map(str, listed))
    targets = tuple(sorted(names))
    return targets if targets and not untargeted_paths(paths, {"target_modules": targets}) else None


def _infos_by_target(adapter: Adapter) -> dict[str, ModuleInfo]:
    """Each module by its path, and a module's targeted parameters by their full names."""
    infos = {path: adapter.layout[path] for path in adapter.unstacked}
    for stack, paths in adapter.stacks.items():
        owner, _ = owner_of(stack)
        for name in parameter_names(adapter.config, owner):
            infos[f"{owner}.{name}"] = adapter.layout[paths[0]]
    return infos


def unshared_tensor(factor: Tensor, seen: set[int]) -> Tensor:
    """A contiguous factor that shares no memory, as safetensors requires; copied where needed."""
    factor = factor.contiguous()
    whole = factor.untyped_storage().nbytes() == factor.numel() * factor.element_size()
    if not whole or factor.data_ptr() in seen:
        factor = factor.clone()
    seen.add(factor.data_ptr())
    return factor


def _exact(path: str) -> str:
    """A pattern for this path alone: anchored, so that it is never the end of a longer path."""
    return "^" + re.escape(path)


def _whole(number: float) -> int | float:
    return int(number) if float(number).is_integer() else number


def _differences(directory: Path, meant: Adapter, tensors: Mapping[str, Tensor]) -> Iterator[str]:
    """What of a written directory is not exactly these tensors and this adapter.

    Compared are the bits of every tensor, and the modules, kinds, ranks and scalings that result
    from the config. The written delta therefore differs from the intended one only by the rounding
    that a merge measures (`Merged.rounding_error`). The check reads the file once more.
    """
    file = open_tensors(directory)
    for key in sorted(file.shapes.keys() | tensors.keys()):
        if key not in tensors or key not in file.shapes:
            yield f"{key} differs: it is in one of them only"
        elif not _same_bits(file.read(key), tensors[key]):
            yield f"{key} differs"
    read = read_adapter(directory, meant.name)
    yield from (issue.message.rstrip(".") for issue in read.issues if issue.severity == "error")
    written, wanted = _outline(read), _outline(meant)
    for what in sorted(written.keys() | wanted.keys()):
        if written.get(what) != wanted.get(what):
            yield f"{what} is {written.get(what)} instead of {wanted.get(what)}"
    for path, info in read.layout.items():
        scaling = meant.layout[path].scaling
        if not math.isclose(info.scaling, scaling, rel_tol=SCALING_ERROR):
            yield f"the scaling of {path} is {info.scaling!r} instead of {scaling!r}"


def _outline(adapter: Adapter) -> dict[str, Any]:
    """What headers and config tell of an adapter, but for scalings."""
    special = ("embedding", "expert")  # the other kinds are one to peft
    return {
        **{
            f"the form of {path}": (
                *(info.rank, info.in_features, info.out_features, info.kernel),
                info.kind if info.kind in special else "linear",
            )
            for path, info in adapter.layout.items()
        },
        **{f"the magnitude of {path}": "there" for path in adapter.magnitudes},
        **{f"the offset of {path}": "there" for path in adapter.offsets},
        **{f"the whole {name}": "there" for name in adapter.whole},
        **{f"the tokens of {path}": rows.tokens for path, rows in adapter.token_rows.items()},
    }


def _same_bits(a: Tensor, b: Tensor) -> bool:
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    one, other = (t.detach().cpu().flatten().view(torch.uint8) for t in (a, b))
    return torch.equal(one, other)
