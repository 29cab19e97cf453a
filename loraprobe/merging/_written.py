"""The adapter that a merge gives back, held in memory, and what is said about it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from loraprobe.adapter import Adapter, LayerKind, ModuleInfo, Source, adapter_of
from loraprobe.lowrank import LowRank
from loraprobe.records import Issue

# A merge that lost more than this share of its delta says so.
COMPRESSION_LIMIT = 0.1


def written(
    name: str,
    adapters: Sequence[Adapter],
    infos: Mapping[str, ModuleInfo],
    modules: Mapping[str, LowRank],
    **beside: Mapping[str, Tensor],
) -> Adapter:
    """The adapter in memory; base, task type and the like are those that the sources agree on.

    beside: magnitudes, whole and offsets, as `adapter_of` takes them.
    """
    kinds: dict[str, LayerKind] = {path: info.kind for path, info in infos.items()}
    bases = [a.base_model for a in adapters if a.base_model]
    config = {key: _agreed(adapters, key) for key in ("task_type", "auto_mapping")}
    named = [a for a in adapters if bases and a.base_model == bases[0]]
    config["revision"] = _agreed(named, "revision")
    made_of = ", ".join(a.source.public for a in adapters)
    return adapter_of(
        name,
        modules,
        kinds=kinds,
        kernels={path: info.kernel for path, info in infos.items() if info.kernel},
        base_model=bases[0] if bases else None,
        config=config,
        source=Source(reference=f"{name}({made_of})"),
        **beside,
    )


def _agreed(adapters: Sequence[Adapter], key: str) -> Any:
    """What the configs that have a value for a key agree on, else None, which peft takes too."""
    values = [a.config[key] for a in adapters if a.config.get(key)]
    return values[0] if values and all(value == values[0] for value in values) else None


def said(adapters: Sequence[Adapter], lost: float) -> list[Issue]:
    """What whoever gets the result must be told."""
    names = tuple(a.name for a in adapters)
    said = []
    bases = sorted({a.base_model for a in adapters if a.base_model})
    if len(bases) > 1:
        message = f"The sources name different bases ({', '.join(bases)}); the first's is kept."
        cure = "Merge adapters of one base."
        said.append(Issue("warning", "base-mismatch", names, message, cure))
    if lost > COMPRESSION_LIMIT:
        message = f"The rank keeps all but {lost:.0%} of the merged delta (Frobenius norm)."
        cure = "Give a larger --rank; an elementwise method in the full space has no low rank."
        said.append(Issue("warning", "compression-lost", names, message, cure))
    return said
