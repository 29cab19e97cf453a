"""Rewrites adapters for other readers: one rank and one scaling, and the paths that peft looks for.

peft reads a rank and a scaling for each module (`rank_pattern`, `alpha_pattern`). vLLM reads only
`r` and `lora_alpha`; llama.cpp divides the one `lora_alpha` by the rank of each tensor. All of them
agree where every module has the rank `r` and the scaling `lora_alpha / r`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from torch import Tensor
from torch.nn.functional import pad

from loraprobe.adapters.extras import WRITTEN
from loraprobe.adapters.keys import PREFIX
from loraprobe.adapters.lazy import Tensors
from loraprobe.adapters.targeting import untargeted
from loraprobe.adapters.types import Adapter, Modules
from loraprobe.lora.lowrank import LowRank

# The keys of a config, besides target_modules, by which peft selects modules.
SELECTORS = ("layers_to_transform", "layers_pattern", "exclude_modules")
# Findings that are gone once an adapter is written again (`loraprobe convert`).
MENDABLE = frozenset({"doubled-prefix", "unprefixed-keys", "sharded", "pickled"})
MENDED = MENDABLE | {"tensors-unused"}


def portable(adapter: Adapter) -> Adapter:
    """The same deltas with one rank and one scaling in all modules.

    Smaller ranks are filled up with zeros, which changes no bit of a delta. The scaling is
    multiplied into B where modules differ in it, or where lora_alpha would not be a whole number;
    B is then rounded to its dtype.
    """
    infos = adapter.layout
    if not infos:
        return adapter
    rank = max(info.rank for info in infos.values())
    scalings = {info.scaling for info in infos.values()}
    fold = len(scalings) > 1 or not float(max(scalings) * rank).is_integer()

    def folded(B: Tensor, scaling: float) -> Tensor:
        return (B.double() * scaling).to(B.dtype) if fold else B

    def read(path: str) -> LowRank:
        update = adapter.modules[path]
        A, B = update.A, folded(update.B, update.scaling)
        if more := rank - update.rank:  # padding by nothing copies
            A, B = pad(A, (0, 0, 0, more)), pad(B, (0, more))
        return LowRank(A, B, 1.0 if fold else update.scaling)

    made = {
        path: replace(info, rank=rank, scaling=1.0 if fold else info.scaling)
        for path, info in infos.items()
    }
    offsets = {path: folded(b, infos[path].scaling) for path, b in adapter.offsets.items()}
    return replace(adapter, modules=Modules(made, read), offsets=offsets, weights_file=None)


def mended(adapter: Adapter) -> Adapter:
    """The adapter with the paths of its base's modules, and only tensors that can be written.

    A module whose keys have peft's prefix twice gets the path that peft would look for. The caller
    refuses extras that must not be dropped.
    """
    places = (*adapter.layout, *adapter.whole, *adapter.token_rows)
    names = {path: _unwrapped(path) for path in places}
    if len(set(names.values())) < len(names):  # one of two would be lost
        return adapter
    paths = {new: old for old, new in names.items()}
    infos = {names[path]: replace(i, path=names[path]) for path, i in adapter.layout.items()}

    def renamed(held: Mapping[str, Tensor]) -> Tensors:
        return Tensors([names[name] for name in held], lambda name: held[paths[name]])

    return replace(
        adapter,
        modules=Modules(infos, lambda path: adapter.modules[paths[path]]),
        magnitudes=renamed(adapter.magnitudes),
        whole=renamed(adapter.whole),
        offsets=renamed(adapter.offsets),
        token_rows={names[path]: rows for path, rows in adapter.token_rows.items()},
        extras=tuple(extra for extra in adapter.extras if extra.kind in WRITTEN),
        issues=tuple(issue for issue in adapter.issues if issue.code not in MENDED),
    )


def _unwrapped(path: str) -> str:
    while path.startswith(PREFIX):
        path = path.removeprefix(PREFIX)
    return path


def common_targets(adapters: Sequence[Adapter], paths: Sequence[str]) -> tuple[str, ...] | None:
    """The shortest `target_modules` that selects what the adapters' own configs select together.

    None unless every config has a list of names and no other selector, and the names select all
    of `paths` by peft's rules. peft then adapts the modules that it adapts for the sources; one
    without weights in the file stays as it is.
    """
    names: set[str] = set()
    for adapter in adapters:
        own = adapter.config.get("target_modules")
        if not isinstance(own, (list, tuple)) or any(adapter.config.get(key) for key in SELECTORS):
            return None
        names |= set(map(str, own))
    found = tuple(sorted(names))
    if not found or untargeted(paths, {"target_modules": found}):
        return None
    return found
