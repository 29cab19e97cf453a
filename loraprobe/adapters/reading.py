"""Reads a PEFT directory into an Adapter and accounts for every tensor of its file.

Whatever is odd but readable becomes an issue of the adapter; findings.toml lists the codes. Errors
stop a merge unless they are allowed by name. `adapter_of` builds an adapter from tensors in memory.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from loraprobe.adapters.config import CONFIG, read_config
from loraprobe.adapters.extras import as_peft_reads, extra_tensors, extras_of
from loraprobe.adapters.issues import config_issues, incompleteness, unused_issues
from loraprobe.adapters.lazy import Tensors, TokenRows
from loraprobe.adapters.sorting import KeySorting
from loraprobe.adapters.tensors import (
    PICKLE,
    SAFETENSORS,
    ShardedFile,
    disagreement,
    open_tensors,
)
from loraprobe.adapters.types import Adapter, LayerKind, ModuleInfo, Modules, Source
from loraprobe.errors import AdapterError
from loraprobe.findings import finding
from loraprobe.lora.lowrank import LowRank


def read_adapter(
    path: str | Path, name: str | None = None, source: Source | None = None
) -> Adapter:
    """Reads a PEFT directory. Factors are read from the file when they are needed.

    `name` is the adapter's name (default: the directory's). Raises AdapterError if the files cannot
    be read and UnsupportedAdapter if the configuration is not a plain LoRA.
    """
    directory = find_directory(Path(path))
    name = name or directory.resolve().name
    config = read_config(directory)
    file = open_tensors(directory)
    sorting = KeySorting(name, config, file)
    sorting.sort_keys()
    infos = sorting.pair_factors()
    extras, unused = as_peft_reads(sorting.extras, infos, config.raw)
    adapter = Adapter(
        name=name,
        source=source or Source(reference=str(path), path=directory),
        base_model=config.raw.get("base_model_name_or_path") or None,
        modules=Modules(infos, sorting.reader(infos)),
        extras=tuple(extras),
        config=dict(config.raw),
        weights_file=file.path if file.path.is_file() else None,  # None for shards
        **extra_tensors(file, extras, config.raw),
    )
    issues = [*sorting.findings(), *unused_issues(name, unused)]
    if isinstance(file, ShardedFile):
        message = f"The weights of {name} lie in shards, which peft does not load."
        issues.append(finding("sharded", (name,), message))
    elif file.path.name == PICKLE:
        message = f"The weights of {name} are a pickle ({PICKLE}), which may hold code."
        issues.append(finding("pickled", (name,), message))
    issues += [*config_issues(adapter), *incompleteness(adapter)]
    if what := disagreement(directory):
        message = (
            f"{directory} holds {SAFETENSORS} and {PICKLE}, which are not the same adapter: {what}."
        )
        issues.append(finding("weights-disagree", (name,), message))
    if not infos:
        message = "The file holds no LoRA factors that can be used."
        issues.append(finding("no-modules", (name,), message))
    return replace(adapter, issues=tuple(issues))


def find_directory(path: Path) -> Path:
    """The directory itself, or its only sub-folder with an adapter (peft's named adapters).

    Raises AdapterError if there is none, or if several sub-folders hold adapters.
    """
    if not path.is_dir():
        raise AdapterError(f"There is no directory {path}; check the path.")
    if (path / CONFIG).is_file():
        return path
    inner = sorted(p.parent for p in path.glob(f"*/{CONFIG}"))
    if len(inner) > 1:
        names = ", ".join(map(str, inner))
        raise AdapterError(f"{path} holds several adapters; name one of {names}.")
    if inner:
        return inner[0]
    if (path / "config.json").is_file():
        raise AdapterError(f"{path} is a whole model, not an adapter; give it as --base.")
    raise AdapterError(
        f"{path} has no {CONFIG}, so it is no PEFT adapter; "
        "give the directory that save_pretrained wrote."
    )


def adapter_of(
    name: str,
    modules: Mapping[str, LowRank],
    *,
    kinds: Mapping[str, LayerKind] | None = None,
    base_model: str | None = None,
    config: Mapping[str, Any] | None = None,
    source: Source | None = None,
    kernels: Mapping[str, tuple[int, ...]] | None = None,
    magnitudes: Mapping[str, Tensor] | None = None,
    whole: Mapping[str, Tensor] | None = None,
    offsets: Mapping[str, Tensor] | None = None,
    token_rows: Mapping[str, TokenRows] | None = None,
) -> Adapter:
    """Builds an adapter from tensors in memory: a merge, a random control, a test case.

    modules: path -> LowRank (A: [r, in], B: [out, r]); kinds: path -> kind, linear if absent;
    kernels: path -> kernel of a convolution. magnitudes, whole, offsets, token_rows: as in
    `Adapter`; they are also listed as extras. Raises ValueError for a kernel that does not fit its
    module.
    """
    kinds, kernels = kinds or {}, kernels or {}
    infos = {
        path: _info(path, update, kinds.get(path, "linear"), kernels.get(path, ()))
        for path, update in modules.items()
    }
    made = Adapter(
        name=name,
        source=source or Source(reference=name),
        base_model=base_model,
        modules=Modules(infos, dict(modules).__getitem__),
        config=dict(config or {}),
        magnitudes=_held(magnitudes),
        whole=_held(whole),
        offsets=_held(offsets),
        token_rows=dict(token_rows or {}),
    )
    return replace(made, extras=extras_of(made))


def _held(given: Mapping[str, Tensor] | None) -> Tensors:
    held = dict(given or {})
    return Tensors(held, held.__getitem__)


def _info(path: str, update: LowRank, kind: LayerKind, kernel: tuple[int, ...]) -> ModuleInfo:
    if update.in_features % math.prod(kernel):
        raise ValueError(f"kernel {kernel} does not divide the columns of {path}")
    dtype = torch.promote_types(update.A.dtype, update.B.dtype)
    rows, columns, scaling = update.out_features, update.in_features, float(update.scaling)
    return ModuleInfo(path, kind, update.rank, columns, rows, scaling, dtype, kernel)
