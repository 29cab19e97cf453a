"""Whether an adapter is what it promises to be: complete, and of a size that training gives.

A file that lost modules loads in peft without a word: what is absent keeps its initial value, which
is no effect. Without the base nobody can know all modules, so these are warnings.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from loraprobe.adapters.expressions import ExpressionError
from loraprobe.adapters.paths import layer_pattern
from loraprobe.adapters.targeting import Names, untargeted
from loraprobe.adapters.types import Extra, ModuleInfo
from loraprobe.defaults import EXTREME_NORM
from loraprobe.formatting import count, listing
from loraprobe.records import Issue


def completeness(
    name: str, infos: Mapping[str, ModuleInfo], config: Mapping[str, Any], extras: Sequence[Extra]
) -> list[Issue]:
    """Targets without weights and weights without targets; layers that lack a module beside its
    neighbours."""
    held = [*infos, *(extra.module for extra in extras if extra.module)]
    found = [*_targets(name, held, config), *_layers(name, infos), *_shapes(name, infos)]
    try:
        beyond = untargeted(infos, config)
    except ExpressionError as error:
        beyond = []
        found.append(
            Issue(
                "error",
                "targets-unreadable",
                (name,),
                f"The config's targets cannot be read as peft reads them: {error}.",
                "Correct target_modules, exclude_modules, modules_to_save or layers_pattern in "
                "adapter_config.json.",
            )
        )
    if beyond:
        found.append(
            Issue(
                "warning",
                "weights-untargeted",
                (name,),
                f"The file holds weights for {count(len(beyond), 'module')} that the config does "
                f"not target, {beyond[0]} first: used here, but peft would leave them out.",
                "Correct target_modules in adapter_config.json, or remove those weights.",
                beyond[0],
            )
        )
    return found


def _targets(name: str, held: Collection[str], config: Mapping[str, Any]) -> list[Issue]:
    targets = config.get("target_modules")
    if not isinstance(targets, (list, tuple)) or not held:
        return []  # a regular expression, "all-linear" or nothing: no list of promises
    names = Names(targets)
    met = {name for path in held for name in names.of(path)}
    lost = [str(target) for target in targets if str(target) not in met]
    if not lost:
        return []
    return [
        Issue(
            "warning",
            "targets-without-weights",
            (name,),
            f"The config targets {listing(lost[:4])}{' and more' if lost[4:] else ''}, for which "
            "the file holds no weights: where the base has such modules they stay untouched.",
            "Make sure that the file is complete and that the base has no such modules.",
        )
    ]


def _layers(name: str, paths: Collection[str]) -> list[Issue]:
    """A parent, such as `self_attn`, has the same children in every layer in which it occurs."""
    children: dict[str, dict[str, set[str]]] = {}
    for path in paths:
        parent, _, child = path.rpartition(".")
        children.setdefault(layer_pattern(parent), {}).setdefault(parent, set()).add(child)
    lost = []
    for parents in children.values():
        everywhere = set().union(*parents.values())
        lost += [f"{p}.{c}" for p, own in parents.items() for c in sorted(everywhere - own)]
    if not lost:
        return []
    return [
        Issue(
            "warning",
            "layers-uneven",
            (name,),
            f"{len(lost)} {'module lacks' if len(lost) == 1 else 'modules lack'} weights that "
            f"other layers have, {lost[0]} first.",
            "Unless it was trained so, the file is incomplete; save or download it again.",
            lost[0],
        )
    ]


def _shapes(name: str, infos: Mapping[str, ModuleInfo]) -> list[Issue]:
    """A module that repeats in every layer has one shape in all of them, in nearly all models."""
    shapes: dict[str, set[tuple[int, int]]] = {}
    for path, info in infos.items():
        shapes.setdefault(layer_pattern(path), set()).add((info.out_features, info.in_features))
    uneven = {pattern: found for pattern, found in shapes.items() if len(found) > 1}
    if not uneven:
        return []
    pattern, found = next(iter(uneven.items()))
    listed = " and ".join(str(list(shape)) for shape in sorted(found)[:3])
    return [
        Issue(
            "note",
            "shapes-uneven",
            (name,),
            f"{pattern} has different shapes in different layers, such as {listed}.",
            "If the base's layers are alike, the file is damaged.",
        )
    ]


def extreme_norm(name: str, norm: float, path: str) -> Iterator[Issue]:
    """A finding if the largest delta of an adapter, that of module `path`, is out of all bounds."""
    if norm > EXTREME_NORM:
        yield Issue(
            "warning", "norm-extreme", (name,),
            f"The delta of {name} in {path} has a Frobenius norm of {norm:.0f}, beyond "
            f"{EXTREME_NORM:.0f}; sound adapters that were measured stay below 20.",
            "Its training probably diverged; take an earlier checkpoint, or look at its outputs "
            "before composing it.", path,
        )  # fmt: skip
